"""DFlash drafters in static form; what a block and the drafter's cache are: :mod:`python_ref.drafters.dflash`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..drafters.dflash import BlockAttention
from ..drafters.ranks import RankShares
from .static_drafter import Drafts
from .static_rows import StaticRows, run
from .step_state import Lanes, StepState

if TYPE_CHECKING:
    from ..drafters.dflash import DFlashDrafter


class StaticDFlash:
    """Drafts a block in one pass, as a chain or as the best-first tree over its laws.

    Ranks of drafts that the target's noise has chosen are worth what they are to begin with: nothing is learned here.
    """

    def __init__(self, drafter: DFlashDrafter, num_draft: int) -> None:
        """As ``drafter`` does, with ``num_draft`` tokens in a row; the page size is that of the loop."""
        self.model, self.ops, self.coupled = drafter.model, drafter.ops, drafter.coupled
        self.nodes, self.ranks = drafter.nodes, drafter.ranks
        self.features: tuple[int, ...] = drafter.features
        self.depth = min(num_draft, self.model.block_size - 1)
        self.width = self.nodes if self.nodes > 1 else self.depth + 1
        self.extent = max(self.model.block_size, self.width)

    def attach(self, state: StepState, *, greedy: bool, compact: bool) -> None:
        """Make the cache."""
        self._state, self._compact = state, compact
        self.coupled = self.coupled and not greedy
        layer, model = self.model.config.layer, self.model
        self.cache = state.cache(layer, model.weight.dtype)
        self._norms, self._angles = model.key_norms(), model.prepare().squeeze(2)
        self._known = torch.zeros(state.idle + 1, dtype=torch.bool, device=state.device)
        self._worth = RankShares(model.block_size - 1, self.ranks).log_shares().to(state.device)[: self.depth]

    def join(self, row: int) -> None:
        """A text of one token is known up to its root."""
        self._known[row].fill_(True)

    def prime(self, row: int, start: int, tokens: Tensor, features: Tensor | None) -> None:
        """Take the features of a piece of a prompt into the cache."""
        assert features is not None
        device = self._state.device
        count = max(min(len(tokens), self.model.max_positions - start), 0)
        counts = torch.full((1,), count, dtype=torch.int32, device=device)
        self._inject(
            features.unsqueeze(0),
            torch.full_like(counts, start),
            counts,
            torch.full_like(counts, row, dtype=torch.int64),
        )
        if count < len(tokens):
            self._known[row].fill_(False)

    def draft(self, lanes: Lanes) -> Drafts:
        """One pass over the blocks of all lanes."""
        model, size, space = self.model, self.model.block_size, self.model.max_positions
        fits = lanes.active & self._known[lanes.rows] & (lanes.contexts + size <= space)
        # Not by `draft.block`: it goes from what a step has emitted to the block behind it, and of a first step there is none.
        ids = torch.full((len(lanes.rows), size), model.config.mask_token_id, device=lanes.roots.device)
        ids[:, 0] = lanes.roots.clamp(min=0)
        tree = self.ops.tree.from_chains(ids, fits.int() * size)
        chosen = StaticRows.of(tree, lanes.contexts, lanes.rows, self._compact)
        attend = BlockAttention(self.ops, self.cache, chosen.rows, model.config.causal, model.config.windows)
        outputs = run(lambda *columns: model(*columns, attend), tree, (ids.flatten(),), lanes.contexts, space, chosen)
        hidden = chosen.spread(outputs, ids.numel()).view(len(ids), size, -1)[:, 1 : 1 + self.depth]
        logits = model.logits(hidden.flatten(0, 1)).view(len(ids), self.depth, -1)
        counts = torch.where(fits, torch.full_like(lanes.lengths, self.depth), 0)
        if self.nodes > 1:
            return Drafts(tree=self._tree(lanes, logits, torch.minimum(counts, lanes.limits)))
        return Drafts(self._drawn(lanes, logits, 1)[..., 0] if self.coupled else logits.argmax(-1), counts)

    def absorb(self, lanes: Lanes, features: Tensor | None, result: Any) -> None:
        """Take the features of what a step has committed into the cache."""
        assert features is not None
        num = result.num_tokens
        counts = torch.minimum(num.long(), (self.model.max_positions - lanes.contexts).clamp(min=0)).int()
        self._inject(features, lanes.contexts, counts, lanes.rows)
        self._known[lanes.rows] = self._known[lanes.rows] & (counts == num)

    def _inject(self, features: Tensor, contexts: Tensor, counts: Tensor, rows: Tensor) -> None:
        model = self.model
        projected = model.project(model.fuse(features.flatten(0, 1)))
        layers = range(model.config.layer.num_layers)
        self.ops.kv.inject(
            projected.unflatten(0, features.shape[:2]),
            self._norms,
            self._angles,
            [self.cache.keys(i) for i in layers],
            [self.cache.values(i) for i in layers],
            self.cache.block_table,
            contexts,
            counts,
            eps=model.config.layer.norm_eps,
            table_rows=rows,
        )

    def _drawn(self, lanes: Lanes, logits: Tensor, num: int) -> Tensor:
        """``[B, depth, num]``, tokens by the target's own noise of each position, the likeliest first."""
        depths = torch.arange(self.depth, device=logits.device).repeat(len(logits))
        requests = torch.arange(len(logits), device=logits.device).repeat_interleave(self.depth)
        drafts: Tensor = self.ops.sample.draft(
            logits.flatten(0, 1),
            lanes.sampling,
            lanes.lengths.repeat_interleave(self.depth) + depths,
            num=num,
            requests=requests,
            depths=depths,
            nodes=depths,
            coupled=True,
        )
        return drafts.view(len(logits), self.depth, num)

    def _tree(self, lanes: Lanes, logits: Tensor, counts: Tensor) -> Any:
        values, ids = logits.float().topk(self.ranks, dim=-1)
        scores = values - logits.float().logsumexp(-1, keepdim=True)
        if self.coupled:
            warm = (lanes.sampling.temperature > 0)[:, None, None]
            scores = torch.where(warm, self._worth, scores)
            ids = torch.where(warm, self._drawn(lanes, logits, self.ranks), ids)
        absent = torch.arange(self.depth, device=logits.device) >= counts[:, None]
        scores = scores.masked_fill(absent.unsqueeze(-1), -torch.inf)
        return self.ops.tree.best_first(lanes.roots, scores, ids, self.nodes)
