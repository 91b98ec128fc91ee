"""Bringing known tokens into a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .attention import Group, PagedAttention
from .cache import PagedCache

if TYPE_CHECKING:
    from ..models import Transformer


def prefill(model: Transformer, cache: PagedCache, row: int, tokens: Sequence[int], start: int, chunk: int) -> None:
    """Bring ``tokens`` at positions ``start``, ``start + 1``, ... of a row into the cache, ``chunk`` at a time."""
    for first in range(0, len(tokens), chunk):
        part = torch.tensor(tokens[first : first + chunk], device=cache.device)
        context = start + first
        positions = torch.arange(context, context + len(part), device=cache.device)
        group = Group.chain(row, context, len(part))
        model(part, positions, PagedAttention(cache, [group]))
