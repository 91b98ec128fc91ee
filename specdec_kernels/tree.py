"""Draft trees: builders of :class:`~specdec_kernels.types.TokenTree`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _backend, _validate
from .types import TokenTree

__all__ = ["from_chains"]


def from_chains(
    tokens: Tensor,
    lengths: Tensor | None = None,
    *,
    backend: str | None = None,
    out: TokenTree | None = None,
) -> TokenTree:
    """Chains of drafts as trees.

    Request ``b`` owns rows ``b*N`` to ``(b+1)*N``; the first ``lengths[b]`` of them are live, each
    the only child of the one before; the others are padding (token -1, end 0).

    Args:
        tokens: ``[B, N]`` int32 or int64, the root (newest token, already emitted) first, then the
            drafts.
        lengths: ``[B]`` int32 or int64, live tokens of each chain, the root included; 0 is an idle
            request. None: all ``N``. A length outside ``[0, N]`` makes the request root-only and
            sets status 8.
        backend: see :func:`specdec_kernels.use_backend`.
        out: a tree made by an earlier call of the same shape, written in place.

    Returns:
        A :class:`TokenTree` with ``max_nodes = N`` and ``max_depth = N - 1``.

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Deterministic. CUDA-graph safe. Reads and writes ``O(B * N)`` integers.
    """
    op = "tree.from_chains"

    def check() -> None:
        _validate.tensor(op, "tokens", tokens, ("B", "N"), _validate.INDICES)
        batch, width = tokens.shape
        device = tokens.device
        if lengths is not None:
            _validate.tensor(op, "lengths", lengths, (batch,), _validate.INDICES, device)
        if out is not None:
            _validate.new_tree(op, out, batch, batch * width, tokens.dtype, device)

    def launch(kernel: Callable[..., None]) -> TokenTree:
        batch, width = tokens.shape
        tree = _new(tokens, batch, batch * width, width, max(width - 1, 0)) if out is None else out
        kernel(tokens, lengths, *tree[:5], tree.status)
        _validate.raise_on_bad_data(op, tree.status)
        return tree

    return _backend.run("tree_from_chains", backend, tokens, check, launch)


def _new(like: Tensor, batch: int, count: int, max_nodes: int, max_depth: int) -> TokenTree:
    """A tree of ``count`` rows to be written; tokens have the dtype of ``like``."""
    cu_nodes = like.new_empty(batch + 1, dtype=torch.int32)
    return TokenTree(
        cu_nodes=cu_nodes,
        tokens=like.new_empty(count),
        parents=cu_nodes.new_empty(count),
        depths=cu_nodes.new_empty(count),
        ends=cu_nodes.new_empty(count),
        max_nodes=max_nodes,
        max_depth=max_depth,
        status=cu_nodes.new_empty(batch),
    )
