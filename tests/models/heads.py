"""Tiny random EAGLE-3 heads as checkpoints, in the naming of several exporters, and the architecture once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from python_ref.models import ModelConfig, Transformer

VOCAB = 61
#: Target ids that a head with a smaller vocabulary can draft.
KEPT = torch.tensor([0, 1, 4, 5, 9, 10, 11, 20, 21, 30, 33, 34, 40, 41, 42, 57, 60])
SHAPE = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "max_position_embeddings": 96,
}


def target_of(layers: int = 7, **options: Any) -> Transformer:
    """A random target in float32."""
    raw = {**SHAPE, "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": layers, "max_position_embeddings": 64}
    torch.manual_seed(11)
    model = Transformer(ModelConfig.from_dict(raw | options)).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=max(parameter.shape[-1], 1) ** -0.5)
    return model


def tensors_of(raw: dict[str, Any], features: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a head under the published names, norms and biases included."""
    torch.manual_seed(seed)
    hidden, inner, size = raw["hidden_size"], raw["intermediate_size"], raw["head_dim"]
    queries, keys = raw["num_attention_heads"] * size, raw["num_key_value_heads"] * size
    draft = raw.get("draft_vocab_size", VOCAB)
    shapes = {
        "fc.weight": (hidden, features * raw.get("target_hidden_size", hidden)),
        "midlayer.hidden_norm.weight": (hidden,),
        "midlayer.input_layernorm.weight": (hidden,),
        "midlayer.post_attention_layernorm.weight": (hidden,),
        "midlayer.self_attn.q_proj.weight": (queries, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (keys, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (keys, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, queries),
        "midlayer.mlp.gate_proj.weight": (inner, hidden),
        "midlayer.mlp.up_proj.weight": (inner, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, inner),
        "norm.weight": (hidden,),
        "lm_head.weight": (draft, hidden),
    }
    if raw.get("attention_bias"):
        for name, count in (("q", queries), ("k", keys), ("v", keys), ("o", hidden)):
            shapes[f"midlayer.self_attn.{name}_proj.bias"] = (count,)
    made = {name: torch.randn(shape) * shape[-1] ** -0.5 for name, shape in shapes.items()}
    made |= {name: 1 + 0.3 * torch.randn(shapes[name]) for name in shapes if "norm" in name}
    if draft != VOCAB:
        made["d2t"] = KEPT - torch.arange(draft)
        made["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).index_fill(0, KEPT, True)
    return made


def write(directory: Path, raw: dict[str, Any], tensors: dict[str, Tensor], file: str = "model.safetensors") -> Path:
    """A checkpoint with these tensors as they are."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    if file.endswith(".bin"):
        torch.save(tensors, directory / file)
    else:
        save_file(tensors, directory / file)
    return directory


def straightforward(
    tensors: dict[str, Tensor], raw: dict[str, Any], embedded: Tensor, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of a whole sequence, in float64, head by head.

    ``embedded [T, H]`` of the tokens ``1`` to ``T``, ``features [T, F * H]`` of the tokens ``0`` to ``T - 1``.
    """
    w = {name: tensor.double() for name, tensor in tensors.items() if tensor.is_floating_point()}
    size, count = raw["head_dim"], len(embedded)
    group = raw["num_attention_heads"] // raw["num_key_value_heads"]

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + raw["rms_norm_eps"]).sqrt() * w[name]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

    def turned(x: Tensor) -> Tensor:
        half = size // 2
        angles = torch.arange(count).double()[:, None] * raw["rope_theta"] ** (-torch.arange(half).double() / half)
        a, b = x[:, :half], x[:, half:]
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=1)

    g = linear(features.double(), "fc")
    pair = torch.cat(
        (norm(embedded.double(), "midlayer.input_layernorm.weight"), norm(g, "midlayer.hidden_norm.weight")), dim=1
    )
    q, k, v = (linear(pair, f"midlayer.self_attn.{name}_proj") for name in "qkv")
    mixed = []
    for h in range(raw["num_attention_heads"]):
        own, shared = slice(h * size, (h + 1) * size), slice(h // group * size, (h // group + 1) * size)
        scores = turned(q[:, own]) @ turned(k[:, shared]).T / size**0.5
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
        mixed.append(scores.softmax(-1) @ v[:, shared])
    stream = g + linear(torch.cat(mixed, dim=1), "midlayer.self_attn.o_proj")
    inner = norm(stream, "midlayer.post_attention_layernorm.weight")
    gate, up = (linear(inner, f"midlayer.mlp.{name}_proj") for name in ("gate", "up"))
    stream = stream + linear(gate * torch.sigmoid(gate) * up, "midlayer.mlp.down_proj")
    return stream, linear(norm(stream, "norm.weight"), "lm_head")
