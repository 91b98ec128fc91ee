"""Tiny random models, requests, and drafters that propose what a test wants."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

import python_ref.ops as oracle
import specdec_kernels as sk
from python_ref.decoding import Decoder, Request
from python_ref.drafters import Proposal
from python_ref.models import ModelConfig, Transformer

VOCAB = 29
OPS = {"oracle": oracle, "kernels": sk}


def model_of(
    seed: int = 0, linear: Any = sk.linear, family: str = "Qwen3ForCausalLM", scale: float = 2.0, **options: Any
) -> Transformer:
    """A random model in float32; its logits spread over a few units."""
    config = {
        "architectures": [family],
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(seed)
    model = Transformer(ModelConfig.from_dict(config | options)).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=max(parameter.shape[-1], 1) ** -0.5)
    model.lm_head.weight.mul_(scale)
    if linear is not None:
        model.use_linear(linear, torch.float32)
    return model


def prompt_of(seed: int, length: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(VOCAB) for _ in range(length)]


def requests_of(count: int, temperature: float, new: int = 14, **options: Any) -> list[Request]:
    """Prompts of ragged lengths, a seed and a length limit of its own for each."""
    return [
        Request(
            prompt_of(100 + i, 1 + (5 * i) % 11),
            max_new_tokens=new + i % 3,
            temperature=temperature,
            seed=1000 + 7 * i,
            **options,
        )
        for i in range(count)
    ]


def plain(model: Transformer, requests: Sequence[Request], ops: Any = sk) -> list[list[int]]:
    """The text of plain decoding, one request at a time."""
    return [Decoder(model, ops=ops).generate([request])[0].tokens for request in requests]


class Scripted:
    """Proposes ``script(text, count)``: tokens for the next positions, -1 for a hole."""

    def __init__(self, script: Callable[[list[int], int], list[int]]) -> None:
        self.script = script
        self.proposed: list[list[int]] = []
        self.observed: list[list[int]] = []

    def propose(self, batch: Any, limits: Sequence[int], rule: str) -> Proposal:
        made = []
        for row, limit in enumerate(limits):
            assert (limit > 0) <= batch.active[row]
            made.append(self.script(batch.texts[row], limit) if limit else [])
        self.proposed.append(list(map(len, made)))
        width = max(map(len, made))
        tokens = [one + [-1] * (width - len(one)) for one in made]
        return Proposal(torch.tensor(tokens, dtype=torch.int64).view(len(made), width), list(map(len, made)))

    def observe(self, batch: Any, committed: Sequence[int]) -> None:
        self.observed.append(list(committed))


def perfect(requests: Sequence[Request], texts: Sequence[Sequence[int]]) -> Callable[[list[int], int], list[int]]:
    """A script that knows what will come."""
    whole = [list(request.prompt) + list(text) for request, text in zip(requests, texts, strict=True)]

    def script(text: list[int], count: int) -> list[int]:
        for known in whole:
            if known[: len(text)] == text:
                return known[len(text) : len(text) + count]
        return []

    return script


def corrupted(script: Callable[[list[int], int], list[int]], seed: int) -> Callable[[list[int], int], list[int]]:
    """The same, with wrong tokens, holes, and fewer tokens than asked for, by chance."""
    chosen = random.Random(seed)

    def changed(text: list[int], count: int) -> list[int]:
        tokens = script(text, count)
        tokens = [chosen.choice((token, token, token, -1, chosen.randrange(VOCAB))) for token in tokens]
        return tokens[: chosen.randint(0, len(tokens))]

    return changed


def noise(seed: int) -> Callable[[list[int], int], list[int]]:
    """Tokens that have nothing to do with the text."""
    chosen = random.Random(seed)
    return lambda text, count: [chosen.randrange(VOCAB) for _ in range(count)]
