"""A reader's view of one request of a tree."""

from __future__ import annotations

from typing import Any


class Nodes:
    """One request's nodes as Python lists, checked: what a walk may rely on.

    Attributes:
        first: its first row of the per-node tensors.
        count: live nodes; 0 for a request without rows, or idle, or with bad ``cu_nodes``.
        malformed: whether it is no tree in depth-first pre-order; then it is its root alone.
        tokens, parents, depths, ends: of the request's rows.
    """

    def __init__(self, tree: Any, request: int) -> None:
        begin, end = (int(row) for row in tree.cu_nodes[request : request + 2])
        in_range = 0 <= begin <= end <= tree.tokens.shape[0]
        self.first, rows = (begin, end - begin) if in_range else (0, 0)
        inside = slice(self.first, self.first + rows)
        self.tokens, self.parents, self.depths, self.ends = (
            column[inside].tolist() for column in (tree.tokens, tree.parents, tree.depths, tree.ends)
        )
        self.count = self.ends[0] if rows else 0
        self.malformed = not in_range
        if self.count and not self._is_tree(rows, tree.max_depth):
            self.malformed, self.count, self.ends[0], self.depths[0] = True, 1, 1, 0

    def _is_tree(self, rows: int, max_depth: int) -> bool:
        if not 1 <= self.count <= rows or self.parents[0] != -1 or self.depths[0] != 0:
            return False
        for i in range(1, self.count):
            parent = i - 1  # pre-order: the first of i-1 and its ancestors whose subtree reaches i
            while parent >= 0 and self.ends[parent] <= i:
                parent = self.parents[parent]
            if parent < 0 or self.parents[i] != parent:
                return False
            if not i < self.ends[i] <= self.ends[parent]:
                return False
            if self.depths[i] != self.depths[parent] + 1 or self.depths[i] > max_depth:
                return False
        return True

    def children(self, node: int, vocab: int) -> list[int]:
        """Children in order; one whose token is not in ``[0, vocab)`` is absent."""
        found, child = [], node + 1
        while child < self.ends[node]:
            if 0 <= self.tokens[child] < vocab:
                found.append(child)
            child = self.ends[child]
        return found
