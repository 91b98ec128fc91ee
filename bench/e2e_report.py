"""Rows of :mod:`bench.e2e` as a table and sentences for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .e2e import Row
from .rows import busy

_LEGEND = (
    "Milliseconds per step; plain: without a drafter; tau: tokens of a step, as asked for; predicted: tau x plain over the sum "
    "of draft, verify and other, where no draft is accepted; measured: tokens per second over those of plain decoding."
)
# What a prediction and a measurement may differ by.
_NEAR = 0.1


def tables(rows: Sequence[Row]) -> list[RenderableType]:
    """One table, and what its columns mean; it fits 80 columns."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("drafter", no_wrap=True)
    for name in (
        "\ndrafts",
        "\ntau",
        "plain\nstep",
        "verify\nstep",
        "\ndraft",
        "\nother",
        "tokens\n/step",
        "pre-\ndicted",
        "mea-\nsured",
        "tokens\n/s",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        name = row.drafter if row.nodes is None else f"{row.drafter} ({row.nodes})"
        times = (row.plain_step_ms, row.verify_step_ms, row.draft_ms, row.other_ms)
        table.add_row(
            name,
            str(row.num_draft),
            f"{row.tau:g}",
            *(f"{time:.3g}" for time in times),
            f"{row.tokens_per_step:.2f}",
            f"{row.predicted_speedup:.2f}x",
            f"{row.measured_speedup:.2f}x" if row.identical else "WRONG",
            f"{row.tokens_per_s:.3g}",
        )
    return [table, Text(""), Text(_LEGEND, style="dim")]


def conclusions(rows: Sequence[Row], device: str = "cpu") -> list[str]:
    """What is to be said under the table: how good the prediction is, texts, a busy machine."""
    said = []
    ratios = [row.measured_over_predicted for row in rows]
    if ratios:
        near = sum(abs(ratio - 1) <= _NEAR for ratio in ratios)
        said.append(
            f"Measured over predicted: {min(ratios):.2f} to {max(ratios):.2f}; {near} of {len(ratios)} rows within 10 %."
        )
    wrong = sum(not row.identical for row in rows)
    said.append(
        f"In {wrong} of {len(rows)} rows there are texts that are NOT what the target was to say."
        if wrong
        else "All texts are what the target was to say, token for token."
    )
    said.append("Weights are random, text and acceptance synthetic: times are real, tau is an assumption.")
    return said + busy(rows, device)
