"""The verify family on a GPU: bfloat16 logits of a real vocabulary, from one request to hundreds.

Decisions are asked of the oracle for a few requests, on the CPU, and the batch is made of these (:mod:`bench.placing`). Before
each sample the second-level cache is emptied of the inputs (:mod:`bench.gpu`): the goals are shares of the bandwidth of memory.
Variants whose intermediate tensors would not fit in :data:`MOST_BYTES` do not take part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from . import contest, gpu, peers
from .cases import Case
from .data import ACCEPTED, NORMAL, RECORDED, Logits, MissingData, Sizes, normal, recorded
from .measured import EAGER, Setting, add_note, judge, refused, rows_of
from .placing import Placed
from .rows import Goal, Row
from .runner import Outcome, Refused, Variant, measure
from .verify import HALF, PARTS, SETTINGS, Part, Shared, columns_of

FAMILY = "verify"
DTYPE, DTYPE_NAME = torch.bfloat16, "bfloat16"
VOCAB = 151_936

REQUESTS, NODES = (1, 4, 16, 64, 256), (1, 8, 64)

#: Requests that the oracle is asked about, by the nodes of a chain.
BASE = {1: 16, 8: 4, 64: 1}

#: The bound on what the variants of a case may need, logits included.
MOST_BYTES = 24e9

#: From so many needed bytes on the bandwidth is the limit, and below it the launch.
LARGE_BYTES = 64e6
LARGE_GOAL = Goal("share_of_copy", 0.70, at_least=True)
SMALL_GOAL = Goal("time_us", 12.0)

# Bytes for each logit that a baseline holds at its peak: float32 values of the law, and with filters what is sorted and its ids.
_PLAIN_BYTES, _FILTERED_BYTES = 18, 42

_TOP_K = "T=1, top-k 50"
GPU_PARTS = (
    *(part for part in PARTS if part.op.startswith("verify")),
    Part("verify_rejection", _TOP_K, SETTINGS[_TOP_K]),
)


class Shape(NamedTuple):
    """A batch of chains of one kind of data.

    Attributes:
        data: ``normal`` or ``recorded``.
        requests: chains.
        nodes: of a chain.
        outcomes: of the drafts.
        compiled: whether ``torch.compile`` takes part.
    """

    data: str
    requests: int
    nodes: int
    outcomes: tuple[str, ...] = (HALF,)
    compiled: bool = False

    def sizes(self, vocab: int = VOCAB) -> Sizes:
        """Of all requests."""
        return Sizes(self.requests, self.nodes, vocab)


def shapes(quick: bool) -> list[Shape]:
    """What is measured, grouped by chains: their decisions are asked for once."""
    if quick:
        return [*(Shape(NORMAL, b, 8) for b in (1, 16, 64, 256)), Shape(RECORDED, 64, 8)]
    made = []
    for nodes in (8, 1, 64):
        for requests in REQUESTS:
            shown = (requests, nodes) == (64, 8)
            outcomes = (HALF, *(which for which in ACCEPTED if which != HALF)) if shown else (HALF,)
            made.append(Shape(NORMAL, requests, nodes, outcomes, compiled=nodes == 8 and requests in (1, 64)))
    return [*made, Shape(RECORDED, 1, 8), Shape(RECORDED, 64, 8)]


def parts_of(shape: Shape) -> tuple[Part, ...]:
    """The ops on a shape: without drafts ``rejection`` is ``match``."""
    return tuple(part for part in GPU_PARTS if shape.nodes > 1 or part.op != "verify_rejection")


def count(setting: Setting) -> int:
    """How many groups :func:`groups` gives."""
    return sum(len(shape.outcomes) * len(parts_of(shape)) for shape in shapes(setting.quick))


def logits_bytes(part: Part, sizes: Sizes) -> int:
    """Of the inputs of the op."""
    return sizes.rows * sizes.vocab * DTYPE.itemsize * (2 if part.op == "verify_rejection" else 1)


def baseline_bytes(part: Part, sizes: Sizes) -> float:
    """What a baseline needs at its peak, about."""
    if part.op == "verify_greedy":
        return logits_bytes(part, sizes)
    per_logit = _FILTERED_BYTES if len(part.settings) > 1 else _PLAIN_BYTES
    return logits_bytes(part, sizes) * (1 + per_logit / DTYPE.itemsize)


def goals_for(needed: int) -> list[Goal]:
    """Of an op that must move so many bytes."""
    return [LARGE_GOAL if needed >= LARGE_BYTES else SMALL_GOAL]


def groups(setting: Setting, vocab: int = VOCAB, made: list[Shape] | None = None) -> Iterator[list[Row]]:
    """The rows of one case after the other.

    Args:
        setting: how and where.
        vocab: columns of the logits.
        made: what is measured instead of :func:`shapes`.
    """
    known: tuple[tuple[str, int], _Known | str] | None = None
    for shape in shapes(setting.quick) if made is None else made:
        if known is None or known[0] != (shape.data, shape.nodes):
            known = None  # the old logits go before new ones come
            setting.tick()
            known = ((shape.data, shape.nodes), _shared(shape, vocab))
        if isinstance(known[1], str):
            for part in parts_of(shape):
                for which in shape.outcomes:
                    columns = columns_of(part, DTYPE_NAME, shape.data, which, shape.sizes(vocab))
                    yield refused(setting, columns, known[1])
            continue
        yield from _of_shape(setting, shape, known[1], vocab)


def _shared(shape: Shape, vocab: int) -> _Known | str:
    """What the cases of all batches of such chains have in common, or why there are none."""
    base = Sizes(BASE[shape.nodes], shape.nodes, vocab)
    try:
        logits = (normal(base) if shape.data == NORMAL else recorded(base)).to(DTYPE)
    except MissingData as error:
        return str(error)
    return {(part.op, part.label): _OneBatch(part, logits, base) for part in GPU_PARTS}


class _OneBatch(Shared):
    """The small batch: what is decided about it is kept, for all batches that are made of it."""

    def __init__(self, part: Part, logits: Logits, sizes: Sizes) -> None:
        super().__init__(part, logits, sizes)
        self._cases: dict[str | None, Case | RuntimeError] = {}
        self._baselines: list[contest.Baseline] | None = None

    def case(self, which: str | None) -> Case:
        """The call, or why there is none such."""
        if which not in self._cases:
            try:
                self._cases[which] = super().case(which)
            except RuntimeError as error:
                self._cases[which] = error
        found = self._cases[which]
        if isinstance(found, RuntimeError):
            raise found
        return found

    def known_baselines(self) -> list[contest.Baseline]:
        """Of the case in which half of the drafts are accepted."""
        if self._baselines is None:
            self._baselines = self.baselines(self.case(HALF))
        return self._baselines


_Known = dict[tuple[str, str], _OneBatch]


def _of_shape(setting: Setting, shape: Shape, shared: _Known, vocab: int) -> Iterator[list[Row]]:
    place = Placed(BASE[shape.nodes], shape.requests, setting.device)
    for part in parts_of(shape):
        one = shared[part.op, part.label]
        for which in shape.outcomes:
            columns = columns_of(part, DTYPE_NAME, one.logits.data, which, shape.sizes(vocab))
            try:
                yield _measured(setting, one, which, place, shape, columns)
            except RuntimeError as error:  # the data do not allow such an outcome, or the memory does not suffice
                yield refused(setting, columns, f"not measured: {str(error).splitlines()[0]}", [SMALL_GOAL])
            if setting.device == "cuda":
                torch.cuda.empty_cache()


def _measured(
    setting: Setting, one: _OneBatch, which: str, place: Placed, shape: Shape, columns: dict[str, Any]
) -> list[Row]:
    setting.tick()
    case = place.case(one.case(which))
    part, sizes, read = one.part, shape.sizes(one.sizes.vocab), place(one.read)
    setting.tick()
    absent: dict[str, Outcome] = dict(contest.unavailable(case.op, setting.backends))
    present = tuple(name for name in setting.backends if name not in absent)
    taking = [*contest.backends(case, present), contest.unit(*read)]
    if which == HALF and (most := baseline_bytes(part, sizes)) > MOST_BYTES:
        absent[EAGER] = Refused(f"not measured: would need about {most / 1e9:.0f} GB")
    elif which == HALF:
        taking += _others(setting, one, place, shape, case.arguments["tree"].tokens.view(sizes.requests, -1)[:, 1:])
    outcomes = measure(
        taking,
        repeats=setting.repeats,
        budget_s=setting.budget_s,
        stopwatch=setting.stopwatch,
        tick=setting.tick,
    )
    row_bytes = sizes.vocab * DTYPE.itemsize
    needed = {variant.name: case.row_reads * row_bytes for variant in taking}
    needed[contest.UNIT] = len(read) * sizes.rows * row_bytes
    rows = rows_of(setting, outcomes | absent, columns, needed=needed, unit=contest.UNIT)
    for row in rows:
        if row.variant in setting.backends and row.time_us is not None and setting.device == "cuda":
            row.extra_bytes = gpu.extra_bytes(case.call(row.variant))
        if row.variant in getattr(setting.stopwatch, "exposed", ()) and row.time_us is not None:
            add_note(row, "the processor could not queue the call in time: it counts")
    judge(rows, setting, goals_for(case.row_reads * row_bytes))
    return rows


def _others(setting: Setting, one: _OneBatch, place: Placed, shape: Shape, drafts: torch.Tensor) -> list[Variant]:
    """The baselines, and the peer, which takes too long to compile for a quick suite."""
    compiled = shape.compiled and not setting.quick
    made = contest.variants(one.known_baselines(), compiled, place)
    if setting.quick or setting.device != "cuda":
        return made
    given = (place(one.logits.target), place(one.logits.draft)) if one.part.op == "verify_rejection" else None
    target, draft = given or (place(one.logits.target),) * 2
    return made + peers.variants(one.part.op, target, draft, drafts.contiguous(), one.part.settings)
