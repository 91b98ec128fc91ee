"""Text by a model for many prompts of one length at once, with a dense cache: for training and scoring only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.transformer import Attend, Transformer


def _cached(cache: Tensor, start: int, width: int) -> Attend:
    """Attention of ``width`` new tokens per sequence over ``cache [layers, 2, B, Hkv, length, D]``."""
    rows = cache.shape[2]

    def heads(x: Tensor) -> Tensor:
        return x.view(rows, width, x.shape[1], x.shape[2]).transpose(1, 2)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cache[layer, 0, :, :, start : start + width] = heads(key)
        cache[layer, 1, :, :, start : start + width] = heads(value)
        keys, values = cache[layer, :, :, :, : start + width]
        mixed = F.scaled_dot_product_attention(
            heads(query), keys, values, is_causal=start == 0, enable_gqa=query.shape[1] != key.shape[1]
        )
        return mixed.transpose(1, 2).reshape(query.shape)

    return attend


@torch.no_grad()
def continuations(model: Transformer, prompts: Tensor, new: int, temperature: float, seed: int = 0) -> Tensor:
    """Prompts with ``new`` more tokens each.

    Args:
        model: decoder; prompt and new tokens together must fit its positions.
        prompts: int64 ``[B, P]``.
        new: tokens to add to each.
        temperature: 0 takes the best token.
        seed: of the sampling; text is reproducible on one machine with one number of threads.

    Returns:
        ``[B, P + new]`` int64, on the CPU.
    """
    weight = model.model.embed_tokens.weight
    config, device = model.config, weight.device
    rows, length = prompts.shape
    shape = (config.num_layers, 2, rows, config.num_kv_heads, length + new, config.head_dim)
    cache = torch.empty(shape, dtype=weight.dtype, device=device)
    generator = torch.Generator().manual_seed(seed)
    text = torch.empty((rows, length + new), dtype=torch.int64)
    text[:, :length] = prompts
    start, end = 0, length
    while end < length + new:
        fresh = text[:, start:end].to(device)
        positions = torch.arange(start, end, device=device).repeat(rows)
        hidden = model(fresh.reshape(-1), positions, _cached(cache, start, end - start))
        logits = model.logits(hidden.view(rows, end - start, -1)[:, -1]).float().cpu()
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
        text[:, end] = token
        start, end = end, end + 1
    return text
