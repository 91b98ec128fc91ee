"""The tree family: builders of token trees, exports, and the planner of shapes.

Builders from parents, beams and log-probabilities are in :mod:`.tree_builders`, exports in :mod:`.tree_exports`,
``optimal`` in :mod:`.tree_shapes`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import MALFORMED, TokenTree
from . import checks
from .nodes import Nodes
from .tree_builders import best_first, from_beams, from_parents
from .tree_exports import to_dense_mask, to_links, to_packed_mask, to_paths
from .tree_shapes import optimal

__all__ = [
    "Nodes",
    "best_first",
    "from_beams",
    "from_chains",
    "from_parents",
    "optimal",
    "to_dense_mask",
    "to_links",
    "to_packed_mask",
    "to_paths",
]


def from_chains(tokens: Tensor, lengths: Tensor | None = None, *, out: Any = None) -> TokenTree:
    """Chains as trees: row ``i`` of a request has parent ``i - 1``, depth ``i``, end ``lengths[b]``.

    Args:
        tokens: ``[B, N]`` int32 or int64, the root first.
        lengths: ``[B]`` int32 or int64, live rows, the root included; 0 = idle. None: ``N``. Outside
            ``[0, N]`` the request is its root alone, and its status 8.
        out: a tree of the same shape to write into.

    Returns:
        A tree with ``cu_nodes[b] = b N``; rows after ``lengths[b]`` are padding: token -1,
        parent -1, depth 0, end 0.

    Raises:
        TypeError, ValueError: on a wrong dtype or shape.

    Deterministic; no host synchronisation.
    """
    op = "tree.from_chains"
    checks.tensor(op, "tokens", tokens, ("B", "N"))
    batch, width = tokens.shape
    checks.optional(op, "lengths", lengths, batch)
    device = tokens.device
    if lengths is None:
        live = torch.full((batch,), width, dtype=torch.int64, device=device)
    else:
        live = lengths.long()
    wrong = (live < 0) | (live > width)
    live = torch.where(wrong, min(1, width), live).unsqueeze(1)
    row = torch.arange(width, device=device).expand(batch, width)
    inside = row < live

    def flat(values: Tensor, padding: int) -> Tensor:
        return torch.where(inside, values, padding).reshape(-1).int()

    made = TokenTree(
        cu_nodes=(torch.arange(batch + 1, device=device) * width).int(),
        tokens=torch.where(inside, tokens, -1).reshape(-1),
        parents=flat(row - 1, -1),
        depths=flat(row, 0),
        ends=flat(live.expand(batch, width), 0),
        max_nodes=width,
        max_depth=max(width - 1, 0),
        status=wrong.int() * MALFORMED,
    )
    if out is None:
        return made
    for name in ("cu_nodes", "tokens", "parents", "depths", "ends", "status"):
        getattr(out, name).copy_(getattr(made, name))
    return out  # type: ignore[no-any-return]
