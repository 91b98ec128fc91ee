"""Weights with their uncertainty: what makes "a different float order decides otherwise" exact.

The oracle computes in float64, other backends in float32, so a decision may differ where it hangs by
a thread. Each weight ``w`` therefore carries a ``doubt``: if every probability and cumulative mass
were off by a relative ``e``, ``w`` would be off by at most ``e * doubt`` to first order. A decision
then has a margin, the smallest ``e`` that turns it, and a backend must decide as the oracle does
where the margin is at least :data:`TOLERANCE`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: The relative change of p, q and cumulative masses that may change a decision.
TOLERANCE = 1e-5

# Cases this close are carried along as uncertain.
CLOSE = 2 * TOLERANCE

# Below this share of the largest weight a float64 has no full precision.
_UNDERFLOW = 2.0**-1000


class Margin:
    """The smallest margin of the decisions of one request; ``wanted`` False saves the work."""

    def __init__(self, wanted: bool = True) -> None:
        self.wanted = wanted
        self.value = math.inf

    def __call__(self, value: float) -> None:
        """Record one decision."""
        self.value = min(self.value, value)

    def of_winner(self, noise: Tensor, mass: Mass, winner: int) -> None:
        """Record a race ``noise / w``: when would another entry overtake the winner?

        Entry ``x`` draws level at ``e`` if ``noise_x (w - e doubt) = noise (w_x + e doubt_x)``.
        """
        if not self.wanted:
            return
        if float(mass.w[winner]) < _UNDERFLOW:
            self(0.0)
        ahead = noise * mass.w[winner] - noise[winner] * mass.w
        slack = noise * mass.doubt[winner] + noise[winner] * mass.doubt
        turns = ahead / slack
        turns[winner] = math.inf
        self(float(turns.min()))

    def of_cut(self, mass: Mass, entries: Tensor) -> None:
        """Record that entries were taken by rank: was the fate of one of them uncertain?"""
        if bool((mass.doubt[entries] > 2 * mass.w[entries]).any()):
            self(0.0)

    def of_absence(self, mass: Mass) -> None:
        """Record that no entry is left, although the fate of some was uncertain."""
        if bool((mass.doubt > 0).any()):
            self(0.0)

    def of_remainder(self, mass: Mass) -> None:
        """Record that something is left, although it may be rounding alone."""
        slack = float(mass.doubt.sum()) if self.wanted else 0.0
        if slack > 0:
            self(float(mass.w.sum()) / slack)

    def of_coin(self, u: float, p: Mass, q: Mass, index: int) -> None:
        """Record the coin ``u q < p`` of one entry."""
        if not self.wanted:
            return
        slack = float(p.doubt[index]) + u * float(q.doubt[index])
        if slack > 0:
            self(abs(float(p.w[index]) - u * float(q.w[index])) / slack)


class Mass(NamedTuple):
    """Weights ``w [n] >= 0`` and ``doubt [n]``, both float64."""

    w: Tensor
    doubt: Tensor

    def normalised(self) -> Mass:
        """``w / sum(w)``; weights that are all zero stay so."""
        total = float(self.w.sum())
        if not total > 0:
            return self
        slack = float(self.doubt.sum()) / total
        return Mass(self.w / total, (self.doubt + self.w * slack) / total)

    def minus(self, other: Mass) -> Mass:
        """``max(w - other, 0)``."""
        difference, doubt = self.w - other.w, self.doubt + other.doubt
        reachable = difference + CLOSE * doubt > 0
        return Mass(difference.clamp(min=0.0), torch.where(reachable, doubt, 0.0))

    def without(self, entries: list[int]) -> Mass:
        """The weights with some entries set to zero."""
        w, doubt = self.w.clone(), self.doubt.clone()
        w[entries] = doubt[entries] = 0.0
        return Mass(w, doubt)
