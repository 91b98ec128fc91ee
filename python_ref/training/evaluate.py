"""Held-out scores: bits per byte of a model, tokens per target step of a drafter."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.transformer import Transformer, causal
from .generate import continuations


@torch.no_grad()
def bits_per_byte(model: Transformer, files: list[tuple[Tensor, int]], window: int, limit: int = 0) -> float:
    """Bits per byte of held-out files.

    Windows overlap by half, so that each token is scored once and has at least half a window before it (or all that the
    file has).

    Args:
        model: float32 decoder.
        files: per file its tokens int64 ``[N]`` (the first is not scored) and its length in bytes.
        window: tokens per window.
        limit: tokens scored of each file, 0 for all; bytes are then counted in proportion.
    """
    device = model.model.embed_tokens.weight.device
    nats, size, half = 0.0, 0.0, window // 2
    attend = causal(1)
    for tokens, count in files:
        used = tokens[: limit + 1] if limit else tokens
        size += count * (len(used) - 1) / (len(tokens) - 1)
        for start in range(0, len(used) - 1, half):
            piece = used[max(0, start - half) : start + half + 1].to(device)
            fresh = min(half, len(used) - 1 - start)
            hidden = model(piece[:-1], torch.arange(len(piece) - 1, device=device), attend)
            logits = model.logits(hidden[-fresh:]).float()
            nats += F.cross_entropy(logits, piece[-fresh:], reduction="sum").item()
    return nats / math.log(2) / size


@torch.no_grad()
def tokens_per_step(
    target: Transformer,
    draft: Transformer,
    prompts: Tensor,
    *,
    temperature: float,
    drafts: int = 4,
    new: int = 128,
    seed: int = 0,
) -> float:
    """Mean tokens per target step when ``draft`` guesses chains of ``drafts`` tokens for ``target``.

    The text is the target's. At temperature 0 a draft is accepted where both models agree on the best token. Above, the
    token ``x`` that the target emits was an accepted draft with probability ``min(p(x), q(x)) / p(x)`` (Leviathan et
    al., arXiv 2211.17192, section 2.3), and coins are thrown with it. Both laws are at ``temperature``, unfiltered.

    Args:
        target: float32 decoder.
        draft: float32 decoder of the same tokenizer.
        prompts: int64 ``[B, P]``.
        temperature: of both models.
        drafts: length of a chain.
        new: tokens to generate for each prompt.
        seed: of the text and of the coins.
    """
    text = continuations(target, prompts, new, temperature, seed)
    begin = prompts.shape[1] - 1
    generator = torch.Generator().manual_seed(seed)
    steps = tokens = 0
    for row in text:
        emitted = row[begin + 1 :, None]
        laws = []
        for model in (target, draft):
            ids = row[:-1].to(model.model.embed_tokens.weight.device)
            hidden = model(ids, torch.arange(len(ids), device=ids.device), causal(1))
            laws.append(model.logits(hidden[begin:]).float().cpu())
        if temperature == 0:
            accepted = laws[1].argmax(-1, keepdim=True) == emitted
        else:
            p, q = ((law / temperature).softmax(-1).gather(1, emitted) for law in laws)
            accepted = torch.rand(p.shape, generator=generator) * p < q
        flags = accepted[:, 0].tolist()
        place = 0
        while place < len(flags):
            run = flags[place : place + drafts]
            length = (run.index(False) if False in run else len(run)) + 1
            # The last step of a text is counted only if the text did not cut it short.
            if place + length > len(flags):
                break
            steps, tokens, place = steps + 1, tokens + length, place + length
    return tokens / max(steps, 1)
