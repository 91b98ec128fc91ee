"""Exact enumeration: every random decision of the oracle, with its exact probability.

Noise is a set of variables, one per counter, each uniform in [0, 1). A race maps its variable to an entry by the inverse of
the cumulative weights, a coin compares it. A decision splits the part of [0, 1) in which its variable still lies, and the
enumeration follows every part. So noise that is used twice is seen twice: the second decision is not free, and a law that
needed it to be comes out wrong. Such reuse is also counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._reference import race as race_of_oracle
from .decoding import Decoding, fused
from .models import Case, as_int64, processed

#: What a law may be off by.
LARGEST_ERROR = 1e-12

# Parts of [0, 1) shorter than this are rounding.
_SHORTEST = 1e-15

_Variable = tuple[Any, ...]


@dataclass
class World:
    """What is known of the noise on one branch.

    Attributes:
        intervals: where each variable lies that was met.
        probability: of the branch.
        reused: how often a variable was met again.
        used: ``(kind, variable)`` of each decision, in order.
    """

    intervals: dict[_Variable, tuple[float, float]] = field(default_factory=dict)
    probability: float = 1.0
    reused: int = 0
    used: tuple[tuple[str, _Variable], ...] = ()


class Enumerator:
    """Runs a program once per branch; ``script`` holds the option taken at each split of the branch."""

    def __init__(self, world: World) -> None:
        self.start = world
        self.script: list[int] = []
        self.options: list[int] = []

    def branches(self, program: Callable[[], Any]) -> Iterator[tuple[Any, World]]:
        """Yield ``(result, world)`` for every branch of ``program()``."""
        while True:
            start = self.start
            self.world = World(dict(start.intervals), start.probability, start.reused, start.used)
            self.depth = 0
            with self._installed():
                result = program()
            yield result, self.world
            while self.script and self.script[-1] + 1 == self.options[-1]:
                self.script.pop()
                self.options.pop()
            if not self.script:
                return
            self.script[-1] += 1

    def choose(self, variable: _Variable, cuts: list[float], kind: str) -> int:
        """Index of the part of [0, 1), between successive ``cuts``, in which the variable lies."""
        low, high = self.world.intervals.get(variable, (0.0, 1.0))
        self.world.reused += variable in self.world.intervals
        self.world.used += ((kind, variable),)
        ends = [0.0, *cuts, 1.0]
        parts = [
            (i, max(low, a), min(high, b))
            for i, (a, b) in enumerate(zip(ends, ends[1:], strict=False))
            if min(high, b) - max(low, a) > _SHORTEST
        ]
        part = parts[0]
        if len(parts) > 1:
            if self.depth == len(self.script):
                self.script.append(0)
                self.options.append(len(parts))
            part = parts[self.script[self.depth]]
            self.depth += 1
        self.world.probability *= (part[2] - part[1]) / (high - low)
        self.world.intervals[variable] = part[1:]
        return part[0]

    @contextmanager
    def _installed(self) -> Iterator[None]:
        race = race_of_oracle()
        self._accepts = race.accepts
        real = race.two_level, race.order_of, race.coin
        race.two_level, race.order_of, race.coin = self._two_level, self._order_of, self._coin
        try:
            yield
        finally:
            race.two_level, race.order_of, race.coin = real

    def _draw(self, w: Tensor, variable: _Variable, kind: str) -> int:
        entries = w.nonzero().flatten().tolist()
        cuts = (w[entries].cumsum(0)[:-1] / w.sum()).tolist()
        return int(entries[self.choose(variable, cuts, kind)])

    def _two_level(self, mass: Any, place: Any, margin: Any, ids: Any = None) -> int:
        return self._draw(mass.w, (place.key, place.counter, 0), "race") if bool((mass.w > 0).any()) else -1

    def _order_of(self, mass: Any, place: Any, num: int, margin: Any, ids: Any = None) -> list[int]:
        w = mass.w.clone()
        chosen: list[int] = []
        while len(chosen) < num and bool((w > 0).any()):
            entry = self._draw(w, (place.key, place.counter, len(chosen)), "race")
            w[entry] = 0.0
            chosen.append(entry)
        return chosen

    def _coin(self, p: Any, q: Any, entry: int, place: Any, margin: Any) -> bool:
        has, drawn = float(p.w[entry]), float(q.w[entry])
        cut = min(has / drawn, 1.0) if drawn > 0 else 1.0
        part = self.choose((place.key, place.counter, 0), [cut], "coin")
        return bool(self._accepts(has, drawn, cut / 2 if part == 0 else (cut + 1) / 2))


class Enumerated(NamedTuple):
    """A law, and what it took.

    Attributes:
        law: the probability of each text.
        branches: runs of the program.
        reused: how often noise was met again on any branch.
    """

    law: dict[tuple[int, ...], float]
    branches: int
    reused: int


def law_of_text(
    step: Callable[[tuple[int, ...]], tuple[int, ...]], history: tuple[int, ...], length: int
) -> Enumerated:
    """The law of the first ``length`` tokens after ``history`` when ``step(history) -> new tokens`` is repeated."""
    law: dict[tuple[int, ...], float] = {}
    branches = reused = 0
    pending: list[tuple[tuple[int, ...], World]] = [((), World())]
    while pending:
        text, world = pending.pop()
        for tokens, after in Enumerator(world).branches(lambda text=text: step((*history, *text))):  # type: ignore[misc]
            branches += 1
            longer = (*text, *tokens)
            if len(longer) >= length or not tokens:
                law[longer[:length]] = law.get(longer[:length], 0.0) + after.probability
                reused += after.reused
            else:
                pending.append((longer, after))
    return Enumerated(law, branches, reused)


def noise_of(program: Callable[[], Any]) -> set[tuple[tuple[str, Any], ...]]:
    """The variables that each branch of a program uses, in order: a set of tuples of (kind, counter)."""
    return {
        tuple((kind, variable[1]) for kind, variable in world.used)
        for _, world in Enumerator(World()).branches(program)
    }


def error_of(case: Case, seed: int = 11) -> tuple[float, Enumerated]:
    """The largest error of a probability of a case's texts on the oracle, and its law."""
    decoding = Decoding(case, fused("reference"), "reference")
    seeds = torch.tensor([as_int64(seed)])

    def step(history: tuple[int, ...]) -> tuple[int, ...]:
        tokens, num = decoding.step(torch.tensor([history[-1]]), torch.tensor([len(history)]), seeds)
        return tuple(tokens[0, : int(num[0])].tolist())

    found = law_of_text(step, (0,), case.length)
    step_law = processed(case.target, case.settings, case.allowed)
    error = 0.0
    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(case.length):
        expected = {
            (*text, token): probability * float(p)
            for text, probability in expected.items()
            for token, p in enumerate(step_law[(text[-1] if text else 0) % case.states])
            if p > 0
        }
    for text in found.law.keys() | expected.keys():
        error = max(error, abs(found.law.get(text, 0.0) - expected.get(text, 0.0)))
    return error, found
