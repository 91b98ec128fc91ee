# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""draft.budget: how many drafts of each request are worth their step.

Who does what: ``place_kernel`` finds of each candidate how many come before it, by comparing it with all, and puts the
keys of the first ``C - 1`` in order; ``choose_kernel``, one program, adds up their gains and finds the best number of
drafts; ``count_kernel``, one program per request, counts the keys that are not behind the last draft. Memory traffic:
the scores once per tile of candidates, from the caches, and 8 bytes for each draft that may be admitted. Gains are
integers, sums have no order; products and sums of the exponential function must not be fused.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import flags, on_device_of, power_of_two, step
from .tree_build import rank_of_score
from .varying import VARYING

_ABSENT = tl.constexpr(2**31 - 1)  # upper half of the key of what is no candidate; behind that of every score
_FAR = tl.constexpr(2**63 - 1)
_GAIN_BITS = tl.constexpr(40)
_ONE = tl.constexpr(2.0**40)
_LEAST_GAIN = tl.constexpr(-30.0)
_LN2_HIGH = tl.constexpr(6.93147180369123816490e-01)
_LN2_LOW = tl.constexpr(1.90821492927058770002e-10)
_LOG2_E = tl.constexpr(1.44269504088896340736)

#: Candidates of a program and those that it is compared with at a time, drafts at a time, columns at a time.
TILE, CHUNK, DRAFTS, COLUMNS = 128, 64, 1024, 1024


@triton.jit
def _keys_at(scores, row_stride, column_stride, active, active_stride, b, c, inside, index):
    """The smaller one comes first: larger scores, then lower places. All are at least 0 and no two are equal."""
    score = tl.load(scores + b * row_stride + c * column_stride, mask=inside, other=float("-inf"))
    there = inside & (score > float("-inf"))
    if active is not None:
        there = there & (tl.load(active + b * active_stride, mask=inside, other=0) != 0)
    score = tl.where(there, tl.minimum(score, 0.0), 0.0)
    high = tl.where(there, -rank_of_score(score), _ABSENT)
    return (high.to(tl.int64) << 32) | index


@triton.jit(do_not_specialize=VARYING)
def place_kernel(
    scores, scores_row_stride, scores_column_stride, active, active_stride, width, total, most, keys,
    TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The places of a tile of candidates."""
    own = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    b = own // width
    mine = _keys_at(
        scores, scores_row_stride, scores_column_stride, active, active_stride, b, own - b * width, own < total, own
    )
    place = tl.zeros([TILE], tl.int32)
    start = tl.full([], 0, tl.int64)
    going = start < total
    while going:
        other = start + tl.arange(0, CHUNK)
        request = other // width
        theirs = _keys_at(
            *(scores, scores_row_stride, scores_column_stride, active, active_stride),
            *(request, other - request * width, other < total, other),
        )
        place += tl.sum((theirs[None, :] < mine[:, None]).to(tl.int32), 1)
        start += CHUNK
        going = (start < total) & (tl.min(place) < most)
    tl.store(keys + place, mine, mask=(own < total) & (place < most))


@triton.jit
def _gain(high):
    """What a candidate gains, by the upper half of its key, as an integer: the arithmetic of ``common/elementary.h``."""
    score = -(high.to(tl.int32).to(tl.float32, bitcast=True))
    x = tl.maximum(score, _LEAST_GAIN).to(tl.float64)
    n = (x * _LOG2_E - 0.5).to(tl.int32)
    wide = n.to(tl.float64)
    r = (x - wide * _LN2_HIGH) - wide * _LN2_LOW
    p = r * 0.0 + 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r * r + r + 1.0
    power = ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    return tl.where(score < _LEAST_GAIN, 0, (p * power * _ONE + 0.5).to(tl.int64))


@triton.jit
def _value(costs, costs_stride, n, tokens, inside):
    """Expected tokens per time; below that of every other step if the cost is none."""
    cost = tl.load(costs + n * costs_stride, mask=inside, other=0.0)
    usable = (cost > 0.0) & (cost < float("inf"))
    return tl.where(usable, tokens.to(tl.float64) / tl.where(usable, cost, 1.0).to(tl.float64), -1.0)


@triton.jit(do_not_specialize=VARYING)
def choose_kernel(
    costs, costs_stride, active, active_stride, batch, most, keys, SAMPLED: tl.constexpr, TILE: tl.constexpr
):
    """The key of the last draft that is admitted, behind all other keys; -1 if none is."""
    tokens = tl.full([], 0, tl.int64) + batch
    if active is not None:
        tokens = tl.full([], 0, tl.int64)
        for first in range(0, batch, TILE):
            b = first + tl.arange(0, TILE).to(tl.int64)
            tokens += tl.sum((tl.load(active + b * active_stride, mask=b < batch, other=0) != 0).to(tl.int64))
    tokens = tokens << _GAIN_BITS
    start = tl.full([], 0, tl.int64)
    best = _value(costs, costs_stride, start, tokens, start == 0)
    drafts = start + most if SAMPLED else start
    going = start < most
    while going:
        n = start + tl.arange(0, TILE)  # drafts before each
        high = tl.load(keys + n, mask=n < most, other=-1) >> 32
        there = (n < most) & (high != _ABSENT)
        gain = tl.where(there, _gain(tl.where(there, high, 0)), 0)
        until = tokens + tl.cumsum(gain, 0)
        value = _value(costs, costs_stride, n + 1, until, there)
        start += TILE
        going = start < most
        if SAMPLED:
            stops = (there == 0) | (value <= _value(costs, costs_stride, n, until - gain, there))
            first_stop = tl.min(tl.where(stops, n, _FAR))
            drafts = tl.minimum(drafts, first_stop)
            going = going & (first_stop == _FAR)
        else:
            largest = tl.max(value)
            place = tl.min(tl.where(value == largest, n + 1, _FAR))
            drafts = tl.where(largest > best, place, drafts)
            best = tl.maximum(best, largest)
        tokens += tl.sum(gain)
    last = tl.load(keys + drafts - 1, mask=drafts > 0, other=-1)
    tl.store(keys + most, last)


@triton.jit(do_not_specialize=VARYING)
def count_kernel(
    scores, scores_row_stride, scores_column_stride, active, active_stride, width, most, keys, counts,
    TILE: tl.constexpr,
):  # fmt: skip
    """The drafts of one request."""
    b = tl.program_id(0).to(tl.int64)
    last = tl.load(keys + most)
    count = tl.full([], 0, tl.int32)
    for start in range(0, width, TILE):
        c = start + tl.arange(0, TILE).to(tl.int64)
        inside = c < width
        key = _keys_at(
            *(scores, scores_row_stride, scores_column_stride, active, active_stride),
            *(b + c * 0, c, inside, b * width + c),
        )
        count += tl.sum((inside & (key <= last)).to(tl.int32))
    tl.store(counts + b, count)


def draft_budget(scores: Tensor, costs: Tensor, active: Tensor | None, sampled: bool, counts: Tensor) -> None:
    """The launcher of ``draft.budget``."""
    batch, width = scores.shape
    if batch == 0:
        return
    total = batch * width
    most = min(total, costs.shape[0] - 1)
    keys = torch.empty(most + 1, dtype=torch.int64, device=scores.device)
    given = (scores, step(scores), step(scores, 1), flags(active), step(active), width)
    with on_device_of(scores):
        if most:
            place_kernel[(-(-total // TILE),)](*given, total, most, keys, TILE=TILE, CHUNK=CHUNK, num_warps=4)
        choose_kernel[(1,)](
            *(costs, step(costs), flags(active), step(active), batch, most, keys),
            SAMPLED=sampled,
            TILE=DRAFTS,
            num_warps=4,
            enable_fp_fusion=False,
        )
        count_kernel[(batch,)](*given, most, keys, counts, TILE=min(COLUMNS, power_of_two(width)), num_warps=1)
