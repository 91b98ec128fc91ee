# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Trees in the formats of other engines.

Who does what: one program writes some rows of the mask of a request, or the links or paths of a request; each looks at
the request's tree first. Masks with the context take two launches: where a segment begins depends on the requests
before. Memory traffic: the columns of the nodes, from the caches after the first time, and the output once (paths
twice).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device_of, power_of_two, step
from .varying import VARYING
from .walk import Tree, is_tree

_ANY_DEPTH = tl.constexpr(2**31 - 1)

#: Elements of a tile, nodes that are looked at together, and requests.
TILE, NODES, SEARCH = 4096, 256, 256

#: Bytes of a mask with its context that one program writes.
BYTES = 256


class Opened(NamedTuple):
    """One request: its live nodes, and where their columns begin."""

    count: Any
    root: Any
    parents: Any
    parents_stride: Any
    depths: Any
    depths_stride: Any
    ends: Any
    ends_stride: Any


@triton.jit
def _open(
    cu_nodes, cu_nodes_stride, parents, parents_stride, depths, depths_stride, ends, ends_stride, total,
    b, max_nodes, max_depth,
):  # fmt: skip
    """A request; one that is no tree, or has more than ``max_nodes`` nodes, is its root alone."""
    begin = tl.load(cu_nodes + b * cu_nodes_stride)
    end = tl.load(cu_nodes + (b + 1) * cu_nodes_stride)
    count = tl.full([], 0, tl.int32)
    root = tl.where((begin >= 0) & (begin < end) & (end <= total), begin, 0).to(tl.int64)
    if (begin >= 0) & (begin < end) & (end <= total):
        tree = Tree(
            None, 0, parents + root * parents_stride, parents_stride, depths + root * depths_stride, depths_stride,
            ends + root * ends_stride, ends_stride,
        )  # fmt: skip
        size = tl.load(tree.ends)
        if size != 0:
            right = is_tree(tree, None, b, end - begin, max_depth)
            count = tl.where(right != 0, size, 1)
            count = tl.where(count > max_nodes, tl.minimum(max_nodes, 1), count)
    return Opened(
        count, root, parents + root * parents_stride, parents_stride, depths + root * depths_stride, depths_stride,
        ends + root * ends_stride, ends_stride,
    )  # fmt: skip


@triton.jit
def _ends_of(tree, node, mask):
    """The ends of live nodes; 0 elsewhere. Of a root that stands alone ``ends`` may say anything."""
    end = tl.load(tree.ends + node.to(tl.int64) * tree.ends_stride, mask=mask & (node < tree.count), other=0)
    return tl.where(tree.count == 1, tl.where(mask & (node == 0), 1, 0), end)


@triton.jit(do_not_specialize=VARYING)
def mask_kernel(
    cu_nodes, cu_nodes_stride, parents, parents_stride, depths, depths_stride, ends, ends_stride, total,
    max_nodes, mask, width, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some rows of the mask of a request; ``BITS`` nodes (1 or 8) in each of the ``width`` bytes of a row."""
    b = tl.program_id(0).to(tl.int64)
    tree = _open(
        cu_nodes, cu_nodes_stride, parents, parents_stride, depths, depths_stride, ends, ends_stride, total,
        b, max_nodes, _ANY_DEPTH,
    )  # fmt: skip
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        byte = tl.zeros([ROWS, COLUMNS], tl.int32)
        for bit in tl.static_range(BITS):
            j = column * BITS + bit
            end = _ends_of(tree, j, j < max_nodes)
            sees = (j[None, :] <= i[:, None]) & (i[:, None] < end[None, :])
            byte |= sees.to(tl.int32) << bit
        at = (b * max_nodes + i[:, None].to(tl.int64)) * width + column[None, :]
        tl.store(mask + at, byte.to(tl.uint8), mask=(i[:, None] < max_nodes) & (column[None, :] < width))


@triton.jit(do_not_specialize=VARYING)
def live_kernel(
    cu_nodes, cu_nodes_stride, parents, parents_stride, depths, depths_stride, ends, ends_stride, total, max_nodes, live
):
    """The live nodes of a request."""
    b = tl.program_id(0).to(tl.int64)
    tree = _open(
        cu_nodes, cu_nodes_stride, parents, parents_stride, depths, depths_stride, ends, ends_stride, total,
        b, max_nodes, _ANY_DEPTH,
    )  # fmt: skip
    tl.store(live + b, tree.count)


@triton.jit
def _segment_bytes(live, context, share):
    """Bytes of the segment of a request, which may have ``share`` of them."""
    near = tl.minimum(context, 8 * share + 1)
    size = (live.to(tl.int64) * (near + live) + 7) // 8
    return tl.where((live == 0) | (context > 8 * share) | (size > share), 0, size)


@triton.jit(do_not_specialize=VARYING)
def full_mask_kernel(
    cu_nodes, cu_nodes_stride, ends, ends_stride, context_lens, context_lens_stride, live, mask, indptr, share, batch,
    pieces, BYTES: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    """A piece of the segment of a request, and of what is left behind all segments."""
    b = tl.program_id(0) // pieces
    piece = tl.program_id(0) % pieces
    if piece == 0:
        if b == 0:
            tl.store(indptr, 0)
    if b < batch:
        first = tl.full([], 0, tl.int64)
        own = tl.full([], 0, tl.int64)
        stop = tl.full([], 0, tl.int64)
        for start in range(0, batch, SEARCH):
            k = start + tl.arange(0, SEARCH)
            size = tl.load(live + k, mask=k < batch, other=0)
            at = k.to(tl.int64) * context_lens_stride
            context = tl.maximum(tl.load(context_lens + at, mask=k < batch, other=0).to(tl.int64), 0)
            size = _segment_bytes(size, context, share)
            first += tl.sum(tl.where(k < b, size, 0))
            own += tl.sum(tl.where(k == b, size, 0))
            stop += tl.sum(size)
        if piece == 0:
            tl.store(indptr + b + 1, (first + own).to(tl.int32))
        count = tl.load(live + b)
        context = tl.load(context_lens + b.to(tl.int64) * context_lens_stride).to(tl.int64)
        context = tl.maximum(context, 0)
        if piece * BYTES < own:
            root = tl.load(cu_nodes + b.to(tl.int64) * cu_nodes_stride).to(tl.int64)
            row = context + count
            byte = tl.zeros([BYTES], tl.int32)
            place = piece * BYTES + tl.arange(0, BYTES)
            for bit in tl.static_range(8):
                at = place.to(tl.int64) * 8 + bit
                i = at // row
                t = at - i * row
                j = t - context
                inside = (i < count) & (j >= 0)
                end = tl.load(ends + (root + tl.where(inside, j, 0)) * ends_stride, mask=inside, other=0)
                sees = (t < context) | ((j <= i) & ((i < end) | (count == 1)))
                byte |= ((i < count) & sees).to(tl.int32) << bit
            tl.store(mask + first + place, byte.to(tl.uint8), mask=place < own)
        everything = share * batch
        for start in range(stop + tl.program_id(0) * BYTES, everything, tl.num_programs(0) * BYTES):
            place = start + tl.arange(0, BYTES)
            tl.store(mask + place, tl.zeros([BYTES], tl.uint8), mask=place < everything)


@triton.jit(do_not_specialize=VARYING)
def links_kernel(
    cu_nodes, cu_nodes_stride, parents, parents_stride, depths, depths_stride, ends, ends_stride, total,
    max_nodes, first_child, next_sibling, retrieve_index, NODES: tl.constexpr,
):  # fmt: skip
    """The links of one request."""
    b = tl.program_id(0).to(tl.int64)
    tree = _open(
        cu_nodes, cu_nodes_stride, parents, parents_stride, depths, depths_stride, ends, ends_stride, total,
        b, max_nodes, _ANY_DEPTH,
    )  # fmt: skip
    for start in range(0, max_nodes, NODES):
        i = start + tl.arange(0, NODES)
        live = i < tree.count
        end = _ends_of(tree, i, live)
        above = tl.load(tree.parents + i.to(tl.int64) * tree.parents_stride, mask=live & (i > 0), other=0)
        sibling = live & (i > 0) & (end < _ends_of(tree, above, live))
        at = b * max_nodes + i
        tl.store(first_child + at, tl.where(live & (i + 1 < end), i + 1, -1), mask=i < max_nodes)
        tl.store(next_sibling + at, tl.where(sibling, end, -1), mask=i < max_nodes)
        tl.store(retrieve_index + at, tl.where(live, tree.root + i, -1), mask=i < max_nodes)


@triton.jit(do_not_specialize=VARYING)
def paths_kernel(
    cu_nodes, cu_nodes_stride, parents, parents_stride, depths, depths_stride, ends, ends_stride, total,
    max_nodes, max_depth, paths, num_paths, NODES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The paths of one request: every leaf climbs to its root."""
    b = tl.program_id(0).to(tl.int64)
    tree = _open(
        cu_nodes, cu_nodes_stride, parents, parents_stride, depths, depths_stride, ends, ends_stride, total,
        b, max_nodes, max_depth,
    )  # fmt: skip
    width = max_depth + 1
    size = max_nodes.to(tl.int64) * width
    paths += b * size
    for start in range(0, size, TILE):
        place = start + tl.arange(0, TILE)
        tl.store(paths + place, tl.full([TILE], -1, tl.int32), mask=place < size)
    tl.debug_barrier()
    leaves = tl.full([], 0, tl.int32)
    for start in range(0, tree.count, NODES):
        i = start + tl.arange(0, NODES)
        leaf = (i < tree.count) & (_ends_of(tree, i, i < tree.count) == i + 1)
        rank = leaves + tl.cumsum(leaf.to(tl.int32)) - 1
        leaves += tl.sum(leaf.to(tl.int32))
        depth = tl.load(tree.depths + i.to(tl.int64) * tree.depths_stride, mask=leaf & (i > 0), other=0)
        depth = tl.where(leaf, depth, -1)
        node = i
        while tl.max(depth) >= 0:
            climbs = depth >= 0
            tl.store(paths + rank.to(tl.int64) * width + depth, node, mask=climbs)
            above = tl.load(tree.parents + node.to(tl.int64) * tree.parents_stride, mask=depth > 0, other=0)
            node = tl.where(depth > 0, above, node)
            depth = tl.where(climbs, depth - 1, depth)
    tl.store(num_paths + b, leaves)


def _columns(cu_nodes: Tensor, parents: Tensor, depths: Tensor, ends: Tensor) -> tuple[Any, ...]:
    """The columns of a tree as kernels take them, and their length."""
    pairs = (item for column in (cu_nodes, parents, depths, ends) for item in (column, step(column)))
    return *pairs, parents.shape[0]


def _write_mask(columns: tuple[Any, ...], batch: int, nodes: int, mask: Tensor, width: int, bits: int) -> None:
    if batch == 0 or nodes == 0:
        return
    across = min(power_of_two(width), 256)
    rows = min(max(TILE // across, 1), power_of_two(nodes))
    mask_kernel[(batch, -(-nodes // rows))](
        *(*columns, nodes, mask, width), BITS=bits, ROWS=rows, COLUMNS=across, num_warps=4
    )


def tree_to_dense_mask(
    cu_nodes: Tensor, tokens: Tensor, parents: Tensor, depths: Tensor, ends: Tensor, mask: Tensor
) -> None:
    """The launcher of ``tree.to_dense_mask``."""
    batch, nodes, _ = mask.shape
    with on_device_of(mask):
        _write_mask(_columns(cu_nodes, parents, depths, ends), batch, nodes, mask.view(torch.uint8), nodes, 1)


def tree_to_packed_mask(
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    context_lens: Tensor | None,
    layout: int,
    max_nodes: int,
    mask: Tensor,
    indptr: Tensor | None,
) -> None:
    """The launcher of ``tree.to_packed_mask``."""
    batch = cu_nodes.shape[0] - 1
    columns = _columns(cu_nodes, parents, depths, ends)
    with on_device_of(mask):
        if indptr is None:
            in_bytes = mask.view(torch.uint8)
            _write_mask(columns, batch, max_nodes, in_bytes, in_bytes.shape[-1], 8)
            return
        live = torch.empty(batch, dtype=torch.int32, device=mask.device)
        if batch > 0:
            live_kernel[(batch,)](*columns, max_nodes, live)
        share = mask.shape[0] // max(batch, 1)
        size = min(BYTES, power_of_two(share))
        pieces = max(-(-share // size), 1)
        full_mask_kernel[(max(batch, 1) * pieces,)](
            *(cu_nodes, step(cu_nodes), ends, step(ends), context_lens, step(context_lens)),
            *(live, mask, indptr, share, batch, pieces),
            BYTES=size,
            SEARCH=min(SEARCH, power_of_two(batch)),
        )


def tree_to_links(
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    first_child: Tensor,
    next_sibling: Tensor,
    retrieve_index: Tensor,
) -> None:
    """The launcher of ``tree.to_links``."""
    batch, nodes = first_child.shape
    if batch == 0 or nodes == 0:
        return
    with on_device_of(first_child):
        links_kernel[(batch,)](
            *(*_columns(cu_nodes, parents, depths, ends), nodes, first_child, next_sibling, retrieve_index),
            NODES=min(NODES, power_of_two(nodes)),
        )


def tree_to_paths(
    cu_nodes: Tensor, tokens: Tensor, parents: Tensor, depths: Tensor, ends: Tensor, paths: Tensor, num_paths: Tensor
) -> None:
    """The launcher of ``tree.to_paths``."""
    batch, nodes, width = paths.shape
    if batch == 0:
        return
    with on_device_of(paths):
        paths_kernel[(batch,)](
            *(*_columns(cu_nodes, parents, depths, ends), nodes, width - 1, paths, num_paths),
            NODES=min(NODES, power_of_two(nodes)),
            TILE=min(TILE, power_of_two(nodes * width)),
        )
