"""Tiny random EAGLE-3 heads for the models of ``helpers``, and drafting as it reads on paper."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import specdec_kernels as sk
from python_ref.models import Transformer
from python_ref.models.eagle3 import Eagle3, Eagle3Config
from python_ref.models.transformer import causal

from .helpers import VOCAB


def head_of(
    target: Transformer,
    seed: int = 1,
    draft_vocab: int = VOCAB,
    linear: Any = sk.linear,
    scale: float = 2.0,
    **options: Any,
) -> Eagle3:
    """A random head in float32; its logits spread over a few units."""
    raw = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "vocab_size": VOCAB,
        "draft_vocab_size": draft_vocab,
        "hidden_size": target.config.hidden_size,
        "intermediate_size": 36,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
    }
    torch.manual_seed(seed)
    config = Eagle3Config.from_dict(raw | options)
    head = Eagle3(config, target.config.num_layers, target.model.embed_tokens).requires_grad_(False)
    for parameter in head.parameters():
        parameter.normal_(std=max(parameter.shape[-1], 1) ** -0.5)
    head.lm_head.weight.mul_(scale)
    if config.is_reduced:
        ids = torch.randperm(config.layer.vocab_size)[:draft_vocab].sort().values
        head.d2t = ids - torch.arange(draft_vocab)
        head.t2d = torch.zeros(config.layer.vocab_size, dtype=torch.bool).index_fill(0, ids, True)
    if linear is not None:
        head.use_linear(linear, torch.float32)
    return head


def entries(head: Eagle3, target: Transformer, text: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, keys and values of the entries ``0`` to ``n - 2`` of a text, all at once and without a cache."""
    ids, positions = torch.tensor(text), torch.arange(len(text) - 1)
    features = target(ids[:-1], positions, causal(1), features=head.features)[1]
    kept: list[Tensor] = []

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        kept[:] = key, value
        return causal(1)(layer, query, key, value)

    hidden = head(head.fuse(features), ids[1:], positions, attend)
    return hidden, kept[0], kept[1]


def log_law(head: Eagle3, target: Transformer, text: list[int], path: list[int]) -> Tensor:
    """``[VOCAB]`` float64: what the head says of the token behind a text and some drafts; the text is read afresh."""
    ids, positions = torch.tensor(text), torch.arange(len(text) - 1)
    hidden = head.fuse(target(ids[:-1], positions, causal(1), features=head.features)[1])
    for drafts in range(len(path) + 1):
        tokens = torch.tensor([*text[1:], *path[:drafts]])
        outputs = head(hidden, tokens, torch.arange(len(tokens)), causal(1))
        hidden = torch.cat((hidden, outputs[-1:]))
    logits = head.logits(outputs[-1:])[0].double()
    ids = head.target_ids()
    law = torch.full((VOCAB,), -math.inf, dtype=torch.float64)
    law[torch.arange(VOCAB) if ids is None else ids] = logits.log_softmax(-1)
    return law


def dynamic_tree(
    head: Eagle3, target: Transformer, text: list[int], width: int, depth: int, nodes: int
) -> dict[tuple[int, ...], float]:
    """The paths of an EAGLE-2 tree with their log-probabilities, the empty path of the root included."""
    pool: dict[tuple[int, ...], float] = {}
    followed: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(depth):
        children = {}
        for path, score in followed.items():
            law = log_law(head, target, text, list(path))
            for token in law.argsort(descending=True, stable=True)[:width].tolist():
                if law[token] > -math.inf:
                    children[(*path, token)] = score + float(law[token])
        pool |= children
        followed = dict(sorted(children.items(), key=lambda item: -item[1])[:width])
    best = sorted(pool.items(), key=lambda item: (-item[1], len(item[0])))[: nodes - 1]
    return {(): 0.0, **dict(best)}
