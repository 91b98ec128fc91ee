"""A smaller model of the same tokenizer, decoding ahead of the target (Leviathan et al. 2023, arXiv 2211.17192)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..decoding.attention import PagedAttention, Rows
from ..decoding.batch import Batch
from ..decoding.cache import PagedCache, check_page_size
from ..decoding.prefill import prefill
from ..decoding.static_independent import StaticIndependent
from .protocol import RATIO_RULES, Proposal

if TYPE_CHECKING:
    from ..models import Transformer


class IndependentDrafter:
    """Drafts with a language model that has a cache of its own.

    How a draft is chosen depends on the rule that will judge it: under ``match`` with the target's own noise (a
    coupled draw, equal to the target's whenever the two laws are close), under ``rejection`` with noise of its own
    and handed over with its law, under ``greedy`` the best. Sampling settings are the request's.

    Of a text of ``n`` tokens the cache holds at most ``n - 1``. After a step it holds also drafts that were
    rejected: these are forgotten, and the accepted ones stay.

    A text can stop drafting early where the model is not sure (``min_confidence``, ``max_entropy``): it drafts no further
    in this step, and is verified with what it has. The stop looks at the law alone, so that no rule is biased by it.
    """

    def __init__(
        self,
        model: Transformer,
        ops: Any,
        *,
        temperature: float | None = None,
        min_confidence: float = 0.0,
        max_entropy: float = math.inf,
        page_size: int = 16,
        prefill_chunk: int = 32,
    ) -> None:
        """Make a drafter.

        Args:
            model: a model with the target's vocabulary, on the target's device.
            ops: the package of the ops, ``python_ref.ops`` or ``specdec_kernels``.
            temperature: of the drafts; None: that of each request. 0: always the best token, deterministic.
            min_confidence: drafting ends where the model's best token is less probable, 0 to 1; 0: never.
            max_entropy: drafting ends where the entropy of its law is larger, in nats; inf: never.
            page_size: tokens per page of its cache.
            prefill_chunk: prompt tokens per pass.

        Raises:
            ValueError: if the temperature or a bound is out of range.
        """
        if temperature is not None and not temperature >= 0:
            raise ValueError(f"IndependentDrafter: temperature must be at least 0, got {temperature}")
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"IndependentDrafter: min_confidence must be from 0 to 1, got {min_confidence}")
        if not max_entropy >= 0:
            raise ValueError(f"IndependentDrafter: max_entropy must be at least 0, got {max_entropy}")
        self.model, self.ops, self.temperature = model, ops, temperature
        self.min_confidence, self.max_entropy = min_confidence, max_entropy
        check_page_size("IndependentDrafter", page_size)
        self.page_size, self.prefill_chunk = page_size, prefill_chunk
        self.cache: PagedCache | None = None
        self._serials: list[int] = []
        self._known: list[int] = []  # tokens of the row's text that are in the cache

    def propose(self, batch: Batch, limits: Sequence[int], rule: str) -> Proposal:
        """Decode up to ``limits`` tokens ahead, all requests together."""
        cache = self._follow(batch)
        space = self.model.config.max_positions
        counts = [
            min(limit, max(space - len(text) + 1, 0)) if limit else 0
            for limit, text in zip(limits, batch.texts, strict=True)
        ]
        depth = max(counts)
        tokens = torch.full((batch.size, depth), -1, dtype=torch.int64, device=batch.device)
        rows = torch.full_like(tokens, -1)
        sampling, stops = self._sampling(batch, rule), self._stops(batch)
        laws: list[Tensor] = []
        drawn = 0
        for i in range(depth):
            live = [row for row, count in enumerate(counts) if count > i]
            if not live:
                break
            where = torch.tensor(live, device=batch.device)
            if i == 0:
                logits = self._catch_up(cache, batch, live)
            else:
                logits = self._advance(cache, batch, live, tokens[where, i - 1], i)
            positions = [len(batch.texts[row]) + i for row in live]
            depths = torch.full_like(where, i)
            drafts = self.ops.sample.draft(
                logits,
                sampling,
                torch.tensor(positions, device=batch.device),
                num=1,
                replacement=True,  # of one draft: the same law, and one block less to race
                requests=where,
                depths=depths,
                nodes=depths,  # a chain: node i has depth i
                coupled=rule == "match",
                **stops,
            )
            tokens[where, i] = drafts[:, 0]
            if stops:
                for row, token in zip(live, drafts[:, 0].tolist(), strict=True):
                    counts[row] = counts[row] if token >= 0 else i
            if rule in RATIO_RULES:
                laws.append(logits)
                rows[where, i] = torch.arange(drawn, drawn + len(live), device=batch.device)
                drawn += len(live)
        if not laws:
            return Proposal(tokens, counts)
        return Proposal(tokens, counts, torch.cat(laws), rows, sampling)

    def observe(self, batch: Batch, committed: Sequence[int]) -> None:
        """Forget rejected drafts and finished requests; read the prompts of new ones."""
        cache = self._follow(batch)
        for row in batch.live:
            text = batch.texts[row]
            self._known[row] = min(self._known[row], len(text) - 1)
            if self._known[row] == 0:
                self._read(cache, batch, row, len(text) - 1)

    def static(self, num_draft: int) -> StaticIndependent:
        """The same for a loop that never waits: :mod:`python_ref.decoding.overlapped`.

        Raises:
            ValueError: if it stops early: how long a draft is, is not known ahead.
        """
        if self._bounds():
            raise ValueError("OverlappedDecoder: drafter must not stop early, got min_confidence or max_entropy")
        return StaticIndependent(self, num_draft)

    def _follow(self, batch: Batch) -> PagedCache:
        """The cache, with the rows of requests that have left given back."""
        if self.cache is None or self.cache.rows < batch.size:
            weight = self.model.model.embed_tokens.weight
            self.cache = PagedCache(
                self.model.config,
                max(batch.size, 1),
                page_size=self.page_size,
                dtype=weight.dtype,
                device=weight.device,
            )
            self._serials = [-1] * self.cache.rows
            self._known = [0] * self.cache.rows
        idle = [-1] * (self.cache.rows - batch.size)
        for row, serial in enumerate(batch.serials + idle):
            if self._serials[row] != serial:
                self.cache.release(row)
                self._serials[row], self._known[row] = serial, 0
        return self.cache

    def _sampling(self, batch: Batch, rule: str) -> Any:
        temperature = 0.0 if rule == "greedy" else self.temperature
        if temperature is None:
            return batch.sampling
        same = torch.full_like(batch.sampling.temperature, temperature)
        return batch.sampling._replace(temperature=same)

    def _bounds(self) -> dict[str, float]:
        """The bounds that can end drafting."""
        bounds = {"min_confidence": (self.min_confidence, 0.0), "max_entropy": (self.max_entropy, math.inf)}
        return {name: bound for name, (bound, never) in bounds.items() if bound != never}

    def _stops(self, batch: Batch) -> dict[str, Tensor]:
        like = batch.sampling.temperature
        return {name: torch.full_like(like, bound) for name, bound in self._bounds().items()}

    def _read(self, cache: PagedCache, batch: Batch, row: int, length: int) -> None:
        """Bring the first ``length`` tokens of a text into the cache, as far as the model has positions."""
        known, length = self._known[row], min(length, self.model.config.max_positions)
        if known < length:
            unread = batch.texts[row][known:length]
            prefill(self.model, self.ops, cache, row, unread, known, self.prefill_chunk)
            self._known[row] = length

    def _catch_up(self, cache: PagedCache, batch: Batch, live: list[int]) -> Tensor:
        """Logits behind the root of each request, after whatever of its text is not in the cache yet."""
        contexts, counts, tokens, positions = [], [], [], []
        for row in live:
            text = batch.texts[row]
            if len(text) - self._known[row] > self.prefill_chunk:
                self._read(cache, batch, row, len(text) - 1)
            known = self._known[row]
            cache.reserve(row, len(text))
            contexts.append(known)
            counts.append(len(text) - known)
            tokens += text[known:]
            positions += range(known, len(text))
            self._known[row] = len(text)
        device = batch.device
        attend = PagedAttention(self.ops, cache, Rows.of_chains(live, contexts, counts, device))
        hidden = self.model(torch.tensor(tokens, device=device), torch.tensor(positions, device=device), attend)
        if len(live) < len(tokens):
            hidden = hidden[torch.tensor(counts, device=device).cumsum(0) - 1]
        return self.model.logits(hidden)

    def _advance(self, cache: PagedCache, batch: Batch, live: list[int], tokens: Tensor, step: int) -> Tensor:
        """Logits behind the draft that each request got last, the ``step``-th."""
        positions = [len(batch.texts[row]) + step - 1 for row in live]
        for row, position in zip(live, positions, strict=True):
            cache.reserve(row, position + 1)
            self._known[row] += 1
        rows = Rows.of_chains(live, positions, [1] * len(live), batch.device)
        hidden = self.model(tokens.clamp(min=0), rows.context_lens, PagedAttention(self.ops, cache, rows))
        return self.model.logits(hidden)
