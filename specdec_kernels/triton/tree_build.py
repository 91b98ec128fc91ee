# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""from_parents and from_beams: nodes that come in any topological order, as trees.

Who does what: one program per request. Memory traffic: each column of the input once or twice, the rows of the tree
once, and scratch memory from the caches. Pools are compared candidate by candidate: ``O(M^2)`` steps for each doubling
of the depth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device_of, power_of_two, step
from .tree_layout import LAYOUT_FIELDS, Columns, chunk_of, lay_out, write_nodes
from .varying import VARYING

_MALFORMED = tl.constexpr(8)
_LARGEST_TOKEN = tl.constexpr(2**31 - 1)
_FAR = tl.constexpr(2**31 - 1)

#: Rows or requests that are looked at together.
SEARCH = 256

#: Integers of scratch per candidate of a pool.
_POOL_FIELDS = 7


@triton.jit
def _pad(columns, tree_slots, sources, start, stop, first, SEARCH: tl.constexpr):
    """Padding of the rows from ``start`` to ``stop``; ``first``: row of their request, -1 if they have none."""
    for base in range(start, stop, SEARCH):
        row = base + tl.arange(0, SEARCH).to(tl.int64)
        inside = row < stop
        tl.store(columns.tokens + row, -1, mask=inside)
        tl.store(columns.parents + row, -1, mask=inside)
        tl.store(columns.depths + row, 0, mask=inside)
        tl.store(columns.ends + row, 0, mask=inside)
        tl.store(sources + row, row, mask=inside)
        if tree_slots is not None:
            tl.store(tree_slots + row, tl.where(first < 0, 0, row - first).to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def from_parents_kernel(
    given_tokens, given_tokens_stride, given_parents, given_parents_stride, cu_nodes, cu_nodes_stride,
    lengths, lengths_stride, max_nodes, max_depth, tokens, parents, depths, ends, tree_slots, sources, status, space,
    batch, total, TILE: tl.constexpr, CHUNK: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    """One request: the rows from the largest of its first offsets on, which no other request has."""
    b = tl.program_id(0)
    columns = Columns(tokens, parents, depths, ends)
    largest = tl.full([], 0, tl.int64)
    for start in range(0, b + 1, SEARCH):
        k = start + tl.arange(0, SEARCH)
        offset = tl.load(cu_nodes + k.to(tl.int64) * cu_nodes_stride, mask=k <= b, other=0)
        largest = tl.maximum(largest, tl.max(offset).to(tl.int64))
    first = tl.minimum(largest, total)
    nobody = first * 0 - 1
    if b == 0:
        _pad(columns, tree_slots, sources, first * 0, first, nobody, SEARCH)
    after = first
    if b < batch:
        begin = tl.load(cu_nodes + b.to(tl.int64) * cu_nodes_stride)
        end = tl.load(cu_nodes + (b + 1).to(tl.int64) * cu_nodes_stride)
        after = tl.minimum(tl.maximum(first, end.to(tl.int64)), total)
        sound = (begin == first) & (end == after)
        size = after - first
        live = size
        if lengths is not None:
            live = tl.load(lengths + b.to(tl.int64) * lengths_stride).to(tl.int64)
        right = sound & (live >= 0) & (live <= size) & (live <= max_nodes)
        wrong = tl.where(right, 0, 1)
        i = tl.arange(0, TILE)
        inside = i < tl.where(right, live, 0)
        parent = tl.load(given_parents + (first + i) * given_parents_stride, mask=inside, other=0).to(tl.int64)
        misplaced = inside & tl.where(i == 0, parent != -1, (parent < 0) | (parent >= i))
        wrong = tl.maximum(wrong, tl.max(misplaced.to(tl.int32)))
        count = tl.where(wrong != 0, 0, live).to(tl.int32)
        places = lay_out(parent.to(tl.int32), count, space + b.to(tl.int64) * 4 * TILE, TILE, CHUNK)
        too_deep = tl.max(tl.where(i < count, places.depth, 0)) > max_depth
        good = (wrong == 0) & (too_deep == 0)
        alone = sound & (size > 0) & (max_nodes > 0)  # what is left of a request that is no tree
        count = tl.where(good, count, alone.to(tl.int32))
        tl.store(status + b, tl.where(good, 0, _MALFORMED))
        source = first + i
        inside = i < count
        row = first + tl.where(good, places.place, i)
        token = tl.load(given_tokens + source * given_tokens_stride, mask=inside, other=0)
        tl.store(columns.tokens + row, token, mask=inside)
        tl.store(columns.parents + row, tl.where(good, places.parent, -1), mask=inside)
        tl.store(columns.depths + row, tl.where(good, places.depth, 0), mask=inside)
        tl.store(columns.ends + row, tl.where(good, places.end, 1), mask=inside)
        tl.store(sources + row, source, mask=inside)
        if tree_slots is not None:
            tl.store(tree_slots + row, i, mask=inside)
        _pad(columns, tree_slots, sources, first + count, after, first, SEARCH)
    if b + 1 >= batch:
        _pad(columns, tree_slots, sources, after, tl.full([], 0, tl.int64) + total, nobody, SEARCH)


@triton.jit
def _first_equal(own, above, own_at, above_at, length, POOL: tl.constexpr, CHUNK: tl.constexpr):
    """For each candidate the first one with an equal pair, plus 1."""
    found = tl.full([POOL, CHUNK], _FAR, tl.int32)
    for start in range(0, length, CHUNK):
        j = start + tl.arange(0, CHUNK)
        theirs = tl.load(own_at + j, mask=j < length, other=-2)
        behind = tl.load(above_at + j, mask=j < length, other=-2)
        equal = (theirs[None, :] == own[:, None]) & (behind[None, :] == above[:, None])
        found = tl.minimum(found, tl.where(equal, j[None, :] + 1, _FAR))
    return tl.min(found, 1)


@triton.jit
def _merged(name, name_at, rank_at, length, POOL: tl.constexpr, CHUNK: tl.constexpr):
    """For each candidate the first one that is present and has its name, plus 1, and the largest score of those."""
    found = tl.full([POOL, CHUNK], _FAR, tl.int32)
    best = tl.full([POOL, CHUNK], -_FAR, tl.int32)
    for start in range(0, length, CHUNK):
        j = start + tl.arange(0, CHUNK)
        theirs = tl.load(name_at + j, mask=j < length, other=-2)
        rank = tl.load(rank_at + j, mask=j < length, other=-_FAR)
        equal = (theirs[None, :] == name[:, None]) & (rank[None, :] > -_FAR)
        found = tl.minimum(found, tl.where(equal, j[None, :] + 1, _FAR))
        best = tl.maximum(best, tl.where(equal, rank[None, :], -_FAR))
    return tl.min(found, 1), tl.max(best, 1)


@triton.jit
def _places_of_keys(keys, score_at, tie_at, length, POOL: tl.constexpr, CHUNK: tl.constexpr):
    """How many candidates have a smaller key."""
    smaller = tl.zeros([POOL, CHUNK], tl.int32)
    for start in range(0, length, CHUNK):
        j = start + tl.arange(0, CHUNK)
        score = tl.load(score_at + j, mask=j < length, other=_FAR).to(tl.int64)
        theirs = (score << 32) | tl.load(tie_at + j, mask=j < length, other=_FAR).to(tl.int64)
        smaller += (theirs[None, :] < keys[:, None]).to(tl.int32)
    return tl.sum(smaller, 1)


@triton.jit
def rank_of_score(score):
    """Floats as integers in the same order, both zeros as 0."""
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


@triton.jit(do_not_specialize=VARYING)
def from_beams_kernel(
    root_tokens, root_tokens_stride, pool_tokens, pool_tokens_row_stride, pool_tokens_column_stride,
    pool_parents, pool_parents_row_stride, pool_parents_column_stride, scores, scores_row_stride, scores_column_stride,
    lengths, lengths_stride, budgets, budgets_stride, max_nodes, max_depth,
    cu_nodes, tokens, parents, depths, ends, status, candidates, space, batch, pool,
    POOL: tl.constexpr, TILE: tl.constexpr, POOL_CHUNK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One request. Numbers of candidates are one more than their index; 0 is the root.

    Candidates are one node iff they have the same tokens on their paths. Names say so: first for the last token of a
    path, then for the last 2, 4, ... tokens.
    """
    b = tl.program_id(0).to(tl.int64)
    tl.store(cu_nodes + b, (b * max_nodes).to(tl.int32), mask=b == 0)
    if b < batch:
        tl.store(cu_nodes + b + 1, ((b + 1) * max_nodes).to(tl.int32))
        root = tl.load(root_tokens + b * root_tokens_stride).to(tl.int64)
        budget = b * 0 + max_nodes
        if budgets is not None:
            budget = tl.minimum(tl.load(budgets + b * budgets_stride).to(tl.int64), budget)
        awake = (budget > 0) & (root >= 0) & (root <= _LARGEST_TOKEN)
        given = b * 0 + pool
        if lengths is not None:
            given = tl.load(lengths + b * lengths_stride).to(tl.int64)
        wrong = awake & ((given < 0) | (given > pool))
        length = tl.where(awake & (wrong == 0), given, 0).to(tl.int32)

        space += b * (7 * (POOL + 1) + 5 * TILE)
        layout_at = space
        chosen_at = space + 4 * TILE
        name_at = space + 5 * TILE
        above_at = name_at + (POOL + 1)
        part_at = above_at + (POOL + 1)  # depth, and 2^16 where something is absent
        other_at = part_at + (POOL + 1)
        first_at = other_at + (POOL + 1)
        parent_at = first_at + (POOL + 1)
        node_at = parent_at + (POOL + 1)

        i = tl.arange(0, POOL)
        inside = i < length
        score = tl.load(
            scores + b * scores_row_stride + i.to(tl.int64) * scores_column_stride, mask=inside, other=float("-inf")
        )
        at = b * pool_tokens_row_stride + i.to(tl.int64) * pool_tokens_column_stride
        token = tl.load(pool_tokens + at, mask=inside, other=-1).to(tl.int64)
        at = b * pool_parents_row_stride + i.to(tl.int64) * pool_parents_column_stride
        parent = tl.load(pool_parents + at, mask=inside, other=-1).to(tl.int64)
        there = (score > float("-inf")) & (token >= 0) & (token <= _LARGEST_TOKEN)
        in_range = (parent >= -1) & (parent < i)
        wrong = wrong | (tl.max((there & (in_range == 0)).to(tl.int32)) > 0)
        there = there & in_range
        parent = tl.where(there, parent + 1, 0).to(tl.int32)

        name = tl.where(there, token, -1).to(tl.int32)
        tl.store(name_at + i, name)
        tl.store(other_at + i, tl.zeros([POOL], tl.int32))
        tl.debug_barrier()
        name = _first_equal(name, tl.zeros([POOL], tl.int32), name_at, other_at, length, POOL, POOL_CHUNK)
        above = parent
        part = tl.where(there, 1, 1 + 65536)
        going = tl.max(above) > 0
        while going:
            tl.debug_barrier()
            tl.store(name_at + i + 1, name)
            tl.store(above_at + i + 1, above)
            tl.store(part_at + i + 1, part)
            tl.store(name_at, 0)
            tl.store(above_at, 0)
            tl.store(part_at, 0)
            tl.debug_barrier()
            behind = tl.load(name_at + above)
            following = tl.load(above_at + above)
            more = tl.load(part_at + above)
            tl.store(other_at + i, behind)
            tl.debug_barrier()
            name = _first_equal(name, behind, name_at + 1, other_at, length, POOL, POOL_CHUNK)
            part = (part & 65535) + (more & 65535) + ((part | more) & 65536)
            above = following
            going = tl.max(above) > 0
        depth = part & 65535
        there = inside & (part < 65536) & (depth <= max_depth)

        tl.debug_barrier()
        tl.store(name_at + i, name)
        tl.store(other_at + i, tl.where(there, rank_of_score(score), -_FAR))
        tl.debug_barrier()
        first, best = _merged(name, name_at, other_at, length, POOL, POOL_CHUNK)
        tl.store(first_at + i + 1, first)
        tl.store(first_at, 0)
        tl.debug_barrier()
        above = tl.where(there, tl.load(first_at + tl.where(there, parent, 0)), 0)
        stands = there & (first == i + 1)
        tl.store(parent_at + i + 1, above)
        going = tl.max(above) > 0
        while going:
            tl.debug_barrier()
            tl.store(above_at + i + 1, above)
            tl.store(part_at + i + 1, best)
            tl.store(above_at, 0)
            tl.store(part_at, _FAR)
            tl.debug_barrier()
            following = tl.load(above_at + above)
            best = tl.minimum(best, tl.load(part_at + above))
            above = following
            going = tl.max(above) > 0

        tie = ((depth - 1) << 12) | i
        tl.debug_barrier()
        tl.store(name_at + i, tl.where(stands, -best, _FAR))
        tl.store(other_at + i, tie)
        tl.debug_barrier()
        keys = (tl.where(stands, -best, _FAR).to(tl.int64) << 32) | tie
        place = _places_of_keys(keys, name_at, other_at, length, POOL, POOL_CHUNK) + 1
        chosen = stands & (place < budget)
        count = tl.where(awake, tl.sum(chosen.to(tl.int32)) + 1, 0)
        tl.store(chosen_at + place, i, mask=chosen)
        tl.store(node_at + i + 1, place, mask=chosen)
        tl.store(node_at, 0)
        tl.debug_barrier()
        k = tl.arange(0, TILE)
        below = (k > 0) & (k < count)
        candidate = tl.load(chosen_at + k, mask=below, other=0)
        above_node = tl.load(node_at + tl.load(parent_at + candidate + 1, mask=below, other=0), mask=below, other=0)
        places = lay_out(above_node, count, layout_at, TILE, CHUNK)
        at = b * pool_tokens_row_stride + candidate.to(tl.int64) * pool_tokens_column_stride
        token = tl.where(k == 0, root, tl.load(pool_tokens + at, mask=below, other=0).to(tl.int64))
        columns = Columns(tokens, parents, depths, ends)
        row = write_nodes(columns, b * max_nodes, places, token, count, max_nodes, TILE)
        tl.store(candidates + row, tl.where(below, candidate, -1), mask=k < max_nodes)
        tl.store(status + b, tl.where(wrong, _MALFORMED, 0))


def tree_from_parents(
    given_tokens: Tensor,
    given_parents: Tensor,
    cu_nodes: Tensor,
    lengths: Tensor | None,
    max_nodes: int,
    max_depth: int,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    slots: Tensor | None,
    order: Tensor,
    status: Tensor,
) -> None:
    """The launcher of ``tree.from_parents``."""
    batch = cu_nodes.shape[0] - 1
    tile = power_of_two(max_nodes)
    with on_device_of(given_tokens):
        space = torch.empty((batch, LAYOUT_FIELDS, tile), dtype=torch.int32, device=given_tokens.device)
        from_parents_kernel[(max(batch, 1),)](
            *(given_tokens, step(given_tokens), given_parents, step(given_parents), cu_nodes, step(cu_nodes)),
            *(lengths, step(lengths), max_nodes, min(max_depth, max_nodes)),
            *(tokens, parents, depths, ends, slots, order, status, space, batch, given_tokens.shape[0]),
            TILE=tile,
            CHUNK=chunk_of(tile),
            SEARCH=SEARCH,
        )


def tree_from_beams(
    root_tokens: Tensor,
    pool_tokens: Tensor,
    pool_parents: Tensor,
    scores: Tensor,
    lengths: Tensor | None,
    budgets: Tensor | None,
    max_nodes: int,
    max_depth: int,
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    status: Tensor,
    order: Tensor,
) -> None:
    """The launcher of ``tree.from_beams``."""
    batch, pool = pool_tokens.shape
    size, tile = power_of_two(pool), power_of_two(max_nodes)
    with on_device_of(root_tokens):
        fields = _POOL_FIELDS * (size + 1) + (LAYOUT_FIELDS + 1) * tile
        space = torch.empty((batch, fields), dtype=torch.int32, device=root_tokens.device)
        from_beams_kernel[(max(batch, 1),)](
            *(root_tokens, step(root_tokens), pool_tokens, step(pool_tokens), step(pool_tokens, 1)),
            *(pool_parents, step(pool_parents), step(pool_parents, 1), scores, step(scores), step(scores, 1)),
            *(lengths, step(lengths), budgets, step(budgets), max_nodes, min(max_depth, pool)),
            *(cu_nodes, tokens, parents, depths, ends, status, order, space, batch, pool),
            POOL=size,
            TILE=tile,
            POOL_CHUNK=chunk_of(size),
            CHUNK=chunk_of(tile),
            num_warps=8 if size >= 1024 else 4,
        )
