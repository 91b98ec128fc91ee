"""One measured figure per row, its goals, and the files that rows are written to."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

#: Short symbols of the metrics that goals are set for.
_UNITS = {
    "units": "units",
    "time_us": "us",
    "gb_per_s": "GB/s",
    "share_of_read": "of read bandwidth",
    "share_of_copy": "of copy bandwidth",
    "ratio_to_one_row": "x one row",
    "speedup_over_eager": "x eager",
    "speedup_over_contiguous": "x eager contiguous",
    "extra_bytes": "bytes extra",
}


class Goal(NamedTuple):
    """A bound on one metric of a row.

    Attributes:
        metric: name of a field of :class:`Row`.
        limit: the bound.
        at_least: whether the metric must reach the bound; False: it must stay at or below it.
    """

    metric: str
    limit: float
    at_least: bool = False

    def __str__(self) -> str:
        """Such as ``<= 2.5 units``."""
        return f"{'>=' if self.at_least else '<='} {self.limit:g} {_UNITS.get(self.metric, self.metric)}"

    def met_by(self, value: float) -> bool:
        """Whether a value of the metric fulfils the goal."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(kw_only=True)
class MachineColumns:
    """Where and when a row was measured: the columns of :func:`bench.machine.describe`, the last ones of all rows.

    Attributes:
        device: name of the processor, or of the GPU.
        threads: of torch.
        load: processes that wanted to run in the last minute, at the start.
        torch: version.
        version: of the package.
        commit: of the checkout; ``+`` if it was changed.
        date: day of the measurement.
    """

    device: str = ""
    threads: int = 0
    load: float | None = None
    torch: str = ""
    version: str = ""
    commit: str = ""
    date: str = ""


@dataclass
class Row(MachineColumns):
    """One variant of one case on one machine. Fields that do not apply, or were not measured, are None.

    Attributes:
        family: such as ``verify``.
        op: the op, ``<family>_<function>``.
        case: what distinguishes cases of one op: filters, number of rows, ...
        variant: a backend of the op, or the name of a baseline.
        dtype: of the logits or of the weights.
        data: where the numbers come from.
        accepted: ``none``, ``half`` or ``all`` of the drafts.
        shape: sizes, as text.
        time_us: median time of one call in microseconds.
        time_us_p20: 20 % quantile.
        time_us_p80: 80 % quantile.
        repeats: timed samples behind the quantiles.
        needed_bytes: bytes that any implementation must move, at least.
        gb_per_s: ``needed_bytes`` per median time.
        gflop_per_s: additions and multiplications per median time, in 1e9 per second.
        share_of_copy: ``gb_per_s`` over the copy bandwidth of this machine.
        share_of_read: ``gb_per_s`` over the read bandwidth of this machine.
        unit: the baseline that ``units`` counts in.
        units: median time over the median time of the unit.
        speedup_over_eager: median time of the eager baseline over that of this row.
        speedup_over_compile: the same for the compiled baseline.
        speedup_over_flashinfer: the same for the peer of that name.
        speedup_over_transformers: the same for that peer.
        speedup_over_contiguous: the same for PyTorch on keys and values that lie in one piece.
        ratio_to_one_row: median time over the best median time of one row.
        extra_bytes: memory that a call needs beyond its inputs, results included.
        goal: the goals of the row, as text.
        reached: the values of the goals' metrics, as text.
        met: whether all goals are met.
        note: why there is no time, or what else must be known.
        copy_gb_per_s: copy bandwidth of the machine, bytes read and written.
        read_gb_per_s: read bandwidth of the machine.
    """

    family: str
    op: str
    case: str
    variant: str
    dtype: str
    data: str | None = None
    accepted: str | None = None
    shape: str = ""
    time_us: float | None = None
    time_us_p20: float | None = None
    time_us_p80: float | None = None
    repeats: int = 0
    needed_bytes: int | None = None
    gb_per_s: float | None = None
    gflop_per_s: float | None = None
    share_of_copy: float | None = None
    share_of_read: float | None = None
    unit: str | None = None
    units: float | None = None
    speedup_over_eager: float | None = None
    speedup_over_compile: float | None = None
    speedup_over_flashinfer: float | None = None
    speedup_over_transformers: float | None = None
    speedup_over_contiguous: float | None = None
    ratio_to_one_row: float | None = None
    extra_bytes: int | None = None
    goal: str | None = None
    reached: str | None = None
    met: bool | None = None
    note: str | None = None
    copy_gb_per_s: float | None = None
    read_gb_per_s: float | None = None

    def judge(self, goals: Sequence[Goal]) -> None:
        """Fill ``goal``, ``reached`` and ``met``. A metric that was not measured meets nothing."""
        if not goals:
            return
        values = [getattr(self, goal.metric) for goal in goals]
        self.goal = "; ".join(map(str, goals))
        self.reached = "; ".join("-" if value is None else f"{value:.3g}" for value in values)
        self.met = all(value is not None and goal.met_by(value) for goal, value in zip(goals, values, strict=True))


def columns(kind: type) -> tuple[str, ...]:
    """The columns of a class of rows; a dataclass has the fields of its base first, a row has them last."""
    return tuple(field.name for field in sorted(fields(kind), key=lambda field: bool(field.kw_only)))


COLUMNS = columns(Row)


def busy(rows: Sequence[MachineColumns], device: str) -> list[str]:
    """What is to be said of times that were taken beside other work; nothing of a GPU."""
    load = max((row.load or 0.0 for row in rows), default=0.0)
    if load <= 0.5 or device != "cpu":
        return []
    return [f"Other processes were running (load {load:g} at the start): the times say little."]


def as_dicts(rows: Sequence[MachineColumns]) -> list[dict[str, Any]]:
    """Rows of any class as dictionaries with all columns; floats have five significant digits."""

    def short(value: Any) -> Any:
        return float(f"{value:.5g}") if isinstance(value, float) else value

    return [{name: short(getattr(row, name)) for name in columns(type(row))} for row in rows]


def write_json(rows: Sequence[MachineColumns], path: Path) -> None:
    """Write rows as a JSON list; the folder is made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_dicts(rows), indent=1) + "\n", encoding="utf-8")


def write_csv(kind: type[MachineColumns], rows: Sequence[MachineColumns], path: Path) -> None:
    """Write rows of a class as CSV with a header, also where there are none; the folder is made if it does not exist. None is
    an empty cell."""
    names = columns(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(as_dicts(rows))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a file of :func:`write_csv`, as text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its columns are not those of :class:`Row`.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"bench: {path.name} must have the columns of a benchmark, got {reader.fieldnames}")
        return list(reader)
