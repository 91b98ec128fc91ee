"""EAGLE-3 heads that draft in static form; what entries of the head's cache are: :mod:`python_ref.drafters.eagle3`.

After a step the entries of the ``num_tokens`` new positions are computed from the features of the accepted path, in one
pass over as many rows as a step can accept; those of rejected drafts are padding. The last output of a text, that of the
entry fed with the new root, is kept for the next step, which begins its drafts with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..drafters.eagle3_tree import Grower, most_levels
from .attention import PagedAttention
from .prompt import chunk_attention
from .static_drafter import Drafts
from .static_rows import StaticRows, run
from .step_state import Lanes, StepState

if TYPE_CHECKING:
    from ..drafters.eagle3 import Eagle3Drafter


class StaticEagle3:
    """Drafts a chain of fixed length.

    Attributes:
        hidden: ``[rows + 1, H]``, output of the entry that was fed with the root of each text.
        ready: ``[rows + 1]`` bool, whether there is one: not for a text of one token.
    """

    def __init__(self, drafter: Eagle3Drafter, num_draft: int) -> None:
        """As ``drafter`` does, with ``num_draft`` tokens; the page size is that of the loop."""
        self.head, self.ops, self.temperature = drafter.head, drafter.ops, drafter.temperature
        self.features: tuple[int, ...] = drafter.features
        self.depth, self.width = num_draft, num_draft + 1
        self.extent = self.width  # what the step has accepted
        self._to_target = self.head.target_ids()

    def attach(self, state: StepState, *, greedy: bool, compact: bool) -> None:
        """Make the cache, and the places of the last outputs."""
        self._state, self._greedy, self._compact = state, greedy, compact
        self.head.prepare()
        layer, weight = self.head.config.layer, self.head.weight
        self.cache = state.cache(layer, weight.dtype)
        rows = state.idle + 1
        self.hidden = torch.zeros((rows, layer.hidden_size), dtype=weight.dtype, device=state.device)
        self.ready = torch.zeros(rows, dtype=torch.bool, device=state.device)

    def join(self, row: int) -> None:
        """There is no output yet."""
        self.ready[row].fill_(False)

    def prime(self, row: int, start: int, tokens: Tensor, features: Tensor | None) -> None:
        """Compute the entries of a piece of a prompt."""
        assert features is not None
        count = min(len(tokens), self.head.max_positions - start)
        if count > 0:
            nexts = self._state.history[row, start + 1 : start + 1 + count]
            attend, positions = chunk_attention(self.ops, self.cache, row, start, count)
            outputs = self.head(self.head.fuse(features[:count]), nexts, positions, attend)
            self.hidden[row] = outputs[-1]
        self.ready[row].fill_(count == len(tokens))

    def draft(self, lanes: Lanes) -> Drafts:
        """Token after token, each from the output of the one before."""
        sampling = lanes.sampling
        temperature = 0.0 if self._greedy else self.temperature
        if temperature is not None:
            fixed = torch.full_like(sampling.temperature, temperature)
            sampling = sampling._replace(temperature=fixed)
        counts, hidden = self._counts(lanes), self.hidden[lanes.rows]
        drawn: list[Tensor] = []
        for i in range(self.depth):
            if i > 0:
                hidden = self._follow(lanes, hidden, drawn[-1], counts, i)
            depths = torch.full_like(lanes.lengths, i)
            drafts = self.ops.sample.draft(
                self.head.logits(hidden),
                sampling,
                lanes.lengths + i,
                num=1,
                replacement=True,  # of one draft: the same law, and one block less to race
                depths=depths,
                nodes=depths,  # a chain: node i has depth i
                coupled=not self._greedy,
                draft_to_target=self._to_target,
            )
            drawn.append(drafts[:, 0])
        return Drafts(torch.stack(drawn, dim=1), counts)

    def absorb(self, lanes: Lanes, features: Tensor | None, result: Any) -> None:
        """Compute the entries of the new positions."""
        assert features is not None
        space, num = self.head.max_positions, result.num_tokens.long()
        lengths = torch.minimum(num, (space - lanes.contexts).clamp(min=0))
        tokens = result.tokens.clamp(min=0)
        tree = self.ops.tree.from_chains(tokens, lengths)
        chosen = StaticRows.of(tree, lanes.contexts, lanes.rows, self._compact)
        attend = PagedAttention(self.ops, self.cache, chosen.rows)

        def entries(features: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
            outputs: Tensor = self.head(self.head.fuse(features), tokens, positions, attend)
            return outputs

        columns = (features.flatten(0, 1), tokens.flatten())
        outputs = chosen.spread(run(entries, tree, columns, lanes.contexts, space, chosen), tokens.numel())
        last = (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, outputs.shape[-1])
        self.hidden[lanes.rows] = outputs.view(*tokens.shape, -1).gather(1, last)[:, 0]
        self.ready[lanes.rows] = (num > 0) & (lengths == num)

    def _counts(self, lanes: Lanes) -> Tensor:
        """``[B]``, drafts in a row for which there are an output and positions."""
        counts = (self.head.max_positions + 2 - lanes.lengths).clamp(0, self.depth)
        return counts.masked_fill(~(self.ready[lanes.rows] & lanes.active), 0)

    def _follow(self, lanes: Lanes, hidden: Tensor, tokens: Tensor, counts: Tensor, step: int) -> Tensor:
        """The outputs ``[B, H]`` of the entries that are fed with the drafts that each lane got last."""
        contexts = (lanes.contexts + (step - 1)).clamp(min=0)
        ids = tokens.clamp(min=0)
        tree = self.ops.tree.from_chains(ids.unsqueeze(1), (counts > step).int())
        chosen = StaticRows.of(tree, contexts, lanes.rows, self._compact)
        attend = PagedAttention(self.ops, self.cache, chosen.rows)
        space = self.head.max_positions
        outputs = run(lambda *columns: self.head(*columns, attend), tree, (hidden, ids), contexts, space, chosen)
        return chosen.spread(outputs, len(ids))


class StaticEagle3Tree(StaticEagle3):
    """Drafts the best paths as a tree of a fixed number of nodes."""

    def __init__(self, drafter: Eagle3Drafter, num_draft: int) -> None:
        """As ``drafter`` does, with ``num_draft`` levels."""
        super().__init__(drafter, num_draft)
        self.beams = drafter.beams
        self.depth, self.width = min(num_draft, most_levels(self.beams)), drafter.nodes
        self.extent = max(self.depth + 1, (self.depth - 1) * self.beams)

    def draft(self, lanes: Lanes) -> Drafts:
        """The best candidates of all levels."""
        counts = torch.minimum(self._counts(lanes), lanes.limits)
        contexts = (lanes.contexts - 1).clamp(min=0)
        grower = Grower(self.head, self.ops, self.cache, lanes.rows, contexts, self.beams)
        pool = grower.grow(self.hidden[lanes.rows], counts, self.depth)
        scores = pool.scores.masked_fill((counts == 0).unsqueeze(1), -torch.inf)
        tree, _ = self.ops.tree.from_beams(
            lanes.roots, pool.tokens, pool.parents, scores, self.width, max_depth=self.depth
        )
        return Drafts(tree=tree)
