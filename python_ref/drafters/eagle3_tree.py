"""The growing of EAGLE-2 trees by an EAGLE-3 head: level by level, the best nodes of a level are followed.

In the head's cache the entry that is fed with the root of the text is the root of the tree. Behind it lie the nodes that
are followed, in the order in which they are made: a tree in depth-first order is built anew for each level, and its
``slots`` say where the keys and values of the earlier levels have stayed.

Source: Li et al. 2024, EAGLE-2, arXiv 2406.16858, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..decoding.attention import PagedAttention, Rows

if TYPE_CHECKING:
    from ..decoding.cache import PagedCache
    from ..models.eagle3 import Eagle3

# What the ops take: nodes of a tree, candidates of a pool.
MOST_NODES, _MOST_CANDIDATES = 1024, 4096


def most_levels(width: int) -> int:
    """Levels that a tree may have of which ``width`` nodes are followed per level, with ``width`` children each."""
    return 1 + min((MOST_NODES - 1) // width, (_MOST_CANDIDATES - width) // width**2)


class Pool(NamedTuple):
    """All children of all nodes that were followed, level after level.

    Attributes:
        tokens: ``[B, M]`` int64, -1 = none.
        parents: ``[B, M]`` int64, index in the pool, -1 = child of the root.
        scores: ``[B, M]`` float32, log-probability of the path, -inf = none.
    """

    tokens: Tensor
    parents: Tensor
    scores: Tensor

    @classmethod
    def joined(cls, levels: list[Pool]) -> Pool:
        """The levels of a pool side by side."""
        return cls(*(torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)))

    def spread(self, size: int, rows: Tensor) -> Pool:
        """The same for ``size`` requests, of which these are ``rows [B]``; the others have no candidates."""
        empty = (-1, -1, -torch.inf)
        parts = (part.new_full((size, part.shape[1]), value) for part, value in zip(self, empty, strict=True))
        return Pool(*(wide.index_copy(0, rows, part) for wide, part in zip(parts, self, strict=True)))


class Grower:
    """The trees of some requests while they grow.

    Node 0 is the root, node ``1 + (l - 1) width + j`` the ``j``-th that is followed on level ``l``; with fewer than
    ``width`` candidates there are nodes of no consequence, whose children have the score -inf.
    """

    def __init__(self, head: Eagle3, ops: Any, cache: PagedCache, rows: Tensor, contexts: Tensor, width: int) -> None:
        """Make trees of a root.

        Args:
            head: the head.
            ops: the package of the ops.
            cache: its cache; the pages of all nodes must have been reserved.
            rows: ``[B]`` int64, row of the cache of each request.
            contexts: ``[B]`` int64, position of the entry that is fed with the root.
            width: nodes to follow per level, and children of each.
        """
        self._head, self._ops, self._cache, self._width = head, ops, cache, width
        self._rows, self._contexts = rows, contexts
        self._to_target = head.target_ids()

    def grow(self, hidden: Tensor, limits: Tensor, depth: int) -> Pool:
        """The candidates of all levels.

        Args:
            hidden: ``[B, H]``, output of the entry that is fed with the root.
            limits: ``[B]`` int64, levels of each request, from 1 to ``depth``.
            depth: levels of the deepest.
        """
        batch, width, device = len(hidden), self._width, hidden.device
        nodes = 1 + (depth - 1) * width
        tokens = torch.zeros((batch, nodes), dtype=torch.int64, device=device)
        parents = torch.zeros_like(tokens)
        parents[:, 0] = -1
        places = torch.full((batch, 1), -1, device=device)  # of the nodes of the last level, in the pool
        scores: Tensor | None = None
        levels: list[Pool] = []
        start = 0  # of the level in the pool
        for level in range(1, depth + 1):
            if level > 1:
                first = 1 + (level - 2) * width
                hidden = self._follow(hidden, tokens, parents, first, level)
            made = self._ops.draft.expand(
                self._head.logits(hidden), scores, width, width, draft_to_target=self._to_target
            )
            levels.append(Pool(made.tokens, places.repeat_interleave(width, dim=1), made.scores))
            if level == depth:
                break
            columns = made.beams.long().clamp(min=0)
            above = columns // width  # which node of the last level has this child
            scores = made.scores.gather(1, columns)
            scores = scores.masked_fill((made.beams < 0) | (limits <= level).unsqueeze(1), -torch.inf)
            first = 1 + (level - 1) * width
            tokens[:, first : first + width] = made.tokens.gather(1, columns).clamp(min=0)
            parents[:, first : first + width] = above + max(first - width, 0)
            hidden = hidden.view(batch, -1, hidden.shape[-1])[torch.arange(batch, device=device).unsqueeze(1), above]
            hidden = hidden.flatten(0, 1)
            places = start + columns
            start += made.tokens.shape[1]
        return Pool.joined(levels)

    def _follow(self, hidden: Tensor, tokens: Tensor, parents: Tensor, first: int, level: int) -> Tensor:
        """The outputs ``[B * width, H]`` of the nodes from ``first`` on; their parents put out ``hidden``."""
        batch, nodes = tokens.shape
        width, device = self._width, tokens.device
        starts = torch.arange(batch, device=device) * nodes
        cu_nodes = (torch.arange(batch + 1, device=device) * nodes).int()
        lengths = torch.full((batch,), first + width, device=device)
        tree, order = self._ops.tree.from_parents(
            tokens.flatten(), parents.flatten(), cu_nodes, max_nodes=nodes, max_depth=level, lengths=lengths, slots=True
        )
        became = torch.empty_like(order)
        became[order] = torch.arange(len(order), device=device)
        newest = became.view(batch, nodes)[:, first : first + width] - starts.unsqueeze(1)
        rows = Rows(
            tree,
            self._contexts,
            self._rows,
            query_nodes=newest.flatten(),
            cu_queries=(torch.arange(batch + 1, device=device) * width).int(),
        )
        positions = (self._contexts + level - 1).clamp(max=self._head.max_positions - 1)
        outputs: Tensor = self._head(
            hidden,
            tokens[:, first : first + width].flatten(),
            positions.repeat_interleave(width),
            PagedAttention(self._ops, self._cache, rows),
        )
        return outputs
