"""The drafter that copies from the text, in static form: see :mod:`python_ref.drafters.ngram`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .static_drafter import Drafts
from .step_state import Lanes, StepState

if TYPE_CHECKING:
    from ..drafters.ngram import NgramDrafter


class StaticNgram:
    """Copies from the text."""

    features: tuple[int, ...] = ()
    extent = 0

    def __init__(self, drafter: NgramDrafter, num_draft: int) -> None:
        """As ``drafter`` does, up to ``num_draft`` tokens."""
        self.ops, self.min_n, self.max_n = drafter.ops, drafter.min_n, drafter.max_n
        self.depth, self.width = num_draft, num_draft + 1

    def attach(self, state: StepState, *, greedy: bool, compact: bool) -> None:
        """Remember where the texts are."""
        self._state = state

    def join(self, row: int) -> None:
        """The text is all there is to know."""

    def prime(self, row: int, start: int, tokens: Tensor, features: Tensor | None) -> None:
        """The text is all there is to know."""

    def draft(self, lanes: Lanes) -> Drafts:
        """Look up the longest suffix of each text in what stands before it."""
        state = self._state
        asked = torch.zeros_like(state.lengths, dtype=torch.bool)
        asked[lanes.rows] = lanes.limits > 0
        tokens, counts = self.ops.draft.ngram_lookup(
            state.history, state.lengths, self.min_n, self.max_n, self.depth, active=asked
        )
        return Drafts(tokens[lanes.rows], counts[lanes.rows])

    def absorb(self, lanes: Lanes, features: Tensor | None, result: Any) -> None:
        """The text is all there is to know."""
