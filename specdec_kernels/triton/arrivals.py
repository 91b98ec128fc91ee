# mypy: ignore-errors
"""Drafts without replacement: the first ids to arrive in one race of all ids of a row (Gumbel top-k).

Who does what: ``heads_kernel`` runs one program per row and block, and leaves a time before which no id of the block
arrives; the program that drafts for a row reads the block that may be the earliest, takes its first id if that comes
before all other blocks, and goes on. Memory traffic: one read of the blocks that the cut leaves, and about one block
per draft. Times are float64; equal times go to the lower id.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .law import NO_BOUND, load_kept, memory_of
from .random import DRAFT, id_noise, listed_id_noise
from .row import NO_CUT, NOTHING, Row, key_of, weigh_exactly
from .varying import VARYING

_LATE = tl.constexpr(float("inf"))
_FAR = tl.constexpr(2**31 - 1)


@triton.jit
def _times(
    values, ids, block, largest, temperature, seed, position, depth, node, LISTED: tl.constexpr, TILE: tl.constexpr
):
    """When the ids of a tile arrive."""
    zero = position * 0
    if LISTED:
        noise = listed_id_noise(ids, seed, position, DRAFT, depth, node, zero)
    else:
        noise = id_noise(block * TILE, seed, position, DRAFT, depth, node, zero, TILE)
    weights = weigh_exactly(values, largest, temperature)
    return tl.where(weights > 0, noise / tl.where(weights > 0, weights, 1.0), _LATE)


@triton.jit(do_not_specialize=VARYING)
def heads_kernel(
    logits, height, columns, row_stride,
    allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words,
    temperature, temperature_stride, seed, seed_stride, batch, positions, positions_stride, requests, requests_stride,
    tree_depths, tree_depths_stride, nodes, nodes_stride, id_of, id_of_stride,
    tops, owners, cuts, heads, blocks, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """A time before which no id of one block of one row arrives."""
    r = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    request = tl.load(owners + r).to(tl.int64)
    head = tl.full([], _LATE, tl.float64)
    if request >= 0:
        index = tl.arange(0, NB)
        row_tops = tl.load(tops + r * blocks + index, mask=index < blocks, other=float("-inf"))
        largest = tl.max(row_tops)
        top = tl.max(tl.where(index == block, row_tops, float("-inf")))
        t = tl.load(temperature + request * temperature_stride)
        cut = tl.full([], NO_CUT, tl.int64)
        if cuts is not None:
            cut = tl.load(cuts + r)
        top_key = key_of(top, tl.full([], 0, tl.int32))
        if (t > 0.0) & (top_key != NOTHING) & (top_key >= cut):
            memory = memory_of(
                logits, height, columns, row_stride, columns, r,
                allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words, r,
            )  # fmt: skip
            row = Row(memory, allowed, id_of, id_of_stride, None, 0)
            key = tl.load(seed + request * seed_stride)
            position = tl.load(positions + r * positions_stride).to(tl.int64)
            depth = r * 0
            node = r * 0
            if tree_depths is not None:
                depth = tl.load(tree_depths + r * tree_depths_stride).to(tl.int64)
            if nodes is not None:
                node = tl.load(nodes + r * nodes_stride).to(tl.int64)
            values, ids = load_kept(row, block, cut, NO_BOUND, TILE)
            times = _times(values, ids, block, largest, t, key, position, depth, node, id_of is not None, TILE)
            head = tl.min(times) * 0.999999999999  # another kernel may round otherwise
    tl.store(heads + r * blocks + block, head)


@triton.jit
def take_arrivals(
    law, heads_at, chosen, count, wanted, bound, seed, position, depth, node, blocks,
    LISTED: tl.constexpr, NUM: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """Adds the first ids of a law to arrive, of those with a key below ``bound``, until ``wanted`` are chosen; and
    their number. ``heads_at``: what ``heads_kernel`` left of the row."""
    numbers = tl.arange(0, NUM)
    index = tl.arange(0, NB)
    heads = tl.load(heads_at + index, mask=index < blocks, other=_LATE)
    last = tl.full([], -1.0, tl.float64)
    last_id = tl.full([], -1, tl.int32)
    early = tl.min(heads)
    while (count < wanted) & (early < _LATE):
        block = tl.min(tl.where(heads == early, index, _FAR))
        values, ids = load_kept(law.row, block, law.cut, bound, TILE)
        times = _times(values, ids, block, law.largest, law.temperature, seed, position, depth, node, LISTED, TILE)
        times = tl.where((times > last) | ((times == last) & (ids > last_id)), times, _LATE)
        time = tl.min(times)
        name = tl.min(tl.where(times == time, ids, _FAR))
        others = tl.min(tl.where(index == block, _LATE, heads))
        first = (time <= others) & (time < _LATE)
        chosen = tl.where(numbers == tl.where(first, count, -1), name.to(tl.int64), chosen)
        count += first.to(tl.int32)
        last = tl.where(first, time, last)
        last_id = tl.where(first, name, last_id)
        heads = tl.where(index == block, time, heads)
        early = tl.min(heads)
    return chosen, count
