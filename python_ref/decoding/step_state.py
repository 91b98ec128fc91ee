"""What the device knows of the requests: everything that a step reads and writes, in tensors that stay in place.

Row ``r`` belongs to one request from its first pass to the end of its last step. The row behind all others is idle for
ever: lanes of a step that have no request point to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.config import ModelConfig
from .cache import PagedCache
from .request import Request


class Lanes(NamedTuple):
    """The requests of one step, as they are before it; ``B`` lanes, each a row of the state.

    Attributes:
        rows: ``[B]`` int64, row of the state and of the block table.
        active: ``[B]`` bool; others do nothing: they have no request, or one whose end the host has not seen yet.
        lengths: ``[B]`` int64, ``n`` tokens of the text.
        contexts: ``[B]`` int64, ``n - 1``, the committed positions; the position of the root.
        roots: ``[B]`` int64, the newest token, -1 of an inactive lane.
        limits: ``[B]`` int64, the most drafts in a row that are of any use.
        left: ``[B]`` int64, tokens that the request may still get.
        sampling: settings ``[B]``.
    """

    rows: Tensor
    active: Tensor
    lengths: Tensor
    contexts: Tensor
    roots: Tensor
    limits: Tensor
    left: Tensor
    sampling: Any


class StepState:
    """The rows.

    Attributes:
        idle: the row of no request.
        history: ``[rows + 1, L]`` int64, texts; what lies behind ``lengths`` is of no meaning.
        lengths: ``[rows + 1]`` int64, tokens of each text.
        limits: ``[rows + 1]`` int64, length at which each text ends at the latest.
        block_table: ``[rows + 1, max_pages]`` int32, of all caches; -1 where a row has no page.
        caches: all caches that share the table.
    """

    def __init__(
        self,
        ops: Any,
        rows: int,
        *,
        max_length: int,
        width: int,
        extent: int,
        page_size: int,
        num_pages: int,
        device: torch.device,
    ) -> None:
        """Make rows without requests.

        Args:
            ops: the package of the ops.
            rows: requests that can be held at a time.
            max_length: tokens of the longest text.
            width: most tokens that a step adds to a text.
            extent: positions behind the context that a step may write.
            page_size: positions of a page.
            num_pages: pages of each cache to begin with.
            device: where the tensors live.
        """
        self._ops = ops
        self.idle, self.device, self.page_size, self.num_pages = rows, device, page_size, num_pages
        self.max_pages = -(-(max_length + extent) // page_size)

        def column(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((rows + 1,), value, dtype=dtype, device=device)

        self.history = torch.zeros((rows + 1, max_length + width), dtype=torch.int64, device=device)
        self.lengths, self.limits = column(1, torch.int64), column(1, torch.int64)
        self.block_table = torch.full((rows + 1, self.max_pages), -1, dtype=torch.int32, device=device)
        self.caches: list[PagedCache] = []
        self._settings = ops.Sampling(
            column(0.0, torch.float32),
            column(0, torch.int32),
            column(1.0, torch.float32),
            column(0.0, torch.float32),
            column(0, torch.int64),
        )

    def cache(self, config: ModelConfig, dtype: torch.dtype) -> PagedCache:
        """A cache of another model whose position ``t`` lies in the same page and slot as that of all others."""
        made = PagedCache(
            config, self.idle + 1, page_size=self.page_size, num_pages=self.num_pages, dtype=dtype, device=self.device
        )
        made.block_table = self.block_table
        made.free_pages.clear()  # the pool of the host has them
        self.caches.append(made)
        return made

    def grow(self, num_pages: int) -> None:
        """Give all caches more pages; those in use keep what they hold."""
        for cache in self.caches:
            old = cache.storage
            cache.storage = old.new_empty((old.shape[0], num_pages, *old.shape[2:]))
            cache.storage[:, : old.shape[1]] = old
        self.num_pages = num_pages

    def join(self, row: int, request: Request, prompt: Tensor, limit: int) -> None:
        """A request takes a row; ``prompt`` is on the device."""
        self.history[row, : len(prompt)] = prompt
        self.lengths[row].fill_(len(prompt))
        self.limits[row].fill_(limit)
        self.block_table[row].fill_(-1)
        seed = (int(request.seed) + 2**63) % 2**64 - 2**63  # its bits, read as a signed number
        values = (request.temperature, request.top_k, request.top_p, request.min_p, seed)
        for column, value in zip(self._settings, values, strict=False):
            column[row].fill_(value)

    def set_pages(self, places: Tensor, pages: Tensor) -> None:
        """Enter pages into the block table: ``places [M]`` int64 are ``row * max_pages + index``."""
        self.block_table.view(-1).index_copy_(0, places, pages)

    def lanes(self, rows: Tensor, depth: int) -> Lanes:
        """The requests of a step of at most ``depth`` drafts in a row."""
        lengths = self.lengths[rows]
        contexts = lengths - 1
        roots = self.history[rows, contexts]
        left = (self.limits[rows] - lengths).clamp(min=0)
        active = (left > 0) & (roots >= 0)
        *columns, order = self._settings
        return Lanes(
            rows,
            active,
            lengths,
            contexts,
            roots.masked_fill(~active, -1),
            (left - 1).clamp(0, depth),
            left,
            type(self._settings)(*(column[rows] for column in columns), order),
        )

    def advance(self, lanes: Lanes, tokens: Tensor, num_tokens: Tensor) -> None:
        """Append to each text the first ``num_tokens [B]`` of ``tokens [B, W]``."""
        # What follows them is written as well: it lies behind the text, where the next step writes again.
        columns = lanes.lengths.unsqueeze(1) + torch.arange(tokens.shape[1], device=tokens.device)
        self.history[lanes.rows.unsqueeze(1), columns] = tokens.long()
        self.lengths[lanes.rows] = lanes.lengths + num_tokens
