"""From the outcomes of one measurement to its rows: what all families share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .machine import Bandwidth
from .rows import Goal, Row
from .runner import Outcome, Stopwatch, Timing

#: Names of the baselines and of the peers; ``speedup_over_eager`` and the like are over these.
EAGER, COMPILE, FLASHINFER, TRANSFORMERS = "eager", "compile", "flashinfer", "transformers"


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Setting:
    """How and where a suite is measured.

    Attributes:
        machine: the columns of :func:`bench.machine.describe`.
        bandwidth: of the memory of this machine, or of the GPU.
        quick: whether to measure only what the goals are set for.
        repeats: samples of each variant.
        budget_s: seconds for the samples of one variant, see :func:`bench.runner.counts`.
        backends: of the ops.
        device: where the tensors lie, ``cpu`` or ``cuda``.
        stopwatch: how a sample is taken; None: by the clock of the processor.
        tick: called from time to time: progress.
    """

    machine: Mapping[str, Any]
    bandwidth: Bandwidth
    quick: bool = False
    repeats: int = 30
    budget_s: float = 3.0
    backends: tuple[str, ...] = ("cpu",)
    device: str = "cpu"
    stopwatch: Stopwatch | None = None
    tick: Callable[[], None] = field(default=_nothing)


def rows_of(
    setting: Setting,
    outcomes: Mapping[str, Outcome],
    columns: Mapping[str, Any],
    *,
    needed: Mapping[str, int] | None = None,
    flops: int | None = None,
    unit: str | None = None,
) -> list[Row]:
    """A row for each variant of one case.

    Args:
        setting: where it was measured.
        outcomes: of :func:`bench.runner.measure`.
        columns: what all rows of the case have in common.
        needed: bytes that must move, by variant.
        flops: additions and multiplications of the case.
        unit: the variant that ``units`` counts in.

    Returns:
        The rows in the order of the outcomes, not judged yet: metrics that come from elsewhere can still be filled in.
    """
    times = {name: outcome.p50 for name, outcome in outcomes.items() if isinstance(outcome, Timing)}
    made = []
    for name, outcome in outcomes.items():
        row = Row(variant=name, **columns, **setting.machine)
        row.copy_gb_per_s, row.read_gb_per_s = setting.bandwidth.copy, setting.bandwidth.read
        row.needed_bytes = (needed or {}).get(name)
        row.unit = unit
        if isinstance(outcome, Timing):
            row.time_us, row.repeats = outcome.p50, len(outcome.samples)
            row.time_us_p20, row.time_us_p80 = outcome.quantile(0.2), outcome.quantile(0.8)
            _fill_rates(row, flops)
            row.units = _ratio(row.time_us, times.get(unit or ""))
            row.speedup_over_eager = _ratio(times.get(EAGER), row.time_us)
            row.speedup_over_compile = _ratio(times.get(COMPILE), row.time_us)
            row.speedup_over_flashinfer = _ratio(times.get(FLASHINFER), row.time_us)
            row.speedup_over_transformers = _ratio(times.get(TRANSFORMERS), row.time_us)
        else:
            row.note = outcome.reason
        made.append(row)
    return made


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b is not None and b > 0 else None


def _fill_rates(row: Row, flops: int | None) -> None:
    if not row.time_us:
        return
    if row.needed_bytes is not None:
        row.gb_per_s = row.needed_bytes / row.time_us / 1e3
        row.share_of_copy = _ratio(row.gb_per_s, row.copy_gb_per_s)
        row.share_of_read = _ratio(row.gb_per_s, row.read_gb_per_s)
    if flops is not None:
        row.gflop_per_s = flops / row.time_us / 1e3


def judge(rows: Sequence[Row], setting: Setting, goals: Sequence[Goal]) -> None:
    """Judge the rows of backends; baselines have no goals."""
    for row in rows:
        if row.variant in setting.backends:
            row.judge(goals)


def add_note(row: Row, text: str) -> None:
    """Add a sentence to the note of a row."""
    row.note = text if row.note is None else f"{row.note}; {text}"


def refused(setting: Setting, columns: Mapping[str, Any], reason: str, goals: Sequence[Goal] = ()) -> list[Row]:
    """The rows of a case that could not even be made: one for each backend, without a time, and so without a goal met."""
    made = []
    for backend in setting.backends:
        row = Row(variant=backend, note=reason, **columns, **setting.machine)
        row.judge(goals)
        made.append(row)
    return made


def best(rows: Sequence[Row]) -> float:
    """The shortest median time, infinite if there is none."""
    return min((row.time_us for row in rows if row.time_us is not None), default=math.inf)
