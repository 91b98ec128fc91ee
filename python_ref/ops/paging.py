"""Where rows of a paged cache lie, and which rows a call is about: what attention and the kv family share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks
from .nodes import Nodes

CACHES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


class Table:
    """The pages of one request: position ``t`` lies in page ``row[t // page_size]``, slot ``t % page_size``."""

    def __init__(self, block_table: Tensor, table_rows: Tensor | None, request: int) -> None:
        row = request if table_rows is None else int(table_rows[request])
        self.row = block_table[row].long().cpu() if 0 <= row < block_table.shape[0] else torch.empty(0).long()

    def locate(self, positions: Tensor, num_pages: int, page_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Page and slot of each position, 0 where there is none, and whether there is one."""
        block = positions.div(page_size, rounding_mode="floor")
        there = (positions >= 0) & (block < self.row.numel())
        page = self.row[block.clamp(0, self.row.numel() - 1)] if self.row.numel() else torch.zeros_like(block)
        there &= (page >= 0) & (page < num_pages)
        return torch.where(there, page, 0), torch.where(there, positions % page_size, 0), there


def slots_of(tree: Any, nodes: Nodes) -> Tensor:
    """``[count]`` int64, slot of each live node behind the context."""
    if tree.slots is None:
        return torch.arange(nodes.count)
    found: Tensor = tree.slots[nodes.first : nodes.first + nodes.count].long().cpu()
    return found


def owned(offsets: Tensor, total: int) -> list[bool]:
    """Whether each request has the rows from its offset to the next one: those that no request before it has."""
    found, reach = [], 0
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        sound = 0 <= begin <= end <= total
        found.append(sound and begin >= reach)
        reach = max(reach, end) if sound else reach
    return found


def query_rows(
    nodes: Nodes, request: int, query_nodes: Tensor | None, cu_queries: Tensor | None
) -> list[tuple[int, int]]:
    """Row and node of each row of a call that is about a live node."""
    if query_nodes is None or cu_queries is None:
        return [(nodes.first + i, i) for i in range(nodes.count)]
    begin, end = (int(row) for row in cu_queries[request : request + 2])
    if not 0 <= begin <= end <= query_nodes.shape[0]:
        return []
    chosen = query_nodes[begin:end].tolist()
    return [(begin + r, node) for r, node in enumerate(chosen) if 0 <= node < nodes.count]


def scales_of(scale: Tensor | None, heads: int) -> Tensor:
    """``[heads]`` float64; 1 where there is none."""
    return torch.ones(heads, dtype=torch.float64) if scale is None else scale.double().cpu().expand(heads)


def check_pages(op: str, block_table: Any, table_rows: Any, context_lens: Any, batch: int) -> None:
    """Check the arguments that say where positions lie."""
    rows: int | str = batch if table_rows is None else "rows"
    checks.tensor(op, "block_table", block_table, (rows, "max_pages"))
    checks.optional(op, "table_rows", table_rows, batch)
    checks.tensor(op, "context_lens", context_lens, (batch,))


def check_queries(op: str, query_nodes: Any, cu_queries: Any, batch: int, count: int) -> int:
    """Check the choice of nodes; returns the number of rows."""
    if (query_nodes is None) != (cu_queries is None):
        missing = "query_nodes" if query_nodes is None else "cu_queries"
        raise ValueError(f"{op}: {missing} must be given together with the other, got None")
    if query_nodes is None:
        return count
    checks.tensor(op, "query_nodes", query_nodes, ("Tq",))
    checks.tensor(op, "cu_queries", cu_queries, (batch + 1,), (torch.int32,))
    return int(query_nodes.shape[0])


def check_scale(op: str, name: str, value: Any, heads: int) -> None:
    """Check the factors of a quantised cache: one, or one per head."""
    if value is not None:
        checks.tensor(op, name, value, (1 if value.numel() == 1 else heads,), (torch.float32,))
