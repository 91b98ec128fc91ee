"""The drafts' side of ``verify.rejection`` and ``verify.expect``: what the children of each node were drawn from."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _validate
from ._schema import FILTER_ORDERS
from .types import Sampling

_NO_SETTINGS: tuple[Any, ...] = (None, None, None, None, 0)


class Drafts(NamedTuple):
    """The arguments, by their names in ``verify.rejection`` (without ``draft_``)."""

    logits: Tensor | None
    sampling: Sampling | None
    rows: Tensor | None
    to_target: Tensor | None
    from_target: Tensor | None
    allowed_rows: Tensor | None


def check_drafts(op: str, logits: Tensor, drafts: Drafts, batch: int, count: int) -> None:
    """Check all but the mask; without logits nothing else means anything."""
    if drafts.logits is None:
        return
    vocab, device = logits.shape[1], logits.device
    width: int | str = vocab
    if drafts.to_target is not None and drafts.from_target is not None:
        _validate.tensor(op, "draft_to_target", drafts.to_target, ("V_draft",), _validate.INDICES, device)
        _validate.tensor(op, "target_to_draft", drafts.from_target, (vocab,), _validate.INDICES, device)
        width = drafts.to_target.shape[0]
    elif drafts.to_target is not None or drafts.from_target is not None:
        missing = "draft_to_target" if drafts.to_target is None else "target_to_draft"
        raise ValueError(f"{op}: {missing} must be given together with its inverse, got None")
    _validate.rows(op, "draft_logits", drafts.logits, ("rows", width), device)
    if drafts.sampling is None:
        raise ValueError(f"{op}: draft_sampling must be given with draft_logits, got None")
    _validate.sampling(op, "draft_sampling", drafts.sampling, batch, device, needs_seed=False)
    _validate.node_rows(op, "draft_rows", drafts.rows, "draft_logits", drafts.logits, count)


def check_draft_mask(op: str, drafts: Drafts, allowed: Tensor | None, count: int, device: torch.device) -> None:
    """Check which rows of ``allowed`` masked the draws."""
    if drafts.allowed_rows is None:
        return
    if allowed is None:
        raise ValueError(f"{op}: allowed must be given with draft_allowed_rows, got None")
    _validate.tensor(op, "draft_allowed_rows", drafts.allowed_rows, (count,), _validate.INDICES, device)


def flat_drafts(
    drafts: Drafts, rows: Tensor | None, allowed: Tensor | None, allowed_rows: Tensor | None
) -> tuple[tuple[Any, ...], tuple[Tensor | None, ...]]:
    """The settings of the drafts, and all maps, in the order of the schema."""
    if drafts.logits is None:  # what belongs to it means nothing
        return _NO_SETTINGS, (rows, None, allowed, allowed_rows, drafts.allowed_rows, None, None)
    assert drafts.sampling is not None
    settings = (*drafts.sampling[:4], FILTER_ORDERS.index(drafts.sampling.filter_order))
    maps = (rows, drafts.rows, allowed, allowed_rows, drafts.allowed_rows, drafts.to_target, drafts.from_target)
    return settings, maps
