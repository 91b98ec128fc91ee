"""Passes of a model over trees of one shape, without a look at what the device holds.

Every lane has the same number of nodes; those that are not live are padding, which the ops pass over and the model
computes for nothing. On a GPU that is the price of a step that can be recorded once. On the CPU, where the thread of the
device may look at its own tensors, padding is left out (``compact``): fewer rows, the same results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention import Rows


class StaticRows(NamedTuple):
    """The rows of one pass.

    Attributes:
        rows: for :class:`~python_ref.decoding.attention.PagedAttention`.
        nodes: ``[Tq]`` int64, which rows of the tree go through the model; None: all of them.
    """

    rows: Rows
    nodes: Tensor | None

    @classmethod
    def of(cls, tree: Any, contexts: Tensor, table_rows: Tensor, compact: bool) -> StaticRows:
        """The rows of a tree with equally many nodes for each of ``B`` requests.

        Args:
            tree: the trees.
            contexts: ``[B]`` int64, committed positions of each.
            table_rows: ``[B]`` int64, row of the block table of each.
            compact: leave padding out; reads values on the host.
        """
        whole = cls(Rows(tree, contexts, table_rows), None)
        if not compact:
            return whole
        width = len(tree.tokens) // len(contexts)
        lives = tree.ends.view(-1, width)[:, 0]
        places = torch.arange(width, device=contexts.device)
        nodes = (places < lives.unsqueeze(1)).flatten().nonzero().flatten()
        if len(nodes) in (0, len(tree.tokens)):
            return whole
        offsets = torch.zeros(len(contexts) + 1, dtype=torch.int32, device=contexts.device)
        torch.cumsum(lives, 0, dtype=torch.int32, out=offsets[1:])
        return cls(Rows(tree, contexts, table_rows, nodes % width, offsets), nodes)

    def take(self, values: Tensor) -> Tensor:
        """Of a tensor ``[T, ...]`` the rows that go through the model."""
        return values if self.nodes is None else values[self.nodes]

    def spread(self, values: Tensor, count: int) -> Tensor:
        """``[Tq, ...]`` of the model back to ``[T, ...]``; 0 for padding."""
        if self.nodes is None:
            return values
        return values.new_zeros((count, *values.shape[1:])).index_copy(0, self.nodes, values)

    def inverse(self, count: int) -> Tensor | None:
        """``[T]`` int64, the row of the model's result of each node; None: its own."""
        if self.nodes is None:
            return None
        rows = torch.zeros(count, dtype=torch.int64, device=self.nodes.device)
        rows[self.nodes] = torch.arange(len(self.nodes), device=self.nodes.device)
        return rows


def positions_of(tree: Any, contexts: Tensor, limit: int) -> Tensor:
    """``[T]`` int64, rotary positions of the nodes, below ``limit``: what goes beyond it is never used."""
    depths = tree.depths.view(len(contexts), -1)
    positions: Tensor = contexts.unsqueeze(1) + depths
    return positions.clamp(0, limit - 1).flatten()


def run(
    model: Callable[..., Any], tree: Any, columns: tuple[Tensor, ...], contexts: Tensor, limit: int, chosen: StaticRows
) -> Any:
    """``model(*columns, positions, ...)`` for the rows that were chosen; ``columns`` are ``[T, ...]``."""
    positions = positions_of(tree, contexts, limit)
    return model(*(chosen.take(column) for column in columns), chosen.take(positions))
