"""EAGLE-3: drafts by a head of one layer that goes on from the target's hidden states, as a chain or as a tree.

Pairs and positions. Entry ``i`` of the head's cache is the pair (hidden state of token ``i``, token ``i + 1``) at rotary
position ``i``; its output predicts token ``i + 2``. Of a text of ``n`` tokens, whose root is at ``n - 1``, the target has
seen all but the root: there are features of tokens ``0`` to ``n - 2``, so entries ``0`` to ``n - 2``, of which the last
one is fed with the root and predicts position ``n``, the first draft::

    entry            0       1      ...    n - 2        n - 1        n
    hidden state   of t_0   of t_1        of t_(n-2)   output of    output of
                                                       entry n-2    entry n-1
    token           t_1      t_2           the root     draft 0      draft 1
    predicts        t_2      t_3           draft 0      draft 1      draft 2

The entries from ``n - 1`` on are guesses upon guesses. Whatever verification says they are forgotten: the next step
writes these places anew, from the features that the target then has of what was accepted. The cache is never moved.

Sources: Li et al. 2025, EAGLE-3, arXiv 2503.01840; trees: Li et al. 2024, EAGLE-2, arXiv 2406.16858, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..decoding.attention import PagedAttention, Rows
from ..decoding.batch import Batch
from ..decoding.cache import PagedCache, check_page_size
from .eagle3_tree import MOST_NODES, Grower, most_levels
from .protocol import RATIO_RULES, Proposal

if TYPE_CHECKING:
    from ..decoding.static_eagle3 import StaticEagle3
    from ..models.eagle3 import Eagle3

# Wider trees have not levels enough: see `most_levels`.
_MOST_BEAMS = 32


@dataclass
class _Row:
    """What is known of the request of a row.

    ``known`` entries are in the cache for good; ``pending`` are the hidden states ``[m, H]`` of the tokens behind them,
    whose entries have not been computed.
    """

    serial: int = -1
    known: int = 0
    pending: list[Tensor] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        return sum(len(part) for part in self.pending)


class Eagle3Drafter:
    """Drafts with an EAGLE-3 head.

    A chain (``beams = 1``) is drawn as the rule wants it: under ``match`` with the target's own noise, under
    ``rejection`` with noise of its own and handed over with its law, under ``greedy`` the best.

    A tree (``beams > 1``) is deterministic, and so good for every rule. Level by level the ``beams`` best nodes of the
    last level get their ``beams`` best children each; of all of them the ``nodes - 1`` with the largest probability of
    their path are the tree. It has as many levels as the decoder asks for drafts in a row, but at most
    :func:`~python_ref.drafters.eagle3_tree.most_levels`: 16 of 16 beams, 4 of 32.

    Attributes:
        features: layers of the target that the head reads; the decoder gives them to :meth:`prime` and :meth:`absorb`.
        cache: keys and values of the head, ``n - 1`` entries of a text of ``n`` tokens.
    """

    def __init__(
        self,
        head: Eagle3,
        ops: Any,
        *,
        beams: int = 1,
        nodes: int = 32,
        temperature: float | None = None,
        page_size: int = 16,
    ) -> None:
        """Make a drafter.

        Args:
            head: the head of the target, on the target's device.
            ops: the package of the ops, ``python_ref.ops`` or ``specdec_kernels``.
            beams: 1: a chain. Else the width of a tree: nodes of a level that are followed, and children of each.
            nodes: nodes of a tree, its root included.
            temperature: of the drafts of a chain; None: that of each request. 0: always the best token, deterministic.
            page_size: tokens per page of its cache.

        Raises:
            ValueError: if a value is out of range.
        """
        if temperature is not None and not temperature >= 0:
            raise ValueError(f"Eagle3Drafter: temperature must be at least 0, got {temperature}")
        for name, value, most in (("beams", beams, _MOST_BEAMS), ("nodes", nodes, MOST_NODES)):
            if not 1 <= value <= most:
                raise ValueError(f"Eagle3Drafter: {name} must be from 1 to {most}, got {value}")
        self.head, self.ops, self.temperature = head, ops, temperature
        check_page_size("Eagle3Drafter", page_size)
        self.beams, self.nodes, self.page_size = beams, nodes, page_size
        self.features: tuple[int, ...] = head.features
        self.cache: PagedCache | None = None
        self._rows: list[_Row] = []
        self._to_target, self._to_draft = head.target_ids(), head.draft_ids()

    @property
    def is_tree(self) -> bool:
        """Whether it drafts trees."""
        return self.beams > 1

    def propose(self, batch: Batch, limits: Sequence[int], rule: str) -> Proposal:
        """Draft up to ``limits`` tokens in a row, all requests together."""
        cache = self._follow(batch)
        counts = [self._count(batch, row, limit) for row, limit in enumerate(limits)]
        live = [row for row, count in enumerate(counts) if count]
        hidden = self._catch_up(cache, batch, live) if live else None
        if self.is_tree:
            return Proposal(tree=self._tree(cache, batch, live, counts, hidden))
        return self._chain(cache, batch, live, counts, hidden, rule)

    def observe(self, batch: Batch, committed: Sequence[int]) -> None:
        """Forget requests that have left; texts are read where their hidden states arrive."""
        self._follow(batch)

    def prime(self, batch: Batch, row: int, features: Tensor, start: int) -> None:
        """Take the features ``[n, F * hidden]`` of a prompt's tokens from ``start`` on into the cache."""
        cache = self._follow(batch)
        self._keep({row: features})
        state = self._rows[row]
        # The last entry stays pending: its output begins the first draft.
        if state.waiting > 1:
            self._read(cache, batch, [row], [state.waiting - 1])

    def absorb(self, batch: Batch, features: Tensor, num_tokens: Tensor) -> None:
        """Take the features ``[B, W, F * hidden]`` of what a step has committed: of row ``b`` the first ``num_tokens``."""
        self._follow(batch)
        self._keep({row: features[row, :count] for row, count in enumerate(num_tokens.tolist()) if count})

    def static(self, num_draft: int) -> StaticEagle3:
        """The same for a loop that never waits: :mod:`python_ref.decoding.overlapped`."""
        from ..decoding.static_eagle3 import StaticEagle3, StaticEagle3Tree  # which need this package

        return (StaticEagle3Tree if self.is_tree else StaticEagle3)(self, num_draft)

    def _follow(self, batch: Batch) -> PagedCache:
        """The cache, with the rows of requests that have left given back."""
        if self.cache is None or self.cache.rows < batch.size:
            weight = self.head.weight
            self.cache = PagedCache(
                self.head.config.layer,
                max(batch.size, 1),
                page_size=self.page_size,
                dtype=weight.dtype,
                device=weight.device,
            )
            self._rows = [_Row() for _ in range(self.cache.rows)]
        idle = [-1] * (self.cache.rows - batch.size)
        for row, serial in enumerate(batch.serials + idle):
            if self._rows[row].serial != serial:
                self.cache.release(row)
                self._rows[row] = _Row(serial)
        return self.cache

    def _keep(self, features: dict[int, Tensor]) -> None:
        """Hidden states of the next tokens of some rows' texts; none beyond the head's positions."""
        parts = {}
        for row, part in features.items():
            state = self._rows[row]
            space = self.head.max_positions - state.known - state.waiting
            if space > 0:
                parts[row] = part[:space]
        if parts:
            fused = self.head.fuse(torch.cat(list(parts.values())))
            for row, part in zip(parts, fused.split([len(part) for part in parts.values()]), strict=True):
                self._rows[row].pending.append(part)

    def _count(self, batch: Batch, row: int, limit: int) -> int:
        """How many tokens in a row can be drafted: none for a text of whose last tokens there are no features."""
        state, last = self._rows[row], len(batch.texts[row]) - 2  # the entry that is fed with the root
        if state.serial < 0 or state.waiting == 0 or state.known + state.waiting != last + 1:
            return 0
        if self.is_tree:
            limit = min(limit, most_levels(self.beams))
        return min(limit, self.head.max_positions - last)

    def _read(self, cache: PagedCache, batch: Batch, rows: list[int], counts: list[int]) -> Tensor:
        """Compute the first ``counts`` pending entries of ``rows``; their outputs, row after row."""
        device = batch.device
        hidden, tokens, positions, contexts = [], [], [], []
        for row, count in zip(rows, counts, strict=True):
            state = self._rows[row]
            waiting = state.pending[0] if len(state.pending) == 1 else torch.cat(state.pending)
            first, end = state.known, state.known + count
            hidden.append(waiting[:count])
            state.pending = [waiting[count:]] if count < len(waiting) else []
            tokens += batch.texts[row][first + 1 : end + 1]
            positions += range(first, end)
            contexts.append(first)
            state.known = end
            cache.reserve(row, end)
        attend = PagedAttention(self.ops, cache, Rows.of_chains(rows, contexts, counts, device))
        joined = torch.cat(hidden)
        outputs: Tensor = self.head(
            joined, torch.tensor(tokens, device=device), torch.tensor(positions, device=device), attend
        )
        return outputs

    def _catch_up(self, cache: PagedCache, batch: Batch, live: list[int]) -> Tensor:
        """``[len(live), H]``, the output of the entry that is fed with the root."""
        counts = [self._rows[row].waiting for row in live]
        outputs = self._read(cache, batch, live, counts)
        if len(live) < len(outputs):
            outputs = outputs[torch.tensor(counts, device=batch.device).cumsum(0) - 1]
        return outputs

    def _chain(
        self, cache: PagedCache, batch: Batch, live: list[int], counts: list[int], hidden: Tensor | None, rule: str
    ) -> Proposal:
        """Token after token, each from the output of the one before."""
        depth, device = max(counts), batch.device
        tokens = torch.full((batch.size, depth), -1, dtype=torch.int64, device=device)
        rows = torch.full_like(tokens, -1)
        sampling = self._sampling(batch, rule)
        laws: list[Tensor] = []
        drawn = 0
        for i in range(depth):
            assert hidden is not None
            if i > 0:
                kept = [place for place, row in enumerate(live) if counts[row] > i]
                live = [live[place] for place in kept]
                hidden = hidden[torch.tensor(kept, device=device)]
                hidden = self._advance(cache, batch, live, hidden, tokens[torch.tensor(live, device=device), i - 1], i)
            logits, where = self.head.logits(hidden), torch.tensor(live, device=device)
            depths = torch.full_like(where, i)
            drafts = self.ops.sample.draft(
                logits,
                sampling,
                torch.tensor([len(batch.texts[row]) + i for row in live], device=device),
                num=1,
                replacement=True,  # of one draft: the same law, and one block less to race
                requests=where,
                depths=depths,
                nodes=depths,  # a chain: node i has depth i
                coupled=rule == "match",
                draft_to_target=self._to_target,
            )
            tokens[where, i] = drafts[:, 0]
            if rule in RATIO_RULES:
                laws.append(logits)
                rows[where, i] = torch.arange(drawn, drawn + len(live), device=device)
                drawn += len(live)
        if not laws:
            return Proposal(tokens, counts)
        return Proposal(tokens, counts, torch.cat(laws), rows, sampling, self._to_target, self._to_draft)

    def _advance(
        self, cache: PagedCache, batch: Batch, live: list[int], hidden: Tensor, tokens: Tensor, step: int
    ) -> Tensor:
        """The outputs of the entries that are fed with each request's newest draft, the ``step``-th."""
        positions = [len(batch.texts[row]) - 2 + step for row in live]
        for row, position in zip(live, positions, strict=True):
            cache.reserve(row, position + 1)
        rows = Rows.of_chains(live, positions, [1] * len(live), batch.device)
        outputs: Tensor = self.head(
            hidden, tokens.clamp(min=0), rows.context_lens, PagedAttention(self.ops, cache, rows)
        )
        return outputs

    def _sampling(self, batch: Batch, rule: str) -> Any:
        temperature = 0.0 if rule == "greedy" else self.temperature
        if temperature is None:
            return batch.sampling
        same = torch.full_like(batch.sampling.temperature, temperature)
        return batch.sampling._replace(temperature=same)

    def _tree(self, cache: PagedCache, batch: Batch, live: list[int], counts: list[int], hidden: Tensor | None) -> Any:
        """The best candidates of all levels, behind the roots of all live requests."""
        device, depth = batch.device, max(counts)
        roots = torch.full((batch.size,), -1, dtype=torch.int64, device=device)
        for row in batch.live:
            roots[row] = batch.texts[row][-1]
        if hidden is None:
            return self.ops.tree.from_chains(roots.unsqueeze(1), (roots >= 0).int())
        contexts = [len(batch.texts[row]) - 2 for row in live]
        for row, context in zip(live, contexts, strict=True):
            cache.reserve(row, context + 1 + (depth - 1) * self.beams)
        rows = torch.tensor(live, device=device)
        grower = Grower(self.head, self.ops, cache, rows, torch.tensor(contexts, device=device), self.beams)
        limits = torch.tensor([counts[row] for row in live], device=device)
        pool = grower.grow(hidden, limits, depth).spread(batch.size, rows)
        tree, _ = self.ops.tree.from_beams(roots, pool.tokens, pool.parents, pool.scores, self.nodes, max_depth=depth)
        return tree
