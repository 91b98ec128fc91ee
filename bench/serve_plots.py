"""A picture of the rows of :mod:`bench.serve`: throughput and latency, the plain loop against the overlapped one.

Needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .serve import Row

#: Columns of a row, and the axis that they are drawn along.
PANELS = (
    ("tokens_per_s", "tokens/s"),
    ("latency_ms_p50", "latency p50 (ms)"),
    ("latency_ms_p99", "latency p99 (ms)"),
)
SUFFIXES = (".png", ".svg", ".pdf")

_STYLES = {
    "plain": {"linestyle": "--", "marker": "o", "fillstyle": "none"},
    "overlapped": {"linestyle": "-", "marker": "o"},
}


class Chart(NamedTuple):
    """One column of panels.

    Attributes:
        title: what all its rows share.
        axis: what they differ in.
        ticks: its values in order, as text.
        lines: by drafter and loop: places among the ticks, and rows.
    """

    title: str
    axis: str
    ticks: list[str]
    lines: dict[tuple[str, str], list[tuple[int, Row]]]


def charts(rows: Sequence[Row]) -> list[Chart]:
    """Along the rate, a chart for each batch size; along the batch size, if there is one rate alone."""
    rates = sorted({row.rate for row in rows}, key=float)
    batches = sorted({row.batch for row in rows})
    if len(rates) > 1:
        names = [f"{float(rate):g}" for rate in rates]
        by_rate = {rate: place for place, rate in enumerate(rates)}
        return [
            Chart(f"at most {batch} together", "requests per second", names, _lines(rows, batch, "rate", by_rate))
            for batch in batches
        ]
    title = "all requests at once" if rates == ["inf"] else f"{float(rates[0]):g} requests per second"
    by_batch = {batch: place for place, batch in enumerate(batches)}
    lines = _lines(rows, None, "batch", by_batch)
    return [Chart(title, "most requests decoded together", list(map(str, batches)), lines)]


def _lines(
    rows: Sequence[Row], batch: int | None, name: str, places: dict[Any, int]
) -> dict[tuple[str, str], list[tuple[int, Row]]]:
    found: dict[tuple[str, str], list[tuple[int, Row]]] = {}
    for row in rows:
        if batch in (None, row.batch) and not row.wrong:
            found.setdefault((row.drafter, row.loop), []).append((places[getattr(row, name)], row))
    return {key: sorted(points, key=lambda point: point[0]) for key, points in found.items()}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the picture; the name's end says in which format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = charts(rows)
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(row.drafter for row in rows))}
    size = (1.5 + 3.4 * len(drawn), 2.6 * len(PANELS))
    figure, axes = pyplot.subplots(len(PANELS), len(drawn), figsize=size, squeeze=False, sharex="col", sharey="row")
    for column, chart in enumerate(drawn):
        for (name, label), axis in zip(PANELS, axes[:, column], strict=True):
            for (drafter, loop), points in chart.lines.items():
                values = [(place, getattr(row, name)) for place, row in points if getattr(row, name) is not None]
                xs, ys = [x for x, _ in values], [y for _, y in values]
                axis.plot(xs, ys, color=colours[drafter], label=f"{drafter}, {loop}", **_STYLES[loop])
            axis.set_xticks(range(len(chart.ticks)), chart.ticks)
            axis.margins(x=0.1)
            axis.grid(True, alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(chart.title)
        axes[-1, column].set_xlabel(chart.axis)
    for axis in axes[:, 0]:  # the others of a line share it; earlier it would end the search for the upper end
        axis.set_ylim(bottom=0)
    lines = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if rows:
        figure.suptitle(f"{rows[0].model}, {rows[0].dtype} on {rows[0].device}", fontsize="small")
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=2 * min(2, len(drawn)), fontsize="small"
    )
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
