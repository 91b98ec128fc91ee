"""The processed law of a row of logits: allowed tokens, temperature, filters.

Weights are unnormalised, ``w(x) = exp((l(x) - max) / T)``: the best id has weight 1. Every filter
keeps a prefix of the order (larger logit, then lower id), and so does any succession of filters.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .mass import CLOSE, Margin, Mass

#: What +inf counts as, whatever the dtype of the logits.
LARGEST = torch.finfo(torch.float32).max


class Settings(NamedTuple):
    """One request's sampling settings as Python numbers."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    filter_order: str = "top_k_first"

    @property
    def greedy(self) -> bool:
        """Whether the law is the argmax; a NaN temperature is."""
        return not self.temperature > 0

    @property
    def filtered(self) -> bool:
        """Whether any filter is on; a NaN is off."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


GREEDY = Settings(0.0)
PLAIN = Settings(1.0)


def all_settings(sampling: Any) -> list[Settings]:
    """The settings of each request; a field that is None is off."""
    batch = sampling.temperature.shape[0]

    def column(name: str, off: float) -> list[Any]:
        values = getattr(sampling, name)
        return [off] * batch if values is None else values.tolist()

    columns = (
        column("temperature", 0.0),
        column("top_k", 0),
        column("top_p", 1.0),
        column("min_p", 0.0),
        column("seed", 0),
    )
    return [Settings(*values, sampling.filter_order) for values in zip(*columns, strict=True)]


class Row(NamedTuple):
    """A row of logits ``[V]`` in float64, NaN as -inf and +inf as the largest float32.

    Attributes:
        logits: with disallowed ids at -inf: what may be emitted.
        raw: before the mask: the row as it came.
        has_nan: whether a NaN was among them.
    """

    logits: Tensor
    raw: Tensor
    has_nan: bool


def read_row(row: Tensor, mask: Tensor | None = None) -> Row:
    """Read a row ``[V]`` of any float dtype; ``mask`` is a bool tensor ``[V]`` of allowed ids."""
    wide = row.detach().to("cpu", torch.float64)
    nan = torch.isnan(wide)
    has_nan = bool(nan.any())
    raw = (wide.masked_fill(nan, -math.inf) if has_nan else wide).clamp(max=LARGEST)
    return Row(raw if mask is None else raw.masked_fill(~mask, -math.inf), raw, has_nan)


def empty_row(vocab: int) -> Row:
    """A row without any allowed id: what an index out of range stands for."""
    nothing = torch.full((vocab,), -math.inf, dtype=torch.float64)
    return Row(nothing, nothing, False)


def allowed_mask(allowed: Tensor | None, allowed_rows: Tensor | None, row: int, ids: int | Tensor) -> Tensor | None:
    """Which ids a row may emit, as bools; None where it is unrestricted.

    Args:
        allowed: ``[rows, words]`` int32, bit ``i`` of word ``w`` stands for id ``32 w + i``; None
            restricts nothing.
        allowed_rows: row of ``allowed`` of each row, -1 = unrestricted; None: its own index.
        row: the row in question. If its row of ``allowed`` is out of range, nothing is allowed.
        ids: number of ids, or the ids themselves ``[n]`` int64; ids past the last word are not
            allowed.
    """
    if allowed is None:
        return None
    named = torch.arange(ids) if isinstance(ids, int) else ids
    index = row if allowed_rows is None else int(allowed_rows[row])
    if allowed_rows is not None and index == -1:
        return None
    if not 0 <= index < allowed.shape[0] or not allowed.shape[1]:
        return torch.zeros(named.shape, dtype=torch.bool)
    words = allowed[index].detach().cpu().long()
    inside = named < 32 * words.numel()
    word = words[torch.where(inside, named >> 5, 0)]
    return ((word >> (named & 31)) & 1).bool() & inside


def best(logits: Tensor) -> int:
    """The entry of the largest logit, ties to the lowest; -1 if none is above -inf."""
    largest = logits.max()
    return -1 if largest == -math.inf else int((logits == largest).nonzero()[0])


def ranking(logits: Tensor) -> Tensor:
    """Entries above -inf in the order (larger logit, then lower id)."""
    ranked = torch.sort(logits, descending=True, stable=True)
    return ranked.indices[: int((ranked.values > -math.inf).sum())]


def _scaled(logits: Tensor, largest: float, temperature: float) -> Tensor:
    """``exp((l - max) / T)``; 0 for -inf even at an infinite temperature."""
    scaled = (logits - largest) / temperature
    return torch.where(logits == -math.inf, logits, scaled).exp()


def weights(logits: Tensor, s: Settings) -> Mass:
    """Unnormalised weights ``[V]`` of the processed law, 0 where filtered.

    All are zero iff no logit is above -inf. At temperature 0 the argmax has weight 1.
    """
    top = best(logits)
    if top < 0 or s.greedy:
        w = torch.zeros_like(logits)
        w[[top] if top >= 0 else []] = 1.0
        return Mass(w, torch.zeros_like(w))
    w = _scaled(logits, float(logits[top]), s.temperature)
    if not s.filtered:
        return Mass(w, w)
    order = ranking(logits)
    kept, flip = _filter(w[order], s)
    uncertain = torch.where(flip < CLOSE, 1.0 / flip.clamp(min=CLOSE * 1e-6), 0.0)
    out, doubt = torch.zeros_like(w), torch.zeros_like(w)
    out[order[:kept]] = w[order[:kept]]
    doubt[order] = w[order] * (uncertain + (torch.arange(order.numel()) < kept))
    return Mass(out, doubt)


def entropy(p: Mass) -> Tensor:
    """``-sum p log p`` of normalised weights, in nats."""
    some = p.w[p.w > 0]
    return -(some * some.log()).sum()


def is_unlikely(p: Mass, index: int, least: Tensor | None, request: int, margin: Margin) -> bool:
    """Whether an entry has a smaller probability than ``least`` of its request; None, NaN: no."""
    bound = math.nan if least is None else float(least[request])
    if math.isnan(bound):
        return False
    margin(abs(float(p.w[index]) - bound) / max(float(p.doubt[index]), 1e-300))
    return float(p.w[index]) < bound


def is_uncertain(p: Mass, most: Tensor | None, request: int, margin: Margin) -> bool:
    """Whether the entropy is above ``most`` of its request; None, NaN: no."""
    bound = math.nan if most is None else float(most[request])
    if math.isnan(bound):
        return False
    found = float(entropy(p))
    surprise = torch.where(p.w > 0, -p.w.clamp(min=1e-300).log(), 0.0)
    margin(abs(found - bound) / float((p.doubt * (1 + surprise)).sum()))
    return found > bound


def _filter(w: Tensor, s: Settings) -> tuple[int, Tensor]:
    """How many of the ranked weights ``[n]`` stay, and how close each was to the other fate.

    The distance of an entry is relative: of the mass before it to ``top_p``, of its weight to
    ``min_p``. An entry that stays is lost if one filter turns, one that goes is back only if all
    that drop it turn. Top-k is exact: nothing is close to it.
    """
    n = w.numel()
    far = torch.full((n,), math.inf, dtype=torch.float64)

    def by_top_k(count: int) -> tuple[int, Tensor]:
        return (s.top_k if 0 < s.top_k < count else count), far

    def by_top_p(count: int) -> tuple[int, Tensor]:
        """Keep what has less than ``top_p`` of the mass of the first ``count`` before it."""
        if not s.top_p < 1:
            return count, far
        total = w[:count].cumsum(0)
        before = torch.cat((total.new_zeros(1), total[:-1])) / total[-1]
        away = far.clone()
        away[1:count] = (before - s.top_p).abs()[1:] / before.clamp(min=s.top_p)[1:]
        return max(1, int((before < s.top_p).sum())), away

    def by_min_p(count: int) -> tuple[int, Tensor]:
        """Keep what has at least ``min_p`` of the largest weight."""
        if not s.min_p > 0:
            return count, far
        away = (w - s.min_p).abs() / w.clamp(min=s.min_p)
        away[:1] = math.inf
        if s.min_p <= 1:  # ties of the best stay, however exp is rounded
            away[w == 1] = math.inf
        return max(1, int((w[:count] >= s.min_p).sum())), away

    if s.filter_order == "top_k_first":
        first = by_top_k(n)
        second = by_top_p(first[0])
        verdicts = [first, second, by_min_p(second[0])]
    elif s.filter_order == "joint":
        verdicts = [by_top_k(n), by_top_p(n), by_min_p(n)]
    else:
        first = by_min_p(n)
        second = by_top_k(first[0])
        verdicts = [first, second, by_top_p(second[0])]
        if s.top_p < 1 and bool((first[1] < CLOSE).any()):
            verdicts[2][1][1:] = 0.0  # top-p counts the mass of entries whose fate is uncertain
    stays, back = far, torch.zeros_like(far)
    place = torch.arange(n)
    for count, away in verdicts:
        stays = torch.minimum(stays, away)
        back = torch.where(place >= count, torch.maximum(back, away), back)
    kept = min(count for count, _ in verdicts)
    return kept, torch.where(place < kept, stays, back)


def log_law(row: Row, s: Settings, mode: str, token: int) -> tuple[float, float]:
    """Log-probability of an emitted token, and the log-sum-exp of its row, in nats.

    ``"raw"``: log-softmax of the row as it came. ``"processed"``: ``l/T - lse`` with the sum over
    what the filters left; at temperature 0 it is 0, and lse is the largest logit. At a dead end
    (token -1) both are -inf.
    """
    if token < 0:
        return -math.inf, -math.inf
    if mode == "raw":
        logits, temperature, w = row.raw, 1.0, _scaled(row.raw, float(row.raw.max()), 1.0)
    else:
        logits = row.logits
        if s.greedy:
            return 0.0, float(logits.max())
        temperature, w = s.temperature, weights(logits, s).w
    largest, log_sum = float(logits.max()), math.log(float(w.sum()))
    return (float(logits[token]) - largest) / temperature - log_sum, largest / temperature + log_sum
