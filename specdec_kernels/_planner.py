"""The planner of static trees; public as :func:`specdec_kernels.tree.optimal`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .types import TreeShape

_OP = "tree.optimal"


def optimal(
    acceptance: Sequence[float] | Sequence[Sequence[float]] | Tensor,
    max_nodes: int,
    *,
    max_depth: int | None = None,
    cost: Callable[[int], float] | Sequence[float] | Tensor | None = None,
    draft_cost: float = 0.0,
) -> TreeShape:
    """The shape of a static tree that gives most tokens per unit of time.

    A node is reached with the product of the acceptances on its path, and every node that is reached gives one token:
    the expected tokens of a step are the sum over all nodes, the root with 1 included. Children of a node have the
    ranks 0, 1, ... without gaps.

    Args:
        acceptance: ``[K]`` numbers, the probability that the child of each rank is the accepted one; or ``[D, K]``, one
            row for the children at each depth. A row sums to at most 1.
        max_nodes: most nodes, the root included, at least 1.
        max_depth: deepest node. None: ``D``, or no bound but ``max_nodes``.
        cost: time to verify ``n`` nodes, as a function, or as a sequence with the time of ``n`` nodes at ``n - 1``;
            positive. None: the same for any number.
        draft_cost: time to draft one level, at least 0.

    Returns:
        The :class:`TreeShape` with the largest ``rate = expected / (cost(n) + draft_cost * depth)``, of all shapes with
        at most ``max_nodes`` nodes; where rates are equal, one with fewer nodes, then with fewer levels.

    Raises:
        ValueError, TypeError: on a wrong shape or range.

    Deterministic. Runs on the host: once, before the decoding.
    Complexity: ``O(N^2 K)`` for each level that the best trees have; where laws differ by depth and drafts cost time,
    that for each pair of levels.
    Source: Sequoia, Chen et al. 2024, arXiv 2402.12374, section 3.1.
    """
    laws = _laws(acceptance)
    _check_integer("max_nodes", max_nodes, 1)
    deepest = max_nodes - 1
    if isinstance(laws, list):
        deepest = min(deepest, len(laws))
    if max_depth is not None:
        _check_integer("max_depth", max_depth, 0)
        deepest = min(deepest, max_depth)
    times = _times(cost, max_nodes)
    if not isinstance(draft_cost, (int, float)) or not 0 <= draft_cost < math.inf:
        raise ValueError(f"{_OP}: draft_cost must be a finite number of at least 0, got {draft_cost!r}")

    best: tuple[float, int, float, list[_Level]] = (-math.inf, 0, 0.0, [])
    for depth, levels in _plans(laws, deepest, max_nodes, draft_cost > 0):
        values = levels[0].values
        rates = values / (times + draft_cost * depth)
        size = int(rates.argmax())
        rate = float(rates[size])
        if rate > best[0] or (rate == best[0] and size < best[1]):
            best = rate, size, float(values[size]), levels
    rate, size, expected, levels = best
    return _shape(levels, size + 1, expected, rate)


class _Level:
    """The best subtrees below a node of one depth, for every number of nodes.

    Attributes:
        values: ``[N]`` float64, expected tokens of a subtree with ``i + 1`` nodes relative to its root; -inf where no
            tree has so many.
        sizes: ``[K, N]`` int64: of ``n`` nodes to be shared by the children from rank ``k`` on, how many the child ``k``
            gets (column ``n``; in column 0 none).
    """

    def __init__(self, law: Tensor, below: Tensor | None, count: int) -> None:
        """Share nodes among children whose own subtrees have the values ``below``; None: there are no children."""
        self.values = torch.full((count,), -math.inf, dtype=torch.float64)
        self.values[0] = 1.0
        self.sizes = torch.zeros((0, count), dtype=torch.int64)
        if below is None or count == 1:
            return
        rest = torch.full((count,), -math.inf, dtype=torch.float64)  # value of n nodes below the ranks that follow
        rest[0] = 0.0
        rows = []
        for p in law.flip(0):
            # Row n of `before`: what is left for the others, rest[n - s] for s = 1, 2, ..., -inf where s > n.
            padded = torch.cat((torch.full((count,), -math.inf, dtype=torch.float64), rest[:-1]))
            before = padded.unfold(0, count, 1)[:count].flip(1)
            gain = p * below if p > 0 else torch.where(below > -math.inf, 0.0, below)
            most, size = (before + gain).max(1)
            rows.append(torch.where(most > -math.inf, size + 1, 0))
            rest = most
            rest[0] = 0.0
            rows[-1][0] = 0
        self.sizes = torch.stack(rows[::-1]) if rows else self.sizes
        self.values[1:] = 1.0 + rest[1:]


def _plans(laws: Tensor | list[Tensor], deepest: int, count: int, every_depth: bool) -> list[tuple[int, list[_Level]]]:
    """``(depth, levels from the root down)`` for each bound of the depth that can be the best."""
    plans: list[tuple[int, list[_Level]]] = []
    nothing = torch.zeros(0, dtype=torch.float64)
    if isinstance(laws, list):
        for depth in range(deepest + 1) if every_depth else [deepest]:
            levels = [_Level(nothing, None, count)]
            for law in reversed(laws[:depth]):
                levels.insert(0, _Level(law, levels[0].values, count))
            plans.append((depth, levels))
        return plans
    levels = [_Level(nothing, None, count)]
    plans.append((0, levels))
    for depth in range(1, deepest + 1):  # the same law everywhere: a deeper tree has one more level on top
        levels = [_Level(laws, levels[0].values, count), *levels]
        if torch.equal(levels[0].values, levels[1].values):
            break  # no deeper tree is better, whatever its size
        plans.append((depth, levels))
    return plans


def _shape(levels: list[_Level], size: int, expected: float, rate: float) -> TreeShape:
    shape = TreeShape([], [], [], [], expected, rate)
    pending = [(-1, 0, 0, size)]  # parent, rank, depth and size of subtrees, the next one last
    while pending:
        parent, rank, depth, nodes = pending.pop()
        here = len(shape.parents)
        shape.parents.append(parent)
        shape.ranks.append(rank)
        shape.depths.append(depth)
        shape.ends.append(here + nodes)
        children, left = [], nodes - 1
        for k, sizes in enumerate(levels[depth].sizes):
            own = int(sizes[left])
            if not own:
                break
            children.append((here, k, depth + 1, own))
            left -= own
        pending += reversed(children)
    return shape


def _check_integer(name: str, value: int, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{_OP}: {name} must be an int, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{_OP}: {name} must be at least {low}, got {value}")


def _laws(acceptance: Sequence[float] | Sequence[Sequence[float]] | Tensor) -> Tensor | list[Tensor]:
    """One law for all depths, or a list of them."""
    try:
        table = torch.as_tensor(acceptance, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError):
        table = torch.zeros(())
    if table.dim() not in (1, 2):
        raise ValueError(f"{_OP}: acceptance must be numbers of shape [K] or [D, K], got {acceptance!r}")
    if not bool(((table >= 0) & (table <= 1)).all()):
        raise ValueError(f"{_OP}: acceptance must be between 0 and 1, got {acceptance!r}")
    total = float(table.sum(-1).max()) if table.numel() else 0.0
    if total > 1 + 1e-6:
        raise ValueError(f"{_OP}: acceptance must sum to at most 1 in each row, got {total}")
    return table if table.dim() == 1 else list(table)


def _times(cost: Callable[[int], float] | Sequence[float] | Tensor | None, count: int) -> Tensor:
    """Time of verifying 1, 2, ... nodes."""
    if cost is None:
        return torch.ones(count, dtype=torch.float64)
    if not callable(cost) and len(cost) < count:
        raise ValueError(f"{_OP}: cost must have at least {count} elements, got {len(cost)}")
    given = [float(cost(n)) for n in range(1, count + 1)] if callable(cost) else [float(c) for c in cost[:count]]
    if not all(0 < time < math.inf for time in given):
        raise ValueError(f"{_OP}: cost must be positive and finite, got {given}")
    return torch.tensor(given, dtype=torch.float64)
