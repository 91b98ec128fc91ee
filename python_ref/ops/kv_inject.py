"""``kv.inject``: the last steps between a projection and the caches of all layers of a block drafter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import MALFORMED, PAGE_OUT_OF_RANGE
from . import checks
from .paging import CACHES, Table, check_pages

#: Largest head size.
MAX_DIM = 1024


def inject(
    projected: Tensor,
    key_norm: Tensor | None,
    cos_sin: Tensor | None,
    key_caches: Sequence[Tensor],
    value_caches: Sequence[Tensor],
    block_table: Tensor,
    context_lens: Tensor,
    num_tokens: Tensor,
    *,
    positions: Tensor | None = None,
    eps: float = 1e-6,
    interleaved: bool = False,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    table_rows: Tensor | None = None,
    active: Tensor | None = None,
    status: Tensor | None = None,
) -> None:
    """Normalise, turn and store the projected keys of the first ``num_tokens`` rows in all layers, and their values.

    All arithmetic is float32, each operation rounded for itself, in the order that is written here.

    Args:
        projected: ``[B, W, L, 2, Hkv, D]`` float32, bfloat16 or float16, keys and values of each row and layer.
        key_norm: ``[L, D]`` weights of the RMSNorm of each layer; None: no norm.
        cos_sin: ``[max_positions, 2, D]`` cosines and signed sines; None: no rotation.
        key_caches: ``L`` tensors ``[P, S, Hkv, D]`` float32, bfloat16, float16 or float8.
        value_caches: ``L`` tensors of the same shape.
        block_table: ``[B, max_pages]`` int32 or int64 page ids; ``[rows, max_pages]`` with ``table_rows``.
        context_lens: ``[B]`` int32 or int64, position of row 0; below 0 counts as 0, status 8.
        num_tokens: ``[B]`` int32; outside ``[0, W]`` it is clamped, status 8.
        positions: ``[B, W]`` int32 or int64, row of ``cos_sin``; None: the position where the row is stored.
        eps: is added to the mean of the squares.
        interleaved: pairs are elements ``2i`` and ``2i + 1``, else ``i`` and ``i + D/2``.
        key_scale: ``[1]``, ``[Hkv]``, ``[L, 1]`` or ``[L, Hkv]`` float32, what stored keys will be multiplied by.
        value_scale: the same for values.
        table_rows: ``[B]`` int32 or int64, row of the block table of each request.
        active: ``[B]`` bool; other requests do nothing.
        status: ``[B]`` int32, receives status bits: 8, and 16 where a row has no page or no angles (it is not written).

    Raises:
        TypeError, ValueError: on a wrong dtype or shape.

    Deterministic. Reads values on the host: not for CUDA graphs.
    """
    op = "kv.inject"
    checks.tensor(op, "projected", projected, ("B", "W", "L", 2, "Hkv", "D"), checks.FLOATS)
    batch, width, layers, _, heads, dim = projected.shape
    if key_norm is not None:
        checks.tensor(op, "key_norm", key_norm, (layers, dim), checks.FLOATS)
    if cos_sin is not None:
        checks.tensor(op, "cos_sin", cos_sin, ("max_positions", 2, dim), checks.FLOATS)
        if dim % 2:
            raise ValueError(f"{op}: projected must have an even last dimension to be turned, got {dim}")
    if positions is not None:
        checks.tensor(op, "positions", positions, (batch, width))
    for name, caches in (("key_caches", key_caches), ("value_caches", value_caches)):
        if len(caches) != layers:
            raise ValueError(f"{op}: {name} must have {layers} elements, one for each layer, got {len(caches)}")
        for i, cache in enumerate(caches):
            checks.tensor(op, f"{name}[{i}]", cache, ("P", "S", heads, dim), CACHES)
    check_pages(op, block_table, table_rows, context_lens, batch)
    checks.tensor(op, "num_tokens", num_tokens, (batch,), (torch.int32,))
    checks.optional(op, "active", active, batch, (torch.bool,))
    checks.optional(op, "status", status, batch, (torch.int32,))
    flags = [0] * batch
    for b in range(batch):
        if active is not None and not bool(active[b]):
            continue
        count, context = min(max(int(num_tokens[b]), 0), width), int(context_lens[b])
        flags[b] = MALFORMED * (count != int(num_tokens[b]) or context < 0)
        places = max(context, 0) + torch.arange(count)
        pages, slots, there = Table(block_table, table_rows, b).locate(places, *key_caches[0].shape[:2])
        angles = places if positions is None else positions[b, :count].long().cpu()
        if cos_sin is not None:
            there &= (angles >= 0) & (angles < cos_sin.shape[0])
        flags[b] |= PAGE_OUT_OF_RANGE * bool((~there).any())
        for j in there.nonzero().flatten().tolist():
            for layer in range(layers):
                key, value = projected[b, j, layer].float()
                if key_norm is not None:
                    key = normalise(key, key_norm[layer].float(), eps)
                if cos_sin is not None:
                    key = turn(key, *cos_sin[int(angles[j])].float(), interleaved)
                for x, scale, caches in ((key, key_scale, key_caches), (value, value_scale, value_caches)):
                    cell = caches[layer][pages[j], slots[j]]
                    cell.copy_(_stored(x, _scale_of(scale, layer), cell.dtype))
    if status is not None:
        status.copy_(torch.tensor(flags, dtype=torch.int32))


def normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of the last dimension of float32 numbers; their squares are added in halves."""
    dim = x.shape[-1]
    total = x * x
    width = 1 << (dim - 1).bit_length()
    total = torch.nn.functional.pad(total, (0, width - dim))
    while width > 1:
        width //= 2
        total = total[..., :width] + total[..., width:]
    mean = total / torch.full_like(total, dim) + torch.full_like(total, eps)
    root = mean.double().sqrt().float()  # rounded once: torch's square root of float32 may be the next number
    return x * (torch.ones_like(root) / root) * weight


def turn(x: Tensor, cosine: Tensor, sine: Tensor, interleaved: bool) -> Tensor:
    """Each element and its partner, turned by the angle of their pair; sines carry the sign."""
    if interleaved:
        partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        partner = x.roll(x.shape[-1] // 2, -1)
    return x * cosine + partner * sine


def _scale_of(scale: Tensor | None, layer: int) -> Tensor | None:
    """The factors of one layer, ``[1]`` or ``[Hkv]``."""
    return scale if scale is None or scale.dim() == 1 else scale[layer]


def _stored(x: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``[Hkv, D]`` float32 as a cache of this dtype holds it."""
    if scale is not None:
        x = x / scale.float().expand(x.shape[0]).unsqueeze(1).expand_as(x)
    if dtype.itemsize == 1:
        most = torch.finfo(dtype).max
        x = x.clamp(-most, most)  # NaN stays
    return x.to(dtype)
