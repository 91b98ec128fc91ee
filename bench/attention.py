"""``attention.tree_attention``: 8 requests behind 2,048 tokens each, 1 to 8 nodes, against PyTorch on gathered pages.

The limit is one read of the keys and values, from memory: they are larger than any cache. ``eager`` gathers the pages
and calls ``scaled_dot_product_attention`` with a dense mask, which is what there is without a paged kernel; ``eager
contiguous`` gets keys and values that are gathered already, in the layout that it likes best.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import specdec_kernels as sk

from .measured import EAGER, Setting, add_note, judge, rows_of
from .rows import Goal, Row
from .runner import Timing, Variant, measure

FAMILY, OP = "attention", "attention_tree_attention"
CONTIGUOUS = "eager contiguous"
NODES, QUICK_NODES = (1, 2, 4, 8), (1, 8)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

#: Largest error, of a result of size 1: PyTorch rounds weights to bfloat16, we do not.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


class Shape(NamedTuple):
    """Sizes of a call."""

    requests: int = 8
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    context: int = 2048
    page: int = 16

    def __str__(self) -> str:
        """As it stands in the rows."""
        return (
            f"{self.requests} requests, {self.heads}/{self.kv_heads} heads of {self.dim}, context {self.context}, "
            f"page {self.page}"
        )


class Case(NamedTuple):
    """A call, and the same for PyTorch: the mask of a request, and the pages in order."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    context_lens: Tensor
    tree: Any
    mask: Tensor


def case(shape: Shape, nodes: int, dtype: torch.dtype, device: str) -> Case:
    """Random queries and caches, pages in random order, and trees with a chain of half of the nodes."""
    draw = torch.Generator().manual_seed(0)
    parents = [-1] + [i - 1 if i <= nodes // 2 else 0 for i in range(1, nodes)]
    count = shape.requests * nodes
    tree, _ = sk.tree.from_parents(
        torch.zeros(count, dtype=torch.int64),
        torch.tensor(parents * shape.requests, dtype=torch.int32),
        (torch.arange(shape.requests + 1) * nodes).int(),
        max_nodes=nodes,
        max_depth=nodes,
    )
    pages = -(-(shape.context + nodes) // shape.page)
    order = torch.randperm(shape.requests * pages, generator=draw)
    size = (order.numel(), shape.page, shape.kv_heads, shape.dim)
    keys, values = (torch.randn(size, generator=draw).to(device, dtype) for _ in range(2))
    mask = torch.zeros((nodes, pages * shape.page), dtype=torch.bool)
    mask[:, : shape.context] = True
    mask[:, shape.context : shape.context + nodes] = sk.tree.to_dense_mask(tree)[0]
    names = ("cu_nodes", "tokens", "parents", "depths", "ends")
    moved = tree._replace(**{name: getattr(tree, name).to(device) for name in names}, status=None)
    return Case(
        torch.randn((count, shape.heads, shape.dim), generator=draw).to(device, dtype),
        keys,
        values,
        order.view(shape.requests, pages).int().to(device),
        torch.full((shape.requests,), shape.context, device=device),
        moved,
        mask.to(device),
    )


def gathered(made: Case, shape: Shape) -> tuple[Tensor, Tensor]:
    """Keys and values of all requests, ``[B, Hkv, L, D]``."""
    table = made.block_table.long()
    keys, values = (cache[table].flatten(1, 2).transpose(1, 2) for cache in (made.key_cache, made.value_cache))
    return keys, values


def dense(made: Case, shape: Shape, keys: Tensor, values: Tensor) -> Tensor:
    """Attention with a dense mask, ``[Tq, Hq, D]``."""
    query = made.query.view(shape.requests, -1, shape.heads, shape.dim).transpose(1, 2)
    out = functional.scaled_dot_product_attention(query, keys, values, attn_mask=made.mask, enable_gqa=True)
    return out.transpose(1, 2).flatten(0, 1)


def count(setting: Setting) -> int:
    """How many groups :func:`groups` gives."""
    return len(DTYPES) * len(QUICK_NODES if setting.quick else NODES)


def groups(setting: Setting, shape: Shape | None = None) -> Iterator[list[Row]]:
    """The rows of one number of nodes and one dtype after the other."""
    shape = Shape() if shape is None else shape
    for name, dtype in DTYPES.items():
        for nodes in QUICK_NODES if setting.quick else NODES:
            setting.tick()
            yield _group(setting, shape, nodes, name, case(shape, nodes, dtype, setting.device))


def goals(setting: Setting, nodes: int) -> list[Goal]:
    """Over PyTorch for 8 nodes, of the read bandwidth below."""
    if setting.device == "cuda":
        return [Goal("share_of_copy", 0.85, at_least=True)]
    if nodes == 8:
        return [Goal("speedup_over_eager", 3.0, at_least=True), Goal("speedup_over_contiguous", 1.3, at_least=True)]
    return [Goal("share_of_read", 0.6, at_least=True)] if nodes <= 4 else []


def _group(setting: Setting, shape: Shape, nodes: int, dtype: str, made: Case) -> list[Row]:
    expected = dense(made, shape, *gathered(made, shape)).float()
    tolerance = TOLERANCE[DTYPES[dtype]]

    def right(result: Tensor) -> str | None:
        error = float((result.float() - expected).abs().max())
        return None if error <= tolerance else f"errors must be at most {tolerance:g}, got {error:g}"

    ready = [part.contiguous() for part in gathered(made, shape)]
    variants = [
        Variant(
            backend,
            partial(_attend, made, backend),
            right,
        )
        for backend in setting.backends
    ]
    variants.append(Variant(EAGER, lambda: dense(made, shape, *gathered(made, shape)), right))
    variants.append(Variant(CONTIGUOUS, lambda: dense(made, shape, *ready), right))
    outcomes = measure(
        variants,
        repeats=setting.repeats,
        budget_s=setting.budget_s,
        stopwatch=setting.stopwatch,
        tick=setting.tick,
    )
    element = made.key_cache.element_size()
    visible = shape.context + nodes
    read = 2 * shape.requests * visible * shape.kv_heads * shape.dim * element
    needed = read + 2 * made.query.numel() * element
    pairs = shape.requests * shape.heads * (nodes * shape.context + int(made.mask[:, shape.context :].sum()))
    columns = {
        "family": FAMILY,
        "op": OP,
        "case": f"{nodes} node{'s' * (nodes > 1)}",
        "dtype": dtype,
        "data": "normal",
        "shape": str(shape),
    }
    rows = rows_of(setting, outcomes, columns, needed=dict.fromkeys(outcomes, needed), flops=4 * pairs * shape.dim)
    contiguous = outcomes[CONTIGUOUS]
    for row in rows:
        if isinstance(contiguous, Timing) and row.time_us:
            row.speedup_over_contiguous = contiguous.p50 / row.time_us
        if row.variant == EAGER:
            add_note(row, "scaled_dot_product_attention with a dense mask on gathered pages")
    judge(rows, setting, goals(setting, nodes))
    return rows


def _attend(made: Case, backend: str) -> Tensor:
    return sk.attention.tree_attention(*made[:6], backend=backend)[0]
