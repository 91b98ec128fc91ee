"""The paged cache of keys and values: write the nodes' rows, move the accepted ones into place, gather rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..types import MALFORMED, PAGE_OUT_OF_RANGE, KvGroup
from . import checks
from .kv_inject import inject
from .nodes import Nodes
from .paging import CACHES, Table, check_pages, check_queries, check_scale, query_rows, scales_of, slots_of

__all__ = ["MAX_NODES", "commit", "gather", "inject", "write"]

#: Local indices of nodes are below this.
MAX_NODES = 4096


def write(
    key: Tensor,
    value: Tensor | None,
    key_cache: Tensor,
    value_cache: Tensor | None,
    block_table: Tensor,
    context_lens: Tensor,
    tree: Any,
    *,
    query_nodes: Tensor | None = None,
    cu_queries: Tensor | None = None,
    table_rows: Tensor | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    active: Tensor | None = None,
    status: Tensor | None = None,
) -> None:
    """Store the keys and values of live nodes at positions ``context + slot``.

    What is stored is ``x / scale`` in float32, rounded to nearest even; float8 saturates.

    Args:
        key: ``[Tq, Hkv, D]`` float32, bfloat16 or float16, a row per node.
        value: ``[Tq, Hkv, Dv]``, likewise; None with ``value_cache`` None: keys alone.
        key_cache: ``[P, S, Hkv, D]`` float32, bfloat16, float16 or float8.
        value_cache: ``[P, S, Hkv, Dv]``, likewise.
        block_table: ``[B, max_pages]`` int32 or int64 page ids; ``[rows, max_pages]`` with ``table_rows``.
        context_lens: ``[B]`` int32 or int64; below 0 counts as 0, status 8.
        tree: the nodes.
        query_nodes: ``[Tq]`` int32 or int64, node of each row; None: the rows are those of the tree.
        cu_queries: ``[B+1]`` int32, rows of each request; given with ``query_nodes``.
        table_rows: ``[B]`` int32 or int64, row of the block table of each request.
        key_scale: ``[1]`` or ``[Hkv]`` float32, what stored keys will be multiplied by.
        value_scale: the same for values.
        active: ``[B]`` bool; other requests do nothing.
        status: ``[B]`` int32, receives status bits: 8, also where a slot is below 0, and 16 where a row has no page (it
            is not written).

    Raises:
        TypeError, ValueError: on a wrong dtype or shape.

    Deterministic. Reads values on the host: not for CUDA graphs.
    """
    op = "kv.write"
    batch, count = checks.tree(op, tree)
    rows = check_queries(op, query_nodes, cu_queries, batch, count)
    sides = [("key", key, key_cache, key_scale)]
    if (value is None) != (value_cache is None):
        missing = "value" if value is None else "value_cache"
        raise ValueError(f"{op}: {missing} must be given together with the other, got None")
    if value is not None and value_cache is not None:
        sides.append(("value", value, value_cache, value_scale))
    for name, given, cache, scale in sides:
        checks.tensor(op, name, given, (rows, "Hkv", "D"), checks.FLOATS)
        heads, dim = given.shape[1:]
        checks.tensor(op, f"{name}_cache", cache, ("P", "S", heads, dim), CACHES)
        check_scale(op, f"{name}_scale", scale, heads)
    check_pages(op, block_table, table_rows, context_lens, batch)
    checks.optional(op, "active", active, batch, (torch.bool,))
    checks.optional(op, "status", status, batch, (torch.int32,))
    flags = [0] * batch
    for b in range(batch):
        if active is not None and not bool(active[b]):
            continue
        nodes = Nodes(tree, b)
        context = int(context_lens[b])
        flags[b] = MALFORMED * (nodes.malformed or (nodes.count > 0 and context < 0))
        if cu_queries is not None and not 0 <= int(cu_queries[b]) <= int(cu_queries[b + 1]) <= rows:
            flags[b] |= MALFORMED
        chosen = query_rows(nodes, b, query_nodes, cu_queries)
        mine = torch.tensor([node for _, node in chosen], dtype=torch.int64)
        behind = slots_of(tree, nodes)[mine]
        positions = torch.where(behind < 0, -1, max(context, 0) + behind)
        pages, slots, there = Table(block_table, table_rows, b).locate(positions, *key_cache.shape[:2])
        flags[b] |= MALFORMED * bool((behind < 0).any()) | PAGE_OUT_OF_RANGE * bool((~there & (behind >= 0)).any())
        for i in there.nonzero().flatten().tolist():
            for _, given, cache, scale in sides:
                cache[pages[i], slots[i]].copy_(_stored(given[chosen[i][0]], scale, cache.dtype))
    if status is not None:
        status.copy_(torch.tensor(flags, dtype=torch.int32))


def _stored(row: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``[Hkv, D]`` as a cache of this dtype holds it."""
    wide = row.float()
    if scale is not None:
        wide = wide / scales_of(scale, row.shape[0]).float().unsqueeze(1).to(row.device)
    if dtype.itemsize == 1:
        most = torch.finfo(dtype).max
        wide = wide.clamp(-most, most)  # NaN stays
    return wide.to(dtype)


def commit(
    buffers: Any,
    block_table: Tensor | None,
    context_lens: Tensor | None,
    path: Tensor,
    num_tokens: Tensor,
    *,
    cu_nodes: Tensor | None = None,
    slots: Tensor | None = None,
    table_rows: Tensor | None = None,
    active: Tensor | None = None,
    status: Tensor | None = None,
) -> None:
    """Move the rows of the accepted nodes to the end of the context, as if all were read before any is written.

    For ``j < num_tokens[b]`` the row at position ``context + slot(path[b, j])`` goes to ``context + j``. Path and slots
    must increase strictly from at least 0; the first entry that does not ends the moves of its request, status 8.

    Args:
        buffers: its ``groups``: tensors ``[num_pages, page_size, ...]``, or groups of them with fields of their own.
        block_table: ``[B, max_pages]`` int32 or int64 page ids; ``[rows, max_pages]`` with ``table_rows``.
        context_lens: ``[B]`` int32 or int64; below 0 counts as 0, status 8.
        path: ``[B, W]`` int32, local nodes, below 4096.
        num_tokens: ``[B]`` int32; outside ``[0, W]`` it is clamped, status 8.
        cu_nodes: ``[B+1]`` int32, first slot of each request; given with ``slots``.
        slots: ``[T]`` int32, slot of each node; None: its local index.
        table_rows: ``[B]`` int32 or int64, row of the block table of each request.
        active: ``[B]`` bool; other requests do nothing.
        status: ``[B]`` int32, receives status bits: 8, and 16 where a row has no page (it is not moved).

    Raises:
        TypeError, ValueError: on a wrong dtype or shape, or where no table is given.

    Deterministic. Reads values on the host: not for CUDA graphs.
    """
    op = "kv.commit"
    checks.tensor(op, "path", path, ("B", "W"), (torch.int32,))
    batch, width = path.shape
    checks.tensor(op, "num_tokens", num_tokens, (batch,), (torch.int32,))
    checks.optional(op, "active", active, batch, (torch.bool,))
    checks.optional(op, "status", status, batch, (torch.int32,))
    call = KvGroup((), block_table, None, context_lens, slots, table_rows)
    flags = [0] * batch
    for group in _groups(buffers, call):
        _check_group(op, group, cu_nodes, batch)
        for b in range(batch):
            if active is not None and not bool(active[b]):
                continue
            count = min(max(int(num_tokens[b]), 0), width)
            context = int(group.context_lens[b])
            found = _slots_along(path[b, :count].tolist(), group.slots, cu_nodes, b)
            if count != int(num_tokens[b]) or context < 0 or len(found) < count:
                flags[b] |= MALFORMED
            moved = [(slot, j) for j, slot in enumerate(found) if slot != j]
            if moved and not _move(group, b, max(context, 0) + torch.tensor(moved)):
                flags[b] |= PAGE_OUT_OF_RANGE
    if status is not None:
        status.copy_(torch.tensor(flags, dtype=torch.int32))


def _groups(buffers: Any, call: KvGroup) -> list[Any]:
    """The groups that have tensors, each field of its own or that of the call."""
    given: Sequence[Any] = buffers.groups
    if given and isinstance(given[0], Tensor):
        given = [call._replace(tensors=given)]
    fields = call._fields
    found = [
        KvGroup(*(getattr(own, f) if getattr(own, f) is not None else getattr(call, f) for f in fields))
        for own in given
    ]
    return [group for group in found if len(group.tensors)]


def _check_group(op: str, group: Any, cu_nodes: Tensor | None, batch: int) -> None:
    """Check the tables and the pages of one group."""
    check_pages(op, group.block_table, group.table_rows, group.context_lens, batch)
    size = group.tensors[0].shape[1] if group.page_size is None else group.page_size
    for tensor in group.tensors:
        if tensor.dim() < 2 or tensor.shape[1] != size:
            raise ValueError(f"{op}: buffers must have shape [num_pages, {size}, ...], got {list(tensor.shape)}")
    if size < 1 or size & (size - 1):
        raise ValueError(f"{op}: buffers must have a page size that is a power of two, got {size}")
    if group.slots is not None:
        checks.tensor(op, "slots", group.slots, ("T",), (torch.int32,))
        if cu_nodes is None:
            raise ValueError(f"{op}: cu_nodes must be given with slots, got None")
        checks.tensor(op, "cu_nodes", cu_nodes, (batch + 1,), (torch.int32,))


def _slots_along(path: list[int], slots: Tensor | None, cu_nodes: Tensor | None, request: int) -> list[int]:
    """The slots of the nodes of a path, up to the first that is not in order."""
    found: list[int] = []
    begin, end = 0, MAX_NODES
    if slots is not None and cu_nodes is not None:
        begin, end = (int(row) for row in cu_nodes[request : request + 2])
        if not 0 <= begin <= end <= slots.shape[0]:
            return found
    last = -1
    for node in path:
        if not last < node < min(end - begin, MAX_NODES):
            break
        slot = node if slots is None else int(slots[begin + node])
        if slot <= (found[-1] if found else -1):
            break
        found.append(slot)
        last = node
    return found


def _move(group: Any, request: int, positions: Tensor) -> bool:
    """Move rows from positions ``[:, 0]`` to ``[:, 1]`` in all tensors of a group; False if one has no page."""
    complete = True
    table = Table(group.block_table, group.table_rows, request)
    for tensor in group.tensors:
        pages, places, there = table.locate(positions, *tensor.shape[:2])
        rows = there.all(1)
        complete &= bool(rows.all())
        moves = list(zip(pages[rows].tolist(), places[rows].tolist(), strict=True))
        held = [tensor[page[0], place[0]].clone() for page, place in moves]
        for (page, place), row in zip(moves, held, strict=True):
            tensor[page[1], place[1]].copy_(row)
    return complete


def gather(values: Tensor, cu_nodes: Tensor, path: Tensor, num_tokens: Tensor, *, out: Any = None) -> Tensor:
    """The rows of a per-node tensor along the accepted paths.

    Args:
        values: ``[T, ...]``, any dtype and strides.
        cu_nodes: ``[B+1]`` int32, first row of each request.
        path: ``[B, W]`` int32, local nodes.
        num_tokens: ``[B]`` int32, rows of each request.
        out: a tensor to write into.

    Returns:
        ``[B, W, ...]``: row ``cu_nodes[b] + path[b, j]`` for ``j < num_tokens[b]``, if it is the request's; 0 else.

    Raises:
        TypeError, ValueError: on a wrong dtype or shape.

    Deterministic. Reads values on the host: not for CUDA graphs.
    """
    op = "kv.gather"
    checks.tensor(op, "path", path, ("B", "W"), (torch.int32,))
    batch, width = path.shape
    checks.tensor(op, "cu_nodes", cu_nodes, (batch + 1,), (torch.int32,))
    checks.tensor(op, "num_tokens", num_tokens, (batch,), (torch.int32,))
    made = values.new_zeros((batch, width, *values.shape[1:])) if out is None else out.zero_()
    for b in range(batch):
        begin, end = int(cu_nodes[b]), min(int(cu_nodes[b + 1]), values.shape[0])
        for j in range(min(int(num_tokens[b]), width)):
            node = int(path[b, j])
            if begin >= 0 and 0 <= node < end - begin:
                made[b, j].copy_(values[begin + node])
    return made
