"""Draft trees: builders of :class:`~specdec_kernels.types.TokenTree`."""

from __future__ import annotations

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
    _validate.tensor(op, "tokens", tokens, ("B", "N"), _validate.INDICES)
    batch, width = tokens.shape
    device = tokens.device
    if lengths is not None:
        _validate.tensor(op, "lengths", lengths, (batch,), _validate.INDICES, device)
    count = batch * width
    if out is None:

        def indices(size: int) -> Tensor:
            return torch.empty((size,), dtype=torch.int32, device=device)

        out = TokenTree(
            cu_nodes=indices(batch + 1),
            tokens=torch.empty((count,), dtype=tokens.dtype, device=device),
            parents=indices(count),
            depths=indices(count),
            ends=indices(count),
            max_nodes=width,
            max_depth=max(width - 1, 0),
            status=indices(batch),
        )
    else:
        _validate.tensor(op, "out.cu_nodes", out.cu_nodes, (batch + 1,), _validate.INT32, device)
        _validate.tensor(op, "out.tokens", out.tokens, (count,), (tokens.dtype,), device)
        for name in ("parents", "depths", "ends"):
            _validate.tensor(op, f"out.{name}", getattr(out, name), (count,), _validate.INT32, device)
        if out.status is None:
            raise ValueError(f"{op}: out.status must be given, got None")
        _validate.tensor(op, "out.status", out.status, (batch,), _validate.INT32, device)
    fields = (out.cu_nodes, out.tokens, out.parents, out.depths, out.ends, out.status)
    _backend.call("tree_from_chains", backend, device, (tokens, lengths, *fields))
    _validate.raise_on_bad_data(op, out.status)
    return out
