"""Held-out scores: bits per byte of a model, tokens per target step of a drafter."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.dflash import DFlash
from ..models.eagle3 import Eagle3
from ..models.transformer import Transformer, causal
from .dflash import agreement, tree_agreement
from .eagle3 import unrolled
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
    steps: list[tuple[int, int]] = []
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
        # Where a draft stands in its chain makes no difference to it.
        flags = F.pad(accepted[:, 0], (0, drafts - 1)).unfold(0, drafts, 1)
        steps += _steps(flags.tolist())
    return sum(count for count, _ in steps) / max(len(steps), 1)


@torch.no_grad()
def chain_acceptance(
    target: Transformer,
    head: Eagle3,
    prompts: Tensor,
    *,
    temperature: float,
    drafts: int = 4,
    new: int = 128,
    seed: int = 0,
) -> tuple[float, list[float]]:
    """What chains of ``drafts`` tokens of a head are worth, as in :func:`tokens_per_step`.

    A draft that counts has accepted drafts before it, so the chain that led to it is the text itself: one unrolling over
    the text, as in training, tells of every chain that may begin anywhere in it.

    Returns:
        Mean tokens per target step; and per place of a chain the share of its drafts that was accepted, all drafts before
        it included.
    """
    text = continuations(target, prompts, new, temperature, seed)
    begin = prompts.shape[1] - 1
    generator = torch.Generator().manual_seed(seed)
    steps: list[tuple[int, int]] = []
    device = target.model.embed_tokens.weight.device
    to_target, to_draft = head.target_ids(), head.draft_ids()
    for row in text.to(device):
        ids = row[:-1]
        hidden, features = target(ids, torch.arange(len(ids), device=device), causal(1), features=head.features)
        told = target.logits(hidden).float()
        flags = torch.zeros((len(row) - begin - 1, drafts), dtype=torch.bool)
        for s, states in enumerate(unrolled(head, features[None], row[None], drafts)):
            # Row i of step s drafts token i + 2 + s, of which row i + 1 + s of the target decides.
            logits = head.logits(states).float()[begin - 1 : len(row) - 2 - s]
            emitted = row[begin + 1 + s :]
            if temperature == 0:
                best = logits.argmax(-1)
                accepted = (best if to_target is None else to_target[best]) == emitted
            else:
                p = (told[begin + s :] / temperature).softmax(-1).gather(1, emitted[:, None])[:, 0]
                columns = emitted if to_draft is None else to_draft[emitted]
                q = (logits / temperature).softmax(-1).gather(1, columns.clamp(min=0)[:, None])[:, 0]
                coins = torch.rand(p.shape, generator=generator).to(device)
                accepted = (columns >= 0) & (coins * p < q)
            flags[: len(accepted), s] = accepted.cpu()
        steps += _steps(flags.tolist())
    count = max(len(steps), 1)
    shares = [sum(accepted > place for _, accepted in steps) / count for place in range(drafts)]
    return sum(tokens for tokens, _ in steps) / count, shares


@torch.no_grad()
def block_acceptance(
    target: Transformer,
    drafter: DFlash,
    prompts: Tensor,
    *,
    temperature: float,
    nodes: int = 0,
    ranks: int = 8,
    new: int = 128,
    seed: int = 0,
) -> tuple[float, list[float]]:
    """What whole blocks of a DFlash drafter are worth, as chains of its best tokens or as best-first trees over its laws.

    A draft is accepted where it is the token that the target wrote at ``temperature``, and all drafts before it are: the
    rule ``match``, which keeps the law at every temperature.

    Args:
        target: float32 decoder.
        drafter: float32 drafter of that target.
        prompts: int64 ``[B, P]``.
        temperature: of the target.
        nodes: nodes of a tree, its root included; 0: chains.
        ranks: tokens that a tree has for one position behind the same node.
        new: tokens to generate for each prompt.
        seed: of the text.

    Returns:
        As :func:`chain_acceptance`.
    """
    text = continuations(target, prompts, new, temperature, seed)
    begin, drafts = prompts.shape[1] - 1, drafter.block_size - 1
    steps: list[tuple[int, int]] = []
    for row in text:
        where = (drafter, target, row, begin)
        steps += _steps((tree_agreement(*where, nodes, ranks) if nodes else agreement(*where)).tolist())
    count = max(len(steps), 1)
    shares = [sum(accepted > place for _, accepted in steps) / count for place in range(drafts)]
    return sum(tokens for tokens, _ in steps) / count, shares


def _steps(flags: list[list[bool]]) -> list[tuple[int, int]]:
    """Tokens and accepted drafts of each step through a text; ``flags[i]``: which drafts of a chain from ``i`` on hold.

    The last step of a text is counted only if the text did not cut it short.
    """
    steps, place = [], 0
    while place < len(flags):
        run = flags[place][: len(flags) - place]
        accepted = run.index(False) if False in run else len(run)
        if place + accepted + 1 > len(flags):
            break
        steps.append((accepted + 1, accepted))
        place += accepted + 1
    return steps
