"""Inputs for the baselines under which their outcome is known, so that a wrong one is refused.

A baseline samples by the inverse of the cumulative law. Noise in the middle of an id's interval of that law draws this id. It is
a heavy one, whose interval is far wider than the rounding of float32, and where there is a choice one that other laws do not draw
with the same noise: the law without its filters, or at a higher temperature.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .baselines import Settings
from .cases import Case, Laws, chains, coins
from .data import Sizes, accepted_drafts
from .rules_cases import BOTTOM_UP, Batch, Tried, tosses

# How many of the heaviest ids come into question, and which share of the law their interval must have at least.
_HEAVIEST = 64
_WIDE = 1e-4


class Aimed(NamedTuple):
    """What a baseline of the verify family takes beside the logits, and what it must give.

    Attributes:
        drafts: ``[B, N-1]``.
        settings: of the requests.
        noise: ``[B, N]`` for ``match``, ``[B]`` for ``rejection``.
        tokens: ``[B, N]``: the accepted drafts, the bonus token, -1.
        num_tokens: ``[B]``.
        coins: ``[B, N-1]`` for ``rejection``.
    """

    drafts: Tensor
    settings: Settings
    noise: Tensor
    tokens: Tensor
    num_tokens: Tensor
    coins: Tensor | None = None


def loosened(laws: Laws) -> Laws:
    """What a baseline would sample from that forgot its filters; without filters, one at a higher temperature."""
    temperature = laws.settings["temperature"]
    return Laws(laws.logits, {"temperature": temperature if len(laws.settings) > 1 else 1.1 * temperature})


def middles(weights: Tensor, ids: Tensor) -> Tensor:
    """``[n]``: the noise in the middle of each id's interval of the cumulative weights ``[V]``, float64 both."""
    total = weights.cumsum(0)
    return (total[ids] - weights[ids] / 2) / total[-1]


def telling(weights: Tensor, decoys: list[Tensor]) -> int:
    """The id to aim at: of the heaviest ones the first whose noise draws another id from as many decoys as any does."""
    heavy = weights.topk(min(_HEAVIEST, weights.numel())).indices
    wide = weights[heavy] >= _WIDE * weights.sum()
    wide[0] = True
    heavy = heavy[wide]
    noise = middles(weights, heavy)
    score = torch.zeros_like(heavy)
    for decoy in decoys:
        total = decoy.cumsum(0)
        score += torch.searchsorted(total, noise * total[-1], right=True) != heavy
    return int(heavy[int((score == score.max()).nonzero()[0])])


def telling_ids(laws: Laws, rows: int) -> Tensor:
    """``[rows]``: the id to aim at in each target row."""
    loose = loosened(laws)
    return torch.tensor([telling(laws("target", row), [loose("target", row)]) for row in range(rows)])


def noise_for(laws: Laws, ids: Tensor) -> Tensor:
    """``[rows]`` float32: the noise that draws ``ids[row]`` from each target row."""
    found = [middles(laws("target", row), ids[row : row + 1]) for row in range(len(ids))]
    return torch.cat(found).float()


def noise_by_rank(laws: Laws, ids: Tensor) -> Tensor:
    """``[rows]`` float32: the same where the ids come best first and the filtered ones not at all."""
    found = []
    for row, token in enumerate(ids.tolist()):
        weights = laws("target", row)
        kept = (weights > 0).nonzero().flatten()
        order = kept[weights[kept].sort(descending=True, stable=True).indices]
        found.append(middles(weights[order], (order == token).nonzero().flatten()))
    return torch.cat(found).float()


def walk(decided: Tensor, which: str, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Drafts of which none, half or all are the decided tokens ``[B, N]``; then the tokens to emit and their number."""
    accepted = accepted_drafts(which, sizes)
    last = torch.tensor(accepted).unsqueeze(1)
    tokens = torch.where(torch.arange(sizes.nodes) <= last, decided, -1)
    return chains(decided, accepted, sizes.vocab)[:, 1:].contiguous(), tokens, last.squeeze(1) + 1


def match(laws: Laws, sizes: Sizes, which: str) -> Aimed:
    """For ``baselines.match``: every row draws the id that was aimed at."""
    ids = telling_ids(laws, sizes.rows)
    drafts, tokens, num_tokens = walk(ids.view(sizes.requests, sizes.nodes), which, sizes)
    noise = noise_for(laws, ids).view(sizes.requests, sizes.nodes)
    return Aimed(drafts, Settings.of(sizes.requests, **laws.settings), noise, tokens, num_tokens)


def rejection(case: Case, laws: Laws, sizes: Sizes) -> Aimed:
    """For ``baselines.rejection``: drafts and coins of the case, and noise for an id of each residual."""
    loose = loosened(laws)
    drafts = case.arguments["tree"].tokens.view(sizes.requests, sizes.nodes)[:, 1:].contiguous()
    tokens = case.expected.tokens.clone()
    noise = torch.empty(sizes.requests)
    for b, accepted in enumerate(case.accepted):
        row = b * sizes.nodes + accepted
        left, decoys = laws("target", row), [loose("target", row)]
        if accepted < sizes.nodes - 1:
            decoys = [left, (decoys[0] - loose("draft", row)).clamp(min=0.0)]
            left = (left - laws("draft", row)).clamp(min=0.0)
        token = telling(left, decoys)
        tokens[b, accepted] = token
        noise[b] = middles(left, torch.tensor([token]))[0]
    num_tokens = torch.tensor(case.accepted) + 1
    settings = Settings.of(sizes.requests, **laws.settings)
    return Aimed(drafts, settings, noise, tokens, num_tokens, coins(case).float())


class AimedRule(NamedTuple):
    """What a baseline of a rule takes beside the logits, and what it must give; the fields as in :class:`Aimed`.

    Attributes:
        drafts: ``[B, N]``: tokens of all nodes.
        settings: see there.
        coins: ``[B, N]``, one per node.
        noise: ``[B]``.
        tokens: ``[B, depth + 1]``.
        num_tokens: see there.
    """

    drafts: Tensor
    settings: Settings
    coins: Tensor
    noise: Tensor
    tokens: Tensor
    num_tokens: Tensor


def rule(case: Case, batch: Batch, name: str) -> AimedRule:
    """For the baselines of rule ``name``: drafts and coins of its case, and noise for an id of each residual.

    Other laws are those without the filters, those of the other kind of rule, those of siblings that were drawn with replacement,
    and the target's own.
    """
    given, loose = case.arguments, batch._replace(laws=loosened(batch.laws))
    drafts = given["tree"].tokens.view(batch.requests, batch.tree.nodes)
    where = zip(given["sampling"].seed.tolist(), given["context_lens"].tolist(), strict=True)
    coins_of = [tosses(batch.tree, seed, committed) for seed, committed in where]
    other = "token" if name in BOTTOM_UP else "traversal"
    tokens, noise = case.expected.tokens.clone(), torch.empty(batch.requests)
    for b, accepted in enumerate(case.accepted):
        end, own = int(case.expected.path[b, accepted]), drafts[b].tolist()
        target = batch.law("target", b, end)
        left = Tried(batch, b, own, name).left.get(end, target)
        others = [Tried(loose, b, own, name), Tried(batch, b, own, other), Tried(batch, b, own, name, replacement=True)]
        decoys = [each.left[end] for each in others if end in each.left]
        token = telling(left, [target, loose.law("target", b, end), *decoys])
        tokens[b, accepted] = token
        noise[b] = middles(left, torch.tensor([token]))[0]
    settings = Settings.of(batch.requests, **batch.laws.settings)
    num_tokens = torch.tensor(case.accepted) + 1
    return AimedRule(drafts, settings, torch.tensor(coins_of).float(), noise, tokens, num_tokens)
