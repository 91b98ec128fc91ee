"""The computations of the fused ops in plain PyTorch, as an engine without them would write them.

They take part in the benchmark eagerly and through ``torch.compile``. They are written to be hard to beat: batched, without
a loop over requests, without a host synchronisation, and sampling by the inverse of the cumulative law, which needs one random
number per row (random numbers for every id, as in ``torch.multinomial``, cost a multiple of the softmax). All rows are
processed whatever is accepted: which of them matter is known only at the end.

Shapes: ``B`` requests, ``N`` nodes of a chain, ``V`` ids; logits come as ``[B * N, V]``, settings one per request.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Settings(NamedTuple):
    """Sampling settings of requests, on the device like those of the ops.

    Attributes:
        temperature: ``[B, 1]`` float32.
        top_k: ``[B, 1]`` int64, or None: off.
        top_p: ``[B, 1]`` float32, or None: off.
    """

    temperature: Tensor
    top_k: Tensor | None = None
    top_p: Tensor | None = None

    @classmethod
    def of(cls, requests: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Settings:
        """The same settings for all requests."""
        return cls(
            torch.full((requests, 1), temperature),
            torch.full((requests, 1), top_k) if top_k else None,
            torch.full((requests, 1), top_p) if top_p < 1 else None,
        )

    def of_nodes(self) -> Settings:
        """``[B, 1, 1]``: for all nodes of each request."""
        return Settings(*(None if field is None else field.unsqueeze(-1) for field in self))  # type: ignore[arg-type]


def law(logits: Tensor, settings: Settings) -> Tensor:
    """Probabilities ``[..., V]`` float32: softmax, and filters by a sort (stable: of equal logits the lower id is better)."""
    scaled = logits.float() / settings.temperature
    if settings.top_k is None and settings.top_p is None:
        return scaled.softmax(-1)
    values, ids = scaled.sort(dim=-1, descending=True, stable=True)
    if settings.top_k is not None:
        rank = torch.arange(values.shape[-1], device=values.device)
        values = values.masked_fill(rank >= settings.top_k, -torch.inf)
    p = values.softmax(-1)
    if settings.top_p is not None:
        p = p.masked_fill(p.cumsum(-1) - p >= settings.top_p, 0.0)
        p = p / p.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, ids, p)


def draw(weights: Tensor, noise: Tensor) -> Tensor:
    """The first id whose cumulative weight exceeds ``noise`` times the sum: ``[rows, V]``, ``[rows]`` -> ``[rows]``."""
    total = weights.cumsum(-1)
    found = torch.searchsorted(total, noise.unsqueeze(-1) * total[..., -1:], right=True)
    return found.squeeze(-1).clamp(max=weights.shape[-1] - 1)


def emit(drafts: Tensor, accepted: Tensor, bonus: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens ``[B, N]`` (accepted drafts, the bonus token, -1) and their number ``[B]``."""
    place = torch.arange(drafts.shape[1] + 1, device=drafts.device)
    last = accepted.unsqueeze(1)
    padded = torch.nn.functional.pad(drafts, (0, 1))
    tokens = torch.where(place < last, padded, torch.where(place == last, bonus.unsqueeze(1), -1))
    return tokens, accepted + 1


def walk(decided: Tensor, drafts: Tensor) -> tuple[Tensor, Tensor]:
    """Follow the decided tokens ``[B, N]`` while they are the drafts ``[B, N-1]``."""
    accepted = (decided[:, :-1] == drafts).long().cumprod(1).sum(1)
    return emit(drafts, accepted, decided.gather(1, accepted.unsqueeze(1)).squeeze(1))


def greedy(logits: Tensor, drafts: Tensor) -> tuple[Tensor, Tensor]:
    """``verify.greedy``."""
    return walk(logits.argmax(-1).view(drafts.shape[0], -1), drafts)


def match(logits: Tensor, drafts: Tensor, settings: Settings, noise: Tensor) -> tuple[Tensor, Tensor]:
    """``verify.match``; ``noise [B, N]`` in [0, 1)."""
    return walk(draw(law(logits.view(*noise.shape, -1), settings.of_nodes()), noise), drafts)


def rejection(
    logits: Tensor, draft_logits: Tensor, drafts: Tensor, settings: Settings, coins: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """``verify.rejection`` on chains; ``coins [B, N-1]`` and ``noise [B]`` in [0, 1)."""
    batch, count = drafts.shape
    each = settings.of_nodes()
    p = law(logits.view(batch, count + 1, -1), each)
    q = law(draft_logits.view(batch, count + 1, -1)[:, :-1], each)  # the last node has no draft
    at = drafts.unsqueeze(-1)
    p_draft, q_draft = (x.gather(-1, at).squeeze(-1) for x in (p[:, :-1], q))
    accepted = (coins * q_draft < p_draft).long().cumprod(1).sum(1)
    stop = accepted.view(batch, 1, 1).expand(-1, 1, p.shape[-1])
    q_stop = q.gather(1, stop.clamp(max=count - 1)).squeeze(1).masked_fill((accepted == count).unsqueeze(1), 0.0)
    residual = (p.gather(1, stop).squeeze(1) - q_stop).clamp(min=0.0)
    return emit(drafts, accepted, draw(residual, noise))


def sample(logits: Tensor, settings: Settings, noise: Tensor) -> Tensor:
    """``sample.sample``, and ``sample.draft`` of one token; logits ``[B, V]``, ``noise [B]`` in [0, 1)."""
    return draw(law(logits, settings), noise)


def race(logits: Tensor, settings: Settings, noise: Tensor, num: int) -> Tensor:
    """``sample.draft`` of several tokens without replacement: Gumbel top-k as a race of exponentials ``noise [B, V]``."""
    return (law(logits, settings) / noise).topk(num, dim=-1).indices


def best_law(logits: Tensor, temperature: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Probabilities and ids ``[rows, most]`` under top-k for one ``k`` that the host knows: no row is sorted."""
    values, ids = logits.topk(most, dim=-1)
    return (values.float() / temperature).softmax(-1), ids


def match_best(logits: Tensor, drafts: Tensor, temperature: Tensor, noise: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """``verify.match`` by :func:`best_law`; ``temperature [B, 1]``."""
    p, ids = best_law(logits.view(*noise.shape, -1), temperature.unsqueeze(-1), most)
    return walk(ids.gather(-1, draw(p, noise).unsqueeze(-1)).squeeze(-1), drafts)


def sample_best(logits: Tensor, temperature: Tensor, noise: Tensor, most: int) -> Tensor:
    """``sample.sample`` by :func:`best_law`."""
    p, ids = best_law(logits, temperature, most)
    return ids.gather(-1, draw(p, noise).unsqueeze(-1)).squeeze(-1)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` of a baseline, for fixed shapes, as a whole or not at all."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def unit(*logits: Tensor) -> list[Tensor]:
    """``torch.amax`` of each row: one read of all of them."""
    return [torch.amax(rows, dim=-1) for rows in logits]
