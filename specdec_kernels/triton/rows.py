"""Rows of any layout as bytes: which runs without gaps the rows of a tensor have, and in which units they can be moved.

Host code only: it looks at shapes, strides and addresses.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """Rows in units of 8, 4, 2 or 1 bytes: ``outer * inner`` runs of ``run`` units, with strides in units. A row of
    more dimensions has several such pieces, each at an offset of its own in the row and in a row without gaps."""

    unit: int
    run: int
    outer: int
    inner: int
    outer_stride: int
    inner_stride: int
    offset: int
    begin: int

    @property
    def units(self) -> int:
        """Of all runs."""
        return self.run * self.outer * self.inner


def rows_of(tensor: Tensor, first: int, *others: int, any_order: bool) -> list[Rows]:
    """The pieces of the rows of a tensor, a row being its dimensions from ``first`` on; none if it has no bytes.

    Args:
        tensor: of any dtype and strides.
        first: dimensions before this one count rows.
        others: addresses and strides in bytes that a unit must divide as well.
        any_order: whether the target of a move has these strides, too: then the order of the dimensions does not
            matter, nor one along which nothing moves.
    """
    element = tensor.element_size()
    shape, strides = tensor.shape, [stride * element for stride in tensor.stride()]
    if 0 in shape[first:]:
        return []
    dims = [dim for dim in zip(shape[first:], strides[first:], strict=True) if dim[0] != 1]
    if any_order:
        dims = sorted((dim for dim in dims if dim[1]), key=lambda dim: -dim[1])
    run = element
    while dims and dims[-1][1] == run:
        run *= dims.pop()[0]
    merged: list[tuple[int, int]] = []
    for size, stride in dims:
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    places = [(0, 0)]
    while len(merged) > 2:
        size, stride = merged.pop(0)
        step = run * math.prod(count for count, _ in merged)
        places = [(offset + i * stride, begin + i * step) for offset, begin in places for i in range(size)]
    aligned = 8 | run | tensor.data_ptr()
    for number in (*strides[:first], *(stride for _, stride in merged), *(offset for offset, _ in places), *others):
        aligned |= number
    unit = aligned & -aligned
    (outer, outer_stride), (inner, inner_stride) = [(1, 0)] * (2 - len(merged)) + merged
    shared = (unit, run // unit, outer, inner, outer_stride // unit, inner_stride // unit)
    return [Rows(*shared, offset // unit, begin // unit) for offset, begin in places]
