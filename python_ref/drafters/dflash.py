"""DFlash: drafts a whole block in one pass of a small model that reads the target's hidden states; as a chain, or as a
tree over the same laws (DDTree).

Positions. Of a text of ``n`` tokens the root is at ``S = n - 1``, and the target has features of the tokens ``0`` to
``S - 1``. Their keys and values are the drafter's whole cache: they are written as soon as features come
(:func:`ops.kv.inject`), and stay. The block stands behind them, at ``S`` to ``S + block_size - 1``, and is written anew
in every step: nothing of it is kept, because the features that the target will have of these tokens are better::

    position     0 ... S - 1      S          S + 1    ...
    cache        of features      the block: root, mask, mask, ...
    predicts                      nothing    token S + 1 (draft 0), ...

Rows are laws of single positions, each given the text and not given the drafts before it. Their product is the law that
the best-first tree covers: :func:`ops.tree.best_first`.

Sources: Chen, Liang and Liu 2026, DFlash, arXiv 2602.06036, section 3; Ringel and Romano 2026, DDTree, arXiv 2604.12989.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..decoding.attention import Rows
from ..decoding.batch import Batch
from ..decoding.cache import PagedCache, check_page_size
from .protocol import Proposal
from .ranks import RankShares

if TYPE_CHECKING:
    from ..decoding.static_dflash import StaticDFlash
    from ..models.dflash import DFlash

#: Most nodes of a tree, its root included.
MOST_NODES = 1024
_MOST_RANKS = 64


class BlockAttention:
    """The ``attend`` of one pass over blocks: each row sees the context and what its layer lets it see of its block."""

    def __init__(self, ops: Any, cache: PagedCache, rows: Rows, causal: Sequence[bool], windows: Sequence[int]) -> None:
        """Prepare a pass.

        Args:
            ops: the package of the ops, ``python_ref.ops`` or ``specdec_kernels``.
            cache: keys and values of the drafter, the context's already there.
            rows: the blocks, as chains.
            causal: per layer, whether rows see only what is before them in the block.
            windows: per layer the positions that a row sees, its own included; 0: all.
        """
        self._ops, self._cache, self._causal, self._windows = ops, cache, causal, windows
        table = cache.table(rows.context_lens.shape[0]) if rows.table_rows is None else cache.block_table
        self._where = (table, rows.context_lens, rows.tree)
        self._options = {
            "query_nodes": rows.query_nodes,  # where blocks of others were left out
            "cu_queries": rows.cu_queries,
            "table_rows": rows.table_rows,
        }

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``[T, Hq, D]`` of a layer."""
        keys, values = self._cache.keys(layer), self._cache.values(layer)
        self._ops.kv.write(key, value, keys, values, *self._where, **self._options)
        out: Tensor = self._ops.attention.tree_attention(
            *(query, keys, values, *self._where),
            window=self._windows[layer],
            visibility="tree" if self._causal[layer] else "block",
            **self._options,
        )[0]
        return out


@dataclass
class _Row:
    """Of the request of a row, how many positions of its text have keys and values in the cache."""

    serial: int = -1
    known: int = 0


class DFlashDrafter:
    """Drafts blocks with a DFlash model.

    A chain (``nodes = 0``) holds the best token of each position. Under ``match`` it may be ``coupled`` instead: drawn
    with the target's own noise from the block's laws, which agrees with what the target will draw more often.

    A tree (``nodes > 1``) covers the most likely paths of the product of the laws, and is deterministic. With
    ``coupled``, where the temperature is not 0, the tokens of a position are ranked by the target's own noise, and the
    shares of accepted drafts so far say how much a rank is worth.

    Attributes:
        features: layers of the target that the model reads; the decoder gives them to :meth:`prime` and :meth:`absorb`.
        cache: keys and values, ``n - 1`` entries of a text of ``n`` tokens.
    """

    def __init__(
        self,
        model: DFlash,
        ops: Any,
        *,
        nodes: int = 0,
        ranks: int = 8,
        coupled: bool = True,
        page_size: int = 16,
    ) -> None:
        """Make a drafter.

        Args:
            model: the model of the target, on the target's device.
            ops: the package of the ops, ``python_ref.ops`` or ``specdec_kernels``.
            nodes: nodes of a tree, its root included; 0: a chain.
            ranks: most tokens that a tree has for one position behind the same node.
            coupled: whether drafts are drawn with the target's noise, under ``match`` and where temperature is not 0.
            page_size: tokens per page of its cache.

        Raises:
            ValueError: if a value is out of range.
        """
        for name, value, least, most in (("nodes", nodes, 0, MOST_NODES), ("ranks", ranks, 1, _MOST_RANKS)):
            if not least <= value <= most:
                raise ValueError(f"DFlashDrafter: {name} must be from {least} to {most}, got {value}")
        check_page_size("DFlashDrafter", page_size)
        self.model, self.ops, self.nodes, self.coupled, self.page_size = model, ops, nodes, coupled, page_size
        self.ranks = min(ranks, model.config.layer.vocab_size)
        self.features: tuple[int, ...] = model.features
        self.cache: PagedCache | None = None
        self._rows: list[_Row] = []
        self._norms = model.key_norms()
        self._angles = model.prepare().squeeze(2)
        self._shares = RankShares(model.block_size - 1, self.ranks)

    @property
    def is_tree(self) -> bool:
        """Whether it drafts trees."""
        return self.nodes > 1

    @property
    def most_drafts(self) -> int:
        """Drafts in a row that a block has."""
        return self.model.block_size - 1

    def propose(self, batch: Batch, limits: Sequence[int], rule: str) -> Proposal:
        """Draft up to ``limits`` tokens in a row, all requests together."""
        cache = self._follow(batch)
        counts = [self._count(batch, row, limit) for row, limit in enumerate(limits)]
        live = [row for row, count in enumerate(counts) if count]
        if not live:
            return Proposal(torch.full((batch.size, 0), -1, device=batch.device), counts)
        depth = max(counts)
        logits = self._block(cache, batch, live, depth)
        # Under other rules than `match` a draft that is drawn needs a law that the drafts before it are known to.
        coupled = self.coupled and rule == "match" and any(batch.requests[row].temperature for row in live)  # type: ignore[union-attr]
        if self.is_tree:
            return Proposal(tree=self._tree(batch, live, counts, logits, coupled))
        tokens = torch.full((batch.size, depth), -1, dtype=torch.int64, device=batch.device)
        best = self._drawn(batch, live, logits, 1)[..., 0] if coupled else logits.argmax(-1)
        tokens[torch.tensor(live, device=batch.device)] = best
        return Proposal(tokens, counts)

    def observe(self, batch: Batch, committed: Sequence[int]) -> None:
        """Forget requests that have left, and learn what ranks were worth."""
        self._follow(batch)
        self._shares.observe(batch.texts, batch.serials)

    def prime(self, batch: Batch, row: int, features: Tensor, start: int) -> None:
        """Take the features ``[n, F * hidden]`` of a prompt's tokens from ``start`` on into the cache."""
        self._inject(batch, [row], [start], [len(features)], features.unsqueeze(0))

    def absorb(self, batch: Batch, features: Tensor, num_tokens: Tensor) -> None:
        """Take the features ``[B, W, F * hidden]`` of what a step has committed: of row ``b`` the first ``num_tokens``."""
        counts = num_tokens.tolist()
        rows = [row for row, count in enumerate(counts) if count]
        if rows:
            mine = torch.tensor(rows, device=features.device)
            starts, widths = [len(batch.texts[row]) - 1 for row in rows], [counts[row] for row in rows]
            self._inject(batch, rows, starts, widths, features[mine, : max(widths)])

    def static(self, num_draft: int) -> StaticDFlash:
        """The same for a loop that never waits: :mod:`python_ref.decoding.overlapped`."""
        from ..decoding.static_dflash import StaticDFlash  # which needs this module

        return StaticDFlash(self, num_draft)

    def _follow(self, batch: Batch) -> PagedCache:
        """The cache, with the rows of requests that have left given back."""
        if self.cache is None or self.cache.rows < batch.size:
            weight = self.model.weight
            self.cache = PagedCache(
                self.model.config.layer,
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

    def _inject(self, batch: Batch, rows: list[int], starts: list[int], counts: list[int], features: Tensor) -> None:
        """Keys and values of ``features [len(rows), W, F * hidden]``, of which ``counts`` are valid, from ``starts`` on."""
        cache, model, device = self._follow(batch), self.model, batch.device
        width = features.shape[1]
        for i, (row, start, count) in enumerate(zip(rows, starts, counts, strict=True)):
            # What does not follow upon the known, or has no position, would leave a gap: no drafts from there on.
            counts[i] = min(count, model.max_positions - start) if self._rows[row].known == start else 0
            if counts[i] > 0:
                self._rows[row].known = start + counts[i]
                cache.reserve(row, start + counts[i])
        projected = model.project(model.fuse(features.flatten(0, 1)))

        def column(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        self.ops.kv.inject(
            projected.view(len(rows), width, *projected.shape[1:]),
            self._norms,
            self._angles,
            [cache.keys(i) for i in range(model.config.layer.num_layers)],
            [cache.values(i) for i in range(model.config.layer.num_layers)],
            cache.block_table,
            column(starts),
            column([max(count, 0) for count in counts]),
            eps=model.config.layer.norm_eps,
            table_rows=column(rows),
        )

    def _count(self, batch: Batch, row: int, limit: int) -> int:
        """How many tokens can be drafted: none for a text that is not known up to its root, or has no room for a block."""
        state, root = self._rows[row], len(batch.texts[row]) - 1
        if state.serial < 0 or state.known != root or root + self.model.block_size > self.model.max_positions:
            return 0
        return min(limit, self.most_drafts)

    def _block(self, cache: PagedCache, batch: Batch, live: list[int], depth: int) -> Tensor:
        """``[len(live), depth, V]``, logits of the positions behind the roots."""
        model, size, device = self.model, self.model.block_size, batch.device
        contexts = [len(batch.texts[row]) - 1 for row in live]
        for row, context in zip(live, contexts, strict=True):
            cache.reserve(row, context + size)
        ids = torch.full((len(live), size), model.config.mask_token_id, device=device)
        ids[:, 0] = torch.tensor([batch.texts[row][-1] for row in live], device=device)
        rows = Rows.of_chains(live, contexts, [size] * len(live), device)
        positions = rows.context_lens.unsqueeze(1) + torch.arange(size, device=device)
        attend = BlockAttention(self.ops, cache, rows, model.config.causal, model.config.windows)
        hidden = model(ids.flatten(), positions.flatten(), attend).view(len(live), size, -1)
        logits: Tensor = model.logits(hidden[:, 1 : 1 + depth].flatten(0, 1))
        return logits.view(len(live), depth, -1)

    def _drawn(self, batch: Batch, live: list[int], logits: Tensor, num: int) -> Tensor:
        """``[len(live), D, num]``, tokens by the target's own noise of each position, the likeliest first."""
        device, depth = batch.device, logits.shape[1]
        rows = torch.tensor(live, device=device).repeat_interleave(depth)
        depths = torch.arange(depth, device=device).repeat(len(live))
        roots = torch.tensor([len(batch.texts[row]) for row in live], device=device).repeat_interleave(depth)
        drafts: Tensor = self.ops.sample.draft(
            logits.flatten(0, 1),
            batch.sampling,
            roots + depths,
            num=num,
            requests=rows,
            depths=depths,
            nodes=depths,
            coupled=True,
        )
        return drafts.view(len(live), depth, num)

    def _tree(self, batch: Batch, live: list[int], counts: list[int], logits: Tensor, coupled: bool) -> Any:
        """The best paths behind the roots of all live requests."""
        device, depth = batch.device, logits.shape[1]
        roots = torch.full((batch.size,), -1, dtype=torch.int64, device=device)
        for row in batch.live:
            roots[row] = batch.texts[row][-1]
        values, best = logits.float().topk(self.ranks, dim=-1)
        scores = values - logits.float().logsumexp(-1, keepdim=True)
        if coupled:
            drawn = self._drawn(batch, live, logits, self.ranks)
            warm = torch.tensor([batch.requests[row].temperature > 0 for row in live], device=device)  # type: ignore[union-attr]
            worth = self._shares.log_shares().to(device)[:depth].expand_as(scores)
            scores = torch.where(warm[:, None, None], worth, scores)
            best = torch.where(warm[:, None, None], drawn, best)
            self._shares.expect(
                {
                    batch.serials[row]: (len(batch.texts[row]), drawn[i])
                    for i, row in enumerate(live)
                    if batch.requests[row].temperature > 0  # type: ignore[union-attr]
                }
            )
        limits = torch.tensor([counts[row] for row in live], device=device)
        absent = torch.arange(depth, device=device) >= limits[:, None]
        log_probs = torch.full((batch.size, depth, self.ranks), -torch.inf, device=device)
        ids = torch.full(log_probs.shape, -1, dtype=torch.int64, device=device)
        rows = torch.tensor(live, device=device)
        log_probs[rows] = scores.masked_fill(absent.unsqueeze(-1), -torch.inf)
        ids[rows] = best
        return self.ops.tree.best_first(roots, log_probs, ids, self.nodes)
