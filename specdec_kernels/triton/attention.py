# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""The launchers of the attention family: a plan, the attention of its items, and, where a context can have several
splits, their combination.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .attend import attend_kernel
from .launch import flags, on_device_of, power_of_two, step
from .merge import combine_kernel, merge_states_kernel
from .paged import E4M3, E4M3_BY_GPU, E5M2, PLAIN
from .plan import FIELDS, plan_kernel

#: Bytes that the states of splits may take; a call that needs more works on some tiles after the others.
MOST_STATES = 256 << 20

#: Most splits of a context, with less than four key/value heads and with more: enough for one request to fill a GPU.
MOST_SPLITS = (64, 32)

#: Fewest keys of a split, by the rows of a tile and whether there are many key/value heads: the state that a split
#: leaves is small beside its keys.
SHORTEST = {(16, True): 256, (32, True): 512, (64, True): 1024, (16, False): 256, (32, False): 512, (64, False): 512}

#: Programs per multiprocessor, and of an interpreted kernel.
PROGRAMS, INTERPRETED_PROGRAMS = 4, 2

#: Requests that are looked at together.
SEARCH = 1024

#: Splits that a program has under way when it combines them, and numbers of each.
UNROLL, COMBINED = 8, 512

#: Numbers of a merged row per program.
MERGED = 1024

#: Dimensions taken at a time where products are of float32.
CHUNK = 32

#: Positions are 32-bit integers.
_FAR = 2**31 - 2**16

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Tiling(NamedTuple):
    """Rows and keys of a tile, warps of a program, and stages of its loop over keys."""

    rows: int
    keys: int
    warps: int
    stages: int


def tiling_of(rows: int, dim: int, value_dim: int, exact: bool, major: int = 9) -> Tiling:
    """How a request is cut.

    Args:
        rows: most rows that share keys.
        dim: head size of the keys.
        value_dim: head size of the values.
        exact: whether products are of float32.
        major: of the compute capability.
    """
    widest = max(dim, value_dim)
    if exact:
        return Tiling(16, 16, 8, 1) if widest > 256 else Tiling(16, 32, 4, 1)
    if widest > 256:
        return Tiling(16, 32, 8, 5) if rows <= 16 else Tiling(32, 32, 8, 4)
    keys = 64 if widest <= 128 and dim & (dim - 1) == 0 else 32
    if rows <= 32:
        return Tiling(16 if rows <= 16 else 32, keys, 4, 5)
    return Tiling(64, keys, 4 if widest <= 128 and major < 10 else 8, 4)


def parts_of(dim: int) -> tuple[int, int]:
    """A head size as two powers of two that a product takes: the largest in it, and one that holds the rest, or 0."""
    first = max(1 << (dim.bit_length() - 1), 16)
    return first, max(power_of_two(dim - first), 16) if dim > first else 0


def form_of(dtype: torch.dtype, capability: tuple[int, int]) -> int:
    """How a cache holds its numbers."""
    float8 = {torch.float8_e4m3fn: E4M3_BY_GPU if capability >= (8, 9) else E4M3, torch.float8_e5m2: E5M2}
    return int(float8.get(dtype, PLAIN).value)


def constants_of(
    query: torch.dtype,
    key: torch.dtype,
    value: torch.dtype,
    *,
    dim: int,
    value_dim: int,
    group: int,
    max_rows: int,
    same_memory: bool,
    capability: tuple[int, int],
) -> tuple[Tiling, dict[str, Any]]:
    """The tiling and the constants of ``attend_kernel`` that hang on dtypes and head sizes.

    A product takes operands of the query's type, exact values of a float8 cache included. Where the cache has another
    type, or the query is float32, it takes float32, and no tensor cores.

    Args:
        query: dtype of the query.
        key: dtype of the keys.
        value: dtype of the values.
        dim: head size of the keys.
        value_dim: head size of the values.
        group: query heads of a key/value head.
        max_rows: most query rows of a request; bits hang on it.
        same_memory: whether a value is the first part of its key.
        capability: of the GPU; ``(0, 0)``: of none.
    """
    types = [_TYPES[query if cache in (query, *_FLOAT8) else torch.float32] for cache in (key, value)]
    exact = [kind is tl.float32 for kind in types]
    parts = (-(-dim // CHUNK) * CHUNK, 0) if exact[0] else parts_of(dim)
    value_parts = parts_of(value_dim)
    tiling = tiling_of(max(group * max_rows, 1), dim, value_dim, any(exact), capability[0])
    return tiling, {
        "G": group,
        "D": dim,
        "D0": parts[0],
        "D1": parts[1],
        "KEY_FORM": form_of(key, capability),
        "KEY_TYPE": types[0],
        "CHUNK": CHUNK if exact[0] else 0,
        "DV": value_dim,
        "V0": value_parts[0],
        "V1": value_parts[1],
        "VALUE_FORM": form_of(value, capability),
        "VALUE_TYPE": types[1],
        "SHARED": same_memory and key == value and not exact[0] and value_parts == (parts[0], 0),
        "BM": tiling.rows,
        "BN": tiling.keys,
    }


def _bytes_of(cache: Tensor) -> Tensor:
    return cache.view(torch.uint8) if cache.dtype in _FLOAT8 else cache


def _capability(tensor: Tensor) -> tuple[int, int]:
    if not tensor.is_cuda or torch.version.cuda is None:
        return (0, 0)
    return torch.cuda.get_device_capability(tensor.device)


def _programs(tensor: Tensor) -> int:
    if not tensor.is_cuda:
        return INTERPRETED_PROGRAMS
    return PROGRAMS * torch.cuda.get_device_properties(tensor.device).multi_processor_count


def _scale_step(scale: Tensor | None) -> int:
    return 0 if scale is None or scale.numel() == 1 else step(scale)


def attention_tree_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    table_rows: Tensor | None,
    context_lens: Tensor,
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    slots: Tensor | None,
    max_nodes: int,
    max_depth: int,
    query_nodes: Tensor | None,
    cu_queries: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    sinks: Tensor | None,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    visibility: int,
    active: Tensor | None,
    out: Tensor,
    lse: Tensor,
    status: Tensor | None,
) -> None:
    """The launcher of ``attention.tree_attention``."""
    batch, total_nodes = cu_nodes.shape[0] - 1, tokens.shape[0]
    rows, heads, dim = query.shape
    num_pages, page_size, kv_heads, value_dim = value_cache.shape
    group = max(heads // kv_heads, 1)
    tiling, constants = constants_of(
        query.dtype,
        key_cache.dtype,
        value_cache.dtype,
        dim=dim,
        value_dim=value_dim,
        group=group,
        # All rows of a batch are no bound that another batch has, so the nodes of a tree are; a choice of them has none.
        max_rows=max_nodes if query_nodes is None else min(max_nodes, rows),
        same_memory=key_cache.data_ptr() == value_cache.data_ptr() and key_cache.stride() == value_cache.stride(),
        capability=_capability(query),
    )
    bm, bn = tiling.rows, tiling.keys
    window = min(window, _FAR)
    capacity = min(block_table.shape[1] * page_size, _FAR)
    most = MOST_SPLITS[kv_heads >= 4]
    shortest = SHORTEST[bm, kv_heads >= 4]
    splits = min(most, -(-(min(capacity, window + bn) if window else capacity) // shortest))
    one = splits <= 1
    if one:  # it holds any context
        most, shortest, splits = 1, _FAR // bn * bn, 1
    # Each request, and the rows after all of them, may have one tile that is not full.
    tiles = (rows * group + (batch + 1) * (bm - math.gcd(group, bm))) // bm if rows * heads else 0
    state = bm * (value_dim + 2)
    chunk = max(tiles if one else min(tiles, MOST_STATES // (4 * state * splits * kv_heads)), 1)
    search = min(SEARCH, power_of_two(batch + 1))
    asked = (query_nodes, step(query_nodes))
    with on_device_of(query):
        plan = torch.empty((FIELDS, batch + 1), dtype=torch.int32, device=query.device)
        states = None if one else torch.empty(chunk * splits * kv_heads * state, device=query.device)
        for first in range(0, max(tiles, 1), chunk):
            last = min(first + chunk, tiles)
            plan_kernel[(batch + 1,)](
                *(cu_nodes, step(cu_nodes), parents, step(parents), depths, step(depths), ends, step(ends)),
                *(total_nodes, max_depth, cu_queries, step(cu_queries), rows, context_lens, step(context_lens)),
                *(flags(active), step(active), plan, status if first == 0 else None, step(status), batch),
                *(first, last, capacity, window, most, shortest),
                G=group,
                BM=bm,
                BN=bn,
                ALL=one,
                SEARCH=search,
            )
            if tiles == 0:
                break
            attend_kernel[(min((last - first) * splits * kv_heads, _programs(query)),)](
                *(plan, batch, query, *query.stride()[:2], *asked),
                *(_bytes_of(key_cache), *key_cache.stride()[:3], _bytes_of(value_cache), *value_cache.stride()[:3]),
                *(num_pages, block_table, *block_table.stride(), *block_table.shape, table_rows, step(table_rows)),
                *(context_lens, step(context_lens), depths, step(depths), ends, step(ends), slots, step(slots)),
                *(float(scale), float(softcap), window, most, shortest, capacity, sinks, step(sinks)),
                *(key_scale, _scale_step(key_scale), value_scale, _scale_step(value_scale)),
                *(out, lse, states, status, step(status), heads, kv_heads),
                **constants,
                PAGE=page_size,
                BLOCK=visibility == 1,
                WINDOW=window > 0,
                CAPPED=softcap > 0,
                SEARCH=search,
                num_warps=tiling.warps,
                num_stages=tiling.stages,
            )
            if not one:
                width = power_of_two(value_dim)
                some = min(max(COMBINED // width, 1), bm)
                combine_kernel[(last - first, kv_heads, bm // some)](
                    *(plan, batch, first, states, *asked, sinks, step(sinks), value_scale, _scale_step(value_scale)),
                    *(out, lse, heads, kv_heads),
                    G=group,
                    DV=value_dim,
                    V=width,
                    BM=bm,
                    ROWS=some,
                    UNROLL=UNROLL,
                    SEARCH=search,
                )


def attention_merge_states(values: Tensor, lses: Tensor, out: Tensor, lse: Tensor) -> None:
    """The launcher of ``attention.merge_states``."""
    rows, parts, heads, dim = values.shape
    if rows == 0 or heads == 0:
        return
    width = min(power_of_two(dim), MERGED)
    with on_device_of(values):
        merge_states_kernel[(rows, heads, max(-(-dim // width), 1))](
            *(values, *values.stride()[:3], lses, *lses.stride(), out, lse, parts, heads, dim), V=width
        )
