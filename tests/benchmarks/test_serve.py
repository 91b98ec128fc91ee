"""What serving is measured by: arrivals, the clock that counts from them, percentiles, turns, and the gate of the texts."""

import io
import math
import statistics
import types
from collections import deque

import pytest
import torch
from rich.console import Console

import specdec_kernels as sk
from bench import serve, serve_plots, serve_report
from bench.rows import as_dicts, write_csv
from bench.serve import Clock, Guesser, Row, Setting, Timeline
from python_ref.decoding import Request
from python_ref.drafters import NgramDrafter
from specdec_kernels.cli import engine


class FakeClock:
    """Time that passes only when somebody says so."""

    def __init__(self):
        self.time, self.slept = 100.0, []

    def sleep(self, seconds):
        assert seconds > 0
        self.slept.append(seconds)
        self.time += seconds

    @property
    def clock(self):
        return Clock(lambda: self.time, self.sleep)


class FakeEngine:
    """Serves one request after the other; each of its steps takes a second and gives two tokens."""

    def __init__(self, clock):
        self.clock, self.waiting, self.submitted = clock, deque(), []

    @property
    def idle(self):
        return not self.waiting

    def submit(self, request):
        self.submitted.append(self.clock.time - 100.0)
        self.waiting.append([request, 0])

    def step(self):
        self.clock.time += 1.0
        request, given = self.waiting[0]
        tokens = list(range(given, min(given + 2, request.max_new_tokens)))
        self.waiting[0][1] += len(tokens)
        if self.waiting[0][1] == request.max_new_tokens:
            self.waiting.popleft()
        request.on_tokens(tokens)


# ---- arrivals -----------------------------------------------------------------------------------------------------------


def test_arrivals_are_a_poisson_process():
    times = serve.arrivals(4000, 5.0)
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert len(times) == 4000 and times[0] == 0.0 and min(gaps) > 0
    mean = statistics.mean(gaps)
    assert math.isclose(mean, 0.2, rel_tol=0.05)
    assert math.isclose(statistics.stdev(gaps), mean, rel_tol=0.05)  # of an exponential law
    assert math.isclose(sum(gap > 0.2 for gap in gaps) / len(gaps), math.exp(-1), rel_tol=0.05)


def test_arrivals_are_the_same_for_everybody():
    times = serve.arrivals(20, 2.0)
    assert serve.arrivals(20, 2.0) == times and serve.arrivals(7, 2.0) == times[:7]
    assert serve.arrivals(20, 8.0) == pytest.approx([moment / 4 for moment in times])
    assert serve.arrivals(3, math.inf) == [0.0] * 3 and serve.arrivals(1, 0.5) == [0.0]


# ---- what a request sees ------------------------------------------------------------------------------------------------


def test_latency_counts_from_the_moment_at_which_a_request_was_to_come():
    """The second one comes within a step of the first, and waits for three more."""
    clock = FakeClock()
    engine = FakeEngine(clock)
    requests = [Request([1], max_new_tokens=count) for count in (8, 3, 2)]
    first, second, third = serve.serve(engine, requests, [0.0, 0.25, 10.0], clock.clock)
    assert engine.submitted == [0.0, 1.0, 10.0] and clock.slept == [4.0]
    assert first.deliveries == [1.0, 2.0, 3.0, 4.0] and (first.ttft, first.latency) == (1.0, 4.0)
    assert second.deliveries == [5.0, 6.0] and second.tokens == [0, 1, 2]
    assert (second.ttft, second.latency) == (4.75, 5.75), "the loop could take it no earlier than at 1.0"
    assert (third.ttft, third.latency) == (1.0, 1.0)
    assert first.gaps == [1.0] * 3 and third.gaps == []
    assert first.tpot == 3 / 7 and second.tpot == 0.5 and third.tpot == 0.0


def test_figures_of_a_run():
    seen = [Timeline(0.1 * i, [0.1 * i + 0.01 * (i + 1), 0.1 * i + 0.01 * (i + 1) + 0.4], [1, 2, 3]) for i in range(11)]
    done = types.SimpleNamespace(mean_tokens_per_step=1.5, waiting_seconds=0.5, total_seconds=2.0, dropped=3)
    found = serve.figures(seen, done)
    assert {name for name in found} <= set(serve.COLUMNS)
    assert found["new_tokens"] == 33 and found["seconds"] == pytest.approx(1.51)
    assert found["tokens_per_s"] == pytest.approx(33 / 1.51) and found["requests_per_s"] == pytest.approx(11 / 1.51)
    assert [found[f"ttft_ms_{p}"] for p in ("p50", "p90", "p99")] == pytest.approx([60.0, 100.0, 109.0])
    assert [found[f"latency_ms_{p}"] for p in ("p50", "p90", "p99")] == pytest.approx([460.0, 500.0, 509.0])
    assert found["tpot_ms_p99"] == pytest.approx(200.0) and found["itl_ms_p50"] == pytest.approx(400.0)
    assert (found["tokens_per_step"], found["waiting_share"], found["dropped"]) == (1.5, 0.25, 3)


def test_figures_that_there_are_not():
    plain = types.SimpleNamespace(mean_tokens_per_step=1.0)
    found = serve.figures([Timeline(0.0, [0.5], [7])], plain)
    assert found["ttft_ms_p50"] == found["latency_ms_p99"] == 500.0
    assert found["tpot_ms_p50"] is None and found["itl_ms_p50"] is None and "dropped" not in found
    nothing = serve.figures([Timeline(0.0)], plain)
    assert nothing["new_tokens"] == 0 and nothing["tokens_per_s"] is None and nothing["ttft_ms_p50"] is None


def test_texts_that_differ_are_named():
    seen = [Timeline(0.0, [], [1, 2, 3]), Timeline(0.0, [], [4, 5]), Timeline(0.0, [], [6])]
    assert serve.differing(seen, [[1, 2, 3], [4, 5], [6]]) is None
    said = "{} of 3 texts are not those of plain decoding, request {} from token {} on"
    assert serve.differing(seen, [[1, 2, 3], [4, 9], [7]]) == said.format(2, 1, 1)
    assert serve.differing(seen, [[1, 2, 3], [4, 5], [6, 7]]) == said.format(1, 2, 1)


# ---- measuring ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(assets):
    """Six requests to a tiny model, three tokens apart in length."""
    model = engine.load(assets / engine.TARGET, "float32", torch.device("cpu")).model
    requests = [Request([5 + i, 6, 7, 5 + i, 6], 4 + i, 0.8 * (i % 2), seed=i, stop_tokens=()) for i in range(6)]
    guessers = [Guesser("none", None, 4), Guesser("ngram", NgramDrafter(sk), 3)]
    return Setting(model, sk, guessers, requests, [1, 4], [500.0, math.inf], 2, columns={"model": "tiny"})


def measure(setting, report=lambda done: None):
    return [row for rows in serve.measure(setting, report) for row in rows]


def test_both_loops_serve_the_same_requests_with_the_same_text(tiny):
    told = []
    rows = measure(tiny, told.append)
    order = [
        (batch, rate, drafter, loop)
        for batch in (1, 4)
        for rate in (500.0, "inf")
        for drafter in ("none", "ngram")
        for loop in ("plain", "overlapped")
    ]
    assert [(row.batch, row.rate, row.drafter, row.loop) for row in rows] == order
    assert told == list(range(1, tiny.runs + 1)) and tiny.runs == 2 * 4 * (1 + 2 * 2)
    for row in rows:
        assert row.identical and not row.wrong and row.note is None
        assert (row.requests, row.new_tokens, row.repeats, row.model) == (6, 4 + 5 + 6 + 7 + 8 + 9, 2, "tiny")
        assert row.num_draft == {"none": 0, "ngram": 3}[row.drafter]
        assert (row.tokens_per_step == 1) if row.drafter == "none" else (row.tokens_per_step >= 1)
        for name in ("ttft", "tpot", "itl", "latency"):
            p50, p90, p99 = (getattr(row, f"{name}_ms_{p}") for p in ("p50", "p90", "p99"))
            assert 0 <= p50 <= p90 <= p99
        assert row.ttft_ms_p50 <= row.latency_ms_p50 <= 1e3 * row.seconds
        if row.loop == "plain":
            assert row.waiting_share is None and row.dropped is None
            assert row.speedup_over_plain == row.latency_over_plain == 1
            plain = row
        else:
            assert 0 <= row.waiting_share <= 1 and row.dropped >= 0
            assert row.speedup_over_plain == row.tokens_per_s / plain.tokens_per_s
            assert row.latency_over_plain == row.latency_ms_p50 / plain.latency_ms_p50


def test_loops_take_turns(tiny, monkeypatch):
    """All of them at the same arrivals, and every other time in the reverse order."""
    ran = []

    def recorded(decoder, requests, times, clock=None):
        ran.append((type(decoder).__name__, decoder.statistics.steps, tuple(times)))
        return played(decoder, requests, times, clock)

    played = serve.serve
    monkeypatch.setattr(serve, "serve", recorded)
    measure(Setting(tiny.model, sk, tiny.guessers, tiny.requests, [2], [500.0], 3))
    order = ["Decoder", "OverlappedDecoder"] * 2
    assert [name for name, _, _ in ran] == order + order + order[::-1] + order
    assert {steps for _, steps, _ in ran} == {0}, "statistics are reset before every run"
    assert {times for _, _, times in ran[:4]} == {(0.0,) * 6}, "the warm-up"
    assert {times for _, _, times in ran[4:]} == {tuple(serve.arrivals(6, 500.0))}


@pytest.fixture
def wrong(tiny, monkeypatch):
    """An overlapped loop that gives another last token."""

    class Wrong(serve.LOOPS["overlapped"]):
        def submit(self, request):
            def on_tokens(tokens):
                heard.extend(tokens)
                last = len(heard) == request.max_new_tokens
                request.on_tokens([*tokens[:-1], tokens[-1] + last])

            heard = []
            return super().submit(serve.replace(request, on_tokens=on_tokens))

    monkeypatch.setattr(serve, "LOOPS", {**serve.LOOPS, "overlapped": Wrong})
    return Setting(tiny.model, sk, tiny.guessers, tiny.requests, [2], [math.inf], 1)


def test_a_wrong_text_has_no_figures(wrong):
    rows = measure(wrong)
    assert [row.wrong for row in rows] == [False, True] * 2
    for row in rows[1::2]:
        assert row.tokens_per_s is row.latency_ms_p50 is row.speedup_over_plain is None and not row.identical
        assert row.note == "6 of 6 texts are not those of plain decoding, request 0 from token 3 on"
    said = "\n".join(serve_report.conclusions(rows))
    assert "In 2 of 4 rows there are texts that are NOT those of plain decoding." in said
    assert "none, overlapped, batch 2, rate inf; ngram, overlapped, batch 2, rate inf: 6 of 6 texts" in said
    assert "overlapped loop over" not in said
    assert shown(serve_report.tables(rows)).count("WRONG") == 2


def test_where_the_last_bit_is_not_promised_another_text_is_told_and_no_failure(wrong):
    rows = measure(serve.replace(wrong, promised=False))
    assert [row.identical for row in rows] == [True, False] * 2 and not any(row.wrong for row in rows)
    assert all(row.tokens_per_s > 0 and row.note for row in rows[1::2])


def test_medians_leave_out_what_is_unknown():
    assert serve._middle([3.0, 1.0, 2.0]) == 2.0 and serve._middle([1.0, 2.0]) == 1.5
    assert serve._middle([4, 3]) == 3 and serve._middle([None, 5]) == 5 and serve._middle([None]) is None


# ---- what is shown ------------------------------------------------------------------------------------------------------


def shown(parts):
    console = Console(file=io.StringIO(), width=80)
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def row(loop, drafter="ngram", batch=4, rate="inf", **figures):
    names = [f"{name}_ms_{p}" for name in ("ttft", "tpot", "latency") for p in ("p50", "p99")]
    made = Row(loop, drafter, 4, 0.0, batch, rate, 12, tokens_per_s=12345.6, seconds=1.0)
    for name in names:
        setattr(made, name, 10234.5)
    for name, value in figures.items():
        setattr(made, name, value)
    return made


ROWS = [
    row(loop, drafter, batch, rate, speedup_over_plain=1.0 + 0.01 * batch, latency_over_plain=0.9 - 0.01 * batch)
    for batch in (1, 16)
    for rate in (2.5, "inf")
    for drafter in ("none", "eagle3-tree")
    for loop in ("plain", "overlapped")
]


def test_tables_fit_a_terminal():
    lines = shown(serve_report.tables(ROWS)).splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    assert [line.strip() for line in lines if "decoded together" in line] == [
        "at most 1 decoded together",
        "at most 16 decoded together",
    ]
    assert sum(line.rstrip().endswith("1.16 0.74") for line in lines) == 4
    assert sum(line.split()[3:10] == ["12346", *["10s"] * 6] for line in lines) == len(ROWS)
    assert [
        serve_report._milliseconds(value) for value in (None, 0.0512, 9.994, 99.94, 99.95, 9999.4, 9999.6, 2e5)
    ] == [*("-", "0.0512", "9.99", "99.9", "100", "9999", "10s", "200s")]


def test_conclusions_are_about_the_overlapped_loop():
    assert serve_report.conclusions(ROWS) == [
        "Tokens per second of the overlapped loop over the plain one, all requests at once: 1.01 to 1.16 with no drafter, "
        "1.01 to 1.16 with eagle3-tree.",
        "Median latency of the overlapped loop over that of the plain one, requests at their times: 0.74 to 0.89 with no "
        "drafter, 0.74 to 0.89 with eagle3-tree.",
        "All texts are those of plain decoding, token for token.",
    ]
    busy = serve_report.conclusions([row("plain", load=3.2)])
    assert busy[-1].startswith("Other processes were running (load 3.2 at the start)")


def test_rows_are_written(tmp_path):
    write_csv(serve.Row, ROWS, tmp_path / "rows.csv")
    header, first, *_ = (tmp_path / "rows.csv").read_text().splitlines()
    assert header == ",".join(serve.COLUMNS) and first.startswith("plain,none,4,0.0,1,2.5,12,")
    assert as_dicts(ROWS)[2]["loop"] == "plain" and {one["rate"] for one in as_dicts(ROWS)} == {2.5, "inf"}


# ---- the picture --------------------------------------------------------------------------------------------------------


def test_charts_go_along_the_rate():
    charts = serve_plots.charts(ROWS)
    assert [(chart.title, chart.axis, chart.ticks) for chart in charts] == [
        (f"at most {batch} together", "requests per second", ["2.5", "inf"]) for batch in (1, 16)
    ]
    for chart, batch in zip(charts, (1, 16), strict=True):
        assert set(chart.lines) == {(d, loop) for d in ("none", "eagle3-tree") for loop in ("plain", "overlapped")}
        for points in chart.lines.values():
            assert [(place, one.rate, one.batch) for place, one in points] == [(0, 2.5, batch), (1, "inf", batch)]


def test_charts_of_one_rate_go_along_the_batch():
    (chart,) = serve_plots.charts([one for one in ROWS if one.rate == "inf"])
    assert chart[:3] == ("all requests at once", "most requests decoded together", ["1", "16"])
    assert all([(place, one.batch) for place, one in points] == [(0, 1), (1, 16)] for points in chart.lines.values())
    (chart,) = serve_plots.charts([one for one in ROWS if one.rate == 2.5])
    assert chart.title == "2.5 requests per second"


def test_wrong_rows_are_not_drawn():
    charts = serve_plots.charts([row("plain"), row("overlapped", identical=False, seconds=None)])
    assert list(charts[0].lines) == [("ngram", "plain")]


@pytest.mark.parametrize("suffix", serve_plots.SUFFIXES)
def test_a_picture_is_drawn(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"serve{suffix}"
    serve_plots.draw([*ROWS, row("plain", tokens_per_s=None)], path)
    begin = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(begin)
    if suffix == ".svg":
        assert path.read_text().count("<!-- ") > 10 and "latency p99 (ms)" in path.read_text()
