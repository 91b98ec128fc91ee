"""A piece of a prompt through a model, without a word from the device to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .attention import PagedAttention, Rows
from .cache import PagedCache


def chunk_attention(ops: Any, cache: PagedCache, row: int, start: int, count: int) -> tuple[PagedAttention, Tensor]:
    """Attention of ``count`` tokens behind ``start`` of one row of a cache, and their positions."""
    device = cache.device
    tree = ops.tree.from_chains(torch.zeros((1, count), dtype=torch.int64, device=device))

    def one(value: int) -> Tensor:
        return torch.full((1,), value, dtype=torch.int64, device=device)

    attend = PagedAttention(ops, cache, Rows(tree, one(start), one(row)))
    return attend, torch.arange(start, start + count, device=device)


def read_chunk(
    model: Callable[..., Any],
    ops: Any,
    cache: PagedCache,
    row: int,
    tokens: Tensor,
    start: int,
    features: tuple[int, ...] = (),
) -> Tensor | None:
    """Bring ``tokens [n]`` at positions ``start``, ... of a row into a cache; its features, if any are asked for."""
    attend, positions = chunk_attention(ops, cache, row, start, len(tokens))
    if not features:
        model(tokens, positions, attend)
        return None
    seen: Tensor = model(tokens, positions, attend, features=features)[1]
    return seen
