"""Attention of the nodes of draft trees over a paged cache, and the merge of partial results."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..types import MALFORMED, PAGE_OUT_OF_RANGE
from . import checks
from .nodes import Nodes
from .paging import (
    CACHES,
    Table,
    check_pages,
    check_queries,
    check_scale,
    owned,
    query_rows,
    scales_of,
    slots_of,
)

VISIBILITIES = ("tree", "block")
MAX_KEY_DIM, MAX_VALUE_DIM = 576, 512

#: No context is longer: sums with it do not overflow.
_MOST_CONTEXT = 1 << 60


def tree_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    tree: Any,
    scale: float | None = None,
    softcap: float = 0.0,
    window: int = 0,
    sinks: Tensor | None = None,
    visibility: str = "tree",
    *,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    query_nodes: Tensor | None = None,
    cu_queries: Tensor | None = None,
    table_rows: Tensor | None = None,
    active: Tensor | None = None,
    status: Tensor | None = None,
    out: Any = None,
) -> tuple[Tensor, Tensor]:
    """Attend the nodes of each request to its context and to its tree.

    For a query ``q`` of node ``i`` and a key ``k`` at rotary position ``p``::

        x = scale * q.k;  x = softcap * tanh(x / softcap) if softcap
        visible: p in the context, or k of node j with j <= i < ends[j] ("tree") or any live j ("block");
                 and position(i) - p < window if window
        out = sum of softmax(x) v over what is visible, with exp(sink) in the denominator

    A node has rotary position ``context + depth``, whatever its slot.

    Args:
        query: ``[Tq, Hq, D]`` float32, bfloat16 or float16; head ``h`` reads key/value head ``h // (Hq / Hkv)``.
        key_cache: ``[P, S, Hkv, D]`` float32, bfloat16, float16 or float8.
        value_cache: ``[P, S, Hkv, Dv]``, likewise.
        block_table: ``[B, max_pages]`` int32 or int64 page ids; ``[rows, max_pages]`` with ``table_rows``.
        context_lens: ``[B]`` int32 or int64, committed tokens; below 0 counts as 0, status 8.
        tree: the new tokens; the KV of node ``i`` lies at position ``context + slots[i]`` (None: ``i``).
        scale: of the scores; None: ``1 / sqrt(D)``.
        softcap: 0 is off.
        window: 0 is off.
        sinks: ``[Hq]`` float32.
        visibility: ``"tree"`` or ``"block"``.
        key_scale: ``[1]`` or ``[Hkv]`` float32, what stored keys are multiplied by.
        value_scale: the same for values.
        query_nodes: ``[Tq]`` int32 or int64, node of each row; None: the rows are those of the tree.
        cu_queries: ``[B+1]`` int32, rows of each request; given with ``query_nodes``.
        table_rows: ``[B]`` int32 or int64, row of the block table of each request; None: its own number.
        active: ``[B]`` bool; other requests do nothing.
        status: ``[B]`` int32, receives status bits: 8 malformed tree, offsets that do not ascend, or a visible node with
            a slot below 0 (not visible); 16 a visible page out of range (not visible).
        out: ``(out, lse)`` to write into.

    Returns:
        ``[Tq, Hq, Dv]`` in the dtype of the query, and the log of the denominator ``[Tq, Hq]`` float32; 0 and -inf for
        rows of no live node and of requests whose offsets do not ascend; 0 and the sink, or -inf without one, where
        nothing is visible. A score or a sink of +inf, or NaN, makes both NaN.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or choice.

    Deterministic; a row depends on what it sees alone. Reads values on the host: not for CUDA graphs.
    """
    op = "attention.tree_attention"
    batch, count = checks.tree(op, tree)
    rows = check_queries(op, query_nodes, cu_queries, batch, count)
    heads, kv_heads, value_dim = _check(op, query, key_cache, value_cache, rows)
    check_pages(op, block_table, table_rows, context_lens, batch)
    checks.optional(op, "sinks", sinks, heads, (torch.float32,))
    check_scale(op, "key_scale", key_scale, kv_heads)
    check_scale(op, "value_scale", value_scale, kv_heads)
    checks.choice(op, "visibility", visibility, VISIBILITIES)
    checks.optional(op, "active", active, batch, (torch.bool,))
    checks.optional(op, "status", status, batch, (torch.int32,))
    factor = query.shape[2] ** -0.5 if scale is None else scale
    result = torch.zeros((rows, heads, value_dim), dtype=torch.float64)
    lse = torch.full((rows, heads), -math.inf, dtype=torch.float64)
    flags = [0] * batch
    owns = owned(tree.cu_nodes if cu_queries is None else cu_queries, rows)
    for b in range(batch):
        if active is not None and not bool(active[b]):
            continue
        nodes = Nodes(tree, b)
        flags[b] = MALFORMED * (nodes.malformed or not owns[b])
        if not nodes.count:
            continue
        context = int(context_lens[b])
        flags[b] |= MALFORMED * (context < 0)
        context = min(max(context, 0), _MOST_CONTEXT)
        chosen = query_rows(nodes, b, query_nodes, cu_queries) if owns[b] else []
        if not chosen:
            continue
        table = Table(block_table, table_rows, b)
        base = min(context, table.row.numel() * key_cache.shape[1])  # the rest of the context has no page
        depths = torch.tensor(nodes.depths[: nodes.count])
        slots = slots_of(tree, nodes)
        stored = torch.cat((torch.arange(base), torch.where(slots < 0, -1, context + slots)))
        rotary = torch.cat((torch.arange(base), context + depths))
        mine = torch.tensor([node for _, node in chosen])
        visible = _visible(nodes, mine, base, visibility)
        last = int(depths[mine].min())  # of what a window hides, the row that sees most
        beyond = base < context and (window <= 0 or last < window - 1)
        if window > 0:
            visible &= (context + depths[mine]).unsqueeze(1) - rotary < window
        page, slot, there = table.locate(stored, *key_cache.shape[:2])
        missing = (visible & ~there).any(0)
        flags[b] |= MALFORMED * bool((missing & (stored < 0)).any())
        flags[b] |= PAGE_OUT_OF_RANGE * (beyond or bool((missing & (stored >= 0)).any()))
        visible &= there
        needed = visible.any(0).nonzero()[:, 0]  # nothing else is read
        keys = _read(key_cache, page[needed], slot[needed], key_scale)
        values = _read(value_cache, page[needed], slot[needed], value_scale)
        where = torch.tensor([row for row, _ in chosen])
        q = query[where.to(query.device)].double().cpu().unflatten(1, (kv_heads, -1))
        scores = torch.einsum("rkgd,tkd->rkgt", q, keys).flatten(1, 2) * factor
        if softcap > 0:
            scores = softcap * (scores / softcap).tanh()
        seen = visible[:, needed].unsqueeze(1)
        scores = scores.masked_fill(~seen, -math.inf)
        total = scores.logsumexp(-1) if needed.numel() else torch.full(scores.shape[:2], -math.inf).double()
        if sinks is not None:
            total = torch.logaddexp(total, sinks.double().cpu())
        total = total.masked_fill(total == math.inf, math.nan)
        weights = (scores - total.unsqueeze(-1)).exp().masked_fill(~seen | (total == -math.inf).unsqueeze(-1), 0.0)
        result[where] = _mix(weights.unflatten(1, (kv_heads, -1)), values, visible[:, needed]).flatten(1, 2)
        lse[where] = total
    if status is not None:
        status.copy_(torch.tensor(flags, dtype=torch.int32))
    made = (result.to(query.dtype).to(query.device), lse.float().to(query.device))
    return made if out is None else (out[0].copy_(made[0]), out[1].copy_(made[1]))


def _check(op: str, query: Any, key_cache: Any, value_cache: Any, rows: int) -> tuple[int, int, int]:
    """Check query and caches; returns query heads, key/value heads and the size of a value."""
    checks.tensor(op, "query", query, (rows, "Hq", "D"), checks.FLOATS)
    heads, dim = query.shape[1:]
    checks.tensor(op, "key_cache", key_cache, ("P", "S", "Hkv", dim), CACHES)
    pages, size, kv_heads, _ = key_cache.shape
    checks.tensor(op, "value_cache", value_cache, (pages, size, kv_heads, "Dv"), CACHES)
    value_dim = value_cache.shape[3]
    for name, value, most in (("query", dim, MAX_KEY_DIM), ("value_cache", value_dim, MAX_VALUE_DIM)):
        if value % 8 or not 8 <= value <= most:
            raise ValueError(f"{op}: {name} must have a head size that is a multiple of 8 up to {most}, got {value}")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{op}: query must have a multiple of {kv_heads} heads, got {heads}")
    if size < 1 or size & (size - 1):
        raise ValueError(f"{op}: key_cache must have a page size that is a power of two, got {size}")
    return heads, kv_heads, value_dim


def _visible(nodes: Nodes, mine: Tensor, context: int, visibility: str) -> Tensor:
    """``[rows, context + nodes]`` bool: whether a row sees a key, windows apart."""
    other = torch.arange(nodes.count)
    if visibility == "block":
        tree_part = torch.ones((mine.numel(), nodes.count), dtype=torch.bool)
    else:
        ends = torch.tensor(nodes.ends[: nodes.count])
        tree_part = (other <= mine.unsqueeze(1)) & (mine.unsqueeze(1) < ends)
    return torch.cat((torch.ones((mine.numel(), context), dtype=torch.bool), tree_part), dim=1)


def _read(cache: Tensor, page: Tensor, slot: Tensor, scale: Tensor | None) -> Tensor:
    """``[keys, Hkv, dim]`` float64 of a cache."""
    found = cache[page.to(cache.device), slot.to(cache.device)] if page.numel() else cache[:0, 0]
    return found.float().double().cpu() * scales_of(scale, cache.shape[2]).unsqueeze(1)


def _mix(weights: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """``[rows, Hkv, G, Dv]``: values by weights; what a row does not see adds nothing, whatever the value."""
    mixed = torch.einsum("rkgt,tkd->rkgd", weights, torch.nan_to_num(values, 0.0, 0.0, 0.0))
    odd = ~torch.isfinite(values)
    if bool(odd.any()):
        extra = torch.where(odd, values, 0.0)
        for t in odd.flatten(1).any(1).nonzero()[:, 0].tolist():
            takes = seen[:, t].view(-1, 1, 1, 1) & odd[t].unsqueeze(1)
            mixed += torch.where(takes, weights[..., t].unsqueeze(-1) * extra[t].unsqueeze(1), 0.0)
    return mixed


def merge_states(values: Tensor, lses: Tensor, *, out: Any = None) -> tuple[Tensor, Tensor]:
    """Results over parts of the keys as the result over all of them.

    Args:
        values: ``[T, S, H, D]`` float32, bfloat16 or float16, a result of each of ``S`` parts.
        lses: ``[T, S, H]`` float32, natural logs of their denominators; a part with -inf is ignored.
        out: ``(out, lse)`` to write into.

    Returns:
        ``[T, H, D]`` in the dtype of the values, and ``[T, H]`` float32; 0 and -inf where all parts are ignored, NaN
        where a part has +inf or NaN.

    Raises:
        TypeError, ValueError: on a wrong dtype or shape.

    Deterministic.
    Source: Ye et al. 2025 (FlashInfer), arXiv 2501.01005, section 2.2.
    """
    op = "attention.merge_states"
    checks.tensor(op, "values", values, ("T", "S", "H", "D"), checks.FLOATS)
    checks.tensor(op, "lses", lses, tuple(values.shape[:3]), (torch.float32,))
    total = lses.double().logsumexp(1) if lses.shape[1] else lses.new_full((lses.shape[0], lses.shape[2]), -math.inf)
    total = total.masked_fill(total == math.inf, math.nan)
    weights = (lses.double() - total.unsqueeze(1)).exp().unsqueeze(-1)
    used = (lses != -math.inf).unsqueeze(-1)
    merged = torch.where(used, weights * values.double(), 0.0).sum(1)
    made = (merged.to(values.dtype), total.float())
    return made if out is None else (out[0].copy_(made[0]), out[1].copy_(made[1]))
