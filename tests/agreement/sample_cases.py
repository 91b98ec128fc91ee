"""Random calls of ``sample.sample`` and ``sample.draft``, with every option."""

from __future__ import annotations

from typing import Any

import torch

from .cases import FLOATS, INDICES, ORDERS, ROWS, Draw, mask, rows, sampling, stops, strided, vocabularies

VOCABULARIES = (1, 2, 3, 5, 9, 31, 33, 64)
POSITIONS = (0, 0, 0, 2**31 - 3, 2**32 - 2, -3, 2**40)


class Case:
    """One call: ``arguments`` for the fused op and for the oracle alike."""

    def __init__(
        self,
        op: str,
        seed: int,
        *,
        odd: bool = True,
        vocab: int | None = None,
        dtype: torch.dtype | None = None,
        count: int | None = None,
        kinds: tuple[str, ...] = ROWS,
    ) -> None:
        self.draw = draw = Draw(seed)
        self.vocab = vocab or draw.one(VOCABULARIES)
        self.count = draw.whole(0, 5) if count is None else count
        batch = self.count
        made = rows(draw, self.count, self.vocab, dtype or draw.one(FLOATS), kinds)
        positions = draw.whole_tensor(0, 500, (self.count,), draw.one(INDICES))
        if odd and draw.chance(0.2):
            positions = positions.long() + draw.one(POSITIONS)
        self.arguments: dict[str, Any] = {"logits": made, "positions": positions}
        if op == "sample_draft":
            batch = self._tree(batch, odd)
        self.arguments["sampling"] = sampling(draw, batch, odd, draw.one(ORDERS))
        if draw.chance(0.4):
            self.arguments["allowed"], index = mask(draw, self.count, self.vocab)
            if index is not None:
                self.arguments["allowed_rows"] = index
        if op == "sample_draft":
            self._drawing(odd)
        elif draw.chance(0.25):
            self.arguments["active"] = draw.whole_tensor(0, 1, (batch,)).bool()

    def _tree(self, batch: int, odd: bool) -> int:
        """Where in a tree the rows stand; the number of requests."""
        draw, arguments, count = self.draw, self.arguments, self.count
        if draw.chance(0.5):
            batch = draw.whole(1, 3)
            requests = draw.whole_tensor(-1 if odd else 0, batch - 1, (count,), draw.one(INDICES))
            if odd and count and draw.chance(0.3):
                requests[draw.whole(0, count - 1)] = draw.one((-2, batch, 2**31 - 1, -(2**31)))
            arguments["requests"] = requests
        for name in ("depths", "nodes"):
            if draw.chance(0.6):
                arguments[name] = draw.whole_tensor(0, draw.one((3, 3, 2**24 - 1)), (count,), draw.one(INDICES))
        return batch

    def _drawing(self, odd: bool) -> None:
        draw, arguments = self.draw, self.arguments
        arguments["num"] = draw.one((1, 1, 2, 3, 5, 8) + (70, 256) * odd)
        arguments["replacement"] = draw.chance(0.4)
        arguments["coupled"] = draw.chance(0.3)
        if draw.chance(0.3):
            arguments["top"] = draw.whole(1, arguments["num"])
        if draw.chance(0.3):
            arguments["draft_to_target"], _ = vocabularies(draw, self.vocab)
            columns = arguments["draft_to_target"].numel()
            arguments["logits"] = arguments["logits"][:, :columns].contiguous()
        batch = arguments["sampling"].temperature.numel()
        arguments |= stops(draw, batch, odd, 0.3)

    def strided(self) -> dict[str, Any]:
        """The arguments as views into larger buffers."""
        return {name: strided(self.draw, value) for name, value in self.arguments.items()}
