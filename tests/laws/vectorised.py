"""The rule ``token`` of ``verify.rejection`` once more, for all trials of a batch at a time, with handles for bugs.

Vocabularies of up to four ids: one block, one counter for all ids of a race. Every method is a place where an
implementation can go wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from python_ref.ops.philox import COIN, RESIDUAL, exponential, philox

from .texts import Case, Decoding, table_law


class Rule(Decoding):
    """Drafts come from the fused op, with the noise of the contract; the verdict is computed here."""

    def __init__(self, case: Case, backend: str = "cpu") -> None:
        super().__init__(case, backend)
        assert case.vocab <= 4
        self.p = table_law(case.target, case.settings)
        self.q = table_law(case.drafter, case.draft_settings)

    def words(self, seeds: Tensor, position: Tensor, stream: int, depth: int, node: int) -> tuple[Tensor, ...]:
        word = 2**32 - 1
        counter = (torch.zeros_like(seeds), position & word, stream | depth << 8, node << 8)
        return philox(counter, (seeds & word, seeds >> 32 & word))

    def coin(self, seeds: Tensor, position: Tensor, depth: int, child: int) -> Tensor:
        return (self.words(seeds, position, COIN, depth, child)[0] + 0.5) * 2.0**-32

    def residual_noise(self, seeds: Tensor, position: Tensor, depth: int, node: int) -> Tensor:
        words = self.words(seeds, position, RESIDUAL, depth, node)
        return exponential(torch.stack(words[: self.case.vocab], 1))

    def accepts(self, p: Tensor, q: Tensor, u: Tensor) -> Tensor:
        return (p > 0) & ((p >= q) | (u * q < p))

    def residual(self, p: Tensor, q: Tensor) -> Tensor:
        left = (p - q).clamp(min=0)
        return left / left.sum(1, keepdim=True)

    def without(self, q: Tensor, tokens: Tensor) -> Tensor:
        left = q.scatter(1, tokens.unsqueeze(1), 0.0)
        return left / left.sum(1, keepdim=True)

    def present(self, tokens: Tensor, siblings: list[int], i: int) -> Tensor:
        """Whether the i-th sibling is looked at."""
        return tokens[:, siblings[i]] >= 0

    def verify(self, tokens: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        batch = tokens.shape[0]
        emitted = torch.full((batch, max(self.depths) + 1), -1)
        num = torch.zeros(batch, dtype=torch.int64)
        at = torch.zeros(batch, dtype=torch.int64)
        for node, depth in enumerate(self.depths):
            here = (at == node).nonzero().flatten()
            if not here.numel():
                continue
            children = self.case.children(node)
            mine, seed, position = tokens[here], seeds[here], lengths[here] + depth
            p, q = self.p[mine[:, node]], self.q[mine[:, node]]
            open_ = torch.ones(here.numel(), dtype=torch.bool)
            for i, child in enumerate(children):
                asked = open_ & self.present(mine, children, i)
                token = mine[:, child].clamp(min=0)
                has, drawn = (x.gather(1, token.unsqueeze(1)).squeeze(1) for x in (p, q))
                taken = asked & self.accepts(has, drawn, self.coin(seed, position, depth, child))
                emitted[here[taken], depth] = token[taken]
                at[here[taken]] = child
                open_ &= ~taken
                refused = (asked & ~taken).unsqueeze(1)
                self.rejected = token
                p = torch.where(refused, self.residual(p, q), p)
                if not self.case.replacement:
                    q = torch.where(refused, self.without(q, token), q)
            drawn = (self.residual_noise(seed, position, depth, node) / p).nan_to_num(torch.inf).argmin(1)
            emitted[here[open_], depth] = drawn[open_]
            at[here[open_]] = -1
            num[here] = depth + 1
        return emitted, num
