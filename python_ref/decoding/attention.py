"""Attention of draft nodes over a paged cache, for the reference decoder.

**Why text is identical.** Plain decoding computes the row of a token alone; speculative decoding computes the same
row beside others, and a difference in its last bit can turn a draw. On the CPU the rows therefore are attended one
by one. Whatever else is in the call, a row's query meets the same tensors: the keys and values that it sees,
gathered from the pages into one contiguous run in the order context, then ancestors, then itself. They have the
same shape, the same strides and the same alignment of the first byte however the pages lie, and one kernel call
computes one row, so nothing of the batch is left that its bits could depend on. (On other devices rows are batched
behind a mask: faster, and equal up to rounding only.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .cache import ALIGNMENT, PagedCache


class Group(NamedTuple):
    """The live nodes of one request in a forward pass, in the order of its tree.

    Attributes:
        row: its row of the block table.
        context: committed tokens; all of its nodes see them, and node ``i`` is stored at position ``context + i``.
        ends: exclusive end of each node's subtree (all equal to the number of nodes: a chain).
    """

    row: int
    context: int
    ends: Sequence[int]

    @classmethod
    def chain(cls, row: int, context: int, count: int) -> Group:
        """``count`` tokens, each of which sees those before it."""
        return cls(row, context, [count] * count)

    @property
    def is_chain(self) -> bool:
        """Whether every node sees all nodes before it."""
        return min(self.ends) == len(self.ends)

    def visible(self, node: int) -> list[int]:
        """Positions behind the context that a node sees: its ancestors and itself."""
        return [self.context + j for j in range(node + 1) if self.ends[j] > node]


class PagedAttention:
    """The ``attend`` of one forward pass: stores the new keys and values, and attends each row to what it sees.

    Rows are those of the groups, one group after the other. ``query [T, Hq, D]``, ``key`` and ``value [T, Hkv, D]``
    give ``[T, Hq, D]``; query head ``h`` reads key/value head ``h // (Hq / Hkv)``; scores are scaled by
    ``1 / sqrt(D)``.

    Deterministic; on the CPU the bits of a row depend on its own context only.
    """

    def __init__(self, cache: PagedCache, groups: Sequence[Group], batched: bool | None = None) -> None:
        """Reserve the pages of all nodes and lay out who sees what.

        Args:
            cache: where keys and values live.
            groups: the requests of the pass, each with at least one node.
            batched: one masked call for all rows instead of a call per row; None: wherever the cache is not on the
                CPU.
        """
        self.cache = cache
        self.groups = groups
        slots: list[int] = []
        for row, context, ends in groups:
            cache.reserve(row, context + len(ends))
            slots += cache.slots(row, context, context + len(ends))
        self.slots = torch.tensor(slots, device=cache.device)
        self.batched = cache.device.type != "cpu" if batched is None else batched
        if self.batched:
            self._gather, self._mask = self._layout()
        else:
            self._views = [self._view(group) for group in groups]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``[T, Hq, D]`` of a layer."""
        self.cache.write(layer, self.slots, key, value)
        rows, heads, size = query.shape
        grouped = query.view(rows, key.shape[1], -1, size)  # the heads of a key/value head are rows of one product
        if self.batched:
            return self._attend_batched(layer, grouped).reshape(query.shape)
        queries = grouped.unsqueeze(1).unbind()
        if rows > 1 and heads * size * query.element_size() % ALIGNMENT:
            queries = tuple(one.clone() for one in queries)
        outputs = []
        for where, seen in self._views:
            both = self.cache.read(layer, where)
            for what in seen:
                part = both[:what] if isinstance(what, int) else both.index_select(0, what)
                keys, values = part.permute(1, 2, 0, 3).unsqueeze(1).unbind()
                one = queries[len(outputs)]
                outputs.append(F.scaled_dot_product_attention(one, keys, values))
        attended = outputs[0] if rows == 1 else torch.cat(outputs)
        return attended.reshape(query.shape)

    def _view(self, group: Group) -> tuple[Tensor | slice, Sequence[int | Tensor]]:
        """Where a request's positions lie, and what each of its nodes sees of them: so many, or these."""
        row, context, ends = group
        where = self.cache.where(row, context + len(ends))
        if group.is_chain:
            return where, range(context + 1, context + len(ends) + 1)
        before = list(range(context))
        device = self.cache.device
        return where, [torch.tensor(before + group.visible(i), device=device) for i in range(len(ends))]

    def _layout(self) -> tuple[Tensor, Tensor]:
        """Slot of each position ``[T, L]``, and which of them a row sees ``[T, L]``."""
        size, device = self.cache.page_size, self.cache.device
        longest = max(context + len(ends) for _, context, ends in self.groups)
        count = -(-longest // size)
        owners = [row for row, _, ends in self.groups for _ in ends]
        pages = self.cache.block_table[torch.tensor(owners, device=device), :count].long()
        slots = (pages.unsqueeze(-1) * size + torch.arange(size, device=device)).flatten(1)
        mask = torch.zeros(slots.shape, dtype=torch.bool)
        first = 0
        for group in self.groups:
            for i in range(len(group.ends)):
                mask[first + i, : group.context] = True
                mask[first + i, group.visible(i)] = True
            first += len(group.ends)
        mask = mask.to(device)
        # What is not seen may never have been written: read position 0, which every row sees, in its place.
        return torch.where(mask, slots, slots[:, :1]), mask[:, None, None, :]

    def _attend_batched(self, layer: int, query: Tensor) -> Tensor:
        both = self.cache.pool(layer)[self._gather]
        keys, values = both.permute(2, 0, 3, 1, 4).unbind()
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=self._mask)
