"""The sampling ops on a real vocabulary: verification, plain sampling, and drafting.

Times are counted in units of ``torch.amax`` over all rows, because one read of all logits is what every implementation with a
softmax in it needs at least; the fused ops read only what matters. Before each sample the rows are read once, untimed, so that
each variant finds the caches as a language model's head would leave them, whoever had its turn before.

The baselines process all rows whatever is accepted, so they take part where half of the drafts are; that is where the goals hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import cases, contest, memory
from .baselines import unit as read_all
from .cases import Case, Decided, Laws
from .contest import Baseline
from .data import ACCEPTED, NORMAL, RECORDED, Logits, MissingData, Sizes, normal, recorded
from .measured import Setting, add_note, judge, refused, rows_of
from .rows import Goal, Row
from .runner import Variant, measure

FAMILY = "verify"

#: Bytes that a call may need beyond its inputs, whatever the vocabulary is.
EXTRA_BYTES = Goal("extra_bytes", 1_000_000)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

#: The batch on which the extra memory is measured once more: it must not grow with the vocabulary.
LARGE = Sizes(requests=2, nodes=8, vocab=1 << 20)

#: Where the goals hold, and the baselines take part.
HALF = "half"


class Part(NamedTuple):
    """One op under one kind of settings.

    Attributes:
        op: ``<family>_<function>``.
        label: the column ``case``.
        settings: of ``Sampling.of``.
        limit: the goal in units, None if there is none.
        num: drafts per row of ``sample.draft``.
    """

    op: str
    label: str
    settings: dict[str, Any]
    limit: float | None = None
    num: int = 1

    @property
    def outcomes(self) -> tuple[str | None, ...]:
        """What may happen to the drafts; nothing where there are none."""
        return ACCEPTED if self.op.startswith("verify") else (None,)

    @property
    def goals(self) -> list[Goal]:
        """Of a row with half of the drafts accepted, or without drafts."""
        return [] if self.limit is None else [Goal("units", self.limit), EXTRA_BYTES]


_T1, _TOP_P, _TOP_K = "T=1", "T=1, top-p 0.9", "T=1, top-k 50"

#: Settings of ``Sampling.of`` by their names in the column ``case``.
SETTINGS: dict[str, dict[str, Any]] = {
    _T1: {"temperature": 1.0},
    _TOP_P: {"temperature": 1.0, "top_p": 0.9},
    _TOP_K: {"temperature": 1.0, "top_k": 50},
}

PARTS = (
    Part("verify_greedy", "T=0", {"temperature": 0.0}, 0.8),
    Part("verify_match", _T1, SETTINGS[_T1], 2.0),
    Part("verify_match", _TOP_P, SETTINGS[_TOP_P], 4.0),
    Part("verify_match", _TOP_K, SETTINGS[_TOP_K], 4.0),
    Part("verify_rejection", _T1, SETTINGS[_T1], 2.5),
    Part("verify_rejection", _TOP_P, SETTINGS[_TOP_P], 2.5),
    Part("sample_sample", _T1, SETTINGS[_T1]),
    Part("sample_sample", _TOP_P, SETTINGS[_TOP_P]),
    Part("sample_sample", _TOP_K, SETTINGS[_TOP_K]),
    Part("sample_draft", f"{_T1}, 1 draft", SETTINGS[_T1]),
    Part("sample_draft", f"{_T1}, 4 drafts", SETTINGS[_T1], num=4),
)


def _outcomes(part: Part, quick: bool) -> tuple[str | None, ...]:
    return part.outcomes if not quick else tuple(which for which in part.outcomes if which in (HALF, None))


def count(setting: Setting) -> int:
    """How many groups :func:`groups` gives."""
    per_data = len(DTYPES) * sum(len(_outcomes(part, setting.quick)) for part in PARTS)
    return per_data if setting.quick else 2 * per_data + sum(part.limit is not None for part in PARTS)


def groups(setting: Setting, sizes: Sizes | None = None, large: Sizes = LARGE) -> Iterator[list[Row]]:
    """The rows of one case after the other.

    A quick suite measures the recorded logits with half of the drafts accepted, without ``torch.compile``; where there are no
    recorded logits, it takes the random ones.

    Args:
        setting: how and where.
        sizes: of the batch.
        large: of the batch with the large vocabulary.
    """
    sizes = sizes or Sizes()
    missing: str | None = None
    for kind in (RECORDED, NORMAL):
        try:
            logits = recorded(sizes) if kind == RECORDED else normal(sizes)
        except MissingData as error:
            missing = str(error)
            if not setting.quick:
                yield from _absent(setting, sizes, missing)
            continue
        note = f"normal instead of recorded logits: {missing}" if setting.quick and missing else None
        for name, dtype in DTYPES.items():
            rounded = logits.to(dtype)
            for part in PARTS:
                yield from _of_part(setting, part, rounded, name, sizes, note)
        if setting.quick:
            return
    for part in PARTS:
        if part.limit is not None:
            yield _memory_only(setting, part, normal(large).to(torch.bfloat16), large)


def columns_of(part: Part, dtype: str, data: str, which: str | None, sizes: Sizes) -> dict[str, Any]:
    """What all rows of a case have in common."""
    shape = str(sizes) if part.op.startswith("verify") else f"{sizes.requests} rows, V={sizes.vocab:,}"
    named = {"family": FAMILY, "op": part.op, "case": part.label, "dtype": dtype, "data": data}
    return named | {"accepted": which, "shape": shape}


def _absent(setting: Setting, sizes: Sizes, reason: str) -> Iterator[list[Row]]:
    for dtype in DTYPES:
        for part in PARTS:
            for which in part.outcomes:
                yield refused(setting, columns_of(part, dtype, RECORDED, which, sizes), reason)


class Shared:
    """What the cases of one part have in common, made when it is first needed."""

    def __init__(self, part: Part, logits: Logits, sizes: Sizes) -> None:
        self.part, self.sizes = part, sizes
        if not part.op.startswith("verify"):  # the roots, or what the first draft is drawn from
            source = logits.draft if part.op == "sample_draft" else logits.target
            rows = source.view(sizes.requests, sizes.nodes, -1)[:, 0].contiguous()
            logits = Logits(logits.data, rows, rows)
        self.logits = logits
        self.laws = Laws(logits, part.settings)
        self._decided: Decided | None = None

    @property
    def decided(self) -> Decided:
        if self._decided is None:
            self._decided = cases.decide(self.logits.target, self.sizes, self.part.settings)
        return self._decided

    def case(self, which: str | None) -> Case:
        """The call to be measured."""
        part, target = self.part, self.logits.target
        if part.op == "sample_sample":
            return cases.sample(target, part.settings)
        if part.op == "sample_draft":
            return cases.draft(target, part.settings, part.num)
        assert which is not None
        if part.op == "verify_rejection":
            return cases.rejection(self.logits, self.sizes, self.laws, which)
        make = cases.greedy if part.op == "verify_greedy" else cases.match
        return make(target, self.sizes, self.decided, which)

    def variants(self, case: Case, compiled: bool) -> list[Variant]:
        """The same in PyTorch, as it takes part on the CPU."""
        if self.part.num > 1:
            return contest.draft(self.logits.target, self.laws, self.part.num, compiled)
        return contest.variants(self.baselines(case), compiled)

    def baselines(self, case: Case) -> list[Baseline]:
        """The same in PyTorch, where half of the drafts are accepted or there are none."""
        part, target = self.part, self.logits.target
        if part.op == "verify_greedy":
            return contest.greedy(target, self.decided.tokens, HALF, self.sizes)
        if part.op == "verify_match":
            return contest.match(target, self.laws, HALF, self.sizes)
        if part.op == "verify_rejection":
            return contest.rejection(case, self.logits, self.laws, self.sizes)
        return contest.sample(target, self.laws)

    @property
    def read(self) -> tuple[Tensor, ...]:
        """All logits that the op is given."""
        both = self.part.op == "verify_rejection"
        return (self.logits.target, self.logits.draft) if both else (self.logits.target,)


def _of_part(
    setting: Setting, part: Part, logits: Logits, dtype: str, sizes: Sizes, note: str | None
) -> Iterator[list[Row]]:
    shared = Shared(part, logits, sizes)
    for which in _outcomes(part, setting.quick):
        columns = columns_of(part, dtype, logits.data, which, sizes)
        goals = part.goals if which == HALF else []
        try:
            rows = _measured(setting, shared, which, columns)
        except RuntimeError as error:  # the data do not allow such an outcome
            rows = refused(setting, columns, f"not measured: {error}")
        judge(rows, setting, goals)
        for row in rows if note else []:
            add_note(row, str(note))
        yield rows


def _measured(setting: Setting, shared: Shared, which: str | None, columns: dict[str, Any]) -> list[Row]:
    setting.tick()
    case = shared.case(which)
    setting.tick()
    counts = which in (HALF, None)
    others = shared.variants(case, compiled=not setting.quick) if counts else []
    return measured(setting, case, shared.read, others, columns, with_memory=counts)


def measured(
    setting: Setting,
    case: Case,
    read: tuple[Tensor, ...],
    others: list[Variant],
    columns: dict[str, Any],
    with_memory: bool = True,
) -> list[Row]:
    """The rows of one case: the op, the unit and the baselines in turns.

    Args:
        setting: how and where.
        case: the call.
        read: all logits that the op is given: of as many is the unit.
        others: the baselines.
        columns: what the rows have in common.
        with_memory: whether to measure the extra memory, too.
    """
    variants = [*contest.backends(case, setting.backends), contest.unit(*read), *others]
    outcomes = measure(
        variants,
        repeats=setting.repeats,
        budget_s=setting.budget_s,
        prepare=lambda _: read_all(*read),
        tick=setting.tick,
    )
    row_bytes = read[0][0].numel() * read[0].element_size()
    needed = {variant.name: case.row_reads * row_bytes for variant in variants}
    needed[contest.UNIT] = sum(rows.shape[0] for rows in read) * row_bytes
    rows = rows_of(setting, outcomes, columns, needed=needed, unit=contest.UNIT)
    if with_memory:
        _measure_memory(setting, rows, case)
    return rows


def _measure_memory(setting: Setting, rows: list[Row], case: Case) -> None:
    """Fill in ``extra_bytes`` of the backends that gave a right result."""
    for row in rows:
        if row.variant in setting.backends and row.note is None:
            setting.tick()
            try:
                row.extra_bytes = memory.extra_bytes(case, row.variant)
            except memory.UnknownMemoryError as error:
                add_note(row, str(error))


def _memory_only(setting: Setting, part: Part, logits: Logits, sizes: Sizes) -> list[Row]:
    """Rows without a time: the extra memory at a vocabulary that is larger than any."""
    columns = columns_of(part, "bfloat16", logits.data, HALF, sizes) | {"case": f"{part.label}, memory alone"}
    setting.tick()
    try:
        case = Shared(part, logits, sizes).case(HALF)
    except RuntimeError as error:
        return refused(setting, columns, f"not measured: {error}", [EXTRA_BYTES])
    rows = [Row(variant=backend, **columns, **setting.machine) for backend in setting.backends]
    _measure_memory(setting, rows, case)
    judge(rows, setting, [EXTRA_BYTES])
    return rows
