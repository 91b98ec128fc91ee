"""The laws that the children of each node were drawn from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import MALFORMED, NAN
from . import checks, law
from .law import Settings
from .mass import Mass
from .walk import Walk


class Drafts:
    """The drafts' side of ``verify.rejection``; the arguments are those of that function."""

    def __init__(
        self,
        logits: Tensor,
        sampling: Any,
        allowed: Tensor | None,
        rows: Tensor | None,
        draft_to_target: Tensor | None,
        target_to_draft: Tensor | None,
        allowed_rows: Tensor | None,
    ) -> None:
        self.logits, self.rows = logits, rows
        self.allowed, self.allowed_rows = allowed, allowed_rows
        self.settings: list[Settings] = law.all_settings(sampling)
        self.column: Tensor | None = None
        if draft_to_target is not None and target_to_draft is not None:
            column = target_to_draft.detach().cpu().long()
            inside = (column >= 0) & (column < logits.shape[1])
            self.column = torch.where(inside, column, 0)
            back = draft_to_target.detach().cpu().long()[self.column]
            self.exists = inside & (back == torch.arange(column.numel()))

    def sampled(self, walk: Walk, node: int) -> bool:
        """Whether the children of a node were drawn at random."""
        if self.settings[walk.request].greedy:
            return False
        return self.rows is None or int(self.rows[walk.nodes.first + node]) != -1

    def law(self, walk: Walk, node: int) -> Mass | None:
        """The processed law of the children over target ids; None if its row is out of range."""
        owner = walk.nodes.first + node
        index = owner if self.rows is None else int(self.rows[owner])
        if not 0 <= index < self.logits.shape[0]:
            walk.status |= MALFORMED
            return None
        row = law.read_row(self.logits[index])
        walk.status |= NAN * row.has_nan
        values = row.logits
        if self.column is not None:
            values = values[self.column].masked_fill(~self.exists, -torch.inf)
        if self.allowed_rows is not None:
            mask = law.allowed_mask(self.allowed, self.allowed_rows, owner, values.numel())
            values = values if mask is None else values.masked_fill(~mask, -torch.inf)
        return law.weights(values, self.settings[walk.request]).normalised()


def laws(drafts: Drafts | None, walk: Walk, node: int) -> tuple[Mass | None, list[int]]:
    """What the children of a node were drawn from (None: they are deterministic), and those that count: none where the
    law's row is out of range."""
    children = walk.children(node)
    if not children or drafts is None or not drafts.sampled(walk, node):
        return None, children
    found = drafts.law(walk, node)
    return found, children if found is not None else []


def check(
    op: str,
    logits: Tensor,
    draft_logits: Tensor,
    draft_sampling: Any,
    maps: tuple[Tensor | None, ...],
    allowed: Tensor | None,
    batch: int,
    count: int,
) -> None:
    """Check the drafts' side of the arguments."""
    rows, to_target, to_draft, allowed_rows = maps
    vocab = columns = int(logits.shape[1])
    if (to_target is None) != (to_draft is None):
        missing = "draft_to_target" if to_target is None else "target_to_draft"
        raise ValueError(f"{op}: {missing} must be given together with its inverse, got None")
    if to_target is not None:
        checks.tensor(op, "draft_to_target", to_target, ("V_draft",))
        checks.tensor(op, "target_to_draft", to_draft, (vocab,))
        columns = int(to_target.shape[0])
    checks.logits(op, "draft_logits", draft_logits, columns)
    if draft_sampling is None:
        raise ValueError(f"{op}: draft_sampling must be given with draft_logits, got None")
    checks.sampling(op, "draft_sampling", draft_sampling, batch, needs_seed=False)
    checks.rows(op, "draft_rows", rows, "draft_logits", draft_logits.shape[0], count)
    if allowed_rows is not None and allowed is None:
        raise ValueError(f"{op}: allowed must be given with draft_allowed_rows, got None")
    checks.optional(op, "draft_allowed_rows", allowed_rows, count)
