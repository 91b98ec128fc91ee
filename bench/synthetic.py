"""A text that is known beforehand, and drafts of it that are accepted as often as one asks for.

Random weights agree with nobody, and where rows of a product depend on how many there are (on a GPU), not even with themselves.
So the target gets a text to say: of each row of its logits, one is raised above all others, that of the token which the text has
next. And the drafter proposes what it would, at its own cost; then the tokens of its drafts are replaced: by those of the text,
up to a length that is drawn for each step, and by others behind it. Everything else is computed as always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
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
# A logit above all others, in every dtype.
_RAISED = 3e4


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


class Script:
    """The text: a token for each position."""

    def __init__(self, vocab_size: int, positions: int, device: torch.device) -> None:
        """Draw it."""
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randint(vocab_size, (positions + 1,), generator=generator)
        self.tokens: list[int] = drawn.tolist()
        self.on_device = drawn.to(device)
        self.vocab_size = vocab_size


class ScriptedTarget:
    """A target that says a text, at the cost of what it would have said."""

    def __init__(self, target: Any, script: Script) -> None:
        """Wrap a ``python_ref.models.Transformer``."""
        self.config, self.model = target.config, target.model
        self._target, self._script = target, script
        self._positions: Tensor | None = None

    def __call__(self, token_ids: Tensor, positions: Tensor, attend: Any, **options: Any) -> Any:
        """Hidden states of the target."""
        self._positions = positions
        return self._target(token_ids, positions, attend, **options)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the rows that the target was called with last; a row at position ``p`` decides token ``p + 1``."""
        logits: Tensor = self._target.logits(hidden)
        assert self._positions is not None
        return logits.scatter_(1, self._script.on_device[self._positions + 1].unsqueeze(1), _RAISED)


class _Replaced:
    """A module of which some names mean something else."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class SyntheticDrafter:
    """A drafter with drafts of a given acceptance.

    A best-first tree has the drafts as its spine, and beside them, from the root on, others that are never right. It is the
    drafter's own call that builds it, for other scores and tokens: a second tree would be work that no drafter has.

    Attributes:
        inner: the drafter that does the work.
        features: as it wants them.
    """

    def __init__(self, inner: Any, script: Script, alpha: float, num_draft: int) -> None:
        """Wrap a drafter, which is of no other use from then on.

        Args:
            inner: the drafter.
            script: what the target says.
            alpha: probability that a draft is accepted where the one before it was.
            num_draft: drafts in a row.
        """
        self.inner, self.features = inner, tuple(getattr(inner, "features", ()))
        self._script = script
        self._lengths = Lengths(alpha, num_draft)
        self._tokens = torch.empty((0, 0), dtype=torch.int64)
        if getattr(inner, "is_tree", False):
            tree = inner.ops.tree
            inner.ops = _Replaced(
                inner.ops, tree=_Replaced(tree, best_first=partial(self._best_first, tree.best_first))
            )
        if self.features:
            self.prime, self.absorb = inner.prime, inner.absorb

    def propose(self, batch: Batch, limits: Sequence[int], rule: str) -> Proposal:
        """What the drafter proposes, with other tokens."""
        depth = max(limits, default=0)
        tokens = torch.full((batch.size, depth), -1, dtype=torch.int64)
        for row in batch.live:
            tokens[row, : limits[row]] = torch.tensor(self._row(batch, row, limits[row]), dtype=torch.int64)
        self._tokens = tokens.to(batch.device)
        proposal: Proposal = self.inner.propose(batch, limits, rule)
        return Proposal(self._tokens, list(limits)) if proposal.tree is None else proposal

    def observe(self, batch: Batch, committed: Sequence[int]) -> None:
        """Pass it on."""
        self.inner.observe(batch, committed)

    def _row(self, batch: Batch, row: int, limit: int) -> list[int]:
        """Drafts of a request: what comes next, up to the length of this step; then what does not come next."""
        start, vocab = len(batch.texts[row]), self._script.vocab_size
        coming = self._script.tokens[start : start + limit]
        right = self._lengths.next()
        return [token if i < right else (token + 1) % vocab for i, token in enumerate(coming)]

    def _best_first(self, build: Callable[..., Any], roots: Tensor, log_probs: Tensor, ids: Tensor, nodes: int) -> Any:
        """``tree.best_first`` with the drafts as the spine, as deep as the drafter has laws."""
        depth, ranks = log_probs.shape[1:]
        # Ranks differ by 2, and a wrong draft is the right one plus 1: no rank but the first is ever right.
        steps = 2 * torch.arange(ranks, device=ids.device)
        others = (self._tokens[:, :depth].unsqueeze(-1) + steps) % self._script.vocab_size
        scores = torch.full_like(log_probs, _SIBLING)
        scores[..., 0] = _SPINE
        return build(roots, scores.masked_fill(log_probs.isneginf(), -torch.inf), others, nodes)
