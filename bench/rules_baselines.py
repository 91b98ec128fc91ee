"""Block verification, and rejection top-down and bottom-up on a static tree, in plain PyTorch: the baselines of the rules.

Written as those in :mod:`bench.baselines`: batched, without a host synchronisation, and hard to beat. A law that is worn down by
one sibling after the other is never normalised: what it is to be divided by is kept beside it. Where the shape of the tree tells
which rows matter, only these are processed: those of inner nodes bottom-up; top-down those of one node per depth.

Shapes: ``B`` requests, ``N`` nodes, ``V`` ids; target logits ``[B * N, V]``, draft logits ``[B * rows, V]``; ``tokens`` and
``coins [B, N]``, of which the root's mean nothing, and ``noise [B]`` in [0, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import baselines
from .baselines import Settings
from .static_tree import Tables


def block(
    logits: Tensor, draft_logits: Tensor, drafts: Tensor, settings: Settings, coins: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Rule ``block`` on chains, all of whose nodes have a row of both; ``drafts`` and ``coins [B, N-1]``."""
    batch, count = drafts.shape
    each = settings.of_nodes()
    p = baselines.law(logits.view(batch, count + 1, -1), each)
    q = baselines.law(draft_logits.view(batch, count + 1, -1)[:, :-1], each)  # the last node has no draft
    ratios = _at(p[:, :-1], drafts) / _at(q, drafts)
    budgets = [torch.ones_like(noise)]
    for i in range(count):
        budgets.append((budgets[-1] * ratios[:, i]).clamp(max=1.0))
    a = torch.stack(budgets, 1)
    rest = (a[:, :-1].unsqueeze(-1) * p[:, :-1]).sub_(q).clamp_(min=0.0)
    total = rest.sum(-1)
    lasting = torch.cat([total / (total + 1 - a[:, :-1]), a[:, -1:]], 1)[:, 1:]
    accepted = (coins < lasting).long().mul(torch.arange(1, count + 1, device=drafts.device)).amax(1)
    at = accepted.clamp(max=count - 1).view(batch, 1, 1).expand(-1, 1, p.shape[-1])
    left = torch.where((accepted == count).unsqueeze(1), p[:, -1], rest.gather(1, at).squeeze(1))
    return baselines.emit(drafts, accepted, baselines.draw(left, noise))


def _at(laws: Tensor, tokens: Tensor) -> Tensor:
    """The entry of a token in each law: ``[..., V]``, ``[...]``."""
    return laws.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def token(
    logits: Tensor,
    draft_logits: Tensor,
    tokens: Tensor,
    settings: Settings,
    coins: Tensor,
    noise: Tensor,
    tree: Tables,
) -> tuple[Tensor, Tensor]:
    """Rule ``token`` on trees whose siblings were drawn without replacement: one node per request and depth."""
    batch, nodes = tokens.shape
    rows, draft_rows = logits.view(batch, nodes, -1), draft_logits.view(batch, -1, logits.shape[-1])
    request = torch.arange(batch, device=tokens.device)
    end, walking = torch.zeros_like(request), torch.ones_like(request, dtype=torch.bool)
    left = torch.zeros_like(logits[:batch], dtype=torch.float32)
    for depth in range(tree.paths.shape[1] + 1):
        w, found, child_of = baselines.law(rows[request, end], settings), torch.zeros_like(walking), end
        if depth < tree.paths.shape[1]:
            q = baselines.law(draft_rows[request, tree.draft_row[end].clamp(min=0)], settings)
            for child in tree.children[end].unbind(1):
                there = child >= 0
                drafted = _at(tokens, child.clamp(min=0)).unsqueeze(1)
                per = w.sum(-1, keepdim=True) / q.sum(-1, keepdim=True)
                below = _at(coins, child.clamp(min=0)).unsqueeze(1) * per * q.gather(1, drafted) < w.gather(1, drafted)
                taken = below.squeeze(1) & there & walking & ~found
                child_of, found = torch.where(taken, child, child_of), found | taken
                w = w.addcmul_(q, -per.masked_fill(~there.unsqueeze(1), 0.0)).clamp_(min=0.0)
                q = q.scatter_(1, drafted, 0.0)
        left = torch.where((walking & ~found).unsqueeze(1), w, left)
        end, walking = child_of, walking & found
    return _emit(tokens, end, baselines.draw(left, noise), tree)


def traversal(
    logits: Tensor,
    draft_logits: Tensor,
    tokens: Tensor,
    settings: Settings,
    coins: Tensor,
    noise: Tensor,
    tree: Tables,
) -> tuple[Tensor, Tensor]:
    """Rule ``traversal`` on trees whose siblings were drawn without replacement: all nodes of one depth at once."""
    batch, nodes = tokens.shape
    rows, draft_rows = logits.view(batch, nodes, -1), draft_logits.view(batch, -1, logits.shape[-1])
    each = settings.of_nodes()
    lasting = [torch.ones_like(noise)] * nodes  # on the way down what is handed down
    rests = []
    for level in tree.levels:
        a = torch.stack([lasting[v] for v in level.nodes], 1).unsqueeze(-1)
        w = baselines.law(rows[:, level.nodes], each).mul_(a)
        q = baselines.law(draft_rows[:, level.draft_rows], each)
        scale = torch.ones_like(a)
        for siblings in level.siblings:
            drafted = tokens[:, siblings].unsqueeze(-1)
            per = scale / q.sum(-1, keepdim=True)
            handed = (w.gather(-1, drafted) / (per * q.gather(-1, drafted))).clamp(max=1.0)
            for i, child in enumerate(siblings):
                lasting[child] = handed[:, i, 0]
            w = w.addcmul_(q, -per).clamp_(min=0.0)
            total = w.sum(-1, keepdim=True) / scale
            reached = total + 1 - a
            scale, a = scale * reached, total / reached
            q = q.scatter_(-1, drafted, 0.0)
        for i, v in enumerate(level.nodes):
            lasting[v] = a[:, i, 0]
        rests.append(w)
    below = coins < torch.stack(lasting, 1)
    end = tree.post_order[(~below[:, tree.post_order[:-1]]).long().cumprod(1).sum(1)]
    place = tree.place[end].view(batch, 1, 1)
    rest = torch.cat(rests, 1).gather(1, place.clamp(min=0).expand(-1, 1, logits.shape[-1])).squeeze(1)
    leaf = baselines.law(rows[torch.arange(batch, device=end.device), end], settings)
    return _emit(tokens, end, baselines.draw(torch.where(place.view(-1, 1) < 0, leaf, rest), noise), tree)


def _emit(tokens: Tensor, end: Tensor, bonus: Tensor, tree: Tables) -> tuple[Tensor, Tensor]:
    """The tokens of the path that ends at a node, and the bonus token."""
    return baselines.emit(tokens.gather(1, tree.paths[end]), tree.depths[end], bonus)
