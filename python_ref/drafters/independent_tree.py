"""Trees of sampled drafts by a smaller model: several children of each node, drawn with or without replacement.

The shape of a tree is fixed: a node of depth ``d`` has ``branching[d]`` children. So the place of a node in depth-first order
is known before its token is, and with it the slot of its keys and values in the drafter's cache. After the step the whole
tree is forgotten, and what was accepted is read again with the next root, in one pass.

Sources: Chen et al. 2024 (Sequoia), arXiv 2402.12374; Weng et al. 2025 (traversal verification), arXiv 2505.12398; Hu et al.
2025 (greedy plus one), arXiv 2502.18779.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..decoding.attention import PagedAttention, Rows
from ..decoding.batch import Batch
from ..types import TokenTree
from .independent import IndependentDrafter
from .protocol import RATIO_RULES, Proposal

if TYPE_CHECKING:
    from ..models import Transformer

#: What the ops take.
_MOST_NODES, _MOST_CHILDREN = 1024, 256


class Shape(NamedTuple):
    """A tree in depth-first pre-order."""

    parents: list[int]
    depths: list[int]
    ends: list[int]

    @classmethod
    def of(cls, branching: Sequence[int]) -> Shape:
        """The tree whose nodes of depth ``d`` have ``branching[d]`` children."""
        shape = cls([-1], [0], [0])
        shape._grow(0, branching)
        return shape

    def _grow(self, node: int, branching: Sequence[int]) -> None:
        for _ in range(branching[0] if branching else 0):
            child = len(self.parents)
            self.parents.append(node)
            self.depths.append(self.depths[node] + 1)
            self.ends.append(child)
            self._grow(child, branching[1:])
        self.ends[node] = len(self.parents)

    def at(self, depth: int) -> list[int]:
        """Nodes of a depth."""
        return [node for node, d in enumerate(self.depths) if d == depth]


class IndependentTreeDrafter(IndependentDrafter):
    """Drafts sampled trees with a language model that has a cache of its own.

    Under ``match`` children are drawn with the target's own noise; under the rules that look at ratios with noise of their own,
    and handed over with their law; under ``greedy_plus_one`` all but the last child are the best ones; under ``greedy`` all are.

    Attributes:
        branching: children of the nodes of each depth; its length is the depth of the trees.
        replacement: whether siblings are drawn with replacement.
    """

    def __init__(
        self,
        model: Transformer,
        ops: Any,
        branching: Sequence[int] = (3, 2, 1, 1),
        *,
        replacement: bool = False,
        temperature: float | None = None,
        page_size: int = 16,
        prefill_chunk: int = 32,
    ) -> None:
        """Make a drafter.

        Args:
            model: a model with the target's vocabulary, on the target's device.
            ops: the package of the ops, ``python_ref.ops`` or ``specdec_kernels``.
            branching: children of the nodes of each depth, at least 1 each; up to 1,024 nodes in all.
            replacement: whether siblings are drawn with replacement.
            temperature: of the drafts; None: that of each request. 0: always the best tokens, deterministic.
            page_size: tokens per page of its cache.
            prefill_chunk: prompt tokens per pass.

        Raises:
            ValueError: if a value is out of range.
        """
        super().__init__(model, ops, temperature=temperature, page_size=page_size, prefill_chunk=prefill_chunk)
        nodes = width = 1
        for count in branching:
            if not 1 <= count <= _MOST_CHILDREN:
                raise ValueError(f"IndependentTreeDrafter: branching must be from 1 to {_MOST_CHILDREN}, got {count}")
            width *= count
            nodes += width
        if not branching or nodes > _MOST_NODES:
            raise ValueError(f"IndependentTreeDrafter: branching must make 2 to {_MOST_NODES} nodes, got {nodes}")
        self.branching, self.replacement = tuple(branching), replacement
        self.shapes = [Shape.of(self.branching[:depth]) for depth in range(len(self.branching) + 1)]

    @property
    def most_drafts(self) -> int:
        """Most drafts in a row."""
        return len(self.branching)

    def propose(self, batch: Batch, limits: Sequence[int], rule: str) -> Proposal:
        """Draw the trees of all requests, level by level; each as deep as its limit lets it be."""
        cache = self._follow(batch)
        space = self.model.config.max_positions
        reach = [
            min(limit, max(space - len(text) + 1, 0), len(self.branching)) if limit else 0
            for limit, text in zip(limits, batch.texts, strict=True)
        ]
        shapes = [self.shapes[depth] if batch.requests[row] else None for row, depth in enumerate(reach)]
        tree, first = self._tree(batch, shapes)
        contexts = torch.tensor([max(len(text) - 1, 0) for text in batch.texts], device=batch.device)
        sampling, ratio = self._sampling(batch, rule), rule in RATIO_RULES
        rows = torch.full((tree.tokens.shape[0],), -1, dtype=torch.int64, device=batch.device)
        laws: list[Tensor] = []
        drawn = 0
        for depth in range(max(reach)):
            live = [row for row, most in enumerate(reach) if most > depth]
            nodes = [shape.at(depth) if shape and reach[row] > depth else [] for row, shape in enumerate(shapes)]
            places = [first[row] + node for row in live for node in nodes[row]]
            where = torch.tensor(places, device=batch.device)
            if depth == 0:
                logits = self._catch_up(cache, batch, live)
                for row in live:
                    cache.reserve(row, len(batch.texts[row]) - 1 + len(shapes[row].parents))  # type: ignore[union-attr]
            else:
                logits = self._level(tree, contexts, nodes, tree.tokens[where], depth)
            owners = torch.tensor([row for row in live for _ in nodes[row]], device=batch.device)
            children = self._draw(logits, sampling, owners, contexts, depth, nodes, live, rule)
            for i in range(children.shape[1]):
                self._place(tree, shapes, live, nodes, first, children[:, i], i)
            if ratio:
                laws.append(logits)
                rows[where] = torch.arange(drawn, drawn + len(places), device=batch.device)
                drawn += len(places)
        if not laws:
            return Proposal(tree=tree)
        return Proposal(tree=tree, logits=torch.cat(laws), rows=rows, sampling=sampling, replacement=self.replacement)

    def static(self, num_draft: int) -> Any:
        """There is no such form yet.

        Raises:
            ValueError: always.
        """
        raise ValueError("OverlappedDecoder: drafter must have a static form, got IndependentTreeDrafter")

    def _tree(self, batch: Batch, shapes: list[Shape | None]) -> tuple[TokenTree, list[int]]:
        """The trees of the batch with their roots, and the first row of each; drafts have no tokens yet."""
        parents, depths, ends, roots, offsets = [], [], [], [], [0]
        for text, shape in zip(batch.texts, shapes, strict=True):
            if shape is not None:
                roots += [text[-1]] + [-1] * (len(shape.parents) - 1)
                parents, depths, ends = parents + shape.parents, depths + shape.depths, ends + shape.ends
            offsets.append(len(parents))
        column = [torch.tensor(x, dtype=torch.int32, device=batch.device) for x in (parents, depths, ends)]
        tree = TokenTree(
            cu_nodes=torch.tensor(offsets, dtype=torch.int32, device=batch.device),
            tokens=torch.tensor(roots, dtype=torch.int64, device=batch.device),
            parents=column[0],
            depths=column[1],
            ends=column[2],
            max_nodes=max((b - a for a, b in zip(offsets, offsets[1:], strict=False)), default=0),
            max_depth=max(depths, default=0),
        )
        return tree, offsets

    def _level(self, tree: TokenTree, contexts: Tensor, nodes: list[list[int]], tokens: Tensor, depth: int) -> Tensor:
        """Logits behind the nodes of a depth."""
        counts = [0]
        for some in nodes:
            counts.append(counts[-1] + len(some))
        device = tokens.device
        rows = Rows(
            tree,
            contexts,
            query_nodes=torch.tensor([node for some in nodes for node in some], device=device),
            cu_queries=torch.tensor(counts, dtype=torch.int32, device=device),
        )
        owners = torch.tensor([row for row, some in enumerate(nodes) for _ in some], device=device)
        positions = contexts[owners] + depth
        assert self.cache is not None
        attend = PagedAttention(self.ops, self.cache, rows)
        return self.model.logits(self.model(tokens.clamp(min=0), positions, attend))

    def _draw(
        self,
        logits: Tensor,
        sampling: Any,
        owners: Tensor,
        contexts: Tensor,
        depth: int,
        nodes: list[list[int]],
        live: list[int],
        rule: str,
    ) -> Tensor:
        """The children of the nodes of a depth, ``[rows, num]``."""
        num = self.branching[depth]
        made: Tensor = self.ops.sample.draft(
            logits,
            sampling,
            contexts[owners] + 1 + depth,
            num=num,
            replacement=self.replacement,
            requests=owners,
            depths=torch.full_like(owners, depth),
            nodes=torch.tensor([node for row in live for node in nodes[row]], device=owners.device),
            coupled=rule == "match",
            top=num - 1 if rule == "greedy_plus_one" else 0,
        )
        return made

    def _place(
        self,
        tree: TokenTree,
        shapes: list[Shape | None],
        live: list[int],
        nodes: list[list[int]],
        first: list[int],
        tokens: Tensor,
        rank: int,
    ) -> None:
        """Write the ``rank``-th child of every node into the tree."""
        places = []
        for row in live:
            shape = shapes[row]
            assert shape is not None
            for node in nodes[row]:
                child = node + 1
                for _ in range(rank):
                    child = shape.ends[child]
                places.append(first[row] + child)
        tree.tokens[torch.tensor(places, device=tokens.device)] = tokens
