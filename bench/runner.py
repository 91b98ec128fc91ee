"""Interleaved timing behind a gate: who is wrong is not timed, and who is timed takes turns.

Measuring one variant after the other compares the machine at two moments; here every round calls each variant once, in
an order that changes from round to round.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Clock = Callable[[], int]

#: A variant with slow calls gets at least this many samples.
FEWEST = 5


@dataclass(frozen=True)
class Variant:
    """One way to compute something.

    Attributes:
        name: a backend or a baseline.
        call: what is timed. Its result goes to ``check`` before any timing.
        check: None if a result is right, else the reason why it is wrong.
        inner: calls per sample, for calls much shorter than the clock's overhead; also the calls that ``prepare``
            precedes.
    """

    name: str
    call: Callable[[], Any]
    check: Callable[[Any], str | None]
    inner: int = 1


#: Takes one sample of a variant: nanoseconds per call.
Stopwatch = Callable[[Variant], float]


def quantile(samples: Sequence[float], share: float) -> float:
    """Quantile of at least one sample, interpolated between the nearest ones."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


class Timing(NamedTuple):
    """Samples of one variant: nanoseconds per call, in the order in which they were taken."""

    samples: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """Quantile in microseconds."""
        return quantile(self.samples, share) / 1e3

    @property
    def p50(self) -> float:
        """Median in microseconds."""
        return self.quantile(0.5)


class Refused(NamedTuple):
    """A variant that was not timed, and why."""

    reason: str


Outcome = Timing | Refused


def admit(variant: Variant) -> Refused | None:
    """Call a variant once and check its result; an exception is a wrong result."""
    try:
        reason = variant.check(variant.call())
    except Exception as error:  # whatever a foreign compiler or an op raises: it becomes the note of the row
        lines = str(error).strip().splitlines() or [""]
        return Refused(f"failed: {type(error).__name__}: {lines[0][:200]}")
    return None if reason is None else Refused(f"wrong result: {reason}")


def counts(costs: Sequence[float], repeats: int, budget_s: float) -> list[int]:
    """Samples per variant: ``repeats``, fewer where they would take longer than ``budget_s``.

    Args:
        costs: seconds per sample of each variant.
        repeats: samples wanted.
        budget_s: time for all samples of one variant, as far as that leaves it :data:`FEWEST` of them.
    """
    fewest = min(FEWEST, repeats)
    return [max(fewest, min(repeats, int(budget_s / max(cost, 1e-9)))) for cost in costs]


def turns(wanted: Sequence[int]) -> list[list[int]]:
    """Rounds of indices so that index ``i`` appears ``wanted[i]`` times, spread evenly over all rounds."""
    rounds = max(wanted, default=0)
    return [[i for i, n in enumerate(wanted) if (r + 1) * n // rounds > r * n // rounds] for r in range(rounds)]


def measure(
    variants: Sequence[Variant],
    *,
    repeats: int = 30,
    budget_s: float = 3.0,
    prepare: Callable[[Variant], object] | None = None,
    clock: Clock = time.perf_counter_ns,
    stopwatch: Stopwatch | None = None,
    tick: Callable[[], object] | None = None,
    seed: int = 0,
) -> dict[str, Outcome]:
    """Check all variants, then time those that are right, in turns.

    Args:
        variants: with names that differ.
        repeats: samples per variant.
        budget_s: see :func:`counts`.
        prepare: called with the variant before each of its samples, untimed: it brings caches into a known state.
        clock: nanoseconds.
        stopwatch: takes a sample in another way than by the clock.
        tick: called between rounds, untimed: progress.
        seed: of the order of the variants within a round.

    Returns:
        Per name the samples, or why there are none.

    Raises:
        ValueError: if two variants have the same name.
    """
    if len({variant.name for variant in variants}) != len(variants):
        raise ValueError(f"measure: variants must have different names, got {[v.name for v in variants]}")
    notify = tick or (lambda: None)
    results: dict[str, Outcome] = {}
    admitted = []
    for variant in variants:
        refused = admit(variant)
        if refused is None:
            admitted.append(variant)
        else:
            results[variant.name] = refused
        notify()

    def sample(variant: Variant) -> float:
        if prepare is not None:
            prepare(variant)
        if stopwatch is not None:
            return stopwatch(variant)
        call = variant.call
        if variant.inner == 1:
            start = clock()
            call()
            return float(clock() - start)
        start = clock()
        for _ in range(variant.inner):
            call()
        return (clock() - start) / variant.inner

    samples: list[list[float]] = [[] for _ in admitted]
    shuffled = random.Random(seed)
    collecting = gc.isenabled()
    gc.disable()
    try:
        # The first sample is a warm-up: it only tells how many samples the budget allows.
        costs = [sample(variant) * variant.inner / 1e9 for variant in admitted]
        for turn in turns(counts(costs, repeats, budget_s)):
            shuffled.shuffle(turn)
            for i in turn:
                samples[i].append(sample(admitted[i]))
            notify()
    finally:
        if collecting:
            gc.enable()
    for variant, taken in zip(admitted, samples, strict=True):
        results[variant.name] = Timing(tuple(taken))
    return {variant.name: results[variant.name] for variant in variants}
