"""Draft-side helpers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks


def _continuation(text: Tensor, n: int, num: int) -> Tensor | None:
    """What followed the last ``n`` tokens where they stood before.

    Taken from the most recent occurrence that has ``num`` tokens after it; if none has, from the
    earliest, which has the most. None without an occurrence.
    """
    length = text.numel()
    windows = text[:-1].unfold(0, n, 1)  # one per start; the last ends before the text does
    starts = (windows == text[length - n :]).all(1).nonzero().flatten()
    if not starts.numel():
        return None
    full = starts[starts + n + num <= length]
    start = int(full[-1] if full.numel() else starts[0]) + n
    return text[start : start + num]


def ngram_lookup(
    history: Tensor,
    lengths: Tensor,
    min_n: int = 1,
    max_n: int = 4,
    num: int = 7,
    *,
    active: Tensor | None = None,
    out: Any = None,
) -> tuple[Tensor, Tensor]:
    """Prompt lookup: the continuation of the longest suffix that stood in the text before.

    Args:
        history: ``[B, L]`` int32 or int64, prompt and generated tokens.
        lengths: ``[B]`` int32 or int64, valid tokens, clipped to ``[0, L]``.
        min_n: shortest suffix, at least 1.
        max_n: longest suffix, tried first.
        num: drafts wanted, at least 1.
        active: ``[B]`` bool; others get no drafts.
        out: ``(drafts, counts)`` to write into.

    Returns:
        ``drafts [B, num]`` in the dtype of ``history``, -1 beyond ``counts [B]`` int32.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or range.

    Deterministic. Reads values on the host: not for CUDA graphs.
    Source: Saxena 2023, prompt lookup decoding.
    """
    op = "draft.ngram_lookup"
    checks.tensor(op, "history", history, ("B", "L"))
    batch, width = history.shape
    checks.tensor(op, "lengths", lengths, (batch,))
    checks.integer(op, "min_n", min_n, 1)
    checks.integer(op, "max_n", max_n, min_n)
    checks.integer(op, "num", num, 1)
    checks.optional(op, "active", active, batch, (torch.bool,))
    drafts = torch.full((batch, num), -1, dtype=history.dtype)
    counts = torch.zeros(batch, dtype=torch.int32)
    for b in range(batch):
        if active is not None and not active[b]:
            continue
        length = min(max(int(lengths[b]), 0), width)
        text = history[b, :length].cpu()
        for n in range(min(max_n, length - 1), min_n - 1, -1):
            found = _continuation(text, n, num)
            if found is not None:
                drafts[b, : found.numel()] = found
                counts[b] = found.numel()
                break
    if out is None:
        return drafts.to(history.device), counts.to(history.device)
    out[0].copy_(drafts)
    out[1].copy_(counts)
    return out[0], out[1]
