"""Trees in the formats of other engines: masks, links, paths. ``N`` is ``tree.max_nodes``.

A malformed request, or one with more than ``N`` nodes, is its root alone. Except for ``to_paths`` a tree may be of any
depth.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..types import Links
from . import checks
from .nodes import Nodes

MASK_LAYOUTS = ("full", "query", "words")


def _requests(op: str, tree: Any, max_depth: int | None = None) -> list[Nodes]:
    batch, count = checks.tree(op, tree)
    checks.integer(op, "tree.max_nodes", tree.max_nodes, 0)
    checks.integer(op, "tree.max_depth", tree.max_depth, 0)
    requests = [Nodes(tree._replace(max_depth=count if max_depth is None else max_depth), b) for b in range(batch)]
    for nodes in requests:
        if nodes.count > tree.max_nodes:
            nodes.count = min(tree.max_nodes, 1)
            if nodes.count:
                nodes.ends[0] = 1
    return requests


def _give(made: Tensor, out: Tensor | None, tree: Any) -> Tensor:
    return made.to(tree.tokens.device) if out is None else out.copy_(made)


def _visible(nodes: Nodes, size: int) -> Tensor:
    """``[size, size]`` bool: whether live node ``j`` (column) is live node ``i`` (row) or above it."""
    sees = torch.zeros((size, size), dtype=torch.bool)
    for j in range(nodes.count):
        sees[j : nodes.ends[j], j] = True
    return sees


def to_dense_mask(tree: Any, *, out: Any = None) -> Tensor:
    """Who attends to whom: ``[B, N, N]`` bool, element ``(i, j)`` true iff node ``j`` is ``i`` or above it.

    Args:
        tree: a ``TokenTree``.
        out: a mask to write into.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or bound.

    Deterministic. Reads values on the host: not for CUDA graphs.
    """
    requests, size = _requests("tree.to_dense_mask", tree), tree.max_nodes
    made = torch.zeros((len(requests), size, size), dtype=torch.bool)
    for b, nodes in enumerate(requests):
        made[b] = _visible(nodes, size)
    return _give(made, out, tree)


def _packed(bits: Tensor) -> Tensor:
    """The last dimension in bytes, the first bit in the lowest place."""
    size = bits.shape[-1]
    padded = torch.zeros((*bits.shape[:-1], (size + 7) // 8 * 8), dtype=torch.uint8)
    padded[..., :size] = bits
    return (padded.unflatten(-1, (-1, 8)) << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def to_packed_mask(
    tree: Any,
    layout: str = "full",
    *,
    context_lens: Tensor | None = None,
    max_context: int | None = None,
    out: Any = None,
) -> tuple[Tensor, Tensor | None]:
    """The mask in bits, the first in the lowest place.

    Args:
        tree: a ``TokenTree``.
        layout: ``"query"``: ``[B, N, ceil(N/8)]`` uint8, rows of the dense mask. ``"words"``: ``[B, N, ceil(N/32)]``
            int32. ``"full"``: one segment per request in a row of bytes, with ``q`` live nodes behind a context of
            ``c`` the bits ``i * (c + q) + t``: 1 for the context, then row ``i`` of the dense mask.
        context_lens: ``[B]`` int32 or int64, for ``"full"`` only; below 0 is 0.
        max_context: bound of ``context_lens``, for ``"full"`` only. A request gets ``ceil(N (max_context + N) / 8)``
            bytes; a segment that needs more is empty.
        out: ``(mask, indptr)`` to write into.

    Returns:
        The mask, and for ``"full"`` the first byte of each segment ``[B+1]`` int32, else None.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or bound.

    Deterministic. Reads values on the host: not for CUDA graphs.
    Source: FlashInfer's ``packed_custom_mask``.
    """
    op = "tree.to_packed_mask"
    requests, size = _requests(op, tree), tree.max_nodes
    checks.choice(op, "layout", layout, MASK_LAYOUTS)
    if layout != "full":
        made = torch.zeros((len(requests), size, (size + 31) // 32 * 4), dtype=torch.uint8)
        for b, nodes in enumerate(requests):
            made[b, :, : (size + 7) // 8] = _packed(_visible(nodes, size))
        if layout == "query":
            made = made[..., : (size + 7) // 8]
        else:
            made = (
                made.view(torch.int32)
                if made.numel()
                else made.new_zeros((*made.shape[:2], (size + 31) // 32), dtype=torch.int32)
            )
        return _give(made, None if out is None else out[0], tree), None
    checks.tensor(op, "context_lens", context_lens, (len(requests),))
    checks.integer(op, "max_context", max_context, 0)
    assert context_lens is not None and max_context is not None
    share = (size * (max_context + size) + 7) // 8
    segments = []
    for nodes, given in zip(requests, context_lens.tolist(), strict=True):
        context, live = max(given, 0), nodes.count
        if math.ceil(live * (context + live) / 8) > share:
            live = 0
        bits = torch.ones((live, live and context + live), dtype=torch.bool)
        bits[:, live and context :] = _visible(nodes, nodes.count)[:live, :live]
        segments.append(_packed(bits.flatten()))
    ends = torch.tensor([0, *(segment.numel() for segment in segments)]).cumsum(0).int()
    mask = torch.zeros(len(requests) * share, dtype=torch.uint8)
    mask[: ends[-1]] = torch.cat([mask[:0], *segments])
    given_mask, given_ends = (None, None) if out is None else out
    return _give(mask, given_mask, tree), _give(ends, given_ends, tree)


def to_links(tree: Any, dtype: torch.dtype = torch.int64, *, out: Any = None) -> Links:
    """First child, next sibling and global row of each node, ``[B, N]`` each, -1 = none.

    Args:
        tree: a ``TokenTree``.
        dtype: int32 or int64.
        out: ``Links`` to write into.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or bound.

    Deterministic. Reads values on the host: not for CUDA graphs.
    Source: ``retrive_next_token`` and its like in SGLang.
    """
    op = "tree.to_links"
    requests, size = _requests(op, tree), tree.max_nodes
    checks.choice(op, "dtype", dtype, checks.INDICES)
    made = torch.full((3, len(requests), size), -1, dtype=dtype)
    for b, nodes in enumerate(requests):
        for i in range(nodes.count):
            end = nodes.ends[i]
            made[0, b, i] = i + 1 if i + 1 < end else -1
            made[1, b, i] = end if i and end < nodes.ends[nodes.parents[i]] else -1
            made[2, b, i] = nodes.first + i
    return Links(*(_give(made[k], None if out is None else out[k], tree) for k in range(3)))


def to_paths(tree: Any, *, out: Any = None) -> tuple[Tensor, Tensor]:
    """The path from the root to each leaf, leaves in the order of the tree.

    Args:
        tree: a ``TokenTree``; one deeper than ``tree.max_depth`` is malformed.
        out: ``(paths, num_paths)`` to write into.

    Returns:
        ``paths [B, N, max_depth+1]`` int32, local nodes, -1 beyond, and ``num_paths [B]`` int32.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or bound.

    Deterministic. Reads values on the host: not for CUDA graphs.
    Source: ``retrieve_indices`` of Medusa and EAGLE.
    """
    requests, size = _requests("tree.to_paths", tree, tree.max_depth), tree.max_nodes
    paths = torch.full((len(requests), size, tree.max_depth + 1), -1, dtype=torch.int32)
    counts = torch.zeros(len(requests), dtype=torch.int32)
    for b, nodes in enumerate(requests):
        leaves = [i for i in range(nodes.count) if nodes.ends[i] == i + 1]
        counts[b] = len(leaves)
        for p, leaf in enumerate(leaves):
            path = [j for j in range(leaf + 1) if nodes.ends[j] > leaf]
            paths[b, p, : len(path)] = torch.tensor(path)
    given = (None, None) if out is None else out
    return _give(paths, given[0], tree), _give(counts, given[1], tree)
