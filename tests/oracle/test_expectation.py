"""The closed-form means against the enumeration of every coin, and what theory says of the rules."""

import pytest
import torch

from python_ref import ops
from python_ref.ops import expectation
from python_ref.ops.mass import Mass

from .decoding import Case, _draft, _in_preorder, deterministic
from .enumeration import Enumerator, World, random_table

P3, Q3 = random_table(3, 1), random_table(3, 2)
P4, Q4 = random_table(4, 3), random_table(4, 4)

CASES = {
    "chain": Case(P4, Q4, (1, 1, 1)),
    "siblings": Case(P4, Q4, (3,)),
    "tree": Case(P3, Q3, (2, (1, 0))),
    "tree with replacement": Case(P3, Q3, (1, 2), replacement=True),
    "filtered": Case(P4, Q4, (2, 1), target_settings=(("top_k", 3),), draft_settings=(("top_p", 0.8),)),
    "deterministic": deterministic(Case(P4, Q4, (2, 1))),
    "target at temperature 0": Case(P3, Q3, (2, 1), target_settings=(("temperature", 0.0),)),
}


def call(case, tree):
    """The arguments that ``rejection`` and ``expect`` share."""
    rows = tree.tokens.clamp(min=0)
    settings = ops.Sampling.of(1, seed=case.seed, **dict(case.target_settings))
    drawn = ops.Sampling.of(1, **dict(case.draft_settings))
    return (tree, case.target[rows], case.drafter[rows], settings, drawn)


def trees(case):
    """Every tree that the drafter may draw, with its probability."""
    for nodes, world in Enumerator(World()).branches(lambda: _draft(case, (0,))):
        yield _in_preorder(nodes), world


def enumerated(case, tree, world, rule, limit):
    """The mean of ``num_tokens`` over coins and residuals, branch by branch."""
    arguments = call(case, tree)
    clamp = torch.tensor([limit])

    def program():
        context = torch.zeros(1, dtype=torch.int64)
        made = ops.verify.rejection(*arguments, context, rule=rule, replacement=case.replacement, max_tokens=clamp)
        return int(made.num_tokens[0])

    total = sum(number * after.probability for number, after in Enumerator(world).branches(program))
    return total / world.probability


@pytest.mark.parametrize("rule", ["token", "traversal", "greedy_plus_one"])
@pytest.mark.parametrize("name", CASES)
def test_the_mean_is_that_of_every_coin(name, rule):
    case = CASES[name]
    if rule == "greedy_plus_one":
        case = Case(**{**vars(case), "rule": rule})
    checked = 0
    for tree, world in trees(case):
        for limit in (tree.max_depth + 1, 2):
            clamp = torch.tensor([limit])
            made = ops.verify.expect(*call(case, tree), replacement=case.replacement, max_tokens=clamp)
            assert float(getattr(made, rule)) == pytest.approx(enumerated(case, tree, world, rule, limit), abs=1e-6)
        checked += 1
        if checked == 4:
            break
    assert checked


def random_case(seed):
    shapes = ((1, 1), (2,), (2, 1), (1, 2))
    return Case(
        random_table(3, seed),
        random_table(3, seed + 1000),
        shapes[seed % len(shapes)],
        replacement=bool(seed % 2),
        target_settings=(("temperature", 0.5 + seed % 3),),
    )


def test_traversal_expects_at_least_what_token_does_and_the_bound_holds():
    """In expectation over the drafts, on every instance."""
    gained = 0
    for seed in range(12):
        case = random_case(seed)
        token = traversal = first = 0.0
        bounds = set()
        one = torch.tensor([2])
        for tree, world in trees(case):
            made = ops.verify.expect(*call(case, tree), replacement=case.replacement)
            token += world.probability * float(made.token)
            traversal += world.probability * float(made.traversal)
            short = ops.verify.expect(*call(case, tree), replacement=case.replacement, max_tokens=one)
            first += world.probability * (float(short.traversal) - 1)
            bounds.add(round(float(made.bound), 6))
        assert traversal >= token - 1e-6
        gained += traversal > token + 1e-4
        assert len(bounds) == 1 and first <= bounds.pop() + 1e-5
    assert gained > 2


def test_greedy_plus_one_reaches_more_than_rejection_without_replacement():
    """One step, two children: the mean over many random laws (it is the optimum of any rule for its drafts)."""
    gain = 0.0
    for seed in range(12):
        sums = {}
        for rule in ("token", "greedy_plus_one"):
            case = Case(random_table(4, seed), random_table(4, seed + 500), (2,), rule=rule)
            sums[rule] = sum(
                world.probability * float(getattr(ops.verify.expect(*call(case, tree)), rule))
                for tree, world in trees(case)
            )
        gain += sums["greedy_plus_one"] - sums["token"]
    assert gain > 0


def transport(p, q, number, replacement):
    """``1 + min_H (p(H) - Q(H))`` by looking at every set of ids and every draw."""
    best = 1.0
    for bits in range(1, 2 ** len(p)):
        inside = [bits >> x & 1 for x in range(len(p))]

        def stays(left, probability, law, inside=inside):
            if left == 0 or probability == 0:
                return probability
            total = 0.0
            for x, share in enumerate(law):
                if share > 0 and inside[x]:
                    rest = law if replacement else [0.0 if y == x else s / (1 - share) for y, s in enumerate(law)]
                    total += stays(left - 1, probability * share, rest)
            return total

        together = stays(number, 1.0, list(q))
        best = min(best, 1 + sum(a for a, b in zip(p, inside, strict=True) if b) - together)
    return best


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_bound_is_the_optimal_transport_or_a_little_more(number, replacement):
    for seed in range(6):
        p, q = (random_table(5, seed + 10 * i)[0].double().softmax(0) for i in (1, 2))
        made = expectation.bound(*(Mass(x, torch.zeros_like(x)) for x in (p, q)), list(range(number)), replacement)
        exact = transport(p.tolist(), q.tolist(), number, replacement)
        assert made >= exact - 1e-9
        if number == 1:
            assert made == pytest.approx(exact, abs=1e-12)
        elif replacement:
            assert made <= exact + 0.05
