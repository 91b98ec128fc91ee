# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""write: the rows of live nodes go to their pages, in the type of the cache.

Who does what: a request has some programs, of which each looks at its tree and takes every n-th row; the first one
writes the status. Numbers are narrowed as integers, to the bits of the other backends on any GPU.
Memory traffic: one read and one write of the rows; per program the tree and the table entries of its rows. One launch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import flags, on_device_of, power_of_two, step
from .paged import locate, pages_of
from .varying import VARYING
from .walk import Tree, is_tree

_MALFORMED = tl.constexpr(8)
_NO_PAGE = tl.constexpr(16)
_CHECKED = tl.constexpr(64)  # rows that are looked at together

#: Numbers of a row that are converted together, rows of a program, and most programs of a request.
TILE, ROWS, PROGRAMS = 1024, 4, 64

#: How a cache holds its numbers, and as what a kernel writes it.
FORMS = {
    torch.float32: (0, tl.float32),
    torch.float16: (1, tl.float16),
    torch.bfloat16: (2, tl.int16),
    torch.float8_e4m3fn: (3, tl.uint8),
    torch.float8_e5m2: (4, tl.uint8),
}


@triton.jit
def narrow(x, FORM: tl.constexpr):
    """float32 as a cache of that form holds it, to nearest, ties to even."""
    if FORM <= 1:
        made = x if FORM == 0 else x.to(tl.float16)
    elif FORM == 2:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        made = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, (bits >> 16) | 0x40, rounded).to(tl.int16)
    else:
        # common/float8.h: mantissa bits that go, bias, least normal, largest value, and a number whose unit is that of
        # the values below the least normal.
        SHIFT: tl.constexpr = 20 if FORM == 3 else 21
        REBIAS: tl.constexpr = (127 - 7 if FORM == 3 else 127 - 15) << 23
        NORMAL: tl.constexpr = (127 - 6 if FORM == 3 else 127 - 14) << 23
        MOST: tl.constexpr = 0x43E00000 if FORM == 3 else 0x47600000
        ALIGNED: tl.constexpr = (127 + 14 if FORM == 3 else 127 + 7) << 23
        bits = x.to(tl.uint32, bitcast=True)
        whole = bits & 0x7FFFFFFF
        magnitude = tl.minimum(whole, MOST)
        unit = tl.full(x.shape, ALIGNED, tl.uint32).to(tl.float32, bitcast=True)
        small = (magnitude.to(tl.float32, bitcast=True) + unit).to(tl.uint32, bitcast=True) - ALIGNED
        large = (magnitude + ((1 << (SHIFT - 1)) - 1) + ((magnitude >> SHIFT) & 1) - REBIAS) >> SHIFT
        rounded = tl.where(magnitude < NORMAL, small, large) | ((bits >> 24) & 0x80)
        made = tl.where(whole > 0x7F800000, 0x7F, rounded).to(tl.uint8)
    return made


@triton.jit
def _store_row(
    data, at, head_stride, scale, scale_stride, cache, cell, cache_head_stride, heads, dim,
    IS_BFLOAT16: tl.constexpr, FORM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """All heads of a row at ``at`` to the cache at ``cell``."""
    for begin in tl.range(0, heads * dim, TILE, num_stages=1):
        i = begin + tl.arange(0, TILE)
        inside = i < heads * dim
        head, d = (i // dim).to(tl.int64), i % dim
        x = tl.load(data + at + head * head_stride + d, mask=inside, other=0)
        if IS_BFLOAT16:  # the upper half of a float32
            x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
        else:
            x = x.to(tl.float32)
        if scale is not None:
            x = tl.div_rn(x, tl.load(scale + head * scale_stride, mask=inside, other=1.0))
        tl.store(cache + cell + head * cache_head_stride + d, narrow(x, FORM), mask=inside)


@triton.jit
def _nodes_of(query_nodes, query_nodes_stride, begin, row, inside):
    """The nodes of rows of a call; those of the request begin at ``begin``."""
    if query_nodes is None:
        node = row - begin
    else:
        node = tl.load(query_nodes + row * query_nodes_stride, mask=inside, other=-1).to(tl.int64)
    return node


@triton.jit
def _positions_of(context, node_slots, node_slots_stride, root, node, wanted):
    """Positions of live nodes; -1 where the slot of a node is below 0."""
    if node_slots is None:
        position = context + node
    else:
        behind = tl.load(node_slots + (root + node) * node_slots_stride, mask=wanted, other=0)
        position = tl.where(behind < 0, -1, context + behind)
    return position


@triton.jit(do_not_specialize=VARYING)
def write_kernel(
    new_key, key_stride, key_head_stride, key_scale, key_scale_stride, key_dim,
    key_cache, key_page_stride, key_slot_stride, key_cache_head_stride,
    new_value, value_stride, value_head_stride, value_scale, value_scale_stride, value_dim,
    value_cache, value_page_stride, value_slot_stride, value_cache_head_stride, kv_heads, num_pages,
    table, table_stride, table_columns_stride, table_height, table_columns, table_rows, table_rows_stride,
    context_lens, context_lens_stride, cu_nodes, cu_nodes_stride, parents, parents_stride, depths, depths_stride,
    ends, ends_stride, node_slots, node_slots_stride, total_nodes, max_depth,
    query_nodes, query_nodes_stride, cu_queries, cu_queries_stride, total_rows,
    active, active_stride, status, status_stride, parts,
    PAGE: tl.constexpr, KEY_IS_BFLOAT16: tl.constexpr, VALUE_IS_BFLOAT16: tl.constexpr, KEY_FORM: tl.constexpr,
    VALUE_FORM: tl.constexpr, KEY_TILE: tl.constexpr, VALUE_TILE: tl.constexpr,
):  # fmt: skip
    """Every ``parts``-th row of one request."""
    b, part = tl.program_id(0), tl.program_id(1)
    live = tl.full([], 1, tl.int32)
    if active is not None:
        live = tl.load(active + b.to(tl.int64) * active_stride).to(tl.int32)
    first = tl.load(cu_nodes + b.to(tl.int64) * cu_nodes_stride).to(tl.int64)
    after = tl.load(cu_nodes + (b + 1).to(tl.int64) * cu_nodes_stride).to(tl.int64)
    there = (first >= 0) & (first <= after) & (after <= total_nodes)
    known = there & (first < after) & (live != 0)
    root = tl.where(known, first, 0)
    known = known & (tl.load(ends + root * ends_stride, mask=known, other=0) != 0)
    nodes = tl.full([], 0, tl.int32)
    wrong = (live != 0) & (there == 0)
    if known:
        nodes += 1
        tree = Tree(
            ends, ends_stride, parents + root * parents_stride, parents_stride, depths + root * depths_stride,
            depths_stride, ends + root * ends_stride, ends_stride,
        )  # fmt: skip
        if is_tree(tree, None, 0, (after - first).to(tl.int32), max_depth) != 0:
            nodes = tl.load(ends + root * ends_stride)
        else:
            wrong = live != 0
    context = tl.load(context_lens + b.to(tl.int64) * context_lens_stride).to(tl.int64)
    wrong = wrong | ((nodes > 0) & (context < 0))
    context = tl.minimum(tl.maximum(context, 0), 1 << 62)  # beyond any table
    begin, rows = root, nodes
    if cu_queries is not None:
        begin = tl.load(cu_queries + b.to(tl.int64) * cu_queries_stride).to(tl.int64)
        end = tl.load(cu_queries + (b + 1).to(tl.int64) * cu_queries_stride).to(tl.int64)
        fits = (live != 0) & (begin >= 0) & (begin <= end) & (end <= total_rows)
        rows = tl.where(fits, end - begin, 0).to(tl.int32)
        wrong = wrong | ((live != 0) & (fits == 0))
    pages = pages_of(
        table, table_stride, table_columns_stride, table_height, table_columns, table_rows, table_rows_stride,
        num_pages, b,
    )  # fmt: skip
    if status is not None:
        if part == 0:
            lost = tl.full([], 0, tl.int32)
            misplaced = tl.full([], 0, tl.int32)
            for start in tl.range(0, rows, _CHECKED, num_stages=1):
                i = start + tl.arange(0, _CHECKED)
                node = _nodes_of(query_nodes, query_nodes_stride, begin, begin + i, i < rows)
                wanted = (i < rows) & (node >= 0) & (node < nodes)
                position = _positions_of(context, node_slots, node_slots_stride, root, node, wanted)
                _, _, found = locate(pages, position, wanted & (position >= 0), PAGE)
                lost += tl.sum(tl.where(wanted & (position >= 0) & (found == 0), 1, 0), axis=0)
                misplaced += tl.sum(tl.where(wanted & (position < 0), 1, 0), axis=0)
            bits = tl.where(wrong | (misplaced > 0), _MALFORMED, 0) | tl.where(lost > 0, _NO_PAGE, 0)
            tl.store(status + b.to(tl.int64) * status_stride, bits)
    for i in tl.range(part, rows, parts, num_stages=1):
        row = begin + i
        node = _nodes_of(query_nodes, query_nodes_stride, begin, row, row >= 0)
        wanted = (node >= 0) & (node < nodes)
        position = _positions_of(context, node_slots, node_slots_stride, root, node, wanted)
        page, slot, found = locate(pages, position, wanted & (position >= 0), PAGE)
        if found:
            _store_row(
                new_key, row * key_stride, key_head_stride, key_scale, key_scale_stride, key_cache,
                page * key_page_stride + slot * key_slot_stride, key_cache_head_stride, kv_heads, key_dim,
                KEY_IS_BFLOAT16, KEY_FORM, KEY_TILE,
            )  # fmt: skip
            if new_value is not None:
                _store_row(
                    new_value, row * value_stride, value_head_stride, value_scale, value_scale_stride, value_cache,
                    page * value_page_stride + slot * value_slot_stride, value_cache_head_stride, kv_heads, value_dim,
                    VALUE_IS_BFLOAT16, VALUE_FORM, VALUE_TILE,
                )  # fmt: skip


class _Side(NamedTuple):
    """Keys or values: arguments of the kernel, and how it reads and writes them."""

    arguments: tuple[Any, ...] = (None, 0, 0, None, 0, 0, None, 0, 0, 0)
    is_bfloat16: bool = False
    form: int = 0
    tile: int = 1


def _side(given: Tensor | None, cache: Tensor | None, scale: Tensor | None) -> _Side:
    if given is None or cache is None:
        return _Side()
    form, pointer = FORMS[cache.dtype]
    is_bfloat16 = given.dtype == torch.bfloat16
    of_scale = 0 if scale is None or scale.numel() == 1 else step(scale)
    arguments = (
        triton.reinterpret(given, tl.int16) if is_bfloat16 else given,
        *(step(given), step(given, 1), scale, of_scale, given.shape[2]),
        *(triton.reinterpret(cache, pointer), step(cache), step(cache, 1), step(cache, 2)),
    )
    return _Side(arguments, is_bfloat16, form, min(power_of_two(given.shape[1] * given.shape[2]), TILE))


def kv_write(
    key: Tensor,
    value: Tensor | None,
    block_table: Tensor,
    table_rows: Tensor | None,
    context_lens: Tensor,
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    slots: Tensor | None,
    max_nodes: int,
    max_depth: int,
    query_nodes: Tensor | None,
    cu_queries: Tensor | None,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    active: Tensor | None,
    key_cache: Tensor,
    value_cache: Tensor | None,
    status: Tensor | None,
) -> None:
    """The launcher of ``kv.write``."""
    batch = cu_nodes.shape[0] - 1
    if batch == 0:
        return
    keys, values = _side(key, key_cache, key_scale), _side(value, value_cache, value_scale)
    each = -(-key.shape[0] // batch)
    parts = min(max(-(-each // ROWS), 1), PROGRAMS)
    with on_device_of(key):
        write_kernel[(batch, parts)](
            *(*keys.arguments, *values.arguments, key.shape[1], key_cache.shape[0]),
            *(block_table, step(block_table), step(block_table, 1), block_table.shape[0], block_table.shape[1]),
            *(table_rows, step(table_rows), context_lens, step(context_lens), cu_nodes, step(cu_nodes)),
            *(parents, step(parents), depths, step(depths), ends, step(ends), slots, step(slots), tokens.shape[0]),
            *(max_depth, query_nodes, step(query_nodes), cu_queries, step(cu_queries), key.shape[0]),
            *(flags(active), step(active), status, step(status), parts),
            PAGE=key_cache.shape[1],
            KEY_IS_BFLOAT16=keys.is_bfloat16,
            VALUE_IS_BFLOAT16=values.is_bfloat16,
            KEY_FORM=keys.form,
            VALUE_FORM=values.form,
            KEY_TILE=keys.tile,
            VALUE_TILE=values.tile,
        )
