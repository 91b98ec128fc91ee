"""Rows as tables for people. The rows of the unit and of the baselines are in the files; here they are columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .rows import Row, busy


def duration(microseconds: float | None) -> str:
    """Three digits with a unit, such as ``1.31 ms``."""
    if microseconds is None:
        return "-"
    for limit, unit in ((1e3, "us"), (1e6, "ms")):
        if microseconds < 0.9995 * limit:
            return f"{_three(microseconds / limit * 1e3)} {unit}"
    return f"{_three(microseconds / 1e6)} s"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else _three(value)


def _times(value: float | None) -> str:
    return "-" if value is None else f"{_three(value)}x"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _op(row: Row) -> str:
    return row.op.replace("_", ".", 1)


def _goal(row: Row) -> str:
    """The bound of the first goal alone: of which column is said below the table, and all of it in the conclusions."""
    return " ".join(row.goal.split()[:2]) if row.goal else ""


Column = tuple[str, Callable[[Row], str]]

_COLUMNS: dict[str, tuple[Column, ...]] = {
    "verify": (
        ("op", lambda row: _op(row).removeprefix("verify.")),
        ("case", lambda row: row.case),
        ("drafts", lambda row: row.accepted or "-"),
        ("time", lambda row: duration(row.time_us)),
        ("amax", lambda row: _number(row.units)),
        ("eager", lambda row: _times(row.speedup_over_eager)),
        ("compile", lambda row: _times(row.speedup_over_compile)),
        ("kB", lambda row: _number(None if row.extra_bytes is None else row.extra_bytes / 1e3)),
        ("goal", _goal),
    ),
    "rules": (
        ("case", lambda row: row.case),
        ("time", lambda row: duration(row.time_us)),
        ("amax", lambda row: _number(row.units)),
        ("eager", lambda row: _times(row.speedup_over_eager)),
        ("compile", lambda row: _times(row.speedup_over_compile)),
        ("kB", lambda row: _number(None if row.extra_bytes is None else row.extra_bytes / 1e3)),
        ("goal", _goal),
    ),
    "attention": (
        ("case", lambda row: row.case),
        ("time", lambda row: duration(row.time_us)),
        ("GB/s", lambda row: _number(row.gb_per_s)),
        ("of read", lambda row: _share(row.share_of_read)),
        ("of copy", lambda row: _share(row.share_of_copy)),
        ("eager", lambda row: _times(row.speedup_over_eager)),
        ("contiguous", lambda row: _times(row.speedup_over_contiguous)),
        ("goal", _goal),
    ),
    "kv": (
        ("case", lambda row: row.case),
        ("variant", lambda row: row.variant),
        ("time", lambda row: duration(row.time_us)),
        ("GB/s", lambda row: _number(row.gb_per_s)),
        ("of copy", lambda row: _share(row.share_of_copy)),
        ("eager", lambda row: _times(row.speedup_over_eager)),
        ("compile", lambda row: _times(row.speedup_over_compile)),
        ("goal", _goal),
    ),
    "tree": (
        ("op", _op),
        ("time", lambda row: duration(row.time_us)),
        ("eager", lambda row: _times(row.speedup_over_eager)),
        ("goal", _goal),
    ),
    "linear": (
        ("case", lambda row: row.case),
        ("time", lambda row: duration(row.time_us)),
        ("GB/s", lambda row: _number(row.gb_per_s)),
        ("of read", lambda row: _share(row.share_of_read)),
        ("one row", lambda row: _number(row.ratio_to_one_row)),
        ("eager", lambda row: _times(row.speedup_over_eager)),
        ("goal", _goal),
    ),
    "overhead": (
        ("op", _op),
        ("variant", lambda row: row.variant),
        ("time", lambda row: duration(row.time_us)),
        ("amax", lambda row: _number(row.units)),
        ("goal", _goal),
    ),
}
_LEFT = frozenset({"op", "case", "drafts", "variant"})

_GPU_VERIFY: tuple[Column, ...] = (
    ("op", lambda row: _op(row).removeprefix("verify.")),
    ("case", lambda row: row.case if row.accepted == "half" else f"{row.case}, {row.accepted}"),
    ("variant", lambda row: row.variant),
    ("time", lambda row: duration(row.time_us)),
    ("copy", lambda row: _share(row.share_of_copy)),
    ("eager", lambda row: _times(row.speedup_over_eager)),
    ("compile", lambda row: _times(row.speedup_over_compile)),
    ("goal", _goal),
)

_LEGEND = {
    "attention": "of read, of copy: share of the bandwidth for needed bytes. eager: speed-up over PyTorch on gathered pages; "
    "contiguous: on keys and values in one piece. Goals: of read (of copy on a GPU), eager, contiguous.",
    "kv": "of copy: share of the copy bandwidth, each moved byte read and written. eager: speed-up over index_select and "
    "index_copy_ per tensor, or indexing where heads lie apart (block drafter: over norm, rotation and index_put_ per layer); "
    "compile: the same compiled. Goals: eager; on a GPU "
    "microseconds, from 64 MB on of copy.",
    "tree": "eager: speed-up over the same in Python, one request after the other. Goals: eager, on a GPU microseconds.",
    "verify": "drafts: which of them are accepted. amax: time in units of torch.amax over all rows, and so the goal. "
    "eager, compile: speed-up over the same in PyTorch. kB: memory beyond the inputs.",
    "rules": "Half of the drafts on a path are accepted. amax: time in units of torch.amax over all rows, and so the goal. "
    "eager, compile: speed-up over the same in PyTorch. kB: memory beyond the inputs.",
    "linear": "of read: share of the fastest plain read of as many bytes. one row: time over the best one-row time. "
    "eager: speed-up over the same in PyTorch. Goals of one row: of read from memory, GB/s from cache; of 8 rows: one row.",
    "overhead": "A call of the public function on inputs of a few elements. amax: in units of torch.amax of one such row. "
    "Goals in microseconds.",
}

_GPU_LEGEND = (
    "Half of the drafts are accepted, or what the case says. copy: needed bytes per time over the copy bandwidth. eager, "
    "compile: speed-up over the same in PyTorch. Goals: a share of the copy bandwidth, below 64 MB microseconds."
)


def tables(family: str, rows: Sequence[Row], backends: Sequence[str], device: str = "cpu") -> list[RenderableType]:
    """The rows of backends with their goals, a table for each dtype and kind of data, and what the columns mean.

    They fit 80 columns: that is what a log has.
    """
    on_gpu = (family, device) == ("verify", "cuda")
    columns = _GPU_VERIFY if on_gpu else _COLUMNS[family]
    parts: dict[str, list[Row]] = {}
    for row in of_backends(rows, backends):
        shape = row.shape if on_gpu or family not in ("verify", "overhead") else None
        title = ", ".join(part for part in (row.dtype, row.data, shape) if part)
        parts.setdefault(title, []).append(row)
    made: list[RenderableType] = []
    for title, part in parts.items():
        made += [Text(title, style="bold"), _table(columns, part), Text("")]
    return [*made, Text(_GPU_LEGEND if on_gpu else _LEGEND[family], style="dim")]


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    made = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name, _ in columns:
        made.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    made.add_column("met", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(show(row)) for _, show in columns), _verdict(row))
    return made


def of_backends(rows: Sequence[Row], backends: Sequence[str]) -> list[Row]:
    """The rows of an op on a backend, with or without ``out=``."""
    return [row for row in rows if row.variant.partition(",")[0] in backends]


def _verdict(row: Row) -> Text:
    if row.met is None:
        return Text("")
    return Text("yes", style="green") if row.met else Text("no", style="bold red")


def conclusions(rows: Sequence[Row], backends: Sequence[str], device: str = "cpu") -> list[str]:
    """What is to be said under the tables: goals met and missed, notes, and whether the machine was busy."""
    judged = [row for row in rows if row.met is not None]
    missed = [row for row in judged if not row.met]
    said = [f"{len(judged) - len(missed)} of {len(judged)} rows with goals meet them."] if judged else []
    for row in missed:
        said.append(f"missed: {_name(row, device)}: {row.reached} (goal {row.goal})")
    ours = {id(row) for row in of_backends(rows, backends)}
    notes: dict[str, list[Row]] = {}
    for row in rows:
        if row.note and (row.time_us is None or id(row) in ours):
            notes.setdefault(row.note, []).append(row)
    for note, noted in notes.items():
        said.append(
            f"{_name(noted[0], 'cpu')}, {noted[0].variant}: {note}" if len(noted) == 1 else f"{len(noted)} rows: {note}"
        )
    return said + busy(rows, device)


def _name(row: Row, device: str) -> str:
    """Which row it is; on a GPU there are several backends and shapes."""
    parts = (_op(row), row.case, row.dtype, row.data, row.accepted)
    more = (row.shape, row.variant) if device == "cuda" else ()
    return ", ".join(part for part in (*parts, *more) if part)
