"""What a call costs before there is any work: microseconds of a public function on inputs of a few elements.

That is validation in Python, the allocation of the results, the dispatcher, the launcher's checks and a kernel with next to
nothing to do. Two variants per op: the public function as it is called, and with ``out=`` (results made by an earlier call).
On a GPU it is the time until the call returns, with a launch in the queue and nothing waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import python_ref.ops as oracle
import specdec_kernels as sk
from specdec_kernels._schema import BY_NAME

from . import cases, contest, gates
from .cases import Case, Laws
from .data import Sizes, normal
from .measured import Setting, judge, rows_of
from .placing import Placed
from .rows import Goal, Row
from .runner import Outcome, Variant, measure

FAMILY = "overhead"

#: One request with a root and one draft.
TINY = Sizes(requests=1, nodes=2, vocab=16)

#: Microseconds per call, and those of the ops that take more arguments than most.
SMALL, LARGE = 12.0, {"verify_rejection": 25.0}

_WITH_OUT = ", out="
_INNER = 50


def count(setting: Setting) -> int:
    """How many groups :func:`groups` gives."""
    return 1


def tiny_cases() -> list[Case]:
    """One call of each op that is called in a loop."""
    logits = normal(TINY)
    settings: dict[str, Any] = {"temperature": 1.0}
    plain = cases.decide(logits.target, TINY, settings)
    best = cases.decide(logits.target, TINY, {"temperature": 0.0})
    row = logits.target[:1]
    tokens = torch.tensor([[3, 1]])
    history = torch.tensor([[1, 2, 3, 4, 1, 2, 3]])
    lengths = torch.tensor([7])
    x, weight = torch.ones(1, 8), torch.arange(32 * 8, dtype=torch.float32).view(32, 8)
    return [
        Case("tree_from_chains", {"tokens": tokens}, oracle.tree.from_chains(tokens)),
        cases.sample(row, settings),
        cases.draft(row, settings, 1),
        cases.greedy(logits.target, TINY, best, "all"),
        cases.match(logits.target, TINY, plain, "all"),
        cases.rejection(logits, TINY, Laws(logits, settings), "all"),
        Case(
            "draft_ngram_lookup",
            {"history": history, "lengths": lengths, "num": 2},
            oracle.draft.ngram_lookup(history, lengths, num=2),
        ),
        Case("linear_skinny", {"x": x, "packed": sk.linear.pack(weight, backend="reference")}, x @ weight.T),
    ]


def _variants(setting: Setting, made: list[Case]) -> list[Variant]:
    variants = [contest.unit(case.arguments["logits"]) for case in made if case.op == "sample_sample"]
    variants = [Variant(contest.UNIT, variant.call, variant.check, _INNER) for variant in variants]
    for case in made:
        gate = gates.of_case(case)
        for backend in _present(setting, case):
            name = f"{case.op} {backend}"
            variants.append(Variant(name, case.call(backend), gate, _INNER))
            try:
                out = case.call(backend)()
            except (RuntimeError, ValueError, TypeError):
                continue  # the variant without out= says why
            variants.append(Variant(name + _WITH_OUT, case.call(backend, out=out), gate, _INNER))
    return variants


def _present(setting: Setting, case: Case) -> list[str]:
    """The backends that take part; on a GPU those that serve the op."""
    absent = contest.unavailable(case.op, setting.backends) if setting.device == "cuda" else {}
    return [backend for backend in setting.backends if backend not in absent]


def _on_device(setting: Setting, made: list[Case]) -> list[Case]:
    """The cases of the ops that a backend of the device could ever serve, with their tensors there."""
    if setting.device == "cpu":
        return made
    place = Placed(TINY.requests, TINY.requests, setting.device)
    return [place.case(case) for case in made if set(setting.backends) & set(BY_NAME[case.op].backends)]


def groups(setting: Setting) -> Iterator[list[Row]]:
    """All ops in turns, and ``torch.amax`` of one tiny row as the unit."""
    setting.tick()
    made = _on_device(setting, tiny_cases())
    setting.tick()
    outcomes: dict[str, Outcome] = dict(
        measure(
            _variants(setting, made),
            repeats=setting.repeats,
            budget_s=setting.budget_s,
            prepare=(lambda _: torch.cuda.synchronize()) if setting.device == "cuda" else None,
            tick=setting.tick,
        )
    )
    if setting.device == "cuda":
        for case in made:
            absent = contest.unavailable(case.op, setting.backends)
            outcomes |= {f"{case.op} {backend}": reason for backend, reason in absent.items()}
    rows: list[Row] = []
    for case in made:
        names = {
            name.removeprefix(f"{case.op} "): outcome
            for name, outcome in outcomes.items()
            if name == contest.UNIT or name.startswith(f"{case.op} ")
        }
        columns = {"family": FAMILY, "op": case.op, "case": "tiny input", "dtype": "float32", "shape": _shape(case)}
        found = rows_of(setting, names, columns, unit=contest.UNIT)
        judge(found, setting, [Goal("time_us", LARGE.get(case.op, SMALL))])
        rows += found if case is made[0] else [row for row in found if row.variant != contest.UNIT]
    yield rows


def _shape(case: Case) -> str:
    if case.op.startswith("verify"):
        return str(TINY)
    if case.op == "linear_skinny":
        return "1 row, N=32, K=8"
    return "1 request"
