"""Rows of :mod:`bench.serve` as tables and sentences for people."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .rows import busy
from .serve import Row

_LEGEND = (
    "ttft: milliseconds to the first token; tpot: per token behind the first; e2e: to the last token (latency). They count from "
    "the moment at which a request was to come. rate: requests that come in a second, inf: all at once. over plain: tokens/s and "
    "median latency over those of the plain loop."
)


def tables(rows: Sequence[Row]) -> list[RenderableType]:
    """A table for each batch size, and what the columns mean; they fit 80 columns."""
    made: list[RenderableType] = []
    for batch, part in groupby(rows, lambda row: row.batch):
        made += [Text(f"at most {batch} decoded together", style="bold"), _table(list(part)), Text("")]
    return [*made, Text(_LEGEND, style="dim")]


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("rate", "drafter", "loop"):
        table.add_column(name, no_wrap=True)
    for name in (
        "tokens\n/s",
        "ttft\np50",
        "\np99",
        "tpot\np50",
        "\np99",
        "e2e\np50",
        "\np99",
        "over\nplain",
        "\n",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        ratios = (row.speedup_over_plain, row.latency_over_plain) if row.loop != "plain" else (None, None)
        percentiles = [getattr(row, f"{name}_ms_{p}") for name in ("ttft", "tpot", "latency") for p in ("p50", "p99")]
        figures = [_three(row.tokens_per_s), *map(_milliseconds, percentiles), *map(_ratio, ratios)]
        if row.wrong:
            figures[0] = "WRONG"
        table.add_row(_rate(row.rate), row.drafter, row.loop, *figures)
    return table


def _rate(rate: float | str) -> str:
    return rate if isinstance(rate, str) else f"{rate:g}"


def _three(value: float | None) -> str:
    """Three digits; those before the point all."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def _milliseconds(value: float | None) -> str:
    """Four characters; long times in seconds."""
    return _three(value) if value is None or value < 9999.5 else f"{value / 1e3:.0f}s"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def conclusions(rows: Sequence[Row], device: str = "cpu") -> list[str]:
    """What is to be said under the tables: overlapped over plain for each drafter, texts, notes, a busy machine."""
    said = [
        *_said(
            "Tokens per second of the overlapped loop over the plain one, all requests at once",
            rows,
            "speedup_over_plain",
            True,
        ),
        *_said(
            "Median latency of the overlapped loop over that of the plain one, requests at their times",
            rows,
            "latency_over_plain",
            False,
        ),
        _texts(rows),
    ]
    for note, noted in groupby(
        sorted((row for row in rows if row.note), key=lambda row: row.note or ""), lambda r: r.note
    ):
        named = [f"{row.drafter}, {row.loop}, batch {row.batch}, rate {_rate(row.rate)}" for row in noted]
        said.append(f"{'; '.join(named)}: {note}")
    return said + busy(rows, device)


def _said(what: str, rows: Sequence[Row], ratio: str, at_once: bool) -> list[str]:
    """One sentence with the spans of a ratio, of the rows where all requests come at once or of the others; none if there
    is no such row."""
    spans: dict[str, list[float]] = {}
    for row in rows:
        value = getattr(row, ratio)
        if row.loop != "plain" and (row.rate == "inf") == at_once and value is not None:
            spans.setdefault(row.drafter, []).append(value)
    if not spans:
        return []
    named = (f"{_span(values)} with {'no drafter' if name == 'none' else name}" for name, values in spans.items())
    return [f"{what}: {', '.join(named)}."]


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _texts(rows: Sequence[Row]) -> str:
    others = sum(not row.identical for row in rows)
    if not others:
        return "All texts are those of plain decoding, token for token."
    return f"In {others} of {len(rows)} rows there are texts that are NOT those of plain decoding."
