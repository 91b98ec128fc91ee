"""Block and traversal verification once more, for all trials of a batch at a time, with handles for bugs.

As in :mod:`.vectorised`: drafts come from the fused op, with the noise of the contract; every method is a place where an
implementation can go wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .vectorised import Rule


class BottomUp(Rule):
    """Budgets are handed down in the order of the nodes; the first node in post-order whose coin is below what its children
    have left ends the path."""

    def handed_down(self, w: Tensor, q: Tensor) -> Tensor:
        """The budget of a child, ``min(1, a p / q)``."""
        return torch.where(w > 0, torch.where(w >= q, 1.0, w / q.clamp(min=1e-300)), 0.0)

    def left_over(self, w: Tensor, q: Tensor, budget: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What is left of ``a P`` and ``a`` once a child, which holds ``tokens``, has come to nothing."""
        rest = (w - q).clamp(min=0)
        total = rest.sum(1)
        reached = total + 1 - budget
        safe = torch.where(reached > 0, reached, 1.0)
        return rest / safe.unsqueeze(1), torch.where(reached > 0, total / safe, 1.0)

    def stop_coin(self, seeds: Tensor, lengths: Tensor, node: int) -> Tensor:
        depth = self.depths[node] - 1
        return self.coin(seeds, lengths + depth, depth, node)

    def choose(self, passes: dict[int, Tensor]) -> Tensor:
        """The node at which each trial stops: the first in post-order that passes."""
        order = sorted(passes, key=lambda node: self.ends[node] - 1 - self.depths[node])
        stop = torch.zeros_like(passes[0], dtype=torch.int64)
        open_ = torch.ones_like(passes[0])
        for node in order:
            taken = open_ & passes[node]
            stop[taken] = node
            open_ &= ~taken
        return stop

    def verify(self, tokens: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        batch, nodes = tokens.shape
        ones = torch.ones(batch, dtype=torch.float64)
        budgets, laws, left = {0: ones}, {}, {}
        for node in range(nodes):
            states = tokens[:, node].clamp(min=0)
            w, q, a = self.p[states] * budgets[node].unsqueeze(1), self.q[states], budgets[node]
            children = self.case.children(node)
            for i, child in enumerate(children):
                there = self.present(tokens, children, i)
                token = tokens[:, child].clamp(min=0)
                has, drawn = (x.gather(1, token.unsqueeze(1)).squeeze(1) for x in (w, q))
                budgets[child] = torch.where(there, self.handed_down(has, drawn), 0.0)
                rest, fewer = self.left_over(w, q, a, token)
                w, a = torch.where(there.unsqueeze(1), rest, w), torch.where(there, fewer, a)
                if not self.case.replacement:
                    q = torch.where(there.unsqueeze(1), self.without(q, token), q)
            laws[node], left[node] = w, a
        left = self.settled(tokens, budgets, left)
        passes = {node: self.stop_coin(seeds, lengths, node) < left[node] for node in range(1, nodes)}
        passes[0] = torch.ones(batch, dtype=torch.bool)
        stop = self.choose(passes)
        return self.emit(tokens, lengths, seeds, stop, laws)

    def settled(self, tokens: Tensor, budgets: dict[int, Tensor], left: dict[int, Tensor]) -> dict[int, Tensor]:
        """The probabilities that the coins are held against."""
        return left

    def emit(
        self, tokens: Tensor, lengths: Tensor, seeds: Tensor, stop: Tensor, laws: dict[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The path to the node where each trial stops, and a token from what is left there."""
        emitted = torch.full((tokens.shape[0], max(self.depths) + 1), -1)
        num = torch.zeros(tokens.shape[0], dtype=torch.int64)
        for node, depth in enumerate(self.depths):
            here = (stop == node).nonzero().flatten()
            if not here.numel():
                continue
            at = node
            while at:
                emitted[here, self.depths[at] - 1] = tokens[here, at]
                at = self.case.parents[at]
            noise = self.residual_noise(seeds[here], lengths[here] + depth, depth, node)
            emitted[here, depth] = (noise / self.bonus(laws, node, tokens)[here]).nan_to_num(torch.inf).argmin(1)
            num[here] = depth + 1
        return emitted, num

    def bonus(self, laws: dict[int, Tensor], node: int, tokens: Tensor) -> Tensor:
        """The law of the token after a path that ends at a node."""
        return laws[node]


# ---- bugs ---------------------------------------------------------------------------------------------------------------


class BudgetOverRemainingDraftMass(BottomUp):
    """``S`` over what is left of the draft's law without the child, in place of ``S + 1 - a``."""

    def left_over(self, w, q, budget, tokens):
        rest, _ = super().left_over(w, q, budget, tokens)
        left = 1 - q.gather(1, tokens.unsqueeze(1)).squeeze(1)
        return rest, ((w - q).clamp(min=0).sum(1) / left.clamp(min=1e-12)).clamp(max=1.0)


class LastStepIsNotCapped(BottomUp):
    """The ratios of a path are capped on the way, but the last budget is the product of the plain ratios."""

    def settled(self, tokens, budgets, left):
        plain = {0: torch.ones(tokens.shape[0], dtype=torch.float64)}
        made = dict(left)
        for node in range(1, tokens.shape[1]):
            parent = self.case.parents[node]
            above, token = tokens[:, parent].clamp(min=0), tokens[:, node].clamp(min=0).unsqueeze(1)
            ratio = self.p[above].gather(1, token) / self.q[above].gather(1, token).clamp(min=1e-300)
            plain[node] = plain[parent] * ratio.squeeze(1)
            if not self.case.children(node):
                made[node] = plain[node].clamp(max=1.0)
        return made


class PathIsCutAtTheFirstFailure(BottomUp):
    """The longest run of passing nodes from the root, in place of the last that passes."""

    def choose(self, passes):
        stop = torch.zeros_like(passes[0], dtype=torch.int64)
        open_ = passes[0].clone()
        for node in range(1, len(passes)):
            open_ &= passes[node]
            stop[open_] = node
        return stop


class TokenCriterionWithTheResidualOfBlocks(BottomUp):
    """Each draft is judged by its own ratio, but what is left is that of block verification."""

    def settled(self, tokens, budgets, left):
        made = dict(left)
        for node in range(1, tokens.shape[1]):
            above = tokens[:, self.case.parents[node]].clamp(min=0)
            token = tokens[:, node].clamp(min=0).unsqueeze(1)
            ratio = self.p[above].gather(1, token) / self.q[above].gather(1, token).clamp(min=1e-300)
            made[node] = ratio.squeeze(1).clamp(max=1.0)
        return made


class BonusFromTheTarget(BottomUp):
    """The token after the path comes from the target's law, and not from what its children left."""

    def bonus(self, laws, node, tokens):
        return self.p[tokens[:, node].clamp(min=0)]


class NodesShareACoin(BottomUp):
    """One number for all nodes of a step."""

    def stop_coin(self, seeds, lengths, node):
        return self.coin(seeds, lengths, 0, 0)


class SubtreesOfSiblingsShareNoise(BottomUp):
    """The node is missing in the counter of coins."""

    def stop_coin(self, seeds, lengths, node):
        depth = self.depths[node] - 1
        return self.coin(seeds, lengths + depth, depth, 0)


class DepthIsMissingInTheCounter(BottomUp):
    """Coins of nodes that are looked at and not emitted come back in the next step."""

    def coin(self, seeds, position, depth, child):
        return super().coin(seeds, position, 0, 0)


class PreOrder(BottomUp):
    """The first node in the order of the tree that passes, in place of post-order."""

    def choose(self, passes):
        stop = torch.zeros_like(passes[0], dtype=torch.int64)
        open_ = torch.ones_like(passes[0])
        for node in range(1, len(passes)):
            taken = open_ & passes[node]
            stop[taken] = node
            open_ &= ~taken
        return stop
