# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Who computes what in tree attention, found on the device from lengths that the host does not know.

The query rows of a request times the query heads of a key/value head are the rows of a matrix product, cut into tiles
of ``BM``. The context of a request is cut into splits; the last one has the tree as well. A split of a tile is an item.
How a request is cut depends on its own lengths and on shapes; where its items stand in the line of all items depends on
the batch, but no result does.

Who does what: one program per request, and one for the rows after all requests. Memory traffic: the columns of the
nodes, and O(batch) integers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .varying import VARYING
from .walk import Tree, is_tree

#: Integers per request in a plan, which lies field by field.
FIELDS = 12

_ITEM_END = tl.constexpr(0)
_TILE_END = tl.constexpr(1)
_ITEM_BEGIN = tl.constexpr(2)
_TILE_BEGIN = tl.constexpr(3)
_WORK_BEGIN = tl.constexpr(4)
_WORK = tl.constexpr(5)
_SPLITS = tl.constexpr(6)
_ROW_BEGIN = tl.constexpr(7)
_ROW_FIRST = tl.constexpr(8)
_ROW_END = tl.constexpr(9)
_NODES = tl.constexpr(10)
_ROOT = tl.constexpr(11)

_MALFORMED = tl.constexpr(8)


class Request(NamedTuple):
    """What a plan says of one request. Its tiles begin at row ``row_begin``; rows before ``row_first`` and rows of no
    live node are padding."""

    number: Any
    item_begin: Any  # items of the requests before it
    tile_begin: Any  # tiles of the requests before it
    work_begin: Any  # its first tile that has items in this launch
    work: Any  # the number of such tiles
    splits: Any
    row_begin: Any
    row_first: Any
    row_end: Any
    nodes: Any  # live nodes
    root: Any  # row of the root


@triton.jit
def _later(a, b):
    return tl.maximum(a, b)


@triton.jit
def cut_context(context, capacity, window, most, shortest, BN: tl.constexpr):
    """Where the keys of a context that are looked at begin and end, the length of a split, and the number of splits:
    at most ``most``."""
    stop = tl.minimum(tl.maximum(context, 0), capacity).to(tl.int32)
    seen = tl.where(window > 0, context - window + 1, 0)  # by the root
    start = tl.minimum(tl.maximum(seen, 0), stop).to(tl.int32) // BN * BN
    keys = stop - start
    share = (keys + most - 1) // most
    length = tl.maximum((share + BN - 1) // BN * BN, shortest)
    return start, stop, length, tl.maximum((keys + length - 1) // length, 1)


@triton.jit
def _rows_of(offsets, stride, i, batch, total):
    """First and last row of requests, and whether these can be."""
    known = (i >= 0) & (i < batch)
    begin = tl.load(offsets + i.to(tl.int64) * stride, mask=(i >= 0) & (i <= batch), other=0)
    end = tl.load(offsets + (i + 1).to(tl.int64) * stride, mask=known, other=0)
    return begin, end, known & (begin >= 0) & (end >= begin) & (end <= total)


@triton.jit(do_not_specialize=VARYING)
def plan_kernel(
    cu_nodes, cu_nodes_stride, parents, parents_stride, depths, depths_stride, ends, ends_stride, total_nodes, max_depth,
    cu_queries, cu_queries_stride, total_rows, context_lens, context_lens_stride, active, active_stride,
    plan, status, status_stride, batch, first_tile, last_tile, capacity, window, most, shortest,
    G: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ALL: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    """One request of a launch that works on tiles ``first_tile`` to ``last_tile - 1``. ``ALL``: tiles without live
    rows have items too."""
    b = tl.program_id(0)
    reach = tl.full([], 0, tl.int32)  # rows of the requests before
    tiles_before = tl.full([], 0, tl.int32)
    items_before = tl.full([], 0, tl.int32)
    root = tl.full([], 0, tl.int32)
    rows = tl.full([], 0, tl.int32)  # of a tree, if the request has one
    bad = tl.full([], 0, tl.int32)
    for start in range(0, b + 1, SEARCH):
        i = start + tl.arange(0, SEARCH)
        first, after, there = _rows_of(cu_nodes, cu_nodes_stride, i, batch, total_nodes)
        awake = i < batch
        if active is not None:
            awake = awake & (tl.load(active + i.to(tl.int64) * active_stride, mask=awake, other=0) != 0)
        live = there & (after > first) & awake
        nodes = tl.load(ends + first.to(tl.int64) * ends_stride, mask=live, other=0)
        live = live & (nodes != 0)
        # A request has the rows up to its end that no earlier one has: its own, where the offsets are in order.
        if cu_queries is not None:
            begin, end, good = _rows_of(cu_queries, cu_queries_stride, i, batch, total_rows)
            asked = end - begin
        else:
            begin, end, good = first, after, there
            asked = tl.where((nodes < 1) | (nodes > end - begin), 1, nodes)
        before = tl.where(i == start, reach, begin)
        if tl.sum(tl.where((i < batch) & ((good == 0) | (begin < reach)), 1, 0)) != 0:
            if cu_queries is not None:
                _, end_before, good_before = _rows_of(cu_queries, cu_queries_stride, i - 1, batch, total_rows)
            else:
                _, end_before, good_before = _rows_of(cu_nodes, cu_nodes_stride, i - 1, batch, total_rows)
            stop_before = tl.where(good_before & (i > start), end_before, 0)
            before = tl.associative_scan(tl.maximum(stop_before, reach), 0, _later)
        stop = tl.maximum(tl.where(i == batch, total_rows, tl.where(good, end, 0)), before)
        stop = tl.where(i > batch, before, stop)
        owns = good & (begin >= before)
        wrong = awake & ((there == 0) | (owns == 0))
        if cu_queries is None:
            live = live & owns
        tiles = ((stop - before) * G + BM - 1) // BM
        tile_end = tiles_before + tl.cumsum(tiles, 0)
        tile_begin = tile_end - tiles
        work_end = tile_begin + ((begin - before + asked) * G + BM - 1) // BM
        work_end = tl.where(live & owns, work_end, tile_begin)
        if ALL:
            work_end = tile_end
        work_begin = tl.minimum(tl.maximum(tile_begin, first_tile), last_tile)
        work = tl.maximum(tl.minimum(work_end, last_tile) - work_begin, 0)
        context = tl.load(context_lens + i.to(tl.int64) * context_lens_stride, mask=i < batch, other=0).to(tl.int64)
        _, _, _, splits = cut_context(context, capacity, window, most, shortest, BN)
        items = work * splits
        item_end = items_before + tl.cumsum(items, 0)
        if b < start + SEARCH:
            mine = i == b
            field = plan + i
            fields = batch + 1
            tl.store(field + _ITEM_END * fields, item_end, mask=mine)
            tl.store(field + _TILE_END * fields, tile_end, mask=mine)
            tl.store(field + _ITEM_BEGIN * fields, item_end - items, mask=mine)
            tl.store(field + _TILE_BEGIN * fields, tile_begin, mask=mine)
            tl.store(field + _WORK_BEGIN * fields, work_begin, mask=mine)
            tl.store(field + _WORK * fields, work, mask=mine)
            tl.store(field + _SPLITS * fields, splits, mask=mine)
            tl.store(field + _ROW_BEGIN * fields, before, mask=mine)
            tl.store(field + _ROW_FIRST * fields, tl.where(owns, begin, stop), mask=mine)
            tl.store(field + _ROW_END * fields, stop, mask=mine)
            root = tl.sum(tl.where(mine & live, first, 0))
            rows = tl.sum(tl.where(mine & live, after - first, 0))
            bad = tl.sum(tl.where(mine & wrong, 1, 0))
        reach = tl.max(stop)
        tiles_before = tl.max(tile_end)
        items_before = tl.max(item_end)
    count = tl.full([], 0, tl.int32)
    flag = tl.where(bad != 0, _MALFORMED, 0)
    if rows > 0:
        at = root.to(tl.int64)
        tree = Tree(
            None, 0, parents + at * parents_stride, parents_stride, depths + at * depths_stride, depths_stride,
            ends + at * ends_stride, ends_stride,
        )  # fmt: skip
        right = is_tree(tree, None, b, rows, max_depth)
        count = tl.where(right != 0, tl.load(tree.ends), 1)
        committed = tl.load(context_lens + b.to(tl.int64) * context_lens_stride).to(tl.int64)
        flag = tl.where((right == 0) | (committed < 0), _MALFORMED, flag)
    tl.store(plan + _NODES * (batch + 1) + b, count)
    tl.store(plan + _ROOT * (batch + 1) + b, root)
    if status is not None:
        if b < batch:
            tl.store(status + b.to(tl.int64) * status_stride, flag)


@triton.jit
def request_at(plan, batch, place, BY_TILE: tl.constexpr, SEARCH: tl.constexpr):
    """The request that has an item, or a tile; number ``batch + 1`` if there is none."""
    fields = batch + 1
    ends_at = plan + (_TILE_END if BY_TILE else _ITEM_END) * fields
    number = tl.full([], 0, tl.int32)
    for start in range(0, fields, SEARCH):
        i = start + tl.arange(0, SEARCH)
        end = tl.load(ends_at + i, mask=i < fields, other=2**31 - 1)
        number += tl.sum(tl.where(end <= place, 1, 0))
    field = plan + tl.minimum(number, batch)
    return Request(
        number,
        tl.load(field + _ITEM_BEGIN * fields),
        tl.load(field + _TILE_BEGIN * fields),
        tl.load(field + _WORK_BEGIN * fields),
        tl.load(field + _WORK * fields),
        tl.load(field + _SPLITS * fields),
        tl.load(field + _ROW_BEGIN * fields),
        tl.load(field + _ROW_FIRST * fields),
        tl.load(field + _ROW_END * fields),
        tl.load(field + _NODES * fields),
        tl.load(field + _ROOT * fields),
    )


@triton.jit
def items_of(plan, batch):
    """All items of the launch."""
    return tl.load(plan + _ITEM_END * (batch + 1) + batch)
