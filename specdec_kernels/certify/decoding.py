"""Many texts at a time, decoded step by step: drafts by ``sample.draft``, verified by the function under test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import sample, verify
from ..types import Sampling, TokenTree
from .models import Case, as_int64, packed, processed

#: Rules that ask for no law of the drafts.
UNDRAFTED = ("match", "threshold", "typical", "synthetic")

#: Floats of drafters' rows that are gathered at a time.
ROWS_AT_ONCE = 1 << 25


class Step(NamedTuple):
    """One step of many texts: what a verifier is given. Every request has a tree of the same shape.

    Attributes:
        case: the decoding that it belongs to.
        tree: the drafts; ``T = B N`` nodes, ``N`` of each request.
        logits: ``[S, V]`` float32, the target's laws.
        draft_logits: ``[S, V]`` float32, the drafter's.
        rows: ``[T]`` int64, row of both of each node: the target's law after it, and what its children were drawn from.
        sampling: settings of the target, ``[B]``, with a seed per request.
        draft_sampling: settings of the drafts.
        context_lens: ``[B]`` int64, committed tokens.
        allowed: ``[S, words]`` int32, the ids that the target may emit, a bit each, by ``rows``; None: all.
    """

    case: Case
    tree: TokenTree
    logits: Tensor
    draft_logits: Tensor
    rows: Tensor
    sampling: Sampling
    draft_sampling: Sampling
    context_lens: Tensor
    allowed: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """``[B, N]`` the tokens, the root first; -1 where the drafter had none."""
        return self.tree.tokens.view(-1, len(self.case.parents))

    def target_probs(self) -> Tensor:
        """``[B, N, V]`` float32, the target's processed law after each node."""
        return self._probs(self.logits, self.case.settings, self.case.allowed)

    def draft_probs(self) -> Tensor:
        """``[B, N, V]`` float32, the processed law that each node's children were drawn from."""
        allowed = self.case.allowed if self.case.drafts_allowed else None
        return self._probs(self.draft_logits, self.case.draft_settings, allowed)

    def _probs(self, logits: Tensor, settings: dict[str, Any], allowed: Tensor | None) -> Tensor:
        law = processed(logits, settings, allowed).float().to(logits.device)
        return law[self.rows].view(*self.tokens.shape, -1)


#: What is certified: ``verifier(step) -> (tokens [B, width], num_tokens [B])``; of a row of ``tokens`` the first
#: ``num_tokens`` were emitted, one or more.
Verifier = Callable[[Step], tuple[Tensor, Tensor]]


def fused(backend: str | None = None) -> Verifier:
    """The verifier of our own ops on a backend, by the case's rule."""

    def run(step: Step) -> tuple[Tensor, Tensor]:
        case, rows = step.case, step.rows
        law: dict[str, Any] = {} if step.allowed is None else {"allowed": step.allowed, "allowed_rows": rows}
        if case.rule == "sample":
            root = step.logits[step.rows.view(step.tokens.shape)[:, 0]]
            drawn = sample.sample(root, step.sampling, step.context_lens + 1, backend=backend, **law)
            return drawn.unsqueeze(1), torch.ones_like(drawn)
        if case.rule in UNDRAFTED:
            function = getattr(verify, case.rule)
            device = step.logits.device
            options = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in case.options.items()}
            options |= law | {"rows": rows, "backend": backend}
            result = function(step.tree, step.logits, step.sampling, step.context_lens, **options)
        else:
            result = verify.rejection(
                step.tree,
                step.logits,
                step.draft_logits,
                step.sampling,
                step.draft_sampling,
                step.context_lens,
                rule=case.rule,
                replacement=case.replacement,
                rows=rows,
                draft_rows=rows,
                draft_allowed_rows=rows if case.drafts_allowed else None,
                backend=backend,
                **law,
            )
        return result.tokens, result.num_tokens

    return run


class Decoding:
    """The steps of a case. Drafts come from ``sample.draft`` on a backend, verdicts from ``verifier``."""

    def __init__(self, case: Case, verifier: Verifier, backend: str | None = None, device: str = "cpu") -> None:
        self.case, self.verifier, self.backend, self.device = case, verifier, backend, torch.device(device)
        self.target, self.drafter = case.target.to(self.device), case.drafter.to(self.device)
        self.allowed = None if case.allowed is None else packed(case.allowed).to(self.device)
        self.depths, self.ends = case.depths, case.ends
        self._shapes: dict[int, tuple[Tensor, ...]] = {}

    @property
    def at_once(self) -> int:
        """Texts that are decoded together."""
        return max(64, min(20_000, ROWS_AT_ONCE // self.case.vocab))

    def sampling(self, seeds: Tensor, settings: dict[str, Any]) -> Sampling:
        """The same settings for all texts, and a seed for each."""
        made = Sampling.of(1, device=self.device, **settings)
        columns = {name: getattr(made, name).expand(seeds.numel()) for name in made._fields[:4]}
        return made._replace(**columns, seed=seeds)

    def draft(self, node: int, num: int, tokens: Tensor, lengths: Tensor, seeds: Tensor) -> Tensor:
        """Children of a node that holds ``tokens [B]``: ``[B, num]``."""
        depth, states = self.depths[node], tokens.clamp(min=0) % self.case.states
        law = {"allowed": self.allowed, "allowed_rows": states} if self.case.drafts_allowed else {}
        stops = {
            name: torch.full((tokens.numel(),), bound, device=self.device) for name, bound in self.case.stops.items()
        }
        return sample.draft(
            self.drafter[states],
            self.sampling(seeds, self.case.draft_settings),
            lengths + depth,
            num,
            self.case.replacement,
            depths=torch.full_like(tokens, depth),
            nodes=torch.full_like(tokens, node),
            coupled=self.case.coupled,
            top=num - 1 if self.case.rule == "greedy_plus_one" else 0,
            backend=self.backend,
            **law,
            **stops,
        )

    def grow(self, roots: Tensor, lengths: Tensor, seeds: Tensor) -> Tensor:
        """The tokens of all nodes: ``[B, N]``."""
        nodes = [roots] + [roots] * (len(self.case.parents) - 1)
        for node in range(len(nodes)):
            children = self.case.children(node)
            if children:
                drawn = self.draft(node, len(children), nodes[node], lengths, seeds)
                for child, tokens in zip(children, drawn.unbind(1), strict=True):
                    nodes[child] = torch.where(nodes[node] < 0, -1, tokens)
        return torch.stack(nodes, 1)

    def tree(self, tokens: Tensor) -> TokenTree:
        """The trees of ``tokens [B, N]``."""
        batch, width = tokens.shape
        if batch not in self._shapes:
            offsets = torch.arange(batch + 1, dtype=torch.int32, device=self.device) * width
            columns = (self.case.parents, self.depths, self.ends)
            made = [torch.tensor(column, dtype=torch.int32, device=self.device).repeat(batch) for column in columns]
            self._shapes = {batch: (offsets, *made)}
        offsets, parents, depths, ends = self._shapes[batch]
        return TokenTree(offsets, tokens.flatten(), parents, depths, ends, max_nodes=width, max_depth=max(self.depths))

    def verify(self, tokens: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """What a step emits: ``[B, width]``, and how many."""
        tree, rows = self.tree(tokens), tokens.flatten().clamp(min=0) % self.case.states
        settings = self.sampling(seeds, self.case.settings)
        drawn = self.sampling(seeds, self.case.draft_settings)
        laws = (self.target, self.drafter, rows, settings, drawn)
        return self.verifier(Step(self.case, tree, *laws, lengths - 1, self.allowed))

    def step(self, roots: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Draft and verify."""
        return self.verify(self.grow(roots, lengths, seeds), lengths, seeds)


class Texts(NamedTuple):
    """Decoded texts.

    Attributes:
        found: ``[outcomes ** length]`` int64, how often each came up.
        fewest: the fewest steps that a text took.
        accepted: drafts accepted in all steps.
        steps: steps in all.
    """

    found: Tensor
    fewest: int
    accepted: int
    steps: int


def decode(decoding: Decoding, seeds: Tensor) -> tuple[Tensor, int, int, int]:
    """Texts of some seeds: the number of each (as in ``Case.expected``), fewest steps, accepted drafts, steps."""
    case = decoding.case
    wide = case.length + 1 + max(decoding.depths) + 1
    text = torch.zeros((seeds.numel(), wide + 1), dtype=torch.int64, device=decoding.device)
    length = torch.ones(seeds.numel(), dtype=torch.int64, device=decoding.device)
    left = torch.arange(seeds.numel(), device=decoding.device)
    rounds = fewest = accepted = steps = 0
    while left.numel():
        known = length[left]
        tokens, num = decoding.step(text[left, known - 1], known, seeds[left])
        num = num.to(torch.int64)
        if not bool((num >= 1).all()):
            raise ValueError("certify: a verifier must emit at least one token per request and step, got none")
        for i in range(min(tokens.shape[1], wide - case.length)):
            there = torch.where(i < num, known + i, wide)  # the last column takes what is nobody's
            text[left, there] = tokens[:, i].to(torch.int64)
        length[left] = known + num
        rounds += 1
        steps += left.numel()
        accepted += int(num.sum()) - left.numel()
        done = length[left] > case.length
        fewest = fewest or rounds * bool(done.any())
        left = left[~done]
    emitted = text[:, 1 : case.length + 1]
    if not bool(((emitted >= 0) & (emitted < case.vocab)).all()):
        raise ValueError(f"certify: emitted tokens must be in [0, {case.vocab}), got others")
    outcome = emitted if case.bins is None else case.bins.to(decoding.device)[emitted]
    numbers = torch.zeros_like(length)
    for column in outcome.unbind(1):
        numbers = numbers * case.outcomes + column
    return numbers.cpu(), fewest, accepted, steps


def texts(decoding: Decoding, trials: int, seed: int = 0) -> Texts:
    """Decode ``trials`` texts, each with a seed of its own."""
    size = decoding.case.outcomes**decoding.case.length
    found, fewest, accepted, steps = torch.zeros(size, dtype=torch.int64), [], 0, 0
    for first in range(0, trials, decoding.at_once):
        last = min(first + decoding.at_once, trials)
        seeds = torch.arange(first, last, device=decoding.device) * 7 - 10**6 + as_int64(seed * 1_000_003)
        numbers, least, more, taken = decode(decoding, seeds)
        found += torch.bincount(numbers, minlength=size)
        fewest.append(least)
        accepted, steps = accepted + more, steps + taken
    return Texts(found, min(fewest), accepted, steps)
