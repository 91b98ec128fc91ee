"""Serving: requests come at times of their own, and the plain and the overlapped loop serve them in turns.

Load is open: a request comes when its time has come, whether or not the loop is ready for it, and all that it has to wait
counts. Who asks for the next text only when the last one is there measures a loop that is never late.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, median_low
from typing import Any, NamedTuple

from python_ref.decoding import Decoder, OverlappedDecoder, Request

from .rows import MachineColumns, columns
from .runner import quantile

#: Who serves: the loop in which host and device take turns, and the one in which they do not wait for each other.
LOOPS: Mapping[str, Any] = {"plain": Decoder, "overlapped": OverlappedDecoder}

#: Shares of the percentiles of a row.
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

# Of the arrivals. Two runs, and all loops of a run, shall see the same ones.
_SEED = 20


@dataclass
class Row(MachineColumns):
    """One loop with one drafter under one load: medians over the repetitions. What does not apply is None.

    Times of a request count from the moment at which it was to come, not from the one at which the loop took it.

    Attributes:
        loop: a name of :data:`LOOPS`.
        drafter: as on the command line.
        num_draft: most drafts in a row; 0 without a drafter.
        temperature: of all requests.
        batch: most requests decoded together.
        rate: requests that come in a second, on the average; ``"inf"``: all at once.
        requests: how many were served.
        new_tokens: tokens of all texts.
        seconds: from the first request to the last token.
        tokens_per_s: ``new_tokens`` per second.
        requests_per_s: requests per second.
        tokens_per_step: tokens that a request gained in a step of the target.
        ttft_ms_p50: time to the first token; so ``p90`` and ``p99``.
        tpot_ms_p50: time per output token behind the first: from the first to the last one, over their number.
        itl_ms_p50: time between two deliveries to a request, each of which has one token or more.
        latency_ms_p50: time to the last token.
        waiting_share: share of its working time that the overlapped loop had nothing to do but wait for the device.
        dropped: request steps of the overlapped loop that were computed behind the end of a text.
        speedup_over_plain: ``tokens_per_s`` over that of the plain loop with the same drafter and load.
        latency_over_plain: the same of ``latency_ms_p50``; below 1 is better.
        identical: whether all texts are those of plain decoding without a drafter.
        repeats: runs behind the medians.
        note: what must be known; of a wrong text there are no figures.
        model: name of the target.
        dtype: of the target.
        backend: who computed the ops.
    """

    loop: str
    drafter: str
    num_draft: int
    temperature: float
    batch: int
    rate: float | str
    requests: int
    new_tokens: int | None = None
    seconds: float | None = None
    tokens_per_s: float | None = None
    requests_per_s: float | None = None
    tokens_per_step: float | None = None
    ttft_ms_p50: float | None = None
    ttft_ms_p90: float | None = None
    ttft_ms_p99: float | None = None
    tpot_ms_p50: float | None = None
    tpot_ms_p90: float | None = None
    tpot_ms_p99: float | None = None
    itl_ms_p50: float | None = None
    itl_ms_p90: float | None = None
    itl_ms_p99: float | None = None
    latency_ms_p50: float | None = None
    latency_ms_p90: float | None = None
    latency_ms_p99: float | None = None
    waiting_share: float | None = None
    dropped: int | None = None
    speedup_over_plain: float | None = None
    latency_over_plain: float | None = None
    identical: bool = True
    repeats: int = 0
    note: str | None = None
    model: str = ""
    dtype: str = ""
    backend: str = ""

    @property
    def wrong(self) -> bool:
        """Whether a text that was promised was not given."""
        return not self.identical and self.seconds is None

    def against(self, plain: Row) -> None:
        """Fill in the ratios to the plain loop."""
        if self.tokens_per_s is not None and plain.tokens_per_s:
            self.speedup_over_plain = self.tokens_per_s / plain.tokens_per_s
        if self.latency_ms_p50 is not None and plain.latency_ms_p50:
            self.latency_over_plain = self.latency_ms_p50 / plain.latency_ms_p50


COLUMNS = columns(Row)


class Clock(NamedTuple):
    """Seconds, and how to let some pass."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


@dataclass
class Timeline:
    """What one request saw. Times are in seconds since the load began.

    Attributes:
        arrival: when it was to come.
        deliveries: when it got tokens.
        tokens: its text.
    """

    arrival: float
    deliveries: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def ttft(self) -> float | None:
        """Time to the first token."""
        return self.deliveries[0] - self.arrival if self.deliveries else None

    @property
    def latency(self) -> float | None:
        """Time to the last token."""
        return self.deliveries[-1] - self.arrival if self.deliveries else None

    @property
    def tpot(self) -> float | None:
        """Time per token behind the first."""
        return (self.deliveries[-1] - self.deliveries[0]) / (len(self.tokens) - 1) if len(self.tokens) > 1 else None

    @property
    def gaps(self) -> list[float]:
        """Times between deliveries."""
        return [after - before for before, after in itertools.pairwise(self.deliveries)]


def arrivals(count: int, rate: float) -> list[float]:
    """When requests come, in seconds: a Poisson process of ``rate`` per second that begins with a request.

    The same for every loop, and for every rate the same pattern, stretched. At an infinite rate all come at once.
    """
    source = random.Random(_SEED)
    gaps = [source.expovariate(1.0) for _ in range(count - 1)]
    return [moment / rate for moment in itertools.accumulate(gaps, initial=0.0)]


def serve(
    engine: Any, requests: Sequence[Request], times: Sequence[float], clock: Clock | None = None
) -> list[Timeline]:
    """Serve requests that come at their times, to the end.

    Args:
        engine: has ``submit``, ``step`` and ``idle``, and nothing to do.
        requests: their callbacks are replaced.
        times: when they come, ascending.
        clock: None: that of the machine.

    Returns:
        What each request saw.
    """
    now, sleep = clock or Clock()
    seen = [Timeline(moment) for moment in times]

    def listening(request: Request, timeline: Timeline) -> Request:
        def on_tokens(tokens: list[int]) -> None:
            timeline.deliveries.append(now() - start)
            timeline.tokens += tokens

        return replace(request, on_tokens=on_tokens)

    coming = deque(zip(times, map(listening, requests, seen), strict=True))
    start = now()
    while coming or not engine.idle:
        passed = now() - start
        while coming and coming[0][0] <= passed:
            engine.submit(coming.popleft()[1])
        if engine.idle:
            sleep(coming[0][0] - passed)
        else:
            engine.step()
    return seen


def figures(seen: Sequence[Timeline], statistics: Any) -> dict[str, float | None]:
    """The measured columns of a row, of one run."""
    end = max((one.deliveries[-1] for one in seen if one.deliveries), default=0.0)
    tokens = sum(len(one.tokens) for one in seen)
    found: dict[str, float | None] = {
        "new_tokens": tokens,
        "seconds": end,
        "tokens_per_s": tokens / end if end else None,
        "requests_per_s": len(seen) / end if end else None,
        "tokens_per_step": statistics.mean_tokens_per_step,
    }
    times = {name: [getattr(one, name) for one in seen] for name in ("ttft", "tpot", "latency")}
    times["itl"] = [gap for one in seen for gap in one.gaps]
    for name, samples in times.items():
        known = [sample for sample in samples if sample is not None]
        for label, share in PERCENTILES.items():
            found[f"{name}_ms_{label}"] = 1e3 * quantile(known, share) if known else None
    if hasattr(statistics, "waiting_seconds"):
        found["waiting_share"] = statistics.waiting_seconds / statistics.total_seconds
        found["dropped"] = statistics.dropped
    return found


class Run(NamedTuple):
    """What one run gave: the measured columns, and which texts were wrong."""

    figures: dict[str, float | None]
    note: str | None


def differing(seen: Sequence[Timeline], texts: Sequence[Sequence[int]]) -> str | None:
    """Which texts are others than they should be; None if none is."""
    wrong = [i for i, (one, text) in enumerate(zip(seen, texts, strict=True)) if one.tokens != list(text)]
    if not wrong:
        return None
    got, text = seen[wrong[0]].tokens, texts[wrong[0]]
    place = next(
        (i for i, pair in enumerate(zip(got, text, strict=False)) if pair[0] != pair[1]), min(len(got), len(text))
    )
    return (
        f"{len(wrong)} of {len(seen)} texts are not those of plain decoding, request {wrong[0]} from token {place} on"
    )


class Guesser(NamedTuple):
    """A drafter: a name of its own, one of :mod:`python_ref.drafters` or None, and most drafts in a row."""

    name: str
    drafter: Any
    num_draft: int


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        model: the target.
        ops: the package of the ops.
        guessers: the drafters.
        requests: the load. All have the same temperature.
        batches: most requests decoded together, one after the other.
        rates: requests per second.
        repeats: runs of each loop.
        promised: whether texts must be those of plain decoding to the last bit, as on the CPU. Else a product of matrices
            may depend on its company, and a text that hangs on its last bit is told, and no failure.
        columns: columns that all rows share.
    """

    model: Any
    ops: Any
    guessers: Sequence[Guesser]
    requests: Sequence[Request]
    batches: Sequence[int]
    rates: Sequence[float]
    repeats: int
    promised: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        """How often the load is served, the warm-up included."""
        return len(self.batches) * len(self.guessers) * len(LOOPS) * (1 + len(self.rates) * self.repeats)


def measure(setting: Setting, report: Callable[[int], None], clock: Clock | None = None) -> Iterator[list[Row]]:
    """Serve every load by every loop with every drafter, in turns, and hold the texts against plain decoding.

    Args:
        setting: what to measure.
        report: is told how many of the ``setting.runs`` there are by now.
        clock: None: that of the machine.

    Yields:
        The rows of a batch size and a rate; of each drafter first the plain loop.
    """
    requests, done = setting.requests, 0
    plain = Decoder(setting.model, ops=setting.ops, max_batch=min(8, len(requests)))
    texts = [output.tokens for output in plain.generate(requests)]
    for batch in setting.batches:
        engines = {
            (guesser.name, loop): make(
                setting.model, ops=setting.ops, drafter=guesser.drafter, num_draft=guesser.num_draft, max_batch=batch
            )
            for guesser in setting.guessers
            for loop, make in LOOPS.items()
        }
        for engine in engines.values():  # the whole load: caches grow once and for all
            serve(engine, requests, arrivals(len(requests), math.inf), clock)
            report(done := done + 1)
        for rate in setting.rates:
            times = arrivals(len(requests), rate)
            runs: dict[tuple[str, str], list[Run]] = {key: [] for key in engines}
            for turn in range(setting.repeats):
                for key in list(engines) if turn % 2 == 0 else reversed(engines):
                    gc.collect()
                    engines[key].reset_statistics()
                    seen = serve(engines[key], requests, times, clock)
                    runs[key].append(Run(figures(seen, engines[key].statistics), differing(seen, texts)))
                    report(done := done + 1)
            yield _rows(setting, batch, rate, runs)


def _rows(setting: Setting, batch: int, rate: float, runs: Mapping[tuple[str, str], Sequence[Run]]) -> list[Row]:
    rows = {}
    for guesser, loop in itertools.product(setting.guessers, LOOPS):
        taken = runs[guesser.name, loop]
        note = next((run.note for run in taken if run.note is not None), None)
        row = rows[guesser.name, loop] = Row(
            loop=loop,
            drafter=guesser.name,
            num_draft=guesser.num_draft if guesser.drafter is not None else 0,
            temperature=setting.requests[0].temperature,
            batch=batch,
            rate="inf" if math.isinf(rate) else rate,
            requests=len(setting.requests),
            identical=note is None,
            repeats=len(taken),
            note=note,
            **setting.columns,
        )
        if row.identical or not setting.promised:
            for name in taken[0].figures:
                setattr(row, name, _middle([run.figures[name] for run in taken]))
        row.against(rows[guesser.name, "plain"])
    return list(rows.values())


def _middle(samples: Sequence[float | None]) -> float | None:
    """The median of what is known; of counts it is one of them."""
    known = [sample for sample in samples if sample is not None]
    if not known:
        return None
    return median_low(known) if all(isinstance(sample, int) for sample in known) else median(known)
