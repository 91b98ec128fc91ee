# mypy: ignore-errors
"""Nodes in any topological order, and their places in depth-first pre-order: what the builders share.

A node stands behind its parent and the subtrees of its earlier siblings. Sizes of subtrees, depths and places are sums
along paths to the root, found by doubling: after round ``k`` a node knows the sum over the nearest ``2^k`` nodes of its
path, and the ancestor behind them. Earlier siblings are found by comparing all nodes with each other.

Who does what: one program has all nodes of a request; what one node must know of another goes through scratch memory.
Integers only, whose sums have no order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

#: Integers of scratch per node.
LAYOUT_FIELDS = 4

#: Pairs that are compared at a time.
PAIRS = 4096


def chunk_of(nodes: int) -> int:
    """How many items so many are compared with at a time; both powers of two."""
    return max(min(PAIRS // nodes, nodes), 1)


class Columns(NamedTuple):
    """Where the rows of a tree are written."""

    tokens: Any
    parents: Any
    depths: Any
    ends: Any


class Places(NamedTuple):
    """Where nodes stand: vectors with one element per node."""

    place: Any
    parent: Any  # its place; -1: the root's
    depth: Any
    end: Any


@triton.jit
def _double(above, total, above_at, total_at, i):
    """Totals along paths; ``above`` is an earlier node, and 0 has no more above it and adds nothing."""
    tl.debug_barrier()
    tl.store(above_at + i, above)
    tl.store(total_at + i, total)
    going = tl.max(above) > 0
    while going:
        tl.debug_barrier()
        following = tl.load(above_at + above)
        total += tl.load(total_at + above)
        tl.debug_barrier()
        above = following
        tl.store(above_at + i, above)
        tl.store(total_at + i, total)
        going = tl.max(above) > 0
    tl.debug_barrier()
    return total


@triton.jit
def lay_out(parent, count, space, TILE: tl.constexpr, CHUNK: tl.constexpr):
    """The :class:`Places` of ``count`` nodes. The parent of node ``i > 0`` is an earlier one; siblings keep the order
    of their numbers. ``space``: ``LAYOUT_FIELDS * TILE`` int32."""
    i = tl.arange(0, TILE)
    below = (i > 0) & (i < count)
    parent = tl.where(below, parent, 0)
    parent_at = space
    above_at = space + TILE
    total_at = space + 2 * TILE
    size_at = space + 3 * TILE
    tl.debug_barrier()
    tl.store(parent_at + i, tl.where(below, parent, -1))
    tl.store(above_at + i, parent)
    tl.store(size_at + i, tl.full([TILE], 1, tl.int32))
    above = parent
    going = tl.max(above) > 0
    while going:
        tl.debug_barrier()
        following = tl.load(above_at + above)
        size = tl.load(size_at + i)
        tl.debug_barrier()
        tl.atomic_add(size_at + above, size, mask=above > 0)
        above = following
        tl.store(above_at + i, above)
        going = tl.max(above) > 0
    depth = _double(parent, below.to(tl.int32), above_at, total_at, i)
    size = tl.where(i == 0, count, tl.load(size_at + i))
    earlier = tl.zeros([TILE, CHUNK], tl.int32)
    for start in range(1, count, CHUNK):
        j = start + tl.arange(0, CHUNK)
        of = tl.load(parent_at + j, mask=j < count, other=-1)
        theirs = tl.load(size_at + j, mask=j < count, other=0)
        sibling = (of[None, :] == parent[:, None]) & (j[None, :] < i[:, None])
        earlier += tl.where(sibling, theirs[None, :], 0)
    step = tl.where(below, tl.sum(earlier, 1) + 1, 0)
    place = _double(parent, step, above_at, total_at, i)
    above_place = tl.where(below, tl.load(total_at + parent), -1)
    return Places(place, above_place, depth, place + size)


@triton.jit
def write_nodes(columns, first, places, token, count, max_nodes, TILE: tl.constexpr):
    """Writes the ``max_nodes`` rows of a request, of which ``count`` are live; and the row of each element."""
    i = tl.arange(0, TILE)
    live = i < count
    row = first + tl.where(live, places.place, i)
    inside = i < max_nodes
    tl.store(columns.tokens + row, tl.where(live, token, -1), mask=inside)
    tl.store(columns.parents + row, tl.where(live, places.parent, -1), mask=inside)
    tl.store(columns.depths + row, tl.where(live, places.depth, 0), mask=inside)
    tl.store(columns.ends + row, tl.where(live, places.end, 0), mask=inside)
    return row
