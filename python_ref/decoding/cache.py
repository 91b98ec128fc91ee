"""A paged key/value cache: pages of any order, a table of pages per request, one pool that grows when it runs out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.config import ModelConfig

#: Bytes to which torch aligns what it allocates on the CPU; the bits of a product may depend on it.
ALIGNMENT = 64


class PagedCache:
    """Keys and values of all layers in pages ``[num_pages, page_size, kv_heads, head_dim]``.

    Logical position ``t`` of request row ``b`` lies in page ``block_table[b, t // page_size]``, slot
    ``t % page_size``. Keys and values of a slot lie side by side, so that one gather brings both. What is committed
    is the caller's knowledge: the cache knows which pages a row owns, not how far they are filled.

    Attributes:
        block_table: ``[rows, max_pages]`` int32 page ids; entries beyond the pages of a row are 0 and never read.
        free_pages: ids of pages that nobody owns; the last is taken first. Their order is of no consequence.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        *,
        page_size: int = 16,
        num_pages: int = 64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make an empty cache.

        Args:
            config: the model: layers, key/value heads and their size.
            rows: requests that can be held at a time.
            page_size: tokens per page, at least 1.
            num_pages: pages to start with; the pool doubles when they are used up.
            dtype: of keys and values.
            device: where they live.

        Raises:
            ValueError: if a size is below 1.
        """
        for name, size in (("rows", rows), ("page_size", page_size), ("num_pages", num_pages)):
            if size < 1:
                raise ValueError(f"PagedCache: {name} must be at least 1, got {size}")
        self.page_size = page_size
        self.rows = rows
        shape = (config.num_layers, num_pages, page_size, 2, config.num_kv_heads, config.head_dim)
        self.storage = torch.empty(shape, dtype=dtype, device=device)
        self._pools = self._flat_layers()
        self.block_table = torch.zeros((rows, 1), dtype=torch.int32, device=device)
        self.free_pages = list(range(num_pages - 1, -1, -1))
        self._pages: list[list[int]] = [[] for _ in range(rows)]
        self._is_run = [True] * rows  # whether the pages of a row follow each other in the pool
        # A run may be read in place only if its first byte is aligned as that of a copy would be.
        page_bytes = self.storage[0, 0].numel() * self.storage.element_size()
        self._aligned = page_bytes % ALIGNMENT == 0

    @property
    def num_pages(self) -> int:
        """Pages of the pool, owned and free."""
        return self.storage.shape[1]

    @property
    def device(self) -> torch.device:
        """Where keys and values live."""
        return self.storage.device

    def keys(self, layer: int) -> Tensor:
        """``[num_pages, page_size, kv_heads, head_dim]``, a view."""
        return self.storage[layer, :, :, 0]

    def values(self, layer: int) -> Tensor:
        """``[num_pages, page_size, kv_heads, head_dim]``, a view."""
        return self.storage[layer, :, :, 1]

    def pages(self, row: int) -> tuple[int, ...]:
        """The pages of a row, in the order of the positions."""
        return tuple(self._pages[row])

    def reserve(self, row: int, length: int) -> None:
        """Give a row enough pages for positions ``0`` to ``length - 1``; those it has keep their place."""
        pages = self._pages[row]
        have = len(pages)
        need = -(-length // self.page_size)
        if need <= have:
            return
        while len(self.free_pages) < need - have:
            self._grow()
        for _ in range(need - have):
            page = self.free_pages.pop()
            if pages and page != pages[-1] + 1:
                self._is_run[row] = False
            pages.append(page)
        if need > self.block_table.shape[1]:
            wide = self.block_table.new_zeros((self.rows, 2 * need))
            wide[:, : self.block_table.shape[1]] = self.block_table
            self.block_table = wide
        self.block_table[row, have:need] = torch.tensor(pages[have:], dtype=torch.int32)

    def trim(self, row: int, length: int) -> None:
        """Take back the pages of a row that lie wholly behind its first ``length`` positions."""
        keep = -(-length // self.page_size)
        pages = self._pages[row]
        if keep < len(pages):
            self.free_pages += reversed(pages[keep:])
            self.block_table[row, keep : len(pages)] = 0
            del pages[keep:]
            self._is_run[row] = all(b == a + 1 for a, b in zip(pages, pages[1:], strict=False))

    def release(self, row: int) -> None:
        """Take back all pages of a row."""
        self.trim(row, 0)

    def slots(self, row: int, start: int, stop: int) -> list[int]:
        """Slots ``page * page_size + offset`` of positions ``start`` to ``stop - 1``, which must be reserved."""
        pages, size = self._pages[row], self.page_size
        return [pages[t // size] * size + t % size for t in range(start, stop)]

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store ``key`` and ``value [T, kv_heads, head_dim]`` in ``slots [T]`` int64."""
        self._pools[layer].index_copy_(0, slots, torch.stack((key, value), dim=1))

    def where(self, row: int, length: int) -> Tensor | slice:
        """What :meth:`read` needs to find the first ``length`` positions of a row."""
        count = -(-length // self.page_size)
        if self._is_run[row] and self._aligned:
            first = self._pages[row][0] * self.page_size
            return slice(first, first + count * self.page_size)
        return self.block_table[row, :count]

    def read(self, layer: int, where: Tensor | slice) -> Tensor:
        """The positions of a row in order, up to the end of a page: ``[n, 2, kv_heads, head_dim]``, contiguous.

        A view if its pages follow each other in the pool, else a copy; nobody can tell which.
        """
        if isinstance(where, slice):
            return self._pools[layer][where]
        return self.storage[layer].index_select(0, where).flatten(0, 1)

    def pool(self, layer: int) -> Tensor:
        """``[num_pages * page_size, 2, kv_heads, head_dim]``, a view."""
        return self._pools[layer]

    def _flat_layers(self) -> list[Tensor]:
        return list(self.storage.flatten(1, 2).unbind())

    def _grow(self) -> None:
        old = self.num_pages
        grown = self.storage.new_empty((self.storage.shape[0], 2 * old, *self.storage.shape[2:]))
        grown[:, :old] = self.storage
        self.storage = grown
        self._pools = self._flat_layers()
        self.free_pages = list(range(2 * old - 1, old - 1, -1)) + self.free_pages
