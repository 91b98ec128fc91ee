"""Certificates: does a verification function emit the target's law?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from .decoding import Decoding, Verifier, fused, texts
from .exact import LARGEST_ERROR, error_of
from .models import Case, processed, random_bins, random_grammar, random_models
from .statistics import FEWEST, detectable, g_test, quantile

#: The probability that any test of a run fails although nothing is wrong (Bonferroni), up to the chi-square approximation.
FALSE_ALARM = 1e-6

#: Rules that can be certified; the first four are those of ``verify.rejection``.
RULES = ("token", "block", "traversal", "greedy_plus_one", "match", "threshold", "sample")

#: ``trials x rows x V`` that a case may read: one to two seconds of two CPU cores.
WORK = 2e8


class Certificate(NamedTuple):
    """The outcome of one test.

    Attributes:
        op: the function under test.
        rule: its rule.
        backend: where it ran.
        case: what was decoded.
        trials: texts; of an enumeration, branches.
        tokens: tokens of a text, whose joint law was tested.
        steps: the fewest steps that a text took.
        accepted: mean number of drafts accepted per step; NaN where none were counted.
        statistic: of the G-test; of an enumeration, the largest error of a probability.
        degrees: its degrees of freedom.
        threshold: what the statistic must not exceed.
        p_value: how probable such a statistic is if nothing is wrong.
        finds: the total-variation distance from the target's law, of the outcomes that are counted, that this test finds
            with probability 0.99. Where tokens are gathered into bins the laws of tokens may be further apart.
        passed: whether the law is the target's, as far as the test can tell.
    """

    op: str
    rule: str
    backend: str
    case: str
    trials: int
    tokens: int
    steps: int
    accepted: float
    statistic: float
    degrees: int
    threshold: float
    p_value: float
    finds: float
    passed: bool


def _tree(*children: int) -> tuple[int, ...]:
    """Parents, in pre-order, of a tree whose nodes of depth ``d`` have ``children[d]`` children each."""
    parents = [-1]

    def grow(node: int, depth: int) -> None:
        for _ in range(children[depth] if depth < len(children) else 0):
            parents.append(node)
            grow(len(parents) - 1, depth + 1)

    grow(0, 0)
    return tuple(parents)


CHAIN_1, CHAIN_2 = _tree(1), _tree(1, 1)
UNEVEN = (-1, 0, 1, 1, 3, 0, 5)  # a bushy child and a thin one


def cases_of(rule: str, seed: int = 0, chains_only: bool = False) -> list[Case]:
    """The standard cases of a rule: texts of at least three steps, random laws that depend on the text.

    Args:
        rule: one of :data:`RULES`.
        seed: of the random laws.
        chains_only: without trees, for functions that do not take them.

    Raises:
        ValueError: if there is no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"certify: rule must be one of {', '.join(map(repr, RULES))}, got {rule!r}")
    near, far = random_models(5, 5, 101 + seed), random_models(5, 5, 102 + seed, apart=3.0)
    some, many = random_models(7, 300, 103 + seed, apart=0.7), random_models(4, 50_000, 104 + seed, apart=0.7)
    bins5, bins300, bins50k = (
        random_bins(near[0], 2, 7 + seed),
        random_bins(some[0], 3, 8 + seed),
        random_bins(many[0], 2, 9 + seed),
    )
    filters: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
    chosen: dict[str, Any] = {"draft_settings": {"temperature": 0.0}} if rule == "threshold" else {}
    one: dict[str, Any] = {"parents": CHAIN_1, "length": 5, "rule": rule, **chosen}
    two: dict[str, Any] = {"parents": CHAIN_2, "length": 7, "rule": rule, **chosen}
    siblings: dict[str, Any] = {"parents": _tree(2), "length": 5, "rule": rule, **chosen}
    uneven: dict[str, Any] = {"parents": UNEVEN, "length": 10, "rule": rule, "bins": bins5, **chosen}
    if rule == "sample":
        plain: dict[str, Any] = {"parents": (-1,), "length": 4, "rule": rule}
        return [
            Case(*near, **plain, name="V=5"),
            Case(*some, **plain, settings=filters, bins=bins300, name="V=300, filters"),
            Case(*many, **plain, bins=bins50k, name="V=50,000"),
            Case(*near, **plain, allowed=random_grammar(5, 5, 105 + seed), name="a grammar, V=5"),
        ]
    found = [
        Case(*near, **one, name="chain of 1, V=5"),
        Case(*far, **two, bins=bins5, name="chain of 2, a drafter far off, V=5"),
        Case(*some, **two, settings=filters, bins=bins300, name="chain of 2, the target filtered, V=300")
        if rule == "threshold"
        else Case(
            *some,
            **two,
            settings=filters,
            draft_settings={"temperature": 0.6, "min_p": 0.02},
            bins=bins300,
            name="chain of 2, both filtered, V=300",
        ),
        Case(*many, **two, bins=bins50k, name="chain of 2, V=50,000"),
    ]
    if chains_only:
        return found
    grammar = random_grammar(5, 5, 105 + seed)
    found.append(Case(*near, **two, allowed=grammar, bins=bins5, name="chain of 2, a grammar for the target, V=5"))
    # About half of the drafter's rows are sure enough.
    sure = processed(near[1], {"temperature": 1.0}, grammar).amax(1).median()
    guarded: dict[str, Any] = {"allowed": grammar, "drafts_allowed": True, "stops": {"min_confidence": float(sure)}}
    if rule == "greedy_plus_one":
        # All nodes of a depth have as many children: the last is the sampled one.
        found += [
            Case(*near, **siblings, name="2 children, V=5"),
            Case(*near, parents=_tree(3, 2), length=7, rule=rule, bins=bins5, name="tree 3x2, V=5"),
            Case(*many, parents=_tree(2, 1), length=7, rule=rule, bins=bins50k, name="tree 2x1, V=50,000"),
            Case(*near, **siblings | guarded, name="2 children, a grammar for both, drafts that stop, V=5"),
        ]
        return found
    found += [
        Case(*near, **siblings, name="2 siblings without replacement, V=5"),
        Case(*near, **uneven, name="uneven tree without replacement, V=5"),
        Case(*many, parents=_tree(2, 1), length=7, rule=rule, bins=bins50k, **chosen, name="tree 2x1, V=50,000"),
        Case(*near, **uneven | guarded, name="uneven tree, a grammar for both, drafts that stop, V=5"),
    ]
    if rule == "match":
        found += [
            Case(*near, **two, coupled=True, bins=bins5, name="chain of 2, coupled, V=5"),
            Case(*near, **uneven, coupled=True, name="uneven tree, coupled, V=5"),
        ]
    elif rule != "threshold":
        found += [
            Case(*near, **siblings, replacement=True, name="2 siblings with replacement, V=5"),
            Case(*near, **uneven, replacement=True, name="uneven tree with replacement, V=5"),
            Case(
                *far,
                parents=_tree(3),
                length=5,
                rule=rule,
                replacement=True,
                bins=bins5,
                name="3 siblings, many duplicates",
            ),
        ]
    return found


def exact_cases_of(rule: str, seed: int = 0) -> list[Case]:
    """Cases small enough to be enumerated, every draft and coin: what the ``reference`` backend is certified by."""
    two, three = random_models(2, 2, 201 + seed), random_models(3, 3, 202 + seed)
    cases = [Case(*three, parents=CHAIN_1, length=3, name="chain of 1, V=3")]
    if rule == "sample":
        cases = [Case(*three, parents=(-1,), length=3, settings={"top_k": 2}, name="V=3, filtered")]
    else:
        cases += [
            Case(*two, parents=CHAIN_1, length=5, name="chain of 1, three steps, V=2"),
            Case(*two, parents=_tree(1, 1), length=4, name="chain of 2, V=2"),
            Case(
                *three, parents=_tree(2), length=2, settings={"top_p": 0.8}, name="2 siblings, the target filtered, V=3"
            ),
            Case(*two, parents=_tree(2, 1), length=3, name="tree 2x1, V=2"),
            Case(
                *three,
                parents=_tree(1, 1),
                length=2,
                allowed=random_grammar(3, 3, 203 + seed),
                drafts_allowed=True,
                stops={"min_confidence": 0.7},
                name="chain of 2, a grammar for both, drafts that stop, V=3",
            ),
        ]
    if rule in ("token", "block", "traversal"):
        cases.append(
            Case(*three, parents=_tree(2), length=2, replacement=True, name="2 siblings with replacement, V=3")
        )
    chosen: dict[str, Any] = {"draft_settings": {"temperature": 0.0}} if rule == "threshold" else {}
    return [replace(case, rule=rule, **chosen) for case in cases]


def trials_of(case: Case, trials: int | None) -> int:
    """How many texts of a case to decode: as asked, or as many as the standard work allows."""
    if trials is not None:
        return trials
    per_text = 3 * 2 * len(case.parents) * (case.vocab + 400)
    return max(2_000, min(200_000, int(WORK / per_text)))


def certify(
    verifier: Verifier | None = None,
    rule: str = "token",
    *,
    backend: str | None = None,
    device: str = "cpu",
    cases: Iterable[Case] | None = None,
    trials: int | None = None,
    seed: int = 0,
    tests: int | None = None,
    op: str | None = None,
) -> Iterator[Certificate]:
    """Test the joint law of the first tokens of many texts that a verification function has decoded.

    Every text starts from the same token and takes at least three steps; drafts are drawn by ``sample.draft``. The
    counts of all texts are held against the exact law of plain sampling by a G-test. The oracle (backend ``reference``)
    is not tried but enumerated: every draft and every coin of a few tiny cases; the statistic is the largest error of a
    probability, and noise that is met twice fails as well (but for ``"threshold"``, whose children share a coin).

    Args:
        verifier: the function under test, ``verifier(step) -> (tokens [B, width], num_tokens [B])``; None: our own op.
        rule: one of :data:`RULES`: which of our ops, and which cases.
        backend: of our ops, as in :func:`specdec_kernels.use_backend`.
        device: of the tensors that the function is given.
        cases: what to decode; None: :func:`cases_of`.
        trials: texts per case; None: as many as take some seconds.
        seed: of the texts.
        tests: how many tests the run has in all, for Bonferroni's correction; None: the number of cases.
        op: what to call the function.

    Yields:
        A :class:`Certificate` per case.

    Raises:
        ValueError: on an unknown rule, if ``trials`` are too few to tell anything, or if the function emits nothing, or
            what is no token.

    Deterministic for our own ops. Source: the G-test is Wilks's likelihood ratio; Bonferroni over all tests.
    """
    exact = verifier is None and backend == "reference"
    chosen = list((exact_cases_of if exact else cases_of)(rule, seed) if cases is None else cases)
    if trials is not None and trials < 1:
        raise ValueError(f"certify: trials must be at least 1, got {trials}")
    false_alarm = FALSE_ALARM / max(1, tests or len(chosen))
    under_test = fused(backend) if verifier is None else verifier
    drafts = backend if verifier is None else None
    for case in chosen:
        if exact:
            yield _enumerated(case, seed)
            continue
        count = trials_of(case, trials)
        made = texts(Decoding(case, under_test, drafts, device), count, seed)
        result = g_test(made.found, case.expected())
        if result.degrees < 1 and result.p_value > 0:  # nothing could have failed
            raise ValueError(f"certify: trials must give two outcomes {FEWEST} texts each, got {count} for {case.name}")
        limit = quantile(false_alarm, result.degrees)
        yield Certificate(
            op=op or _op_of(case.rule),
            rule=case.rule,
            backend=backend or ("automatic" if verifier is None else device),
            case=case.name,
            trials=count,
            tokens=case.length,
            steps=made.fewest,
            accepted=made.accepted / made.steps,
            statistic=result.statistic,
            degrees=result.degrees,
            threshold=limit,
            p_value=result.p_value,
            finds=detectable(count, result.degrees, limit),
            passed=result.statistic <= limit,
        )


def _enumerated(case: Case, seed: int) -> Certificate:
    error, found = error_of(case, seed)
    # Coupled drafts share the target's noise, and thresholds toss one coin for all children.
    shared = case.coupled or case.rule == "threshold"
    passed = error < LARGEST_ERROR and (shared or found.reused == 0)
    fewest = -(-case.length // (max(case.depths) + 1))
    return Certificate(
        op=_op_of(case.rule),
        rule=case.rule,
        backend="reference",
        case=case.name,
        trials=found.branches,
        tokens=case.length,
        steps=fewest,
        accepted=float("nan"),
        statistic=error,
        degrees=0,
        threshold=LARGEST_ERROR,
        p_value=float(passed),
        finds=LARGEST_ERROR,
        passed=passed,
    )


def _op_of(rule: str) -> str:
    if rule == "sample":
        return "sample.sample"
    return f"verify.{rule}" if rule in ("match", "threshold") else "verify.rejection"
