# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""inject: projected keys and values go to the caches of all layers, keys normalised and turned on the way.

Who does what: a program has one row in one layer, some heads at a time. The partner of an element is read and normalised
once more instead of being handed over. Programs of rows that are not valid end at once; the first of a request writes
its status. One launch for each eight layers.
Memory traffic: one read and one write of the valid rows, the partners from the nearest cache.

All arithmetic is float32, each operation rounded for itself and in the order of common/kv_inject_params.h.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import flags, on_device_of, power_of_two, step
from .paged import locate, pages_of
from .store import FORMS, narrow
from .varying import VARYING

_MALFORMED = tl.constexpr(8)
_NO_PAGE = tl.constexpr(16)
_CHECKED = tl.constexpr(64)  # rows that are looked at together

#: Layers of a launch, and numbers of a row that are held together.
LAYERS, TILE = 8, 2048


@triton.jit
def _load(data, at, mask, IS_BFLOAT16: tl.constexpr):
    """Numbers as float32."""
    x = tl.load(data + at, mask=mask, other=0)
    if IS_BFLOAT16:  # the upper half of a float32
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        x = x.to(tl.float32)
    return x


@triton.jit
def _sum_in_halves(q, HEADS: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr):
    """``[HEADS, 1]``: elements ``i`` and ``i + WIDTH / 2`` are added, then ``WIDTH / 4``, down to 1."""
    for level in tl.static_range(LEVELS):
        q = tl.sum(tl.reshape(q, [HEADS, 2, WIDTH >> (level + 1)]), axis=1)
    return q


@triton.jit
def _store(x, scale, scale_head_stride, cache, cell, cache_head_stride, head, d, mask, FORM: tl.constexpr):
    """Some heads of a row to the cache at ``cell``."""
    if scale is not None:
        factors = tl.load(scale + head * scale_head_stride, mask=mask, other=1.0)
        x = tl.div_rn(x, factors)
    tl.store(cache + cell + head * cache_head_stride + d, narrow(x, FORM), mask=mask)


@triton.jit
def _place(pages, context, j, wanted, request_angles, angle_column_stride, max_positions, PAGE: tl.constexpr):
    """Page and slot of rows, their rows of the angles, and which of those that are wanted have all that they need."""
    position = context + j
    angle = position
    if request_angles is not None:
        angle = tl.load(request_angles + j * angle_column_stride, mask=wanted, other=0).to(tl.int64)
    page, slot, found = locate(pages, position, wanted & (angle >= 0) & (angle < max_positions), PAGE)
    return page, slot, angle, found


@triton.jit(do_not_specialize=VARYING)
def inject_kernel(
    projected, request_stride, row_stride, layer_stride, side_stride, head_stride, kv_heads, width,
    norm, norm_stride, angles, angles_stride, sines, max_positions, positions, positions_stride, positions_column_stride,
    eps, key_scale, key_layer_stride, key_head_stride, value_scale, value_layer_stride, value_head_stride,
    key0, key1, key2, key3, key4, key5, key6, key7, key_page_stride, key_slot_stride, key_cache_head_stride,
    value0, value1, value2, value3, value4, value5, value6, value7,
    value_page_stride, value_slot_stride, value_cache_head_stride, num_pages,
    table, table_stride, table_columns_stride, table_height, table_columns, table_rows, table_rows_stride,
    context_lens, context_lens_stride, num_tokens, num_tokens_stride, active, active_stride, status, status_stride,
    first_layer,
    PAGE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr, HEADS: tl.constexpr,
    INTERLEAVED: tl.constexpr, IS_BFLOAT16: tl.constexpr, NORM_IS_BFLOAT16: tl.constexpr,
    ANGLES_ARE_BFLOAT16: tl.constexpr, KEY_FORM: tl.constexpr, VALUE_FORM: tl.constexpr,
):  # fmt: skip
    """One row of one request in one layer."""
    j, number, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    live = tl.full([], 1, tl.int32)
    if active is not None:
        live = tl.load(active + b.to(tl.int64) * active_stride).to(tl.int32)
    tokens = tl.load(num_tokens + b.to(tl.int64) * num_tokens_stride)
    context = tl.load(context_lens + b.to(tl.int64) * context_lens_stride).to(tl.int64)
    count = tl.where(live != 0, tl.minimum(tl.maximum(tokens, 0), width), 0)
    wrong = (live != 0) & ((tokens < 0) | (tokens > width) | (context < 0))
    context = tl.minimum(tl.maximum(context, 0), 1 << 62)  # beyond any table
    pages = pages_of(
        table, table_stride, table_columns_stride, table_height, table_columns, table_rows, table_rows_stride,
        num_pages, b,
    )  # fmt: skip
    request_angles = positions
    if positions is not None:
        request_angles = positions + b.to(tl.int64) * positions_stride
    if status is not None:
        if (j == 0) & (number == 0) & (first_layer == 0):
            lost = tl.full([], 0, tl.int32)
            for begin in tl.range(0, count, _CHECKED, num_stages=1):
                i = (begin + tl.arange(0, _CHECKED)).to(tl.int64)
                _, _, _, there = _place(
                    pages, context, i, i < count, request_angles, positions_column_stride, max_positions, PAGE
                )  # fmt: skip
                lost += tl.sum(tl.where((i < count) & (there == 0), 1, 0), axis=0)
            bits = tl.where(wrong, _MALFORMED, 0) | tl.where(lost > 0, _NO_PAGE, 0)
            tl.store(status + b.to(tl.int64) * status_stride, bits)
    if j < count:
        page, slot, angle, found = _place(
            pages, context, j.to(tl.int64), j < count, request_angles, positions_column_stride, max_positions, PAGE
        )
        if found:
            keys, values = key0, value0
            if number == 1:
                keys, values = key1, value1
            if number == 2:
                keys, values = key2, value2
            if number == 3:
                keys, values = key3, value3
            if number == 4:
                keys, values = key4, value4
            if number == 5:
                keys, values = key5, value5
            if number == 6:
                keys, values = key6, value6
            if number == 7:
                keys, values = key7, value7
            layer = (first_layer + number).to(tl.int64)
            row = b.to(tl.int64) * request_stride + j.to(tl.int64) * row_stride + layer * layer_stride
            key_cell = page * key_page_stride + slot * key_slot_stride
            value_cell = page * value_page_stride + slot * value_slot_stride
            key_factors, value_factors = key_scale, value_scale
            if key_scale is not None:
                key_factors = key_scale + layer * key_layer_stride
            if value_scale is not None:
                value_factors = value_scale + layer * value_layer_stride
            d = tl.arange(0, WIDTH)[None, :]
            whole = d < DIM
            if INTERLEAVED:
                partner = d ^ 1
            else:
                partner = tl.where(d < DIM // 2, d + DIM // 2, d - DIM // 2)
            for begin in tl.range(0, kv_heads, HEADS, num_stages=1):
                head = (begin + tl.arange(0, HEADS)).to(tl.int64)[:, None]
                mask = (head < kv_heads) & whole
                at = row + head * head_stride
                x = _load(projected, at + side_stride + d, mask, IS_BFLOAT16)
                _store(
                    x, value_factors, value_head_stride, values, value_cell, value_cache_head_stride, head, d, mask,
                    VALUE_FORM,
                )  # fmt: skip
                x = _load(projected, at + d, mask, IS_BFLOAT16)
                y = x
                if angles is not None:
                    y = _load(projected, at + partner, mask, IS_BFLOAT16)
                if norm is not None:
                    total = _sum_in_halves(x * x, HEADS, WIDTH, LEVELS)
                    mean = tl.div_rn(total, tl.full([HEADS, 1], DIM, tl.float32))
                    factor = tl.div_rn(tl.full([HEADS, 1], 1.0, tl.float32), tl.sqrt_rn(mean + eps))
                    weights = layer * norm_stride
                    x = x * factor * _load(norm, weights + d, whole, NORM_IS_BFLOAT16)
                    if angles is not None:
                        y = y * factor * _load(norm, weights + partner, whole, NORM_IS_BFLOAT16)
                if angles is not None:
                    turn = angle * angles_stride + d
                    cosine = _load(angles, turn, whole, ANGLES_ARE_BFLOAT16)
                    x = x * cosine + y * _load(angles, turn + sines, whole, ANGLES_ARE_BFLOAT16)
                _store(
                    x, key_factors, key_head_stride, keys, key_cell, key_cache_head_stride, head, d, mask, KEY_FORM
                )  # fmt: skip


def _as_bits(tensor: Tensor | None) -> Any:
    """bfloat16 as integers, all else as it is."""
    if tensor is not None and tensor.dtype == torch.bfloat16:
        return triton.reinterpret(tensor, tl.int16)
    return tensor


def _is_bfloat16(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype == torch.bfloat16


def _scale(tensor: Tensor | None) -> tuple[Any, ...]:
    """Factors with the strides of layers and heads."""
    if tensor is None:
        return None, 0, 0
    layers = step(tensor) if tensor.dim() == 2 else 0
    return tensor, layers, 0 if tensor.shape[-1] == 1 else step(tensor, tensor.dim() - 1)


def kv_inject(
    projected: Tensor,
    key_norm: Tensor | None,
    cos_sin: Tensor | None,
    positions: Tensor | None,
    block_table: Tensor,
    table_rows: Tensor | None,
    context_lens: Tensor,
    num_tokens: Tensor,
    eps: float,
    interleaved: bool,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    active: Tensor | None,
    key_caches: list[Tensor],
    value_caches: list[Tensor],
    status: Tensor | None,
) -> None:
    """The launcher of ``kv.inject``."""
    batch, width, layers, _, heads, dim = projected.shape
    if batch == 0:
        return
    key, value = key_caches[0], value_caches[0]
    columns = power_of_two(dim)
    tile = min(power_of_two(heads), max(TILE // columns, 1))

    def pointers(caches: list[Tensor], first: int) -> list[Any]:
        given = [triton.reinterpret(cache, FORMS[cache.dtype][1]) for cache in caches[first : first + LAYERS]]
        return given + [given[0]] * (LAYERS - len(given))

    with on_device_of(projected):
        for first in range(0, layers, LAYERS):
            inject_kernel[(max(width, 1), min(layers - first, LAYERS), batch)](
                *(_as_bits(projected), *(step(projected, i) for i in range(5)), heads, width),
                *(_as_bits(key_norm), step(key_norm), _as_bits(cos_sin), step(cos_sin)),
                *((0, 1 << 62) if cos_sin is None else (step(cos_sin, 1), cos_sin.shape[0])),
                *(positions, step(positions), 0 if positions is None else step(positions, 1), float(eps)),
                *(*_scale(key_scale), *_scale(value_scale)),
                *(*pointers(key_caches, first), step(key), step(key, 1), step(key, 2)),
                *(*pointers(value_caches, first), step(value), step(value, 1), step(value, 2), key.shape[0]),
                *(block_table, step(block_table), step(block_table, 1), block_table.shape[0], block_table.shape[1]),
                *(table_rows, step(table_rows), context_lens, step(context_lens), num_tokens, step(num_tokens)),
                *(flags(active), step(active), status, step(status), first),
                PAGE=key.shape[1],
                DIM=dim,
                WIDTH=columns,
                LEVELS=columns.bit_length() - 1,
                HEADS=tile,
                INTERLEAVED=interleaved,
                IS_BFLOAT16=_is_bfloat16(projected),
                NORM_IS_BFLOAT16=_is_bfloat16(key_norm),
                ANGLES_ARE_BFLOAT16=_is_bfloat16(cos_sin),
                KEY_FORM=FORMS[key.dtype][0],
                VALUE_FORM=FORMS[value.dtype][0],
                enable_fp_fusion=False,
            )
