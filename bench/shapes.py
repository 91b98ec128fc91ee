"""Shapes of published models, and of the drafters that people run in front of them; with random weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from python_ref.models import Eagle3, ModelConfig, Transformer
from python_ref.models.dflash import DFlash, DFlashConfig
from python_ref.models.eagle3 import Eagle3Config

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
_LLAMA3 = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "max_position_embeddings": 131072,
}

#: The ``config.json`` of each target, as far as it says anything about shapes.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {**_QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28},
    "qwen3-1.7b": {**_QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28},
    "qwen3-4b": {
        **_QWEN3,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    "qwen3-8b": {
        **_QWEN3,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        **_LLAMA3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {**_LLAMA3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}

#: The smaller model that drafts for a target; without one a quarter of the target's own layers does.
_SMALLER = {
    "qwen3-1.7b": "qwen3-0.6b",
    "qwen3-4b": "qwen3-0.6b",
    "qwen3-8b": "qwen3-0.6b",
    "llama-3.1-8b": "llama-3.2-1b",
}
# Published DFlash drafters have 5 layers, published EAGLE-3 heads this draft vocabulary.
_BLOCK_LAYERS, _HEAD_VOCAB = 5, 32000

# Elements of the pool that weights are cut from: a prime, so that no two rows are alike.
_POOL = 16_777_213
_SPREAD = 0.02


def smaller(shape: str) -> dict[str, Any]:
    """The ``config.json`` of the model that drafts for a target."""
    if shape in _SMALLER:
        return SHAPES[_SMALLER[shape]]
    own = SHAPES[shape]
    return {**own, "num_hidden_layers": max(own["num_hidden_layers"] // 4, 1)}


def target(shape: str) -> Transformer:
    """A target, on the ``meta`` device."""
    return decoder(SHAPES[shape])


def decoder(raw: dict[str, Any]) -> Transformer:
    """The model of a ``config.json``, on the ``meta`` device."""
    with torch.device("meta"):
        return Transformer(ModelConfig.from_dict(raw))


def dflash(shape: str, model: Transformer, block_size: int) -> DFlash:
    """A DFlash drafter of the target's width, on the ``meta`` device; Qwen3 is what all of them are."""
    raw = {
        **SHAPES[shape],
        "architectures": ["DFlashDraftModel"],
        "num_hidden_layers": _BLOCK_LAYERS,
        "block_size": block_size,
        "dflash_config": {"mask_token_id": SHAPES[shape]["vocab_size"] - 1},
    }
    with torch.device("meta"):
        return DFlash(DFlashConfig.from_dict(raw), model)


def eagle3(shape: str, model: Transformer) -> Eagle3:
    """An EAGLE-3 head of the target's width that drafts the first tokens of the vocabulary; weights on ``meta``."""
    raw = {
        **SHAPES[shape],
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "draft_vocab_size": _HEAD_VOCAB,
    }
    with torch.device("meta"):
        head = Eagle3(Eagle3Config.from_dict(raw), model.config.num_layers, model.model.embed_tokens)
    device = model.model.embed_tokens.weight.device
    head.d2t = torch.zeros(_HEAD_VOCAB, dtype=torch.int64, device=device)
    head.t2d = torch.arange(SHAPES[shape]["vocab_size"], device=device) < _HEAD_VOCAB
    return head


class Filler:
    """Gives models weights that look random, at the speed of a copy."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        """Make a pool of normal numbers in ``dtype`` on ``device``."""
        generator = torch.Generator(device).manual_seed(seed)
        self._pool = torch.empty(_POOL, dtype=dtype, device=device).normal_(0, _SPREAD, generator=generator)
        self._place = 0

    def fill(self, model: nn.Module) -> None:
        """Replace the parameters of a model on ``meta``: matrices by random numbers, norms by 1 and biases by 0."""
        shared: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) not in shared:
                    value = self._value(name, tuple(parameter.shape))
                    shared[id(parameter)] = nn.Parameter(value, requires_grad=False)
                setattr(module, name, shared[id(parameter)])
        model.eval()

    def _value(self, name: str, shape: tuple[int, ...]) -> Tensor:
        pool = self._pool
        if len(shape) == 1:
            return pool.new_full(shape, 0.0 if name == "bias" else 1.0)
        value = pool.new_empty(math.prod(shape))
        done = 0
        while done < len(value):
            part = pool[self._place : self._place + len(value) - done]
            value[done : done + len(part)] = part
            done += len(part)
            self._place = (self._place + len(part)) % _POOL
        return value.view(shape)
