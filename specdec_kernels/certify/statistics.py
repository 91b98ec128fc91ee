"""The likelihood-ratio test of counts against a known law, and how small a bias it finds."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Cells that are expected less often than this are gathered with others: their counts are not near normal.
FEWEST = 10


class Test(NamedTuple):
    """One test.

    Attributes:
        statistic: ``G = 2 sum(found log(found / expected))``; inf where something impossible came up.
        degrees: degrees of freedom of its chi-square law.
        p_value: how probable a statistic at least as large is under the law.
    """

    statistic: float
    degrees: int
    p_value: float


def upper_tail(statistic: float, degrees: int) -> float:
    """The probability that a chi-square variable exceeds ``statistic``."""
    if degrees < 1:
        return 1.0
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def quantile(p_value: float, degrees: int) -> float:
    """The statistic whose upper tail is ``p_value``."""
    if degrees < 1:
        return 0.0
    low, high = 0.0, float(degrees)
    while upper_tail(high, degrees) > p_value:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle, degrees) > p_value else (low, middle)
    return high


def g_test(found: Tensor, expected: Tensor) -> Test:
    """Test counts against probabilities.

    Args:
        found: ``[cells]`` int64, how often each outcome came up.
        expected: ``[cells]`` float64, its probability.

    Returns:
        The test. Cells that hardly ever come up are gathered with those that stand near them, until they are expected
        often enough; what cannot come up must not.
    """
    if bool((found[expected == 0] > 0).any()):
        return Test(math.inf, 0, 0.0)
    wanted = expected * int(found.sum())
    rare = wanted < FEWEST
    # Among rare cells a group ends once it is expected often enough; what is left of the last goes to the one before.
    ends = wanted[rare].cumsum(0)
    group = ((ends - wanted[rare]) / (2 * FEWEST)).long()
    last = int(group.max()) if group.numel() else 0
    if last > 0 and float(wanted[rare][group == last].sum()) < FEWEST:
        group = group.clamp(max=last - 1)
    gathered = torch.zeros(2, last + 1, dtype=torch.float64)
    gathered.index_add_(1, group, torch.stack((found[rare].double(), wanted[rare])))
    pooled, wanted = (torch.cat(pair) for pair in zip((found[~rare].double(), wanted[~rare]), gathered, strict=True))
    pooled, wanted = pooled[wanted > 0], wanted[wanted > 0]
    if pooled.numel() < 2:
        return Test(0.0, 0, 1.0)  # all is in one cell: what rounding leaves of it speaks against nobody
    terms = torch.where(pooled > 0, pooled * (pooled / wanted).log(), 0.0)
    statistic = max(0.0, 2 * float(terms.sum()))
    degrees = pooled.numel() - 1
    return Test(statistic, degrees, upper_tail(statistic, degrees))


def detectable(trials: int, degrees: int, threshold: float, power: float = 0.99) -> float:
    """The total-variation distance that the test finds with probability ``power``, whatever its direction.

    A law off by ``d`` in total variation has a noncentrality of at least ``trials (2 d)^2`` (Cauchy's inequality), and
    the statistic is then nearly noncentral chi-square: a mixture of chi-squares by a Poisson variable. The distance is
    that of what is counted: of outcomes, where rare ones are pooled.
    """
    if degrees < 1:
        return 1.0

    def found(noncentrality: float) -> float:
        half = noncentrality / 2
        spread = 12 * math.sqrt(half + 1) + 12
        terms = torch.arange(max(0, int(half - spread)), int(half + spread) + 1, dtype=torch.float64)
        weights = (terms * math.log(max(half, 1e-300)) - half - torch.lgamma(terms + 1)).exp()
        limit = torch.full_like(terms, threshold / 2)
        return float((weights * torch.special.gammaincc(degrees / 2 + terms, limit)).sum())

    low, high = 0.0, 1.0
    while found(high) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < power else (low, middle)
    return min(1.0, math.sqrt(high / trials) / 2)
