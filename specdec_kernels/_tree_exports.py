"""Trees in the formats of other engines; public as functions of :mod:`specdec_kernels.tree`.

``N`` is ``tree.max_nodes``, so that all shapes are known on the host. A malformed request, and one with more than ``N``
nodes, is exported as its root alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _backend, _validate
from ._schema import MASK_LAYOUTS
from .types import Links, TokenTree

_BYTES = (torch.uint8,)
_MOST_BYTES = 2**31 - 1


def to_dense_mask(
    tree: TokenTree,
    *,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Who attends to whom within the trees, as a matrix of bools.

    Args:
        tree: draft trees.
        backend: see :func:`specdec_kernels.use_backend`.
        out: a mask made by an earlier call of the same shape, written in place.

    Returns:
        ``[B, N, N]`` bool with ``N = tree.max_nodes``: element ``(i, j)`` is true iff nodes ``i`` and ``j`` are live and
        ``j`` is ``i`` or an ancestor of it.

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Deterministic. CUDA-graph safe. Writes ``B N^2`` bytes.
    """
    op = "tree.to_dense_mask"

    def check() -> None:
        batch, _, device = _validate.token_tree(op, tree)
        _validate.output(op, "out", out, (batch, tree.max_nodes, tree.max_nodes), _validate.BOOL, device)

    def launch(kernel: Callable[..., None]) -> Tensor:
        batch, size = _size(op, tree)
        mask = tree.tokens.new_empty(batch, size, size, dtype=torch.bool) if out is None else out
        if mask.shape[1] != size:
            check()
        kernel(*tree[:5], mask)
        return mask

    return _backend.run("tree_to_dense_mask", backend, getattr(tree, "tokens", None), check, launch)


def to_packed_mask(
    tree: TokenTree,
    layout: str = "full",
    *,
    context_lens: Tensor | None = None,
    max_context: int | None = None,
    backend: str | None = None,
    out: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The mask of the trees in bits, the first in the lowest place of a byte or word.

    * ``"query"``: ``[B, N, ceil(N/8)]`` uint8; bit ``j`` of row ``i`` as in :func:`to_dense_mask`.
    * ``"words"``: ``[B, N, ceil(N/32)]`` int32, likewise.
    * ``"full"``: context and tree, as FlashInfer's prefill takes it: one row of bytes with a segment for each request.
      With ``q`` live nodes behind a context of ``c`` tokens, bit ``i * (c + q) + t`` is set for ``t < c``, and for ``t =
      c + j`` as in the dense mask. Segments follow each other, each from a byte on.

    Args:
        tree: draft trees.
        layout: ``"full"``, ``"query"`` or ``"words"``.
        context_lens: ``[B]`` int32 or int64, with ``"full"`` and only there: committed tokens; below 0 counts as 0.
        max_context: host bound of ``context_lens``, with ``"full"`` and only there. A request has room for ``ceil(N
            (max_context + N) / 8)`` bytes; a segment that needs more is empty.
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``(mask, indptr)`` of an earlier call of the same shape, written in place.

    Returns:
        The mask, and for ``"full"`` ``indptr [B+1]`` int32: the first byte of each segment and the end of the last,
        behind which all bytes are 0; else None.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    Deterministic. CUDA-graph safe. Writes the bytes of the mask.
    Source: FlashInfer, ``BatchPrefillWithPagedKVCacheWrapper.plan(packed_custom_mask=)``.
    """
    op = "tree.to_packed_mask"

    def check() -> None:
        batch, _, device = _validate.token_tree(op, tree)
        check_host()
        if context_lens is not None:
            _validate.tensor(op, "context_lens", context_lens, (batch,), _validate.INDICES, device)
        if out is None:
            return
        _validate.pair(op, "out", out)
        dtype = _validate.INT32 if layout == "words" else _BYTES
        _validate.output(op, "out[0]", out[0], shape_of(batch), dtype, device)
        if layout == "full" and out[1] is None:
            raise ValueError(f"{op}: out[1] must be given with layout 'full', got None")
        if layout == "full":
            _validate.output(op, "out[1]", out[1], (batch + 1,), _validate.INT32, device)

    def check_host() -> None:
        _validate.choice(op, "layout", layout, MASK_LAYOUTS)
        for name, value in (("context_lens", context_lens), ("max_context", max_context)):
            if (value is None) == (layout == "full"):
                wanted = "given with" if value is None else "None unless the layout is"
                raise ValueError(f"{op}: {name} must be {wanted} 'full', got {'None' if value is None else 'a value'}")
        if max_context is not None:
            _validate.integer(op, "max_context", max_context, 0)
            total = shape_of(tree.cu_nodes.shape[0] - 1)[0]
            if total > _MOST_BYTES:
                raise ValueError(f"{op}: max_context must leave at most {_MOST_BYTES} bytes, got {total} bytes")

    def shape_of(batch: int) -> tuple[int, ...]:
        size = tree.max_nodes
        if layout == "full":
            assert max_context is not None
            return (batch * ((size * (max_context + size) + 7) // 8),)
        return batch, size, (size + 31) // 32 if layout == "words" else (size + 7) // 8

    def launch(kernel: Callable[..., None]) -> tuple[Tensor, Tensor | None]:
        batch, size = _size(op, tree)
        check_host()
        if out is None:
            dtype = torch.int32 if layout == "words" else torch.uint8
            mask = tree.tokens.new_empty(shape_of(batch), dtype=dtype)
            indptr = tree.cu_nodes.new_empty(batch + 1) if layout == "full" else None
        else:
            mask, indptr = out[0], out[1] if layout == "full" else None
            if mask.shape != shape_of(batch):
                check()
        kernel(*tree[:5], context_lens, MASK_LAYOUTS.index(layout), size, mask, indptr)
        return mask, indptr

    return _backend.run("tree_to_packed_mask", backend, getattr(tree, "tokens", None), check, launch)


def to_links(
    tree: TokenTree,
    dtype: torch.dtype = torch.int64,
    *,
    backend: str | None = None,
    out: Links | None = None,
) -> Links:
    """The trees as lists of first children and next siblings, as SGLang's verification takes them.

    Args:
        tree: draft trees.
        dtype: of the result, int32 or int64.
        backend: see :func:`specdec_kernels.use_backend`.
        out: links made by an earlier call of the same shape, written in place.

    Returns:
        :class:`Links`, ``[B, N]`` each with ``N = tree.max_nodes``; -1 where there is none.

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Deterministic. CUDA-graph safe. Writes ``3 B N`` integers.
    Source: SGLang, ``retrive_next_token``, ``retrive_next_sibling`` and ``retrive_index``.
    """
    op = "tree.to_links"

    def check() -> None:
        batch, _, device = _validate.token_tree(op, tree)
        check_host()
        if out is not None:
            if not hasattr(out, "first_child"):
                raise TypeError(f"{op}: out must be Links, got {type(out).__name__}")
            for name, value in zip(Links._fields, out, strict=True):
                _validate.output(op, f"out.{name}", value, (batch, tree.max_nodes), (dtype,), device)

    def check_host() -> None:
        if dtype not in _validate.INDICES:
            raise TypeError(f"{op}: dtype must be int32 or int64, got {str(dtype).removeprefix('torch.')}")

    def launch(kernel: Callable[..., None]) -> Links:
        batch, size = _size(op, tree)
        check_host()
        if out is None:
            links = Links(*(tree.tokens.new_empty(batch, size, dtype=dtype) for _ in Links._fields))
        else:
            links = out
            if links.first_child.dtype != dtype or links.first_child.shape[1] != size:
                check()
        kernel(*tree[:5], *links)
        return links

    return _backend.run("tree_to_links", backend, getattr(tree, "tokens", None), check, launch)


def to_paths(
    tree: TokenTree,
    *,
    backend: str | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The path from the root to each leaf, as Medusa and EAGLE take it (``retrieve_indices``).

    Args:
        tree: draft trees.
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``(paths, num_paths)`` of an earlier call of the same shape, written in place.

    Returns:
        ``paths [B, N, max_depth+1]`` int32: local nodes from the root to each leaf, leaves in the order of the tree, -1
        beyond; and ``num_paths [B]`` int32. A request that is deeper than ``tree.max_depth`` is malformed.

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Deterministic. CUDA-graph safe. Writes ``B N (max_depth + 1)`` integers.
    """
    op = "tree.to_paths"

    def check() -> None:
        batch, _, device = _validate.token_tree(op, tree)
        if out is not None:
            _validate.pair(op, "out", out)
            shape = (batch, tree.max_nodes, tree.max_depth + 1)
            _validate.output(op, "out[0]", out[0], shape, _validate.INT32, device)
            _validate.output(op, "out[1]", out[1], (batch,), _validate.INT32, device)

    def launch(kernel: Callable[..., None]) -> tuple[Tensor, Tensor]:
        batch, size = _size(op, tree)
        if out is None:
            paths = tree.cu_nodes.new_empty(batch, size, tree.max_depth + 1)
            counts = tree.cu_nodes.new_empty(batch)
        else:
            paths, counts = out
            if paths.shape[1:] != (size, tree.max_depth + 1):
                check()
        kernel(*tree[:5], paths, counts)
        return paths, counts

    return _backend.run("tree_to_paths", backend, getattr(tree, "tokens", None), check, launch)


def _size(op: str, tree: TokenTree) -> tuple[int, int]:
    """Requests of a tree, and rows of each of its exports."""
    _validate.bounds(op, tree)
    return tree.cu_nodes.shape[0] - 1, tree.max_nodes
