"""Exact enumeration: every random decision of the oracle, with its exact probability.

Noise is a set of variables, one per counter, each uniform in [0, 1). A race maps its variable to an entry by the inverse
of the cumulative weights, a coin compares it. A decision splits the part of [0, 1) in which its variable still lies, and
the enumeration follows every part. So noise that is used twice is seen twice: the second decision is not free, and a law
that needed it to be comes out wrong. Such reuse is also counted.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from python_ref.ops import race


@dataclass
class World:
    """What is known of the noise on one branch: the interval of each variable met, and how probable the branch is."""

    intervals: dict = field(default_factory=dict)
    probability: float = 1.0
    reused: int = 0
    used: tuple = ()


class Enumerator:
    """Runs a program once per branch; ``script`` holds the option taken at each split of the branch."""

    def __init__(self, world):
        self.start, self.script, self.options = world, [], []

    def branches(self, program):
        """Yield ``(result, world)`` for every branch of ``program()``."""
        while True:
            self.world = World(dict(self.start.intervals), self.start.probability, self.start.reused, self.start.used)
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

    def choose(self, variable, cuts, kind):
        """Index of the part of [0, 1), between successive ``cuts``, in which the variable lies."""
        low, high = self.world.intervals.get(variable, (0.0, 1.0))
        self.world.reused += variable in self.world.intervals
        self.world.used += ((kind, variable),)
        ends = [0.0, *cuts, 1.0]
        parts = [
            (i, max(low, a), min(high, b))
            for i, (a, b) in enumerate(zip(ends, ends[1:], strict=False))
            if min(high, b) - max(low, a) > 1e-15
        ]
        if len(parts) > 1:
            if self.depth == len(self.script):
                self.script.append(0)
                self.options.append(len(parts))
            part = parts[self.script[self.depth]]
            self.depth += 1
        else:
            part = parts[0]
        self.world.probability *= (part[2] - part[1]) / (high - low)
        self.world.intervals[variable] = part[1:]
        return part[0]

    @contextmanager
    def _installed(self):
        real = race.two_level, race.order_of, race.coin
        race.two_level, race.order_of, race.coin = self._two_level, self._order_of, self._coin
        try:
            yield
        finally:
            race.two_level, race.order_of, race.coin = real

    def _draw(self, w, variable, kind):
        entries = w.nonzero().flatten().tolist()
        cuts = (w[entries].cumsum(0)[:-1] / w.sum()).tolist()
        return entries[self.choose(variable, cuts, kind)]

    def _two_level(self, mass, place, margin, ids=None):
        return self._draw(mass.w, (place.key, place.counter, 0), "race") if bool((mass.w > 0).any()) else -1

    def _order_of(self, mass, place, num, margin, ids=None):
        w, chosen = mass.w.clone(), []
        while len(chosen) < num and bool((w > 0).any()):
            entry = self._draw(w, (place.key, place.counter, len(chosen)), "race")
            w[entry] = 0.0
            chosen.append(entry)
        return chosen

    def _coin(self, p, q, entry, place, margin):
        has, drawn = float(p.w[entry]), float(q.w[entry])
        cut = min(has / drawn, 1.0) if drawn > 0 else 1.0
        part = self.choose((place.key, place.counter, 0), [cut], "coin")
        return race.accepts(has, drawn, cut / 2 if part == 0 else (cut + 1) / 2)


def law_of_text(step, history, length):
    """Law of the first ``length`` tokens after ``history`` when ``step(history) -> new tokens`` is repeated.

    Returns the law as a dict, the number of branches, and how often noise was met again on any branch.
    """
    law, branches, reused = {}, 0, 0
    pending = [((), World())]
    while pending:
        text, world = pending.pop()
        for tokens, after in Enumerator(world).branches(lambda text=text: step((*history, *text))):
            branches += 1
            longer = (*text, *tokens)
            if len(longer) >= length or not tokens:
                key = longer[:length]
                law[key] = law.get(key, 0.0) + after.probability
                reused += after.reused
            else:
                pending.append((longer, after))
    return law, branches, reused


def noise_of(program):
    """The variables that each branch of a program uses, in order: a set of tuples of (kind, counter)."""
    return {
        tuple((kind, variable[1]) for kind, variable in world.used)
        for _, world in Enumerator(World()).branches(program)
    }


def random_table(vocab, seed, scale=1.0):
    """Logits ``[V, V]`` after each last token: a language model that fits in one tensor."""
    return torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed)) * scale
