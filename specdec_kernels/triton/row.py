# mypy: ignore-errors
"""Rows of logits as the kernels read them: tiles of clean float32 values with the ids that they stand for.

What the contract says of dtypes, NaN, infinities, allowed tokens and draft vocabularies is settled here:
NaN and what is not allowed, has no id or lies past the end become -inf, +inf becomes the largest float32.

Who does what: a program reads a block of 4,096 entries as one tile (narrower for a small vocabulary).
Memory traffic: the bytes of the tile, and of its part of the masks and maps. Sums run inside a block in
one fixed order; nothing depends on the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

#: Ids per block of the race, and the widest tile.
BLOCK = 4096

#: What +inf counts as.
LARGEST = tl.constexpr(3.4028234663852886e38)

#: Below every key: an entry that cannot be emitted.
NOTHING = tl.constexpr(-(2**63))

#: At or below the key of every entry that can: no cut.
NO_CUT = tl.constexpr(-(2**63) + 1)

_NO_ID = tl.constexpr(2**31 - 1)
_SIGN = tl.constexpr(-(2**31))
_LOG2E = tl.constexpr(1.4426950408889634)


class Memory(NamedTuple):
    """Where a row lies, and what of its mask counts."""

    data: Any  # pointer to the first logit
    columns: Any  # in memory; 0 if the row does not exist
    entries: Any  # 0 if the row does not exist
    mask: Any  # where its words begin
    words: Any  # that count: 0 if everything or nothing is allowed
    free: Any  # set bits are allowed whatever the words say


class Row(NamedTuple):
    """One row, put together where it is used: in Triton 3.6 a function cannot return what may be None.

    Without maps entry ``i`` is id ``i``. With ``column_of`` (and its inverse ``id_of``) the logit of entry ``i`` stands
    in column ``column_of[i]``: a draft's row seen from the target's vocabulary. With ``id_of`` alone entry ``i`` stands
    for id ``id_of[i]``: a draft's row as it lies.
    """

    memory: Any
    allowed: Any  # pointer to the words of all masks, or None
    id_of: Any
    id_of_stride: Any
    column_of: Any
    column_of_stride: Any


@triton.jit
def mask_row(allowed, allowed_rows, allowed_rows_stride, height, words, owner):
    """Row of the mask that belongs to an owner, the number of its words, and the bits that are allowed whatever they
    say (``Memory.words``, ``Memory.free``)."""
    index = owner.to(tl.int64)
    free = tl.full([], 0, tl.int32)
    if allowed is None:
        free += -1
    elif allowed_rows is not None:
        index = tl.load(allowed_rows + index * allowed_rows_stride).to(tl.int64)
        free = tl.where(index == -1, -1, free)
    there = (index >= 0) & (index < height)
    return tl.where(there, index, 0), tl.where(there, words, 0), free


@triton.jit
def load_tile(row, start, TILE: tl.constexpr):
    """Entries ``start`` to ``start + TILE - 1``: clean values, their ids, and where the memory held a NaN."""
    entries = start + tl.arange(0, TILE)
    inside = entries < row.memory.entries
    ids = entries
    columns = entries.to(tl.int64)
    known = inside
    if row.column_of is not None:
        columns = tl.load(row.column_of + columns * row.column_of_stride, mask=inside, other=-1).to(tl.int64)
        known = inside & (columns >= 0) & (columns < row.memory.columns)
        columns = tl.where(known, columns, 0)
        back = tl.load(row.id_of + columns * row.id_of_stride, mask=known, other=-1).to(tl.int64)
        known = known & (back == entries)
        inside = known
    elif row.id_of is not None:
        wide = tl.load(row.id_of + columns * row.id_of_stride, mask=inside, other=-1).to(tl.int64)
        known = inside & (wide >= 0) & (wide <= _NO_ID)
        ids = tl.where(known, wide, 0).to(tl.int32)
    raw = tl.load(row.memory.data + columns, mask=inside, other=float("-inf")).to(tl.float32)
    nan = raw != raw
    known = known & (raw == raw)
    if row.allowed is not None:
        word = ids >> 5
        bits = (
            tl.load(row.allowed + row.memory.mask + word, mask=known & (word < row.memory.words), other=0)
            | row.memory.free
        )
        known = known & (((bits >> (ids & 31)) & 1) != 0)
    return tl.where(known, tl.minimum(raw, LARGEST), float("-inf")), ids, nan


@triton.jit
def value_of(row, token):
    """The clean value of one id of a row that is not listed; -inf if it has none."""
    known = (token >= 0) & (token < row.memory.entries)
    column = tl.where(known, token, 0).to(tl.int64)
    if row.column_of is not None:
        entry = column
        column = tl.load(row.column_of + entry * row.column_of_stride).to(tl.int64)
        known = known & (column >= 0) & (column < row.memory.columns)
        column = tl.where(known, column, 0)
        back = tl.load(row.id_of + column * row.id_of_stride, mask=known, other=-1).to(tl.int64)
        known = known & (back == entry)
    raw = tl.load(row.memory.data + column, mask=known, other=float("-inf")).to(tl.float32)
    known = known & (raw == raw)
    if row.allowed is not None:
        word = tl.where(known, token, 0).to(tl.int64) >> 5
        bits = (
            tl.load(row.allowed + row.memory.mask + word, mask=known & (word < row.memory.words), other=0)
            | row.memory.free
        )
        known = known & (((bits >> (token & 31).to(tl.int32)) & 1) != 0)
    return tl.where(known, tl.minimum(raw, LARGEST), float("-inf"))


@triton.jit
def key_of(value, ids):
    """64 bits in the order (larger logit, then lower id); ``NOTHING`` for -inf. Both zeros are the same logit."""
    bits = value.to(tl.int32, bitcast=True)
    rank = tl.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    return tl.where(value == float("-inf"), NOTHING, (rank.to(tl.int64) << 32) | (ids.to(tl.int64) ^ _NO_ID))


@triton.jit
def value_of_key(key):
    """The logit of a key."""
    rank = (key >> 32).to(tl.int32)
    bits = tl.where(rank >= 0, rank, -rank | _SIGN)
    return tl.where(key == NOTHING, float("-inf"), bits.to(tl.float32, bitcast=True))


@triton.jit
def id_of_key(key):
    """The id of a key, int64."""
    return (key & _NO_ID) ^ _NO_ID


@triton.jit
def weigh(values, reference, temperature):
    """``exp((l - reference) / T)`` in single precision, for sums; 0 for -inf."""
    if (temperature >= 1e-30) & (temperature <= 1e30):
        power = (values - reference) * (1.4426950408889634 / temperature)
    else:
        wide = (values.to(tl.float64) - reference.to(tl.float64)) / temperature.to(tl.float64)
        power = (wide * _LOG2E).to(tl.float32)
    return tl.where(values == float("-inf"), 0.0, tl.exp2(power))


@triton.jit
def weigh_exactly(values, reference, temperature):
    """The same in double precision, for what a decision hangs on."""
    power = (values.to(tl.float64) - reference.to(tl.float64)) / temperature.to(tl.float64)
    return tl.where(values == float("-inf"), 0.0, tl.exp(power))


@triton.jit
def mass_of_tile(values, largest, temperature):
    """The sum of weights of a tile relative to ``largest``, float64.

    The sum is found relative to the tile's own maximum: full precision however far below ``largest`` that is.
    """
    top = tl.max(values)
    safe = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(weigh(values, safe, temperature)).to(tl.float64)
    return tl.where(top == float("-inf"), 0.0, total * weigh_exactly(top, largest, temperature))
