"""Random calls of ``kv.inject`` and ``draft.block``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from python_ref.models.rotary import Rotary

from .cases import FLOATS, INDICES, Draw
from .kv_cases import CACHES, pages, storage

DIMS = (1, 2, 5, 8, 12, 24, 64, 80, 130)
LARGE_DIMS = (256, 258, 500, 512, 514, 1024)


def projection(draw: Draw, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``[B, W, L, 2, Hkv, D]``: a view of a product, perhaps with a gap, an offset, or its dimensions in another order."""
    batch, width, layers, _, heads, dim = sizes
    scale = 10.0 ** draw.whole(-3, 3)
    kind = draw.one(("product", "product", "gap", "offset", "layers first"))
    if kind == "layers first":
        made = draw.normal(layers, 2, batch, heads, width, dim) * scale
        return made.to(dtype).permute(2, 4, 0, 1, 3, 5)
    columns = layers * 2 * heads * dim
    gap = draw.one((3, 8)) if kind == "gap" else 0
    shift = 1 if kind == "offset" else 0
    flat = (draw.normal(batch * width * (columns + gap) + shift) * scale).to(dtype)[shift:]
    return flat.view(batch * width, columns + gap)[:, :columns].unflatten(0, (batch, width)).unflatten(2, sizes[2:])


def caches(draw: Draw, layers: int, size: tuple[int, int, int, int]) -> list[Tensor]:
    """One for each layer, all of one layout and dtype, with something around each."""
    dtype = draw.one(CACHES)
    layout = draw.one(("nhd", "hnd", "interleaved", "gaps"))
    offset = draw.one((0, 0, 1))
    number, page, heads, dim = size
    made = []
    for _ in range(layers):
        memory = storage(draw, 2 * number * page * heads * (dim + 3) + 16, dtype)[offset:]
        count = number * page * heads * dim
        if layout == "nhd":
            made.append(memory[:count].view(size))
        elif layout == "hnd":
            made.append(memory[:count].view(number, heads, page, dim).transpose(1, 2))
        elif layout == "interleaved":
            made.append(memory[: 2 * count].view(number, 2, page, heads, dim)[:, 1])
        else:
            made.append(memory[: number * page * heads * (dim + 3)].view(number, page, heads, dim + 3)[..., :dim])
    return made


def table_of_angles(draw: Draw, positions: int, dim: int, interleaved: bool) -> Tensor:
    """``[positions, 2, dim]``: cosines and signed sines."""
    angles = 3 * draw.normal(positions, dim // 2)
    cosine, sine = angles.cos(), angles.sin()
    if interleaved:
        return torch.stack((torch.stack((cosine, cosine), 2).flatten(1), torch.stack((-sine, sine), 2).flatten(1)), 1)
    return torch.stack((torch.cat((cosine, cosine), 1), torch.cat((-sine, sine), 1)), 1)


def inject(seed: int, *, spoil: bool, dims: tuple[int, ...] = DIMS) -> dict[str, Any]:
    """A call of ``kv.inject``, whose requests have pages of their own."""
    draw = Draw(seed)
    batch, width, layers, heads, dim = (*(draw.whole(low, 3) for low in (0, 0, 1, 1)), draw.one(dims))
    width = 2 * width
    page = 2 ** draw.whole(0, 4)
    where = pages(draw, batch, page, width + 1, spoil)
    size = (where.num_pages, page, heads, dim)
    counts = draw.whole_tensor(0, width, (batch,), torch.int32)
    call: dict[str, Any] = {
        "projected": projection(draw, (batch, width, layers, 2, heads, dim), draw.one(FLOATS)),
        "key_norm": draw.normal(layers, dim).to(draw.one(FLOATS)) if draw.chance(0.7) else None,
        "cos_sin": None,
        "key_caches": caches(draw, layers, size),
        "value_caches": caches(draw, layers, size),
        "block_table": where.block_table,
        "context_lens": where.context_lens,
        "num_tokens": counts,
        "table_rows": where.table_rows,
        "eps": draw.one((1e-6, 1e-5, 0.0, 1.0)),
        "interleaved": draw.chance(0.5),
        "status": torch.full((batch,), 77, dtype=torch.int32),
    }
    if dim % 2 == 0 and draw.chance(0.8):
        most = 3 * page + width
        call["cos_sin"] = table_of_angles(draw, most, dim, call["interleaved"]).to(draw.one(FLOATS))
        if draw.chance(0.4):
            call["positions"] = draw.whole_tensor(0, most - 1, (width, batch), draw.one(INDICES)).t()
    for name in ("key_scale", "value_scale"):
        shape = draw.one((None, (1,), (heads,), (layers, 1), (layers, heads)))
        call[name] = shape if shape is None else 2.0 ** draw.normal(*shape)
    if draw.chance(0.5):
        call["active"] = draw.whole_tensor(0, 3, (batch,)) > 0
    if spoil and batch:
        if draw.chance(0.4):
            counts[draw.whole(0, batch - 1)] = draw.one((-1, -(2**31), width + 1, 2**31 - 1))
        if call["cos_sin"] is not None and draw.chance(0.4):
            call["cos_sin"] = call["cos_sin"][: draw.whole(0, 5)]
        if call.get("positions") is not None and width and draw.chance(0.4):
            call["positions"][draw.whole(0, batch - 1), draw.whole(0, width - 1)] = draw.one((-1, 2**31 - 1))
    return call


def usual(
    batch: int = 2,
    width: int = 4,
    layers: int = 2,
    heads: int = 2,
    dim: int = 16,
    page: int = 4,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Requests with contexts of 3, 4, ... in pages of their own, in caches full of ones."""
    draw = torch.Generator().manual_seed(dim + layers)
    table = Rotary(dim, 10000.0, 64).table().squeeze(2)
    pages = 16 // page + 1
    return {
        "projected": torch.randn(batch, width, layers, 2, heads, dim, generator=draw).to(dtype),
        "key_norm": torch.rand(layers, dim, generator=draw) + 0.5,
        "cos_sin": table,
        "key_caches": [torch.ones(batch * pages, page, heads, dim, dtype=dtype) for _ in range(layers)],
        "value_caches": [torch.ones(batch * pages, page, heads, dim, dtype=dtype) for _ in range(layers)],
        "block_table": torch.randperm(batch * pages, generator=draw).view(batch, pages),
        "context_lens": 3 + torch.arange(batch),
        "num_tokens": torch.tensor([width, 1][:batch], dtype=torch.int32),
    }


def block(seed: int, *, spoil: bool) -> dict[str, Any]:
    """A call of ``draft.block``."""
    draw = Draw(seed)
    batch, width = draw.whole(0, 4), draw.whole(0 if spoil else 1, 6)
    counts = draw.whole_tensor(0, width, (batch,), torch.int32)
    tokens = draw.whole_tensor(0, 50000, (batch, width), draw.one(INDICES))
    tokens = torch.where(torch.arange(width) < counts.unsqueeze(1), tokens, -1)
    call: dict[str, Any] = {
        "tokens": tokens.t().contiguous().t() if draw.chance(0.3) else tokens,
        "num_tokens": counts,
        "context_lens": draw.whole_tensor(0, 40, (batch,), draw.one(INDICES)),
        "mask_token": draw.one((0, 151669, 2**31 - 1)),
        "block_size": draw.one((1, 4, 16, 40)),
        "status": torch.full((batch,), 77, dtype=torch.int32),
    }
    if draw.chance(0.7):
        page = 2 ** draw.whole(0, 5)
        where = pages(draw, batch, page, width + 41 if draw.chance(0.7) else 3, spoil)
        call |= {"block_table": where.block_table, "table_rows": where.table_rows, "page_size": page}
        call["context_lens"] = where.context_lens
    if draw.chance(0.4):
        call["active"] = draw.whole_tensor(0, 3, (batch,)) > 0
    if spoil and batch:
        b = draw.whole(0, batch - 1)
        if draw.chance(0.5):
            counts[b] = draw.one((-1, -(2**31), width + 1, 2**31 - 1))
        if draw.chance(0.4):
            call["context_lens"][b] = draw.one((-1, -(2**31), 2**31 - 1))
        if width and draw.chance(0.4):
            call["tokens"][b, draw.whole(0, width - 1)] = -1
    return call
