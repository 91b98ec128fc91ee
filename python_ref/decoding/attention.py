"""Attention of new tokens over a paged cache, for the reference decoder: ``ops.kv.write``, then
``ops.attention.tree_attention``.

**Why text is identical.** Plain decoding computes the row of a token alone; speculative decoding computes the same
row beside others, and a difference in its last bit can turn a draw. On the CPU the op promises that the bits of a row
depend on its query and on the keys and values that it sees, in the order of their positions, and on nothing else: not
on the other rows, the pages or the batch, nor on whether a key lies in the context or in the tree. (On other devices
rows are equal up to rounding.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..types import TokenTree
from .cache import PagedCache


class Rows(NamedTuple):
    """The new tokens of some requests in one pass of a model, request after request.

    Attributes:
        tree: who sees whom. Node ``i`` of a request is stored ``slots[i]`` (else ``i``) positions behind its context.
        context_lens: ``[B]`` int64, tokens of each request that are in the cache.
        table_rows: ``[B]`` int64, the row of the cache that belongs to each request; None: row ``b``.
        query_nodes: ``[T]`` int64, the node of each row of the pass; None: every row of the tree is one.
        cu_queries: ``[B+1]`` int32, rows of each request; given with ``query_nodes``.
    """

    tree: Any
    context_lens: Tensor
    table_rows: Tensor | None = None
    query_nodes: Tensor | None = None
    cu_queries: Tensor | None = None

    @classmethod
    def of_tree(cls, tree: Any, context_lens: Tensor, lives: Sequence[int] | None = None) -> Rows:
        """The nodes of a tree of all rows of the cache; of each request the first ``lives`` (None: every row)."""
        if lives is None:
            return cls(tree, context_lens)
        device = context_lens.device
        nodes = torch.tensor([i for live in lives for i in range(live)], device=device)
        return cls(tree, context_lens, None, nodes, _offsets(lives, device))

    @classmethod
    def of_chains(cls, rows: Sequence[int], contexts: Sequence[int], counts: Sequence[int], device: Any) -> Rows:
        """Runs of ``counts`` tokens, each at least 1, behind ``contexts`` tokens of ``rows`` of the cache."""
        places = [range(count) for count in counts]

        def column(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        depths = [i for place in places for i in place]
        tree = TokenTree(
            cu_nodes=_offsets(counts, device),
            tokens=column([0] * len(depths)),
            parents=column([i - 1 for i in depths]),
            depths=column(depths),
            ends=column([count for count in counts for _ in range(count)]),
            max_nodes=max(counts, default=0),
            max_depth=max(max(counts, default=1) - 1, 0),
        )
        return cls(tree, torch.tensor(contexts, device=device), torch.tensor(rows, device=device))


def _offsets(counts: Sequence[int], device: Any) -> Tensor:
    ends = [0]
    for count in counts:
        ends.append(ends[-1] + count)
    return torch.tensor(ends, dtype=torch.int32, device=device)


class PagedAttention:
    """The ``attend`` of one pass of a model: stores the new keys and values, and attends each row to what it sees.

    ``query [T, Hq, D]``, ``key`` and ``value [T, Hkv, D]`` give ``[T, Hq, D]``; query head ``h`` reads key/value head
    ``h // (Hq / Hkv)``; scores are scaled by ``1 / sqrt(D)``. The pages must have been reserved.

    Deterministic; on the CPU the bits of a row depend on its own context only.
    """

    def __init__(self, ops: Any, cache: PagedCache, rows: Rows) -> None:
        """Prepare a pass.

        Args:
            ops: the package of the ops, ``python_ref.ops`` or ``specdec_kernels``.
            cache: where keys and values live.
            rows: the tokens of the pass.
        """
        self.ops, self.cache, self.rows = ops, cache, rows
        table = cache.block_table if rows.table_rows is not None else cache.table(rows.context_lens.shape[0])
        self._where = (table, rows.context_lens, rows.tree)
        self._options = {
            "query_nodes": rows.query_nodes,
            "cu_queries": rows.cu_queries,
            "table_rows": rows.table_rows,
        }

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``[T, Hq, D]`` of a layer."""
        keys, values = self.cache.keys(layer), self.cache.values(layer)
        self.ops.kv.write(key, value, keys, values, *self._where, **self._options)
        out: Tensor = self.ops.attention.tree_attention(query, keys, values, *self._where, **self._options)[0]
        return out
