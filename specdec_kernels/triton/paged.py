# mypy: ignore-errors
"""The paged cache as kernels see it: where positions lie, and rows of it in the type that a product takes.

Who does what: an element of a vector of positions is one token. Memory traffic: a page id per position, mostly from the
nearest cache, and the rows themselves. A page id out of range is never followed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

#: How a cache holds its numbers: as they are, float8_e4m3fn taken apart bit by bit, or by the GPU, float8_e5m2.
PLAIN, E4M3, E4M3_BY_GPU, E5M2 = (tl.constexpr(n) for n in range(4))


class Pages(NamedTuple):
    """The pages of one request; the pointer stands at its row of the table."""

    table: Any
    columns_stride: Any
    columns: Any  # of the row; 0 if the table has no such row
    number: Any  # of pages in the cache


@triton.jit
def pages_of(table, table_stride, columns_stride, height, columns, table_rows, table_rows_stride, number, request):
    """The pages of a request."""
    row = request.to(tl.int64)
    if table_rows is not None:
        row = tl.load(table_rows + row * table_rows_stride).to(tl.int64)
    there = (row >= 0) & (row < height)
    return Pages(table + tl.where(there, row, 0) * table_stride, columns_stride, tl.where(there, columns, 0), number)


@triton.jit
def locate(pages, positions, wanted, PAGE: tl.constexpr):
    """Page and slot of positions, int64, and which of those that are wanted exist."""
    block = positions // PAGE
    wanted = wanted & (block < pages.columns)
    page = tl.load(pages.table + block.to(tl.int64) * pages.columns_stride, mask=wanted, other=-1).to(tl.int64)
    there = (page >= 0) & (page < pages.number)
    return tl.where(there, page, 0), (positions % PAGE).to(tl.int64), there


@triton.jit
def all_exist(pages, first, last, CHECKED: tl.constexpr):
    """Whether blocks ``first`` to ``last - 1`` are in the table, and their pages in the cache (1 or 0)."""
    wrong = tl.zeros([CHECKED], tl.int32)
    for begin in tl.range(first, last, CHECKED, num_stages=1):
        block = begin + tl.arange(0, CHECKED)
        inside = block < last
        known = inside & (block < pages.columns)
        page = tl.load(pages.table + block.to(tl.int64) * pages.columns_stride, mask=known, other=-1).to(tl.int64)
        wrong = wrong | (inside & ((page < 0) | (page >= pages.number))).to(tl.int32)
    return tl.where(tl.max(wrong, axis=0) == 0, 1, 0)


@triton.jit
def _number_of(raw, FORM: tl.constexpr):
    """Exact values of stored numbers, float16 where these are float8."""
    if FORM == PLAIN:
        numbers = raw
    elif FORM == E4M3_BY_GPU:
        numbers = raw.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    elif FORM == E5M2:
        numbers = (raw.to(tl.uint16) << 8).to(tl.float16, bitcast=True)
    else:
        # Sign, four bits of exponent and three of mantissa: those of a float16 that is 2^8 times as small.
        bits = raw.to(tl.uint16)
        scaled = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
        numbers = tl.where((bits & 0x7F) == 0x7F, float("nan"), scaled)
    return numbers


@triton.jit
def load_rows(
    data, at, wanted, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, FORM: tl.constexpr,
    TYPE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """``[rows, WIDTH]``: numbers ``FIRST`` and up of rows that begin at ``at``; 0 from ``DIM`` on, and ``MASKED`` where
    rows are not wanted."""
    d = FIRST + tl.arange(0, WIDTH)
    cells = data + at[:, None] + d[None, :]
    if FIRST + WIDTH <= DIM:
        if MASKED:
            raw = tl.load(cells, mask=wanted[:, None], other=0)
        else:
            raw = tl.load(cells)
    elif MASKED:
        raw = tl.load(cells, mask=wanted[:, None] & (d < DIM)[None, :], other=0)
    else:
        raw = tl.load(cells, mask=(d < DIM)[None, :], other=0)
    return _number_of(raw, FORM).to(TYPE)


@triton.jit
def load_row(data, at, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, FORM: tl.constexpr):
    """``[WIDTH]`` float32, the same of one row."""
    d = FIRST + tl.arange(0, WIDTH)
    return _number_of(tl.load(data + at + d, mask=d < DIM, other=0), FORM).to(tl.float32)
