"""What the ranks of a position's drafts are worth, learned from what was accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class RankShares:
    """Per depth, how often the text went on with the draft of each rank.

    Drafts that were ranked by the target's noise have no probability of their own. Their ranks have one: counted where
    all tokens before were drafted as well, and smoothed, so that a rank that was never right is worth something.
    """

    def __init__(self, depth: int, ranks: int) -> None:
        """Begin with a guess: each rank half as good as the one before."""
        guess = 0.5 ** torch.arange(1, ranks + 1, dtype=torch.float64)
        self._right = 8 * guess.repeat(depth, 1)
        self._seen = torch.full((depth, 1), 8.0, dtype=torch.float64)
        self._expected: dict[int, tuple[int, Tensor]] = {}

    def log_shares(self) -> Tensor:
        """``[depth, ranks]`` float32, descending in the ranks."""
        shares: Tensor = (self._right / self._seen).clamp(1e-6, 1.0).cummin(1).values.log().float()
        return shares

    def expect(self, drafts: Mapping[int, tuple[int, Tensor]]) -> None:
        """Per serial of a request the length of its text, and ``[depth, ranks]`` drafts of the tokens behind it."""
        self._expected = dict(drafts)

    def observe(self, texts: Sequence[list[int]], serials: Sequence[int]) -> None:
        """Compare what has been expected with what the texts are now."""
        for text, serial in zip(texts, serials, strict=True):
            begin, drafts = self._expected.pop(serial, (len(text), None))
            if drafts is None:
                continue
            for depth, token in enumerate(text[begin : begin + len(drafts)]):
                hits = (drafts[depth] == token).double().cpu()
                self._right[depth] += hits
                self._seen[depth] += 1
                if not bool(hits.any()):
                    break
