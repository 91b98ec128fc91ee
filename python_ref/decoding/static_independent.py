"""The smaller model that drafts, in static form: see :mod:`python_ref.drafters.independent`.

Of a text of ``n`` tokens its cache holds positions ``0`` to ``n - 3`` at the least: where all drafts were accepted the
last of them has not been read, for nothing was drafted behind it. So every step begins with the last two tokens, the
one before the root a second time where it was known already: a fixed number of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .attention import PagedAttention
from .prompt import read_chunk
from .static_drafter import Drafts
from .static_rows import StaticRows, run
from .step_state import Lanes, StepState

if TYPE_CHECKING:
    from ..drafters.independent import IndependentDrafter


class StaticIndependent:
    """Decodes ahead of the target, a fixed number of tokens."""

    features: tuple[int, ...] = ()

    def __init__(self, drafter: IndependentDrafter, num_draft: int) -> None:
        """As ``drafter`` does, with ``num_draft`` tokens; page size and chunks are those of the loop."""
        self.model, self.ops, self.temperature = drafter.model, drafter.ops, drafter.temperature
        self.depth, self.width = num_draft, num_draft + 1
        self.extent = max(num_draft, 1)

    def attach(self, state: StepState, *, greedy: bool, compact: bool) -> None:
        """Make the cache."""
        self._state, self._greedy, self._compact = state, greedy, compact
        self.model.prepare()
        self.cache = state.cache(self.model.config, self.model.model.embed_tokens.weight.dtype)

    def join(self, row: int) -> None:
        """What is in the cache is overwritten."""

    def prime(self, row: int, start: int, tokens: Tensor, features: Tensor | None) -> None:
        """Read a piece of a prompt, as far as the model has positions."""
        count = min(len(tokens), self.model.config.max_positions - start)
        if count > 0:
            read_chunk(self.model, self.ops, self.cache, row, tokens[:count], start)

    def draft(self, lanes: Lanes) -> Drafts:
        """Token after token, all lanes together."""
        space, sampling = self.model.config.max_positions, lanes.sampling
        temperature = 0.0 if self._greedy else self.temperature
        if temperature is not None:
            fixed = torch.full_like(sampling.temperature, temperature)
            sampling = sampling._replace(temperature=fixed)
        drawn: list[Tensor] = []
        for i in range(self.depth):
            logits = self._begin(lanes) if i == 0 else self._follow(lanes, drawn[-1], i)
            depths = torch.full_like(lanes.lengths, i)
            drafts = self.ops.sample.draft(
                logits,
                sampling,
                lanes.lengths + i,
                num=1,
                replacement=True,  # of one draft: the same law, and one block less to race
                depths=depths,
                nodes=depths,  # a chain: node i has depth i
                coupled=not self._greedy,
            )
            drawn.append(drafts[:, 0])
        return Drafts(torch.stack(drawn, dim=1), (space + 1 - lanes.lengths).clamp(0, self.depth))

    def absorb(self, lanes: Lanes, features: Tensor | None, result: Any) -> None:
        """Rejected drafts are overwritten."""

    def _begin(self, lanes: Lanes) -> Tensor:
        """Logits behind the roots, whose predecessors are read again."""
        before = (lanes.contexts - 1).clamp(min=0)  # of a text of one token the root itself
        known = lanes.contexts.clamp(max=1)
        first = self._state.history[lanes.rows, before]
        pair = torch.stack((first, lanes.roots), dim=1)
        hidden = self._pass(lanes, pair, before, known + 1)
        return self.model.logits(hidden.view(len(pair), 2, -1).gather(1, _at(known, hidden.shape[-1]))[:, 0])

    def _follow(self, lanes: Lanes, tokens: Tensor, step: int) -> Tensor:
        """Logits behind the drafts that each lane got last."""
        ones = torch.ones_like(lanes.lengths)
        return self.model.logits(self._pass(lanes, tokens.unsqueeze(1), lanes.contexts + step, ones))

    def _pass(self, lanes: Lanes, tokens: Tensor, contexts: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states ``[B * M, H]`` of ``tokens [B, M]`` behind ``contexts``; nothing where a lane is inactive."""
        tree = self.ops.tree.from_chains(tokens, lengths.masked_fill(~lanes.active, 0))
        chosen = StaticRows.of(tree, contexts, lanes.rows, self._compact)
        attend = PagedAttention(self.ops, self.cache, chosen.rows)
        space = self.model.config.max_positions
        ids = tokens.clamp(min=0).flatten()
        hidden = run(lambda *columns: self.model(*columns, attend), tree, (ids,), contexts, space, chosen)
        return chosen.spread(hidden, len(ids))


def _at(column: Tensor, width: int) -> Tensor:
    """An index ``[B, 1, width]`` for ``gather`` from the numbers ``[B]`` of rows."""
    return column.view(-1, 1, 1).expand(-1, 1, width)
