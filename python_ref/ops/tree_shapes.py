"""The planner of static trees: which shape gives most tokens per unit of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from ..types import TreeShape
from . import checks


def optimal(
    acceptance: Any,
    max_nodes: int,
    *,
    max_depth: int | None = None,
    cost: Callable[[int], float] | Sequence[float] | None = None,
    draft_cost: float = 0.0,
) -> TreeShape:
    """The shape with the largest rate ``expected / (cost(n) + draft_cost * depth)``.

    A node is visited with the product of the acceptances on its path, and every visited node gives one token, so the
    expected tokens are the sum over nodes. Children have ranks 0, 1, ... without gaps.

    Args:
        acceptance: ``[K]``, probability that the child of each rank is the accepted one; or ``[D, K]``, for the
            children at depth 1, 2, ...
        max_nodes: most nodes, the root included.
        max_depth: deepest node; None: ``D``, or no bound.
        cost: time to verify ``n`` nodes, as a function or as a list with that of ``n`` at ``n - 1``; None: always 1.
        draft_cost: time of a level of drafts.

    Returns:
        The best :class:`TreeShape`; of equal rates the one with fewer nodes, then the shallower one.

    Raises:
        TypeError, ValueError: on a wrong range.

    Deterministic. Runs on the host.
    Source: Sequoia, Chen et al. 2024 (arXiv 2402.12374), section 3.1.
    """
    op = "tree.optimal"
    checks.integer(op, "max_nodes", max_nodes, 1)
    laws = [[float(p) for p in row] for row in acceptance] if hasattr(acceptance[0], "__len__") else None
    same = [] if laws is not None else [float(p) for p in acceptance]
    deepest = max_nodes - 1 if laws is None else len(laws)
    deepest = min(deepest, max_nodes - 1, deepest if max_depth is None else max_depth)
    time_of = (lambda n: 1.0) if cost is None else cost if callable(cost) else lambda n: cost[n - 1]

    @cache
    def subtree(n: int, depth: int, limit: int) -> tuple[float, tuple[int, ...]]:
        """The best tree of ``n`` nodes at ``depth``, none below ``limit``: its value, and the sizes of its children."""
        value, sizes = forest(n - 1, depth, 0, limit)
        return 1.0 + value, sizes

    @cache
    def forest(n: int, depth: int, rank: int, limit: int) -> tuple[float, tuple[int, ...]]:
        """The same of ``n`` nodes below a node at ``depth``, under its children from ``rank`` on."""
        if n == 0:
            return 0.0, ()
        law = same if laws is None else laws[depth] if depth < len(laws) else []
        best: tuple[float, tuple[int, ...]] = (float("-inf"), ())
        if depth == limit or rank == len(law):
            return best
        for size in range(1, n + 1):
            rest, sizes = forest(n - size, depth, rank + 1, limit)
            value = law[rank] * subtree(size, depth + 1, limit)[0] + rest
            if value > best[0]:
                best = value, (size, *sizes)
        return best

    found: tuple[float, float, int, int] | None = None
    for n in range(1, max_nodes + 1):
        for limit in range(min(deepest, n - 1) + 1):
            expected = subtree(n, 0, limit)[0]
            rate = expected / (time_of(n) + draft_cost * limit)
            if expected > float("-inf") and (found is None or rate > found[0]):
                found = rate, expected, n, limit
    assert found is not None
    rate, expected, n, limit = found
    parents, ranks, depths, ends = [], [], [], []

    def put(size: int, parent: int, rank: int, depth: int) -> None:
        node = len(parents)
        parents.append(parent)
        ranks.append(rank)
        depths.append(depth)
        ends.append(node + size)
        for r, child in enumerate(subtree(size, depth, limit)[1]):
            put(child, node, r, depth + 1)

    put(n, -1, 0, 0)
    return TreeShape(parents, ranks, depths, ends, expected, rate)
