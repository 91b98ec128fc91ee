"""Tiny language models whose laws are known exactly: logits that depend on the last token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: Ids that stand out in large vocabularies.
_LIKELY = 24


def processed(logits: Tensor, settings: dict[str, Any], allowed: Tensor | None = None) -> Tensor:
    """The processed law of rows of logits, written down plainly: sort, cut, normalise.

    Args:
        logits: ``[S, V]``.
        settings: keywords of ``Sampling.of``, without a seed.
        allowed: ``[S, V]`` bool, the ids that each row may emit, at least one; None: all.

    Returns:
        ``[S, V]`` float64 probabilities.
    """
    known = {"temperature", "top_k", "top_p", "min_p", "filter_order"}
    if unknown := set(settings) - known:
        raise ValueError(f"certify: settings must be among {sorted(known)}, got {sorted(unknown)}")
    rounded = {
        name: float(torch.tensor(float(settings.get(name, off))))
        for name, off in (("temperature", 1.0), ("top_p", 1.0), ("min_p", 0.0))
    }
    top_k, order = int(settings.get("top_k", 0)), settings.get("filter_order", "top_k_first")
    # Equal logits stay in the order of their ids.
    values = logits.detach().cpu().double()
    if allowed is not None:
        values = values.masked_fill(~allowed, -torch.inf)
    values, ids = values.sort(dim=1, descending=True, stable=True)
    if not rounded["temperature"] > 0:
        law = torch.zeros_like(values)
        law[:, 0] = 1.0
    else:
        w = ((values - values[:, :1]) / rounded["temperature"]).exp()
        rank = torch.arange(w.shape[1]).expand_as(w)
        everything = torch.ones_like(w, dtype=torch.bool)

        def by_rank(kept: Tensor) -> Tensor:
            return kept & (rank < top_k) if top_k > 0 else kept

        def by_mass(kept: Tensor) -> Tensor:
            if not rounded["top_p"] < 1:
                return kept
            mass = torch.where(kept, w, 0.0)
            before = (mass.cumsum(1) - mass) / mass.sum(1, keepdim=True)
            return kept & ((before < rounded["top_p"]) | (rank == 0))

        def by_share(kept: Tensor) -> Tensor:
            return kept & ((w >= rounded["min_p"]) | (rank == 0)) if rounded["min_p"] > 0 else kept

        if order == "top_k_first":
            kept = by_share(by_mass(by_rank(everything)))
        elif order == "joint":
            kept = by_share(by_rank(everything) & by_mass(everything))
        else:
            kept = by_mass(by_rank(by_share(everything)))
        law = torch.where(kept, w, 0.0)
        law = law / law.sum(1, keepdim=True)
    return torch.zeros_like(law).scatter(1, ids, law)


@dataclass(frozen=True)
class Case:
    """One way to decode, whose texts have a known law.

    Attributes:
        target: ``[S, V]`` logits of the target after a token ``x`` with ``x % S == s``.
        drafter: ``[S, V]`` the drafter's.
        parents: the tree of every step in depth-first pre-order; without drafts: plain decoding.
        length: tokens of a text.
        rule: ``"sample"`` (plain decoding), ``"match"``, a lossy rule, or one of ``verify.rejection``.
        replacement: whether siblings are drawn with replacement.
        coupled: whether drafts share the target's noise; for ``match``.
        settings: of the target's law, keywords of ``Sampling.of``.
        draft_settings: of the drafter's.
        options: of a lossy rule; ``threshold`` without any is lossless.
        allowed: ``[S, V]`` bool, a grammar: the ids that the target may emit after each state; None: all.
        drafts_allowed: whether the drafter keeps to the grammar as well.
        stops: ``min_confidence`` and ``max_entropy`` of ``sample.draft``: where drafting ends.
        bins: ``[V]`` the outcome that each token counts as; None: every token is its own.
        name: what it is called.
    """

    target: Tensor
    drafter: Tensor
    parents: tuple[int, ...] = (-1, 0)
    length: int = 5
    rule: str = "token"
    replacement: bool = False
    coupled: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    draft_settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    allowed: Tensor | None = None
    drafts_allowed: bool = False
    stops: dict[str, float] = field(default_factory=dict)
    bins: Tensor | None = None
    name: str = ""

    @property
    def vocab(self) -> int:
        """Ids of the vocabulary."""
        return int(self.target.shape[1])

    @property
    def states(self) -> int:
        """Laws that the models have."""
        return int(self.target.shape[0])

    @property
    def outcomes(self) -> int:
        """Outcomes of one token."""
        return self.vocab if self.bins is None else int(self.bins.max()) + 1

    @property
    def depths(self) -> list[int]:
        """Depth of each node."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    @property
    def ends(self) -> list[int]:
        """Exclusive end of each node's subtree."""
        ends = [i + 1 for i in range(len(self.parents))]
        for node in range(len(ends) - 1, 0, -1):
            ends[self.parents[node]] = max(ends[self.parents[node]], ends[node])
        return ends

    def children(self, node: int) -> list[int]:
        """Children of a node, in order."""
        return [child for child, parent in enumerate(self.parents) if parent == node]

    def expected(self) -> Tensor:
        """The probability of each text of outcomes: ``[outcomes ** length]`` float64, the first token counts most."""
        law = processed(self.target, self.settings, self.allowed)
        bins = torch.arange(self.vocab) if self.bins is None else self.bins
        cells = bins * self.states + torch.arange(self.vocab) % self.states
        # step[s, outcome, next state]
        step = torch.zeros((self.states, self.outcomes * self.states), dtype=torch.float64)
        step.index_add_(1, cells, law)
        step = step.view(self.states, self.outcomes, self.states)
        joint = torch.zeros((1, self.states), dtype=torch.float64)
        joint[0, 0] = 1.0  # texts begin after token 0
        for _ in range(self.length):
            joint = torch.einsum("ps,son->pon", joint, step).flatten(0, 1)
        return joint.sum(1)


def random_models(states: int, vocab: int, seed: int, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """A target and a drafter that agrees with it as far as ``apart`` lets it: logits ``[states, vocab]``."""
    generator = _generator(seed)
    target = torch.randn(states, vocab, generator=generator)
    if vocab > 64:  # some likely ids among many unlikely ones, in all blocks of the vocabulary
        likely = torch.randperm(vocab, generator=generator)[:_LIKELY]
        target[:, likely] += 0.6 * torch.tensor(float(vocab)).log()
    return target, target + apart * torch.randn(states, vocab, generator=generator)


def random_grammar(states: int, vocab: int, seed: int) -> Tensor:
    """Which ids may follow each state: ``[states, vocab]`` bool, about three in five, at least one."""
    generator = _generator(seed)
    allowed = torch.rand(states, vocab, generator=generator) < 0.6
    allowed[torch.arange(states), torch.randint(vocab, (states,), generator=generator)] = True
    return allowed


def packed(allowed: Tensor) -> Tensor:
    """Bools ``[S, V]`` as the bit mask that the ops take: ``[S, ceil(V/32)]`` int32."""
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[1] % 32))
    words = (padded.view(len(allowed), -1, 32).long() << torch.arange(32)).sum(2)
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


def random_bins(target: Tensor, outcomes: int, seed: int) -> Tensor:
    """Ids shared out over outcomes: ``[V]``, the likely ones among ``target [S, V]`` at random, all others to outcome 0.

    So a law that is too flat or too sharp is seen, and one that is wrong among the likely ids as well.
    """
    vocab = target.shape[1]
    bins = torch.randint(outcomes, (vocab,), generator=_generator(seed))
    likely = target.softmax(1).mean(0).topk(min(vocab, _LIKELY)).indices
    return torch.zeros_like(bins).scatter(0, likely, bins[likely])


def as_int64(seed: int) -> int:
    """A seed of any size as tensors hold it: its low 64 bits, as the ops read it."""
    return (seed + 2**63) % 2**64 - 2**63


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(as_int64(seed))
