# mypy: ignore-errors
"""The filters, without sorting a row. Each keeps a prefix of the order (larger logit, then lower id), so each is a
cut: the smallest key that stays (``row.key_of``); several are the largest of theirs.

Who does what: one program finds the cuts of one row. A row of one block stays in registers, and a bisection over
keys, whose bounds jump to keys that exist, narrows the cut down. A longer row is read a few times, each time for one
probe, until at most 4,096 entries are between the bounds; these are gathered and bisected in registers.

Memory traffic: a handful of reads of the blocks that can hold the cut, from the L2 cache, and 32 KiB of scratch per
program where entries are gathered. Every sum has one order; the number of steps is bounded by the width of a key.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .row import BLOCK, LARGEST, NO_CUT, NOTHING, key_of, load_tile, value_of_key, weigh, weigh_exactly

#: The smallest key of a finite logit.
_LOWEST = tl.constexpr(-(0x7F7FFFFF << 32))
_HIGHEST = tl.constexpr(2**63 - 1)
_GATHERED = tl.constexpr(BLOCK)
_ROUNDS_AS_NUMBERS = tl.constexpr(6)  # of probes between two numbers: then the floats themselves are counted


@triton.jit
def at(vector, index, NB: tl.constexpr):
    """One element of a vector of per-block values."""
    return tl.sum(tl.where(tl.arange(0, NB) == index, vector, 0))


@triton.jit
def min_p_cut(largest, temperature, min_p, best):
    """min-p keeps weights of at least ``min_p``: a smallest logit. The best id stays, whatever ``min_p`` is.

    ``2^-54`` is half a step of a double below 1: a weight that rounds to ``min_p`` stays.
    """
    low = largest.to(tl.float64) + temperature.to(tl.float64) * (tl.log(min_p.to(tl.float64)) - 5.551115123125783e-17)
    low = tl.maximum(low, -LARGEST)
    rounded = low.to(tl.float32)
    rank = key_of(rounded, tl.full([], 0, tl.int32)) >> 32
    rank = tl.where(rounded.to(tl.float64) < low, rank + 1, rank)
    return tl.where(min_p > 1.0, best, tl.minimum(rank << 32, best))


@triton.jit
def select(keys, amounts, limit, before):
    """The largest key such that ``before`` and the amounts of the keys from it on reach ``limit``; if all together do
    not, ``NO_CUT``."""
    low = tl.min(tl.where(keys == NOTHING, _HIGHEST, keys))
    high = tl.max(keys)
    enough = before + tl.sum(tl.where(keys == NOTHING, 0.0, amounts)) >= limit
    high = tl.where(enough, high, low)
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # the mean, rounded up
        upper = keys >= middle
        reached = before + tl.sum(tl.where(upper, amounts, 0.0)) >= limit
        next_low = tl.min(tl.where(upper, keys, _HIGHEST))
        next_high = tl.max(tl.where(upper, NOTHING, keys))
        low = tl.where(reached, next_low, low)
        high = tl.where(reached, high, next_high)
    return tl.where(enough & (low != _HIGHEST), low, NO_CUT)


@triton.jit
def reach(row, top_keys, key, largest, temperature, nb, TILE: tl.constexpr, NB: tl.constexpr):
    """The mass and the number of the entries whose key is at least ``key``."""
    mass = tl.full([], 0.0, tl.float64)
    count = tl.full([], 0, tl.int64)
    for b in range(0, nb):
        if at(top_keys, b, NB) >= key:
            values, ids, _ = load_tile(row, b * TILE, TILE)
            kept = key_of(values, ids) >= key
            mass += tl.sum(tl.where(kept, weigh(values, largest, temperature), 0.0)).to(tl.float64)
            count += tl.sum(kept.to(tl.int32)).to(tl.int64)
    return mass, count


@triton.jit
def _gather(row, top_keys, low, high, scratch, nb, TILE: tl.constexpr, NB: tl.constexpr):
    """The keys from ``low`` to ``high``, at most 4,096."""
    tl.debug_barrier()
    size = tl.full([], 0, tl.int32)
    for b in range(0, nb):
        if at(top_keys, b, NB) >= low:
            values, ids, _ = load_tile(row, b * TILE, TILE)
            keys = key_of(values, ids)
            wanted = (keys >= low) & (keys <= high)
            place = size + tl.cumsum(wanted.to(tl.int32)) - 1
            tl.store(scratch + place, keys, mask=wanted & (place < _GATHERED))
            size += tl.sum(wanted.to(tl.int32))
    tl.debug_barrier()
    places = tl.arange(0, _GATHERED)
    return tl.load(scratch + places, mask=places < size, other=NOTHING)


@triton.jit
def _select_in_row(
    row, top_keys, first, best, by_mass, top_k, top_p, largest, temperature, scratch, nb,
    TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """``select`` for a row of several blocks, of whose entries those below ``first`` do not count: ``top_k`` of them, or
    (``by_mass``) the share ``top_p`` of their mass."""
    low = tl.maximum(first, _LOWEST)
    high = best
    limit = top_k.to(tl.float64)
    count = tl.full([], 0, tl.int64)  # from `low` on
    above = tl.full([], 0.0, tl.float64)  # what is past `high`
    above_count = count
    enough = low < high
    going = best > NO_CUT
    step = tl.full([], 0, tl.int32)
    while going:
        number = (value_of_key(low).to(tl.float64) + value_of_key(high).to(tl.float64)) * 0.5
        between = key_of(number.to(tl.float32), tl.full([], 2**31 - 1, tl.int32))
        between = tl.where(step <= _ROUNDS_AS_NUMBERS, between, (low | high) - ((low ^ high) >> 1))
        middle = tl.where(step == 0, low, tl.minimum(tl.maximum(between, low + 1), high))
        upper_mass, upper_count = reach(row, top_keys, middle, largest, temperature, nb, TILE, NB)
        upper = tl.where(by_mass, upper_mass, upper_count.to(tl.float64))
        if step == 0:
            limit = tl.where(by_mass, top_p.to(tl.float64) * upper_mass, limit)
            enough = upper >= limit
        reached = upper >= limit
        count = tl.where(reached, upper_count, count)
        low = tl.where(reached, middle, low)
        above = tl.where(reached, above, upper)
        above_count = tl.where(reached, above_count, upper_count)
        high = tl.where(reached, high, middle - 1)
        step += 1
        going = enough & (low < high) & (count - above_count > _GATHERED)
    found = tl.full([], NO_CUT, tl.int64)
    if enough:
        keys = _gather(row, top_keys, low, high, scratch, nb, TILE, NB)
        weights = weigh(value_of_key(keys), largest, temperature).to(tl.float64)
        amounts = tl.where(by_mass, weights, 1.0)
        found = tl.maximum(select(keys, amounts, limit, above), low)  # sums of another order may fall short
    return found


@triton.jit
def find_cut(
    row, temperature, top_k, top_p, min_p, order, largest, best, tops, scratch, program, nb,
    TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """The cut of all filters of a row that has a best id.

    Args:
        row: the row.
        temperature: above 0.
        top_k: off unless above 0.
        top_p: off unless below 1.
        min_p: off unless above 0.
        order: index into ``FILTER_ORDERS``.
        largest: the best logit.
        best: its key.
        tops: ``[NB]``, the maximum of each block.
        scratch: 4,096 int64 per program, for rows of several blocks.
        program: index of the program.
        nb: number of blocks.
        TILE: entries per block.
        NB: power of two, at least ``nb``.
    """
    by_min_p = tl.full([], NO_CUT, tl.int64)
    if min_p > 0.0:
        by_min_p = min_p_cut(largest, temperature, min_p, best)
    cut = by_min_p
    first = tl.full([], NO_CUT, tl.int64)
    if NB == 1:
        values, ids, _ = load_tile(row, 0, TILE)
        keys = key_of(values, ids)
        weights = weigh_exactly(values, largest, temperature)
    else:
        top_keys = key_of(tops, tl.zeros([NB], tl.int32))
        room = scratch + program * _GATHERED
    for step in range(0, 2):  # by rank, then by mass
        by_mass = step == 1
        if (by_mass & (top_p < 1.0)) | ((step == 0) & (top_k > 0)):
            if NB == 1:
                counted = tl.where(keys >= first, keys, NOTHING)
                amounts = tl.where(counted == NOTHING, 0.0, tl.where(by_mass, weights, 1.0))
                limit = tl.where(by_mass, top_p.to(tl.float64) * tl.sum(amounts), top_k.to(tl.float64))
                found = select(counted, amounts, limit, limit * 0.0)
            else:
                found = _select_in_row(
                    row, top_keys, first, best, by_mass, top_k, top_p, largest, temperature, room, nb, TILE, NB
                )
            cut = tl.maximum(cut, found)
            first = tl.where(order == 1, first, tl.where(order == 2, cut, tl.maximum(first, found)))
        elif order == 2:
            first = cut
    return cut
