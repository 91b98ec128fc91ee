"""Draft-side helpers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _backend, _validate

__all__ = ["ngram_lookup"]


def ngram_lookup(
    history: Tensor,
    lengths: Tensor,
    min_n: int = 1,
    max_n: int = 4,
    num: int = 7,
    *,
    active: Tensor | None = None,
    backend: str | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Prompt lookup: what followed when the last tokens stood in the text before.

    For ``n`` from ``max_n`` down to ``min_n`` the last ``n`` tokens are looked up in the history
    before them; the first ``n`` with an occurrence wins. Among its occurrences the most recent one
    that is followed by at least ``num`` tokens is taken; if there is none, the earliest, whose
    continuation is the longest.

    Args:
        history: ``[B, L]`` int32 or int64, prompt and generated tokens, any row stride.
        lengths: ``[B]`` int32 or int64, valid tokens of each row; clipped to ``[0, L]``.
        min_n: shortest suffix, at least 1.
        max_n: longest suffix, at least ``min_n``.
        num: drafts wanted, at least 1.
        active: ``[B]`` bool; other requests get no drafts.
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``(drafts, counts)`` of an earlier call of the same shape, written in place.

    Returns:
        ``drafts [B, num]`` in the dtype of ``history``, -1 beyond ``counts``, and ``counts [B]``
        int32.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    Deterministic. CUDA-graph safe. Complexity: ``O(L * max_n)`` per request at worst.
    Source: prompt lookup decoding (Saxena 2023).
    """
    op = "draft.ngram_lookup"

    def check() -> None:
        _validate.tensor(op, "history", history, ("B", "L"), _validate.INDICES)
        batch, device = history.shape[0], history.device
        if history.shape[1] > 1 and history.stride(1) != 1:
            raise ValueError(f"{op}: history must have unit stride in the last dimension, got {history.stride(1)}")
        _validate.tensor(op, "lengths", lengths, (batch,), _validate.INDICES, device)
        _validate.integer(op, "min_n", min_n, 1)
        _validate.integer(op, "max_n", max_n, min_n)
        _validate.integer(op, "num", num, 1)
        _validate.batch_options(op, active, None, batch, device)
        if out is not None:
            if not isinstance(out, (tuple, list)) or len(out) != 2:
                raise TypeError(f"{op}: out must be a pair of tensors, got {type(out).__name__}")
            _validate.output(op, "out[0]", out[0], (batch, num), (history.dtype,), device)
            _validate.output(op, "out[1]", out[1], (batch,), _validate.INT32, device)

    def launch(kernel: Callable[..., None]) -> tuple[Tensor, Tensor]:
        _validate.integer(op, "num", num, 1)
        if bool in (type(min_n), type(max_n)):
            check()
        batch = history.shape[0]
        if out is None:
            drafts, counts = history.new_empty(batch, num), lengths.new_empty(batch, dtype=torch.int32)
        else:
            drafts, counts = out
            _validate.tensor(op, "out[0]", drafts, (batch, num), (history.dtype,), history.device)
        kernel(history, lengths, min_n, max_n, active, drafts, counts)
        return drafts, counts

    return _backend.run("draft_ngram_lookup", backend, history, check, launch)
