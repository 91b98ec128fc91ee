"""Attention of draft trees over a paged KV cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _backend, _validate
from ._schema import VISIBILITIES
from .types import TokenTree

__all__ = ["merge_states", "tree_attention"]

#: Largest head sizes of keys and of values.
MAX_KEY_DIM, MAX_VALUE_DIM = 576, 512

#: Largest window.
MAX_WINDOW = 2**63 - 1


def tree_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    tree: TokenTree,
    scale: float | None = None,
    softcap: float = 0.0,
    window: int = 0,
    sinks: Tensor | None = None,
    visibility: str = "tree",
    *,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    query_nodes: Tensor | None = None,
    cu_queries: Tensor | None = None,
    table_rows: Tensor | None = None,
    active: Tensor | None = None,
    status: Tensor | None = None,
    backend: str | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend the nodes of each request to its context and to their ancestors, straight from the pages.

    The context needs no mask: every node sees all of it. In the tree, node ``i`` sees node ``j`` iff
    ``j <= i < ends[j]``. Scores are scaled, then capped, then masked. The keys and values of the nodes must be in the
    cache already (:func:`specdec_kernels.kv.write`).

    Args:
        query: ``[Tq, Hq, D]`` float32, bfloat16 or float16, unit stride in the last dimension; ``D`` a multiple of 8 up
            to 576. Query head ``h`` reads key/value head ``h // (Hq / Hkv)``.
        key_cache: ``[P, S, Hkv, D]`` float32, bfloat16, float16, float8_e4m3fn or float8_e5m2, any strides but the last;
            ``S``, the tokens of a page, is a power of two.
        value_cache: ``[P, S, Hkv, Dv]``, likewise, ``Dv`` a multiple of 8 up to 512. It may be a view of the keys (MLA).
        block_table: ``[B, max_pages]`` int32 or int64: position ``t`` of request ``b`` lies in page
            ``block_table[b, t // S]``, slot ``t % S``. With ``table_rows`` ``[rows, max_pages]``.
        context_lens: ``[B]`` int32 or int64, committed tokens; all of them are visible. Below 0 counts as 0, status 8.
        tree: the new tokens. The KV of node ``i`` lies at position ``context_lens[b] + slots[i]`` (``slots`` None: ``i``),
            its rotary position is ``context_lens[b] + depths[i]``.
        scale: factor of the scores, finite; None: ``1 / sqrt(D)``.
        softcap: ``c`` in ``c * tanh(score / c)``, finite; 0 is off.
        window: a key is visible iff its rotary position is less than ``window`` before the query's; 0 is off.
        sinks: ``[Hq]`` float32, logits that take part in the denominator alone.
        visibility: ``"tree"``, or ``"block"``: every node sees every node of its request (DFlash).
        key_scale: ``[1]`` or ``[Hkv]`` float32, what stored keys are multiplied by.
        value_scale: the same for values.
        query_nodes: ``[Tq]`` int32 or int64, local index of the node of each row, so that one level of a growing tree can
            be attended; anything that is no live node is padding. None: the rows are those of the tree.
        cu_queries: ``[B+1]`` int32, rows of each request; given with ``query_nodes``.
        table_rows: ``[B]`` int32 or int64, row of ``block_table`` of each request.
        active: ``[B]`` bool; other requests are no-ops.
        status: ``[B]`` int32, is overwritten with bits of :class:`~specdec_kernels.types.Status`: 8 for a malformed tree
            (the root attends alone), for rows that an earlier request has or that are no range (offsets ascend; the
            request attends nothing), and where a visible node has a slot below 0 (it counts as not visible); 16 where a
            visible page id is out of range (its keys count as not visible).
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``(out, lse)`` of an earlier call of the same shapes, written in place; not in the memory of the query or of
            a cache.

    Returns:
        ``out [Tq, Hq, Dv]`` in the dtype of the query, and ``lse [Tq, Hq]`` float32: the natural log of the denominator,
        the sink included. Rows of no live node get 0 and -inf, and rows that
        see nothing 0 and their sink, -inf where there is none. A score or a sink that is NaN or +inf makes a row and its
        ``lse`` NaN; a value that is NaN or infinite makes its column not finite in the rows that see it, even where its
        weight is 0.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype, stride, device or choice.

    Deterministic; a request has the same bits in any batch, on ``triton`` in any of the same ``tree.max_nodes`` (and
    with ``query_nodes`` of as many rows). On the CPU a row has the same bits whatever other rows there are, and whether
    what it sees lies in the context or in the tree. CUDA-graph safe: lengths are read on the device.
    Complexity: one read of the visible keys and values for all nodes and query heads of a key/value head.
    Source: FlashAttention-2, Dao 2023, arXiv 2307.08691, section 3; split over keys: Flash-Decoding, Dao et al. 2023.
    """
    op = "attention.tree_attention"

    def check() -> None:
        batch, rows, device = _validate.tree_nodes(op, tree, query_nodes, cu_queries)
        _validate.tensor(op, "query", query, (rows, "Hq", "D"), _validate.FLOATS, device)
        heads, dim = query.shape[1:]
        if dim > 1 and query.stride(2) != 1:
            raise ValueError(f"{op}: query must have unit stride in the last dimension, got {query.stride(2)}")
        _validate.cache(op, "key_cache", key_cache, ("P", "S", "Hkv", dim), device)
        pages, size, kv_heads, _ = key_cache.shape
        _validate.cache(op, "value_cache", value_cache, (pages, size, kv_heads, "Dv"), device)
        _head_size(op, "query", dim, MAX_KEY_DIM)
        _head_size(op, "value_cache", value_cache.shape[3], MAX_VALUE_DIM)
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"{op}: query must have a multiple of {kv_heads} heads, got {heads}")
        _validate.pages(op, block_table, table_rows, context_lens, batch, device)
        _check_numbers(op, scale, softcap, window)
        if sinks is not None:
            _validate.tensor(op, "sinks", sinks, (heads,), _validate.FLOAT32, device)
        _validate.choice(op, "visibility", visibility, VISIBILITIES)
        _validate.cache_scale(op, "key_scale", key_scale, kv_heads, device)
        _validate.cache_scale(op, "value_scale", value_scale, kv_heads, device)
        _validate.options(op, active, status, batch, device)
        if out is not None:
            _validate.pair(op, "out", out)
            _validate.output(op, "out[0]", out[0], (rows, heads, value_cache.shape[3]), (query.dtype,), device)
            _validate.output(op, "out[1]", out[1], (rows, heads), _validate.FLOAT32, device)
            check_memory(*out)

    def check_memory(of_out: Tensor, of_lse: Tensor) -> None:
        read = (("query", query), ("key_cache", key_cache), ("value_cache", value_cache))
        _validate.apart(op, "out[0]", of_out, read)
        _validate.apart(op, "out[1]", of_lse, (*read, ("out[0]", of_out)))

    def launch(kernel: Callable[..., None]) -> tuple[Tensor, Tensor]:
        _validate.bounds(op, tree)
        _check_numbers(op, scale, softcap, window)
        _validate.choice(op, "visibility", visibility, VISIBILITIES)
        rows, heads, dim = query.shape
        made = out
        if made is None:
            made = (
                query.new_empty((rows, heads, value_cache.shape[3])),
                query.new_empty((rows, heads), dtype=torch.float32),
            )
        else:
            check_memory(*made)
        flags = _validate.flags(status, tree.cu_nodes, tree.cu_nodes.shape[0] - 1)
        kernel(
            *(query, key_cache, value_cache, block_table, table_rows, context_lens, *tree[:5], tree.slots),
            *(tree.max_nodes, tree.max_depth, query_nodes, cu_queries, dim**-0.5 if scale is None else scale, softcap),
            *(window, sinks, key_scale, value_scale, VISIBILITIES.index(visibility), active, *made, flags),
        )
        _validate.raise_on_bad_data(op, flags)
        return made

    return _backend.run("attention_tree_attention", backend, query, check, launch)


def _check_numbers(op: str, scale: float | None, softcap: float, window: int) -> None:
    """Check the host numbers, which native launchers would convert."""
    usual = type(softcap) is float and type(window) is int and (scale is None or type(scale) is float)
    if usual and 0 <= softcap <= _validate.MOST and 0 <= window <= MAX_WINDOW and abs(scale or 0.0) <= _validate.MOST:
        return  # what follows finds the words for all others
    if scale is not None:
        _validate.number(op, "scale", scale)
    _validate.number(op, "softcap", softcap, 0)
    _validate.integer(op, "window", window, 0, MAX_WINDOW)


def _head_size(op: str, name: str, value: int, most: int) -> None:
    if value % 8 or not 8 <= value <= most:
        raise ValueError(f"{op}: {name} must have a head size that is a multiple of 8 up to {most}, got {value}")


def merge_states(
    values: Tensor,
    lses: Tensor,
    *,
    backend: str | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Results of attention over parts of the keys as the result over all of them.

    Args:
        values: ``[T, S, H, D]`` float32, bfloat16 or float16, unit stride in the last dimension: the results over ``S``
            parts.
        lses: ``[T, S, H]`` float32, natural logs of their denominators; a part with -inf is ignored. A sink belongs to
            one of the parts.
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``(out, lse)`` of an earlier call of the same shapes, written in place.

    Returns:
        ``[T, H, D]`` in the dtype of ``values``, and ``[T, H]`` float32; 0 and -inf where all parts are ignored, NaN
        where a part has NaN or +inf.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype, stride or device.

    Deterministic: parts are added in ascending order, in float32. CUDA-graph safe.
    Complexity: one read of the parts.
    Source: Ye et al. 2025 (FlashInfer), arXiv 2501.01005, section 2.2.
    """
    op = "attention.merge_states"

    def check() -> None:
        _validate.tensor(op, "values", values, ("T", "S", "H", "D"), _validate.FLOATS)
        rows, parts, heads, dim = values.shape
        if dim > 1 and values.stride(3) != 1:
            raise ValueError(f"{op}: values must have unit stride in the last dimension, got {values.stride(3)}")
        _validate.tensor(op, "lses", lses, (rows, parts, heads), _validate.FLOAT32, values.device)
        if out is not None:
            _validate.pair(op, "out", out)
            _validate.output(op, "out[0]", out[0], (rows, heads, dim), (values.dtype,), values.device)
            _validate.output(op, "out[1]", out[1], (rows, heads), _validate.FLOAT32, values.device)

    def launch(kernel: Callable[..., None]) -> tuple[Tensor, Tensor]:
        rows, _, heads, dim = values.shape
        made = out
        if made is None:
            made = (values.new_empty((rows, heads, dim)), values.new_empty((rows, heads), dtype=torch.float32))
        kernel(values, lses, *made)
        return made

    return _backend.run("attention_merge_states", backend, values, check, launch)
