"""Draft trees whose shape is known beforehand, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CHAIN = "chain"


class StaticTree(NamedTuple):
    """One shape for all requests; nodes in depth-first pre-order.

    Attributes:
        name: for the column ``case``.
        parents: of each node, -1 for the root.
        children: of each node, in draw order.
        depths: of each node.
        ends: first node behind the subtree of each node.
        inner: nodes with children.
        draft_row: row of the draft's logits of each node among those of its request, -1 where it has none.
    """

    name: str
    parents: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]
    inner: tuple[int, ...]
    draft_row: tuple[int, ...]

    @property
    def nodes(self) -> int:
        """How many there are."""
        return len(self.parents)

    @property
    def depth(self) -> int:
        """Of the deepest node."""
        return max(self.depths)

    @property
    def draft_rows(self) -> int:
        """Rows of the draft's logits of one request."""
        return max(self.draft_row) + 1

    @property
    def post_order(self) -> list[int]:
        """The nodes, each behind all below it."""
        return sorted(range(self.nodes), key=lambda v: (self.ends[v], -self.depths[v]))

    def path(self, node: int) -> list[int]:
        """From the root to a node."""
        found = [node]
        while self.parents[found[-1]] >= 0:
            found.append(self.parents[found[-1]])
        return found[::-1]


def static_tree(name: str, parents: Sequence[int], all_drafted: bool = False) -> StaticTree:
    """A tree from the parents of its nodes.

    Args:
        name: see there.
        parents: in depth-first pre-order.
        all_drafted: whether nodes without children have a row of the draft's logits, too, as the last of a chain.
    """
    count = len(parents)
    children: list[list[int]] = [[] for _ in parents]
    depths, ends = [0] * count, list(range(1, count + 1))
    for v in range(1, count):
        children[parents[v]].append(v)
        depths[v] = depths[parents[v]] + 1
    for v in range(count - 1, 0, -1):
        ends[parents[v]] = max(ends[parents[v]], ends[v])
    inner = tuple(v for v in range(count) if children[v])
    drafted = tuple(range(count)) if all_drafted else inner
    rows = tuple(drafted.index(v) if v in drafted else -1 for v in range(count))
    return StaticTree(name, tuple(parents), tuple(map(tuple, children)), tuple(depths), tuple(ends), inner, rows)


def chain(nodes: int) -> StaticTree:
    """A root and its drafts, one after the other; every node has a row of the draft's logits."""
    return static_tree(CHAIN, range(-1, nodes - 1), all_drafted=True)


#: Three children of the root, three of each of these, and three more below the very first of those.
TREE = static_tree("tree", (-1, 0, 1, 2, 2, 2, 1, 1, 0, 8, 8, 8, 0, 12, 12, 12))


class Level(NamedTuple):
    """The inner nodes of one depth.

    Attributes:
        nodes: which they are.
        draft_rows: row of the draft's logits of each.
        siblings: their first children, their second ones, and so on.
    """

    nodes: tuple[int, ...]
    draft_rows: tuple[int, ...]
    siblings: tuple[tuple[int, ...], ...]


class Tables(NamedTuple):
    """A static tree as tensors, for batched computations.

    Attributes:
        levels: of the inner nodes, those of one depth with the same number of children each.
        children: ``[N, K]``, -1 where there is none.
        paths: ``[N, depth]``: the nodes behind the root on the way to each, then 0.
        depths: ``[N]``.
        post_order: ``[N]``.
        place: ``[N]``: of an inner node its place among those of all levels, else -1.
        draft_row: ``[N]``.
    """

    levels: tuple[Level, ...]
    children: Tensor
    paths: Tensor
    depths: Tensor
    post_order: Tensor
    place: Tensor
    draft_row: Tensor


def tables(tree: StaticTree) -> Tables:
    """The tables of a tree.

    Raises:
        ValueError: if inner nodes of one depth have different numbers of children.
    """
    levels = []
    for depth in range(tree.depth):
        nodes = tuple(v for v in tree.inner if tree.depths[v] == depth)
        if len({len(tree.children[v]) for v in nodes}) > 1:
            raise ValueError("tables: the inner nodes of one depth must have the same number of children")
        siblings = tuple(zip(*(tree.children[v] for v in nodes), strict=True))
        levels.append(Level(nodes, tuple(tree.draft_row[v] for v in nodes), siblings))
    order = [v for level in levels for v in level.nodes]
    most = max((len(own) for own in tree.children), default=0)

    def padded(lists: Sequence[Sequence[int]], width: int, padding: int) -> Tensor:
        return torch.tensor([[*own, *[padding] * (width - len(own))] for own in lists], dtype=torch.int64)

    return Tables(
        tuple(levels),
        padded(tree.children, most, -1).view(tree.nodes, most),
        padded([tree.path(v)[1:] for v in range(tree.nodes)], tree.depth, 0).view(tree.nodes, tree.depth),
        torch.tensor(tree.depths),
        torch.tensor(tree.post_order),
        torch.tensor([order.index(v) if v in order else -1 for v in range(tree.nodes)]),
        torch.tensor(tree.draft_row),
    )
