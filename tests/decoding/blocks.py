"""Tiny random DFlash drafters for the models of ``helpers``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import specdec_kernels as sk
from python_ref.models import Transformer
from python_ref.models.dflash import DFlash, DFlashConfig
from python_ref.models.transformer import causal
from python_ref.training.dflash import blocks

from .helpers import VOCAB


def drafter_model(target: Transformer, seed: int = 1, linear: Any = sk.linear, **options: Any) -> DFlash:
    """A random drafter in float32 of blocks of 5, one layer of it sliding."""
    raw = {
        "architectures": ["DFlashDraftModel"],
        "vocab_size": VOCAB,
        "hidden_size": target.config.hidden_size,
        "intermediate_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "block_size": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 6,
        "dflash_config": {"mask_token_id": VOCAB - 1, "target_layer_ids": [0, 2, 3]},
    }
    torch.manual_seed(seed)
    model = DFlash(DFlashConfig.from_dict(raw | options), target).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=max(parameter.shape[-1], 1) ** -0.5)
    if linear is not None:
        model.use_linear(linear, torch.float32)
    return model


def drafts_of(model: DFlash, target: Transformer, text: list[int]) -> Tensor:
    """``[block size - 1, V]``, logits behind the last token of a text, all at once and without a cache."""
    ids = torch.tensor(text)
    features = torch.zeros((0, len(model.features) * target.config.hidden_size))
    if len(text) > 1:
        features = target(ids[:-1], torch.arange(len(text) - 1), causal(1), features=model.features)[1]
    hidden = blocks(model, features[None], ids[None], torch.tensor([[len(text) - 1]]))[0, 0, 1:]
    return model.logits(hidden)


def entries_of(model: DFlash, target: Transformer, text: list[int], layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values ``[n - 1, Hkv, D]`` of a layer that belong to a text, from scratch."""
    from python_ref.models.rotary import rotate

    ids, places = torch.tensor(text[:-1]), torch.arange(len(text) - 1)
    features = target(ids, places, causal(1), features=model.features)[1]
    sides = model.project(model.fuse(features))[:, layer]
    cosine, sine = model.prepare()[places].unbind(1)
    return rotate(model.layers[layer].self_attn.k_norm(sides[:, 0]), cosine, sine), sides[:, 1]
