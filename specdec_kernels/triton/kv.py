# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""commit and gather: rows are moved as bytes.

Who does what in commit: a program has one buffer, one request and some units of that buffer's rows, and moves them four
rows at a time in ascending order: loads, a barrier, stores. On the longest prefix of a path on which slots increase
strictly from at least 0, the slot of row ``j`` is at least ``j``; so what a row overwrites is the source of an earlier
row or of none, and no row that is still to be read. One launch for each eight buffers of the same layout.

Memory traffic: one read and one write of each row that moves; per program the path and some entries of the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .launch import flags, on_device_of, power_of_two, step
from .paged import locate, pages_of
from .rows import Rows, rows_of
from .varying import VARYING

_MALFORMED = tl.constexpr(8)
_NO_PAGE = tl.constexpr(16)

#: Local indices on a path are below this.
MOST_NODES = 4096
_MOST_NODES = tl.constexpr(MOST_NODES)

#: Buffers of a launch, and units of a row in a program.
BUFFERS, TILE = 8, 512
_ROWS = tl.constexpr(4)  # that are moved together

#: Bytes of a unit -> its type.
UNITS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}


@triton.jit
def _entries(path, path_column_stride, node_slots, node_slots_stride, first, limit, j, wanted):
    """Nodes and slots of entries of a path; -1 where there is no such node."""
    node = tl.load(path + j.to(tl.int64) * path_column_stride, mask=wanted, other=-1)
    known = (node >= 0) & (node < limit)
    slot = node
    if node_slots is not None:
        slot = tl.load(node_slots + (first + node) * node_slots_stride, mask=known, other=-1)
    return tl.where(known, node, -1), tl.where(known, slot, -1)


@triton.jit
def _places(
    context, count, path, path_column_stride, node_slots, node_slots_stride, first, limit, j, pages, PAGE: tl.constexpr,
):  # fmt: skip
    """Where rows come from and where they go, page and slot, and which of those that move (all of them: ``moving``)
    have both."""
    _, slot = _entries(path, path_column_stride, node_slots, node_slots_stride, first, limit, j, j < count)
    moving = (j < count) & (slot != j)
    from_page, from_slot, found = locate(pages, context + slot, moving, PAGE)
    to_page, to_slot, kept = locate(pages, context + j, moving, PAGE)
    return from_page, from_slot, to_page, to_slot, moving, found & kept


@triton.jit
def _cells(i, run, inner, outer_stride, inner_stride, ONE_RUN: tl.constexpr):
    """The places of units of a row."""
    if ONE_RUN:
        place = i.to(tl.int64)
    else:
        k = i // run
        place = (k // inner).to(tl.int64) * outer_stride + (k % inner).to(tl.int64) * inner_stride + i % run
    return place


@triton.jit(do_not_specialize=VARYING)
def commit_kernel(
    data0, data1, data2, data3, data4, data5, data6, data7, offset, page_stride, slot_stride, run, inner, outer_stride,
    inner_stride, units, num_pages, table, table_stride, table_columns_stride, table_height, table_columns,
    table_rows, table_rows_stride, context_lens, context_lens_stride, node_slots, node_slots_stride, slots_total,
    cu_nodes, cu_nodes_stride, path, path_stride, path_column_stride, num_tokens, num_tokens_stride, width,
    active, active_stride, status, status_stride, again, parts,
    PAGE: tl.constexpr, W: tl.constexpr, TILE: tl.constexpr, ONE_RUN: tl.constexpr,
):  # fmt: skip
    """One of ``parts`` parts of the rows of one request in one buffer. ``again``: an earlier launch has written the
    status."""
    b, tile = tl.program_id(0) // parts, tl.program_id(0) % parts
    number = tl.program_id(1)
    tokens = tl.load(num_tokens + b.to(tl.int64) * num_tokens_stride)
    count = tl.minimum(tl.maximum(tokens, 0), width)
    context = tl.load(context_lens + b.to(tl.int64) * context_lens_stride).to(tl.int64)
    wrong = (tokens != count) | (context < 0)
    context = tl.minimum(tl.maximum(context, 0), 1 << 62)  # beyond any table
    if active is not None:
        live = tl.load(active + b.to(tl.int64) * active_stride) != 0
        count = tl.where(live, count, 0)
        wrong = wrong & live
    first = tl.full([], 0, tl.int64)
    limit = tl.full([], _MOST_NODES, tl.int64)
    if node_slots is not None:
        first = tl.load(cu_nodes + b.to(tl.int64) * cu_nodes_stride).to(tl.int64)
        after = tl.load(cu_nodes + (b + 1).to(tl.int64) * cu_nodes_stride).to(tl.int64)
        inside = (first >= 0) & (first <= after) & (after <= slots_total)
        limit = tl.where(inside, tl.minimum(after - first, limit), 0)
    entries = path + b.to(tl.int64) * path_stride
    j = tl.arange(0, W)
    node, slot = _entries(entries, path_column_stride, node_slots, node_slots_stride, first, limit, j, j < count)
    node_before, slot_before = _entries(
        entries, path_column_stride, node_slots, node_slots_stride, first, limit, j - 1, (j > 0) & (j < count)
    )
    good = (node > node_before) & (slot > slot_before)
    last = tl.min(tl.where((j < count) & (good == 0), j, W), axis=0)
    wrong = wrong | (last < count)
    count = tl.minimum(count, last)
    pages = pages_of(
        table, table_stride, table_columns_stride, table_height, table_columns, table_rows, table_rows_stride,
        num_pages, b,
    )  # fmt: skip
    if status is not None:
        if (tile == 0) & (number == 0):
            _, _, _, _, moving, there = _places(
                context, count, entries, path_column_stride, node_slots, node_slots_stride, first, limit, j, pages, PAGE
            )
            lost = tl.sum(tl.where(moving & (there == 0), 1, 0), axis=0) > 0
            bits = tl.where(wrong, _MALFORMED, 0) | tl.where(lost, _NO_PAGE, 0)
            if again != 0:
                bits = bits | tl.load(status + b.to(tl.int64) * status_stride)
            tl.store(status + b.to(tl.int64) * status_stride, bits)
    data = data0
    if number == 1:
        data = data1
    if number == 2:
        data = data2
    if number == 3:
        data = data3
    if number == 4:
        data = data4
    if number == 5:
        data = data5
    if number == 6:
        data = data6
    if number == 7:
        data = data7
    i = tile * TILE + tl.arange(0, TILE)
    column = offset + _cells(i, run, inner, outer_stride, inner_stride, ONE_RUN)
    for begin in tl.range(0, count, _ROWS, num_stages=1):
        rows = begin + tl.arange(0, _ROWS)
        from_page, from_slot, to_page, to_slot, _, there = _places(
            context, count, entries, path_column_stride, node_slots, node_slots_stride, first, limit, rows, pages, PAGE
        )
        source = from_page * page_stride + from_slot * slot_stride
        target = to_page * page_stride + to_slot * slot_stride
        cells = there[:, None] & (i < units)[None, :]
        held = tl.load(data + source[:, None] + column[None, :], mask=cells, other=0)
        tl.debug_barrier()  # a thread may store what another loads
        tl.store(data + target[:, None] + column[None, :], held, mask=cells)


@triton.jit(do_not_specialize=VARYING)
def gather_kernel(
    data, offset, row_stride, run, inner, outer_stride, inner_stride, units, out_data, begin, out_row, total,
    cu_nodes, cu_nodes_stride, path, path_stride, path_column_stride, num_tokens, num_tokens_stride, width, parts,
    TILE: tl.constexpr, ONE_RUN: tl.constexpr,
):  # fmt: skip
    """One of ``parts`` parts of one row of the result."""
    place = tl.program_id(0) // parts
    b, j = (place // width).to(tl.int64), (place % width).to(tl.int64)
    node = tl.load(path + b * path_stride + j * path_column_stride)
    first = tl.load(cu_nodes + b * cu_nodes_stride).to(tl.int64)
    after = tl.load(cu_nodes + (b + 1) * cu_nodes_stride).to(tl.int64)
    there = (j < tl.load(num_tokens + b * num_tokens_stride)) & (node >= 0) & (node < after - first)
    there = there & (first >= 0) & (first + node < total)
    row = tl.where(there, first + node, 0)
    i = tl.program_id(0) % parts * TILE + tl.arange(0, TILE)
    cells = offset + row * row_stride + _cells(i, run, inner, outer_stride, inner_stride, ONE_RUN)
    found = tl.load(data + cells, mask=i < tl.where(there, units, 0), other=0)
    tl.store(out_data + place.to(tl.int64) * out_row + begin + i, found, mask=i < units)


def _alike(tensors: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    """The tensors by layout: what those of one launch have in common."""
    found: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        layout = (tensor.shape, tensor.stride(), tensor.element_size(), *rows_of(tensor, 2, any_order=True)[:1])
        found.setdefault(layout, []).append(tensor)
    return found.values()


def _in_units(tensor: Tensor, rows: Rows) -> Any:
    """The tensor for a kernel, as a pointer to units."""
    return triton.reinterpret(tensor, UNITS[rows.unit])


def kv_commit(
    buffers: Sequence[Tensor],
    group_sizes: Sequence[int],
    block_tables: Sequence[Tensor],
    table_rows: Sequence[Tensor | None],
    context_lens: Sequence[Tensor],
    slots: Sequence[Tensor | None],
    cu_nodes: Tensor | None,
    path: Tensor,
    num_tokens: Tensor,
    active: Tensor | None,
    status: Tensor | None,
) -> None:
    """The launcher of ``kv.commit``."""
    batch, width = path.shape
    if batch == 0:
        return
    if status is not None and not buffers:
        status.zero_()
    again, next_one = 0, 0
    for g, size in enumerate(group_sizes):
        table, lengths, own_rows, own_slots = block_tables[g], context_lens[g], table_rows[g], slots[g]
        tables = (
            *(table, step(table), step(table, 1), table.shape[0], table.shape[1], own_rows, step(own_rows)),
            *(lengths, step(lengths), own_slots, step(own_slots), 0 if own_slots is None else own_slots.shape[0]),
            *(cu_nodes, step(cu_nodes), path, step(path), step(path, 1), num_tokens, step(num_tokens), width),
            *(flags(active), step(active), status, step(status)),
        )
        for alike in _alike(buffers[next_one : next_one + size]):
            for start in range(0, len(alike), BUFFERS):
                _move(alike[start : start + BUFFERS], tables, batch, again, width)
                again = 1
        next_one += size


def _move(alike: list[Tensor], tables: tuple[Any, ...], batch: int, again: int, width: int) -> None:
    """Launch the moves of up to eight buffers of one layout."""
    one = alike[0]
    element = one.element_size()
    for rows in rows_of(one, 2, any_order=True) or [Rows(1, 1, 0, 1, 0, 0, 0, 0)]:
        given = [_in_units(tensor, rows) for tensor in alike]
        given += given[:1] * (BUFFERS - len(given))
        strides = [stride * element // rows.unit for stride in one.stride()[:2]]
        tile = min(power_of_two(rows.units), TILE)
        parts = max(-(-rows.units // tile), 1)
        with on_device_of(one):
            commit_kernel[(batch * parts, len(alike))](  # only the first number may be above 65,535
                *(*given, rows.offset, *strides, rows.run, rows.inner, rows.outer_stride, rows.inner_stride),
                *(rows.units, one.shape[0], *tables, again, parts),
                PAGE=one.shape[1],
                W=min(power_of_two(width), MOST_NODES),
                TILE=tile,
                ONE_RUN=rows.run == rows.units,
            )
        again = 1


def kv_gather(values: Tensor, cu_nodes: Tensor, path: Tensor, num_tokens: Tensor, out: Tensor) -> None:
    """The launcher of ``kv.gather``."""
    batch, width = path.shape
    if out.numel() == 0:
        return
    row_bytes = out[0, 0].numel() * out.element_size()
    for rows in rows_of(values, 1, out.data_ptr(), row_bytes, any_order=False):
        tile = min(power_of_two(rows.units), TILE)
        parts = -(-rows.units // tile)
        with on_device_of(values):
            gather_kernel[(batch * width * parts,)](
                *(_in_units(values, rows), rows.offset, step(values) * values.element_size() // rows.unit, rows.run),
                *(rows.inner, rows.outer_stride, rows.inner_stride, rows.units, _in_units(out, rows), rows.begin),
                *(row_bytes // rows.unit, values.shape[0], cu_nodes, step(cu_nodes), path, step(path), step(path, 1)),
                *(num_tokens, step(num_tokens), width, parts),
                TILE=tile,
                ONE_RUN=rows.run == rows.units,
            )
