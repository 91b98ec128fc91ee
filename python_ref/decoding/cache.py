"""A paged key/value cache: pages of any order, a table of pages per request, one pool that grows when it runs out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.config import ModelConfig


def check_page_size(owner: str, page_size: int) -> None:
    """Refuse pages of a size that the ops do not take.

    Raises:
        ValueError: if it is not a power of two.
    """
    if page_size < 1 or page_size & (page_size - 1):
        raise ValueError(f"{owner}: page_size must be a power of two, got {page_size}")


class PagedCache:
    """Keys and values of all layers in pages ``[num_pages, page_size, kv_heads, head_dim]``.

    Logical position ``t`` of request row ``b`` lies in page ``block_table[b, t // page_size]``, slot
    ``t % page_size``. Keys and values of a slot lie side by side. What is committed is the caller's knowledge: the
    cache knows which pages a row owns, not how far they are filled.

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
            page_size: tokens per page, a power of two.
            num_pages: pages to start with; the pool doubles when they are used up.
            dtype: of keys and values.
            device: where they live.

        Raises:
            ValueError: if a size is below 1, or that of a page not a power of two.
        """
        for name, size in (("rows", rows), ("num_pages", num_pages)):
            if size < 1:
                raise ValueError(f"PagedCache: {name} must be at least 1, got {size}")
        check_page_size("PagedCache", page_size)
        self.page_size = page_size
        self.rows = rows
        shape = (config.num_layers, num_pages, page_size, 2, config.num_kv_heads, config.head_dim)
        self.storage = torch.empty(shape, dtype=dtype, device=device)
        self.block_table = torch.zeros((rows, 1), dtype=torch.int32, device=device)
        self.free_pages = list(range(num_pages - 1, -1, -1))
        self._pages: list[list[int]] = [[] for _ in range(rows)]

    @property
    def num_pages(self) -> int:
        """Pages of the pool, owned and free."""
        return self.storage.shape[1]

    @property
    def device(self) -> torch.device:
        """Where keys and values live."""
        return self.storage.device

    def table(self, rows: int) -> Tensor:
        """The block table of the first ``rows`` rows, a view."""
        return self.block_table[:rows]

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
            pages.append(self.free_pages.pop())
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

    def release(self, row: int) -> None:
        """Take back all pages of a row."""
        self.trim(row, 0)

    def buffers(self) -> list[Tensor]:
        """One ``[num_pages, page_size, 2, kv_heads, head_dim]`` per layer: what ``ops.kv.commit`` moves."""
        return list(self.storage.unbind())

    def _grow(self) -> None:
        old = self.num_pages
        grown = self.storage.new_empty((self.storage.shape[0], 2 * old, *self.storage.shape[2:]))
        grown[:, :old] = self.storage
        self.storage = grown
        self.free_pages = list(range(2 * old - 1, old - 1, -1)) + self.free_pages
