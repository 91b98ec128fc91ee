"""Drafts that are accepted as often as one asks for, behind a drafter that does all its work.

Random weights agree with nobody. So the drafter proposes what it would, at its own cost, and then the tokens of its
drafts are replaced: by those that plain decoding is known to emit, up to a length that is drawn for each step, and by
others behind it. Target, cache and verification know nothing of it, and the text stays that of plain decoding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from python_ref.decoding.batch import Batch
from python_ref.drafters import Proposal

# Steps of the bisection: more than the bits of a double.
_HALVINGS = 60
# Multiples of the golden ratio fill the unit interval evenly, however many there are.
_GOLDEN = (math.sqrt(5) - 1) / 2
# Log-probabilities of the drafts and of what stands beside them in a tree: 64 drafts in a row come before any other.
_SPINE, _SIBLING = -0.01, -1.0


def tokens_per_step(alpha: float, num_draft: int) -> float:
    """Mean tokens of a step: ``1 + alpha + ... + alpha^num_draft``, each draft accepted with probability ``alpha``.

    Source: Leviathan et al. 2023, arXiv 2211.17192, equation 1.
    """
    return sum(alpha**i for i in range(num_draft + 1))


def acceptance(tau: float, num_draft: int) -> float:
    """The ``alpha`` with which a step has ``tau`` tokens in the mean.

    Raises:
        ValueError: if no ``alpha`` gives so many, or so few.
    """
    if not 1 <= tau <= num_draft + 1:
        raise ValueError(f"acceptance: tau must be from 1 to {num_draft + 1} with {num_draft} drafts, got {tau:g}")
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_per_step(middle, num_draft) < tau else (low, middle)
    return high


class Lengths:
    """Accepted drafts of one step after another: the law of independent drafts, drawn evenly rather than at random.

    So the mean of a few dozen steps is that of the law, and runs differ by what the machine does alone.
    """

    def __init__(self, alpha: float, num_draft: int) -> None:
        self._alpha, self._most, self._step = alpha, num_draft, 0

    def next(self) -> int:
        """The length of the next step."""
        self._step += 1
        u = (self._step * _GOLDEN) % 1.0
        # P(length >= i) = alpha^i
        return next((i for i in range(self._most) if u >= self._alpha ** (i + 1)), self._most)


class SyntheticDrafter:
    """A drafter with drafts of a given acceptance.

    Attributes:
        inner: the drafter that does the work.
        features: as it wants them.
    """

    def __init__(
        self,
        inner: Any,
        ops: Any,
        texts: Mapping[tuple[int, ...], Sequence[int]],
        alpha: float,
        num_draft: int,
        *,
        vocab_size: int,
        nodes: int = 0,
        ranks: int = 8,
    ) -> None:
        """Wrap a drafter.

        Args:
            inner: the drafter.
            ops: the package of the ops.
            texts: of each prompt the whole text that plain decoding makes of it.
            alpha: probability that a draft is accepted where the one before it was.
            num_draft: drafts in a row.
            vocab_size: of the target.
            nodes: of trees, the root included; 0: chains. A tree has the drafts as its spine, and beside them, from the
                root on, others that are never right.
            ranks: tokens that a tree has for one position behind the same node.
        """
        self.inner, self.features = inner, tuple(getattr(inner, "features", ()))
        self._ops, self._texts, self._num_draft, self._vocab = ops, texts, num_draft, vocab_size
        self._nodes, self._ranks = nodes, ranks
        self._lengths = Lengths(alpha, num_draft)
        self._scores = torch.full((ranks,), _SIBLING)
        self._scores[0] = _SPINE
        if self.features:
            self.prime, self.absorb = inner.prime, inner.absorb

    def propose(self, batch: Batch, limits: Sequence[int], rule: str) -> Proposal:
        """What the drafter proposes, with other tokens."""
        self.inner.propose(batch, limits, rule)
        depth = max(limits, default=0)
        tokens = torch.full((batch.size, depth), -1, dtype=torch.int64)
        for row in batch.live:
            tokens[row, : limits[row]] = torch.tensor(self._row(batch, row, limits[row]), dtype=torch.int64)
        tokens = tokens.to(batch.device)
        if not self._nodes:
            return Proposal(tokens, list(limits))
        return Proposal(tree=self._tree(batch, limits, tokens))

    def observe(self, batch: Batch, committed: Sequence[int]) -> None:
        """Pass it on."""
        self.inner.observe(batch, committed)

    def _row(self, batch: Batch, row: int, limit: int) -> list[int]:
        """Drafts of a request: what comes next, up to the length of this step; then what does not come next."""
        request, text = batch.requests[row], batch.texts[row]
        assert request is not None
        coming = self._texts[tuple(request.prompt)][len(text) : len(text) + limit]
        right = self._lengths.next()
        return [token if i < right else (token + 1) % self._vocab for i, token in enumerate(coming)]

    def _tree(self, batch: Batch, limits: Sequence[int], tokens: Tensor) -> Any:
        """The best-first tree with the drafts as its spine."""
        device, depth = batch.device, tokens.shape[1]
        live = torch.tensor(batch.active, device=device)
        roots = torch.tensor([text[-1] if text else -1 for text in batch.texts], device=device)
        roots = torch.where(live, roots, -1)
        # Ranks differ by 2, and a wrong draft is the right one plus 1: no rank but the first is ever right.
        ids = (tokens.unsqueeze(-1) + 2 * torch.arange(self._ranks, device=device)) % self._vocab
        ids = torch.where(tokens.unsqueeze(-1) < 0, -1, ids)
        scores = self._scores.to(device).expand(batch.size, depth, self._ranks).clone()
        beyond = torch.arange(depth, device=device) >= torch.tensor(list(limits), device=device)[:, None]
        scores[beyond] = -torch.inf
        return self._ops.tree.best_first(roots, scores, ids, self._nodes)
