"""What the kernels of verify are given: a tree, the rows of the target and of the drafts, and what is known of them.

Host code only, as ``launch.py`` is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .launch import Blocks, Laws, Mask, Settings, blocks_of, find_laws, flags, mask_of, step


class Drafted(NamedTuple):
    """What the children of nodes were drawn from, as kernels take it."""

    arguments: tuple[Any, ...] = (
        *(None, 0, 0, 0, None, 0, *mask_of(None, None), None, 0, None, 0),
        *(*Settings().arguments(), None, None, None, None, None),
    )
    filtered: bool = False
    replacement: bool = False


#: All drafts are deterministic, or their law does not matter.
UNDRAWN = Drafted()


def find_drafts(
    tree: tuple[Tensor, ...],
    logits: Tensor,
    draft_logits: Tensor | None,
    drawn: Settings,
    rows: Tensor | None,
    mask: Mask,
    id_of: Tensor | None,
    column_of: Tensor | None,
    active: Tensor | None,
    *,
    replacement: bool,
) -> tuple[Blocks, Drafted]:
    """Find the laws of the drafts' rows; and how rows are cut, those of the target as well.

    Args:
        tree: ``cu_nodes``, ``tokens``, ``parents``, ``depths``, ``ends``.
        logits: of the target.
        draft_logits: what the children were drawn from, if they were.
        drawn: settings of the draws.
        rows: row of each node's children.
        mask: ids that could be drawn.
        id_of: the target's id of each draft id.
        column_of: its inverse.
        active: requests at work.
        replacement: whether siblings were drawn with replacement.
    """
    vocab = logits.shape[1]
    if draft_logits is None:
        return blocks_of(vocab), Drafted(replacement=replacement)
    blocks = blocks_of(max(vocab, draft_logits.shape[1]))
    laws = find_laws(
        draft_logits, tree[1].shape[0], blocks, mask, drawn, batch=tree[0].shape[0] - 1, entries=vocab, rows=rows,
        id_of=id_of, column_of=column_of, tree=tree, active=active, of_children=True,
    )  # fmt: skip
    arguments = (
        *(draft_logits, *draft_logits.shape, step(draft_logits), rows, step(rows), *mask),
        *(id_of, step(id_of), column_of, step(column_of), *drawn.arguments(), *laws[:3], *laws[4:]),
    )
    return blocks, Drafted(arguments, drawn.filtered, replacement)


def inputs(
    tree: tuple[Tensor, ...],
    max_depth: int,
    logits: Tensor,
    settings: Settings,
    rows: Tensor | None,
    mask: Mask,
    laws: Laws,
    drafted: Drafted,
    active: Tensor | None,
    max_tokens: Tensor | None,
    blocks: Blocks,
) -> tuple[Any, ...]:
    """The arguments with which the kernels of verify begin."""
    return (
        *(item for column in tree for item in (column, step(column))),
        *(tree[1].shape[0], max_depth),
        *(logits, logits.shape[0], logits.shape[1], step(logits), rows, step(rows), *mask),
        *(*settings.arguments(), *laws, *drafted.arguments),
        *(flags(active), step(active), max_tokens, step(max_tokens), blocks.number),
    )
