"""What all launchers share: strides, block counts, the device guard, and the launches that find the laws of rows.

Host code only: it looks at shapes, strides and dtypes, never at what lies in a tensor, so launches can be captured.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .law import law_kernel, scan_kernel
from .row import BLOCK

#: Requests that one step of a search looks at.
SEARCH = 1024

#: Programs of ``law_kernel``, each with 32 KiB of scratch: more than any GPU runs at a time.
PROGRAMS = 512


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n`` and at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def step(tensor: Tensor | None, dim: int = 0) -> int:
    """A stride in elements; 0 of a tensor that is absent."""
    return 0 if tensor is None else int(tensor.stride(dim))


def flags(tensor: Tensor | None) -> Tensor | None:
    """Bools as bytes."""
    return None if tensor is None else tensor.view(torch.uint8)


def on_device_of(tensor: Tensor) -> Any:
    """Makes the tensor's GPU the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


class Blocks(NamedTuple):
    """How rows are cut: entries per tile, blocks per row, and the power of two for vectors of blocks."""

    tile: int
    number: int
    vector: int

    @property
    def warps(self) -> int:
        """Warps of a program that holds a tile in registers."""
        return 8 if self.tile >= 2048 else 4


def blocks_of(entries: int) -> Blocks:
    """The blocks of rows with so many entries."""
    count = max(-(-entries // BLOCK), 1)
    return Blocks(max(min(power_of_two(entries), BLOCK), 16), count, power_of_two(count))


class Mask(NamedTuple):
    """The mask of allowed ids as kernels take it."""

    allowed: Tensor | None
    rows: Tensor | None
    rows_stride: int
    height: int
    stride: int
    words: int


def mask_of(allowed: Tensor | None, rows: Tensor | None) -> Mask:
    """The arguments of a mask; without words there are no rows either."""
    if allowed is None:
        return Mask(None, None, 0, 0, 0, 0)
    height, words = allowed.shape
    return Mask(allowed, rows, step(rows), height if words else 0, step(allowed), words)


class Settings(NamedTuple):
    """Sampling settings of a batch; without a temperature all are off."""

    temperature: Tensor | None = None
    top_k: Tensor | None = None
    top_p: Tensor | None = None
    min_p: Tensor | None = None
    order: int = 0

    @property
    def filtered(self) -> bool:
        """Whether any filter is given."""
        return any(field is not None for field in self[1:4])

    def arguments(self) -> tuple[Any, ...]:
        """As kernels take them: each field with its stride, and the order."""
        return (*(item for field in self[:4] for item in (field, step(field))), self.order)


class Laws(NamedTuple):
    """What is known of the rows of all slots: ``[slots, blocks]`` maxima, sums and NaNs, and the request of each slot
    (``scan_kernel``); under filters the cut of each slot and the masses of its blocks (``law_kernel``)."""

    tops: Tensor
    sums: Tensor
    nans: Tensor
    owners: Tensor
    cuts: Tensor | None
    masses: Tensor | None


def find_laws(
    logits: Tensor,
    count: int,
    blocks: Blocks,
    mask: Mask,
    settings: Settings,
    *,
    batch: int,
    entries: int | None = None,
    rows: Tensor | None = None,
    id_of: Tensor | None = None,
    column_of: Tensor | None = None,
    requests: Tensor | None = None,
    tree: tuple[Tensor, ...] | None = None,
    active: Tensor | None = None,
    of_children: bool = False,
    temperature: float = 0.0,
) -> Laws:
    """Launch ``scan_kernel`` over all slots, and ``law_kernel`` if filters are given.

    Args:
        logits: rows of logits.
        count: number of rows, or of nodes.
        blocks: how rows are cut.
        mask: allowed ids.
        settings: of the laws.
        batch: number of requests.
        entries: ids of a row; None: its columns.
        rows: row of each node.
        id_of: ids of the columns.
        column_of: columns of the ids.
        requests: request of each row; None: its own number.
        tree: ``cu_nodes``, ``tokens``, ``parents``, ``depths``, ``ends``; None: plain rows.
        active: requests at work.
        of_children: whether the rows are those that the children of nodes were drawn from.
        temperature: where the settings have none.
    """
    cu_nodes, _, parents, _, ends = (None,) * 5 if tree is None else tree
    slots = count if tree is None else count + batch

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    filtered = settings.filtered
    laws = Laws(
        new(slots, blocks.number),
        new(slots, blocks.number),
        new(slots, blocks.number, dtype=torch.int32),
        new(slots, dtype=torch.int32),
        new(slots, dtype=torch.int64) if filtered else None,
        new(slots, blocks.number, dtype=torch.float64) if filtered else None,
    )
    columns = logits.shape[1]
    row = (
        *(logits, logits.shape[0], columns, step(logits), columns if entries is None else entries, rows, step(rows)),
        *(*mask, id_of, step(id_of), column_of, step(column_of), cu_nodes, step(cu_nodes), count),
    )
    scan_kernel[(slots, blocks.number)](
        *(*row, settings.temperature, step(settings.temperature), batch, requests, step(requests)),
        *(parents, step(parents), ends, step(ends), flags(active), step(active), *laws[:4], blocks.number),
        OF_CHILDREN=of_children,
        TEMPERATURE=temperature,
        TILE=blocks.tile,
        SEARCH=min(SEARCH, power_of_two(batch)),
        num_warps=blocks.warps,
    )
    if filtered:
        # A row of one block stays in registers; others gather keys.
        programs = min(slots, PROGRAMS)
        scratch = new(programs, BLOCK, dtype=torch.int64) if blocks.number > 1 else None
        law_kernel[(programs,)](
            *(*row, *settings.arguments()),
            *(laws.tops, laws.sums, laws.owners, laws.cuts, laws.masses, scratch, slots, blocks.number),
            TILE=blocks.tile,
            NB=blocks.vector,
            num_warps=blocks.warps,
        )
    return laws
