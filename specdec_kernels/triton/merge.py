# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Results over parts of the keys as the result over all of them: the splits of one call, and those of several calls.

Who does what: a program has some rows of a tile and one key/value head, or one row and head. It takes the parts in
ascending order, always. Memory traffic: one read of the parts, one write.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attend import settle, store_rounded, write
from .plan import request_at
from .varying import VARYING

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_NONE = tl.constexpr(float("-inf"))


@triton.jit(do_not_specialize=VARYING)
def combine_kernel(
    plan, batch, first_tile, states, query_nodes, query_nodes_stride, sinks, sinks_stride, value_scale,
    value_scale_stride, out, lse, heads, kv_heads,
    G: tl.constexpr, DV: tl.constexpr, V: tl.constexpr, BM: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr,
    SEARCH: tl.constexpr,
):  # fmt: skip
    """``ROWS`` rows of a tile of one key/value head: its splits, or what a row without keys gets."""
    place = first_tile + tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    mine = request_at(plan, batch, place, True, SEARCH)
    if mine.number <= batch:
        m = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
        flat = (place - mine.tile_begin) * BM + m
        row = mine.row_begin + flat // G
        head = kv_head * G + flat % G
        exists = row < mine.row_end
        own = exists & (row >= mine.row_first)
        node = row - mine.row_first
        if query_nodes is not None:
            node = tl.load(query_nodes + row.to(tl.int64) * query_nodes_stride, mask=own, other=-1)
        live = own & (node >= 0) & (node < mine.nodes)
        d = tl.arange(0, V)
        largest = tl.full([ROWS], _NONE, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, V], tl.float32)
        inside = place - mine.work_begin
        splits = tl.where((inside >= 0) & (inside < mine.work), mine.splits, 0)
        for begin in range(0, splits, UNROLL):
            for step in tl.static_range(UNROLL):
                split = begin + step
                item = (mine.item_begin + split * mine.work + inside).to(tl.int64) * kv_heads + kv_head
                at = states + item * (BM * (DV + 2))
                there = tl.where(split < splits, live, False)
                other = tl.load(at + m, mask=there, other=_NONE)
                other_total = tl.load(at + BM + m, mask=there, other=0.0)
                mask = there[:, None] & (d < DV)[None, :]
                values = tl.load(at + 2 * BM + m[:, None] * DV + d[None, :], mask=mask, other=0.0)
                top = tl.maximum(largest, other)
                safe = tl.where(top == _NONE, 0.0, top)
                fade = tl.exp2(largest - safe)
                weight = tl.exp2(other - safe)
                total = tl.fma(total, fade, other_total * weight)
                mixed = tl.fma(mixed, fade[:, None], values * weight[:, None])
                largest = top
        at = row.to(tl.int64) * heads + head
        weight, whole = settle(largest, total, sinks, sinks_stride, head)
        if value_scale is not None:
            weight = weight * tl.load(value_scale + kv_head * value_scale_stride)
        tl.store(lse + at, tl.where(live, whole, _NONE), mask=exists)
        write(out + at * DV, mixed, weight, live, exists, 0, V, DV)


@triton.jit(do_not_specialize=VARYING)
def merge_states_kernel(
    values, row_stride, part_stride, head_stride, lses, lses_row_stride, lses_part_stride, lses_head_stride,
    out, lse, parts, heads, dim, V: tl.constexpr,
):  # fmt: skip
    """``V`` numbers of one row and head."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    d = tl.program_id(2) * V + tl.arange(0, V)
    inside = d < dim
    lses_at = lses + row * lses_row_stride + head * lses_head_stride
    values_at = values + row * row_stride + head * head_stride + d
    top = tl.full([], _NONE, tl.float32)
    at = lses_at
    for _ in range(0, parts):
        top = tl.maximum(top, tl.load(at))
        at += lses_part_stride
    safe = tl.where(top == _NONE, 0.0, top)
    total = tl.full([], 0.0, tl.float32)
    mixed = tl.zeros([V], tl.float32)
    for _ in range(0, parts):
        one = tl.load(lses_at)
        weight = tl.exp2((one - safe) * _LOG2E)
        used = tl.where(one > _NONE, inside, False)
        value = tl.load(values_at, mask=used, other=0.0).to(tl.float32)
        total += weight
        mixed = tl.fma(value, weight, mixed)
        lses_at += lses_part_stride
        values_at += part_stride
    nothing = total == 0.0
    some = tl.where(nothing, 1.0, total)
    at = row * heads + head
    if tl.program_id(2) == 0:
        tl.store(lse + at, tl.where(nothing, _NONE, safe + tl.log2(some) * _LN2))
    store_rounded(out + at * dim + d, mixed / some, inside)
