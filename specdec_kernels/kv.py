"""The paged cache of keys and values: write the nodes' rows, move the accepted ones into place, gather rows, inject those
of a block drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _backend, _validate
from ._kv_inject import inject
from .types import KvBuffers, KvGroup, TokenTree

__all__ = ["commit", "gather", "inject", "write"]


def write(
    key: Tensor,
    value: Tensor | None,
    key_cache: Tensor,
    value_cache: Tensor | None,
    block_table: Tensor,
    context_lens: Tensor,
    tree: TokenTree,
    *,
    query_nodes: Tensor | None = None,
    cu_queries: Tensor | None = None,
    table_rows: Tensor | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    active: Tensor | None = None,
    status: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Store the keys and values of the nodes of each request behind its context, in one launch.

    The row of node ``i`` goes to position ``context_lens[b] + slots[i]`` (``slots`` None: ``i``). Stored is the float32
    quotient ``x / scale``, rounded to nearest even; float8 takes its largest finite value for what is larger. Rows that
    are no live node write nothing, and nothing else in the caches is touched.

    Args:
        key: ``[Tq, Hkv, D]`` float32, bfloat16 or float16, unit stride in the last dimension: a row per node.
        value: ``[Tq, Hkv, Dv]``, likewise; None together with ``value_cache``: keys alone (MLA).
        key_cache: ``[P, S, Hkv, D]`` float32, bfloat16, float16, float8_e4m3fn or float8_e5m2, any strides but the
            last; ``S``, the tokens of a page, is a power of two.
        value_cache: ``[P, S, Hkv, Dv]``, likewise.
        block_table: ``[B, max_pages]`` int32 or int64: position ``t`` of request ``b`` lies in page
            ``block_table[b, t // S]``, slot ``t % S``. With ``table_rows`` ``[rows, max_pages]``.
        context_lens: ``[B]`` int32 or int64, committed tokens. Below 0 counts as 0, status 8.
        tree: the nodes. A malformed tree is its root alone, status 8.
        query_nodes: ``[Tq]`` int32 or int64, local index of the node of each row, each node at most once: one level
            of a growing tree. None: the rows are those of the tree.
        cu_queries: ``[B+1]`` int32, rows of each request; given with ``query_nodes``.
        table_rows: ``[B]`` int32 or int64, row of ``block_table`` of each request.
        key_scale: ``[1]`` or ``[Hkv]`` float32, what stored keys are to be multiplied by.
        value_scale: the same for values.
        active: ``[B]`` bool; other requests are no-ops.
        status: ``[B]`` int32, is overwritten with bits of :class:`~specdec_kernels.types.Status`: 8, also where a slot
            is below 0 (the row is not written) or ``cu_queries`` names no range of rows (none is); 16 where a page id is
            out of range (the row is not written).
        backend: see :func:`specdec_kernels.use_backend`.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype, stride or device.

    Deterministic; the same bits on every backend, but for those of a NaN, which stays some NaN. CUDA-graph safe: lengths
    are read on the device.
    Complexity: one read of the rows, one write.
    """
    op = "kv.write"

    def check() -> None:
        batch, rows, device = _validate.tree_nodes(op, tree, query_nodes, cu_queries)
        if (value is None) != (value_cache is None):
            missing = "value" if value is None else "value_cache"
            raise ValueError(f"{op}: {missing} must be given together with the other, got None")
        _side(op, "key", key, key_cache, (rows, "Hkv", "D"), ("P", "S"), key_scale, device)
        if value is not None and value_cache is not None:
            pages = key_cache.shape[:2]
            _side(op, "value", value, value_cache, (rows, key.shape[1], "Dv"), pages, value_scale, device)
        elif value_scale is not None:
            raise ValueError(f"{op}: value_scale must be None without values, got a tensor")
        _validate.pages(op, block_table, table_rows, context_lens, batch, device)
        _validate.options(op, active, status, batch, device)

    def launch(kernel: Callable[..., None]) -> None:
        _validate.bounds(op, tree)
        flags = _validate.flags(status, tree.cu_nodes, tree.cu_nodes.shape[0] - 1)
        kernel(
            *(key, value, block_table, table_rows, context_lens, *tree[:5], tree.slots, tree.max_nodes),
            *(tree.max_depth, query_nodes, cu_queries, key_scale, value_scale, active),
            *(key_cache, value_cache, flags),
        )
        _validate.raise_on_bad_data(op, flags)

    _backend.run("kv_write", backend, key, check, launch)


def _side(
    op: str,
    name: str,
    given: Tensor,
    cache: Tensor,
    shape: tuple[int | str, ...],
    pages: Sequence[int | str],
    scale: Tensor | None,
    device: torch.device,
) -> None:
    """Check keys or values with their cache and their scale."""
    _validate.tensor(op, name, given, shape, _validate.FLOATS, device)
    heads, dim = given.shape[1:]
    if dim > 1 and given.stride(2) != 1:
        raise ValueError(f"{op}: {name} must have unit stride in the last dimension, got {given.stride(2)}")
    _validate.cache(op, f"{name}_cache", cache, (*pages, heads, dim), device)
    _validate.cache_scale(op, f"{name}_scale", scale, heads, device)


def commit(
    buffers: KvBuffers,
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
    backend: str | None = None,
) -> None:
    """Move the rows of the accepted nodes to the end of the context: all layers and all buffers in one launch.

    With ``c = context_lens[b]``, for ``j < num_tokens[b]`` the row at position ``c + slot(path[b, j])`` goes to
    ``c + j``, as if all rows were read before any is written. Rows that are in place are not touched, and no page but
    those of the moved rows. Bytes are moved, whatever they mean: keys, values, scales, latents, hidden states.
    ``context_lens`` is not advanced.

    Example: the context is 100 and the path ``[0, 2, 5]``: row 102 goes to 101 and row 105 to 102.

    Args:
        buffers: tensors ``[num_pages, page_size, ...]`` with any trailing dimensions, strides and dtype, or groups of
            them with tables, page sizes, lengths or slots of their own (:class:`~specdec_kernels.types.KvBuffers`).
            Page sizes are powers of two. No memory may be named twice (a value cache that is a view of the key cache
            is moved with it); only tensors that begin at the same address are refused.
        block_table: ``[B, max_pages]`` int32 or int64: position ``t`` of request ``b`` lies in page
            ``block_table[b, t // page_size]``, slot ``t % page_size``. With ``table_rows`` ``[rows, max_pages]``.
            None if every group has its own.
        context_lens: ``[B]`` int32 or int64, committed tokens; below 0 counts as 0, status 8. None if every group has
            its own.
        path: ``[B, W]`` int32, local nodes below 4096, as ``VerifyResult.path``.
        num_tokens: ``[B]`` int32, rows of each request; outside ``[0, W]`` it is clamped, status 8.
        cu_nodes: ``[B+1]`` int32, first row of ``slots`` of each request; given with slots.
        slots: ``[T]`` int32, slot of each node behind the context, as ``TokenTree.slots``. None: its local index.
        table_rows: ``[B]`` int32 or int64, row of ``block_table`` of each request.
        active: ``[B]`` bool; other requests are no-ops.
        status: ``[B]`` int32, is overwritten with bits of :class:`~specdec_kernels.types.Status`: 8 where path and
            slots do not increase strictly from at least 0, or leave their range (the first such entry ends the moves
            of its request), 16 where a page id is out of range (the row is not moved).
        backend: see :func:`specdec_kernels.use_backend`.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype or device, where a table is missing, or if a tensor is given
        twice.

    Deterministic; the same bits on every backend, as long as no two requests write the same page. CUDA-graph safe:
    lengths are read on the device.
    Complexity: one read and one write of each row that moves. One launch up to 320 buffers in 32 groups; on ``triton``
    one for each eight buffers of the same layout.
    """
    op = "kv.commit"
    call = KvGroup((), block_table, None, context_lens, slots, table_rows)

    def check() -> None:
        _validate.tensor(op, "path", path, ("B", "W"), _validate.INT32)
        batch, device = path.shape[0], path.device
        _validate.tensor(op, "num_tokens", num_tokens, (batch,), _validate.INT32, device)
        if cu_nodes is not None:
            _validate.tensor(op, "cu_nodes", cu_nodes, (batch + 1,), _validate.INT32, device)
        _validate.options(op, active, status, batch, device)
        first = 0
        for number, group in enumerate(_groups(op, buffers, call)):
            _check_tensors(op, group, first, device)
            _check_tables(op, f"buffers.groups[{number}].", buffers.groups[number], group, cu_nodes, batch, device)
            first += len(group.tensors)
        tensors = [tensor for group in _groups(op, buffers, call) for tensor in group.tensors]
        _validate.distinct(op, [(f"buffers[{i}]", tensor) for i, tensor in enumerate(tensors)])

    def launch(kernel: Callable[..., None]) -> None:
        groups = _groups(op, buffers, call)
        flags = _validate.flags(status, path, path.shape[0])
        kernel(
            [tensor for group in groups for tensor in group.tensors],
            [len(group.tensors) for group in groups],
            [group.block_table for group in groups],
            [group.table_rows for group in groups],
            [group.context_lens for group in groups],
            [group.slots for group in groups],
            *(cu_nodes, path, num_tokens, active, flags),
        )
        _validate.raise_on_bad_data(op, flags)

    _backend.run("kv_commit", backend, path, check, launch)


def _groups(op: str, buffers: KvBuffers, call: KvGroup) -> list[KvGroup]:
    """The groups of a call, with the fields of the call where they have none."""
    if not hasattr(buffers, "groups"):
        raise TypeError(f"{op}: buffers must be a KvBuffers, got {type(buffers).__name__}")
    given: Sequence[Any] = buffers.groups
    if not isinstance(given, (list, tuple)) or hasattr(given, "tensors"):
        kind = type(given).__name__
        raise TypeError(f"{op}: buffers.groups must be a sequence of tensors or of KvGroup, got {kind}")
    if given and isinstance(given[0], Tensor):
        return [call._replace(tensors=_sequence(op, "buffers.groups", given))]
    groups = []
    for number, own in enumerate(given):
        name = f"buffers.groups[{number}]"
        if not hasattr(own, "tensors"):
            raise TypeError(f"{op}: {name} must be a KvGroup, got {type(own).__name__}")
        group = KvGroup(_sequence(op, f"{name}.tensors", own.tensors), *map(_first_given, own[1:], call[1:]))
        for tensor in group.tensors if group.page_size is not None else ():
            if tensor.dim() > 1 and tensor.shape[1] != group.page_size:
                size = tensor.shape[1]
                raise ValueError(f"{op}: {name}.page_size must be that of its tensors, {size}, got {group.page_size}")
        groups.append(group)
    return groups


def _first_given(own: Any, of_call: Any) -> Any:
    return of_call if own is None else own


def _sequence(op: str, name: str, value: Any) -> Sequence[Tensor]:
    """Check that something is a sequence of tensors."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{op}: {name} must be a sequence of tensors, got {type(value).__name__}")
    for i, tensor in enumerate(value):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name}[{i}] must be a tensor, got {type(tensor).__name__}")
    return value


def _check_tensors(op: str, group: KvGroup, first: int, device: torch.device) -> None:
    """Check the tensors of one group: ``buffers[first]`` and those that follow."""
    for i, tensor in enumerate(group.tensors, first):
        if tensor.dim() < 2:
            raise ValueError(
                f"{op}: buffers[{i}] must have shape [num_pages, page_size, ...], got {list(tensor.shape)}"
            )
        size = group.tensors[0].shape[1]
        if size < 1 or size & (size - 1):
            raise ValueError(f"{op}: buffers[{i}] must have a page size that is a power of two, got {size}")
        if tensor.shape[1] != size:
            raise ValueError(f"{op}: buffers[{i}] must have the page size of its group, {size}, got {tensor.shape[1]}")
        if tensor.device != device:
            raise ValueError(f"{op}: buffers[{i}] must be on {device}, got {tensor.device}")


def _check_tables(
    op: str, prefix: str, own: Any, group: KvGroup, cu_nodes: Tensor | None, batch: int, device: torch.device
) -> None:
    """Check where the rows of one group lie; a field of its own has the prefix in its name."""

    def name_of(field: str) -> str:
        return prefix + field if getattr(own, field, None) is not None else field

    shapes: dict[str, tuple[int | str, ...]] = {
        "block_table": (batch if group.table_rows is None else "rows", "max_pages"),
        "context_lens": (batch,),
        "table_rows": (batch,),
    }
    for field, shape in shapes.items():
        value = getattr(group, field)
        if value is not None:
            _validate.tensor(op, name_of(field), value, shape, _validate.INDICES, device)
        elif field != "table_rows":
            raise ValueError(f"{op}: {field} must be given where a group has none, got None")
    if group.slots is not None:
        _validate.tensor(op, name_of("slots"), group.slots, ("T",), _validate.INT32, device)
        if cu_nodes is None:
            raise ValueError(f"{op}: cu_nodes must be given with slots, got None")


def gather(
    values: Tensor,
    cu_nodes: Tensor,
    path: Tensor,
    num_tokens: Tensor,
    *,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The rows of a per-node tensor along the accepted paths: hidden states for the next draft, positions, anything.

    Args:
        values: ``[T, ...]`` of any dtype, trailing dimensions and strides.
        cu_nodes: ``[B+1]`` int32, first row of each request.
        path: ``[B, W]`` int32, local nodes, as ``VerifyResult.path``.
        num_tokens: ``[B]`` int32, rows of each request; outside ``[0, W]`` it is clamped.
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``[B, W, ...]`` in the dtype of ``values``, contiguous, written in place.

    Returns:
        ``[B, W, ...]``: row ``cu_nodes[b] + path[b, j]`` for ``j < num_tokens[b]`` where that is a row of request
        ``b``; 0 everywhere else.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype or device.

    Deterministic; bytes are moved as they are. CUDA-graph safe.
    Complexity: one read of the rows, one write of the result; one launch.
    """
    op = "kv.gather"

    def check() -> None:
        if not isinstance(values, Tensor):
            raise TypeError(f"{op}: values must be a tensor, got {type(values).__name__}")
        if values.dim() < 1:
            raise ValueError(f"{op}: values must have shape [T, ...], got []")
        _validate.tensor(op, "path", path, ("B", "W"), _validate.INT32, values.device)
        batch, width = path.shape
        _validate.tensor(op, "cu_nodes", cu_nodes, (batch + 1,), _validate.INT32, values.device)
        _validate.tensor(op, "num_tokens", num_tokens, (batch,), _validate.INT32, values.device)
        shape = (batch, width, *values.shape[1:])
        _validate.output(op, "out", out, shape, (values.dtype,), values.device)

    def launch(kernel: Callable[..., None]) -> Tensor:
        made = values.new_empty((*path.shape, *values.shape[1:])) if out is None else out
        kernel(values, cu_nodes, path, num_tokens, made)
        return made

    return _backend.run("kv_gather", backend, values, check, launch)
