# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""from_chains: row ``i`` of a request has parent ``i - 1``, depth ``i`` and end ``length``; rows beyond are padding. A
length outside ``[0, width]`` leaves the root alone and is flagged.

Who does what: one program per request and 256 rows. Memory traffic: reads and writes O(batch * width) integers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device_of, power_of_two, step
from .varying import VARYING

_MALFORMED = tl.constexpr(8)

#: Rows per program.
ROWS = 256


@triton.jit(do_not_specialize=VARYING)
def from_chains_kernel(
    chains, row_stride, column_stride, lengths, lengths_stride, cu_nodes, tokens, parents, depths, ends, status,
    batch, width, TILE: tl.constexpr,
):  # fmt: skip
    """A piece of one request; ``batch`` 0 has one program, for ``cu_nodes`` alone."""
    b = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    if piece == 0:
        if b == 0:
            tl.store(cu_nodes, 0)
    if b < batch:
        length = b * 0 + width
        if lengths is not None:
            length = tl.load(lengths + b * lengths_stride).to(tl.int64)
        wrong = (length < 0) | (length > width)
        length = tl.where(wrong, tl.minimum(width, 1), length)
        if piece == 0:
            tl.store(cu_nodes + b + 1, ((b + 1) * width).to(tl.int32))
            tl.store(status + b, tl.where(wrong, _MALFORMED, 0))
        i = piece * TILE + tl.arange(0, TILE)
        inside = i < width
        live = i < length
        token = tl.load(chains + b * row_stride + i.to(tl.int64) * column_stride, mask=inside & live, other=-1)
        row = b * width + i
        tl.store(tokens + row, token, mask=inside)
        tl.store(parents + row, tl.where(live, i - 1, -1), mask=inside)
        tl.store(depths + row, tl.where(live, i, 0), mask=inside)
        tl.store(ends + row, tl.where(live, length, 0).to(tl.int32), mask=inside)


def tree_from_chains(
    chains: Tensor,
    lengths: Tensor | None,
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    status: Tensor,
) -> None:
    """The launcher of ``tree.from_chains``."""
    batch, width = chains.shape
    tile = min(ROWS, power_of_two(width))
    with on_device_of(chains):
        from_chains_kernel[(max(batch, 1), max(-(-width // tile), 1))](
            *(chains, step(chains), step(chains, 1), lengths, step(lengths)),
            *(cu_nodes, tokens, parents, depths, ends, status, batch, width),
            TILE=tile,
        )
