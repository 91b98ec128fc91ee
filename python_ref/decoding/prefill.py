"""Bringing known tokens into a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .attention import PagedAttention, Rows
from .cache import PagedCache

if TYPE_CHECKING:
    from ..models import Transformer


def prefill(
    model: Transformer,
    ops: Any,
    cache: PagedCache,
    row: int,
    tokens: Sequence[int],
    start: int,
    chunk: int,
    features: Sequence[int] = (),
    on_features: Callable[[Tensor, int], None] | None = None,
) -> None:
    """Bring ``tokens`` at positions ``start``, ``start + 1``, ... of a row into the cache, ``chunk`` at a time.

    ``on_features`` is called for each chunk with the outputs of the layers ``features`` (``[n, F * hidden]``) and the
    position of the first of its tokens.
    """
    for first in range(0, len(tokens), chunk):
        part = torch.tensor(tokens[first : first + chunk], device=cache.device)
        context = start + first
        cache.reserve(row, context + len(part))
        positions = torch.arange(context, context + len(part), device=cache.device)
        attend = PagedAttention(ops, cache, Rows.of_chains([row], [context], [len(part)], cache.device))
        if on_features is None:
            model(part, positions, attend)
        else:
            _, seen = model(part, positions, attend, features=features)
            on_features(seen, context)
