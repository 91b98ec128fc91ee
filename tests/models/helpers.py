"""Tiny random checkpoints, written by ``transformers``, and a greedy loop over our model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from python_ref.models.transformer import Transformer, causal

CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


class RowByRow:
    """A packed product whose rows cannot influence each other: each is copied and summed by itself."""

    @staticmethod
    def pack(weight: torch.Tensor, dtype: torch.dtype, bias: torch.Tensor | None = None) -> tuple:
        return weight.to(dtype), bias

    @staticmethod
    def skinny(x: torch.Tensor, packed: tuple) -> torch.Tensor:
        weight, bias = packed
        rows = [(weight.float() * row.clone()).sum(1) for row in x.float()]
        return torch.stack(rows if bias is None else [row + bias for row in rows]).to(x.dtype)


def tiny(family: str, **options: Any) -> torch.nn.Module:
    """A model of ``transformers`` whose norms and biases are random too, so that none can be forgotten."""
    config_class, model_class = CLASSES[family]
    shape = {
        "vocab_size": 61,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
        "attn_implementation": "eager",
        "tie_word_embeddings": False,
        "eos_token_id": None,
        "bos_token_id": None,
    }
    torch.manual_seed(7)
    model = model_class(config_class(**{**shape, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def save(model: torch.nn.Module, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    return directory


@torch.no_grad()
def logits_of(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """``[T, V]`` of one sequence ``[T]``."""
    return model.logits(model(ids, torch.arange(len(ids)), causal(1)))


def greedy(model: Transformer, ids: torch.Tensor, count: int) -> list[int]:
    """The continuation by the best token each, without a cache."""
    for _ in range(count):
        ids = torch.cat((ids, logits_of(model, ids)[-1:].argmax(-1)))
    return ids[-count:].tolist()
