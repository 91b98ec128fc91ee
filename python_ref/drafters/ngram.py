"""Prompt lookup: what followed when the last tokens stood in the text before (Saxena 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..decoding.batch import Batch
from ..decoding.static_ngram import StaticNgram
from .protocol import Proposal


class NgramDrafter:
    """Copies from the request's own text. Deterministic, without state, and as good as free."""

    def __init__(self, ops: Any, *, min_n: int = 1, max_n: int = 4) -> None:
        """Make a drafter.

        Args:
            ops: the package of the ops, ``python_ref.ops`` or ``specdec_kernels``.
            min_n: shortest suffix that is looked up, at least 1.
            max_n: longest suffix, which is tried first.

        Raises:
            ValueError: if ``1 <= min_n <= max_n`` does not hold.
        """
        if min_n < 1:
            raise ValueError(f"NgramDrafter: min_n must be at least 1, got {min_n}")
        if max_n < min_n:
            raise ValueError(f"NgramDrafter: max_n must be at least {min_n}, got {max_n}")
        self.ops, self.min_n, self.max_n = ops, min_n, max_n

    def propose(self, batch: Batch, limits: Sequence[int], rule: str) -> Proposal:
        """Look up the longest suffix of each text in what stands before it."""
        num = max(limits)
        if num == 0:
            empty = torch.empty((batch.size, 0), dtype=torch.int64, device=batch.device)
            return Proposal(empty, [0] * batch.size)
        history, lengths = batch.history()
        active = torch.tensor([limit > 0 for limit in limits], device=batch.device)
        tokens, counts = self.ops.draft.ngram_lookup(history, lengths, self.min_n, self.max_n, num, active=active)
        found = [min(n, limit) for n, limit in zip(counts.tolist(), limits, strict=True)]
        return Proposal(tokens, found)

    def observe(self, batch: Batch, committed: Sequence[int]) -> None:
        """The text is all there is to know."""

    def static(self, num_draft: int) -> StaticNgram:
        """The same for a loop that never waits: :mod:`python_ref.decoding.overlapped`."""
        return StaticNgram(self, num_draft)
