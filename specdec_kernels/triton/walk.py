# mypy: ignore-errors
"""Trees as kernels see them: whether a request's rows are a tree, and the children of a node.

Who does what: one program looks at the nodes of its request, 64 at a time; nothing follows links one by one.
Memory traffic: the columns of the nodes, from the caches after the first time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

_NODES = tl.constexpr(64)  # looked at together
_FAR = tl.constexpr(2**31 - 1)


class Tree(NamedTuple):
    """One request's rows of a batch of trees; pointers stand at its root."""

    tokens: Any
    tokens_stride: Any
    parents: Any
    parents_stride: Any
    depths: Any
    depths_stride: Any
    ends: Any
    ends_stride: Any


@triton.jit
def is_tree(tree, owners, request, rows, max_depth):
    """Whether the first ``ends[0]`` of ``rows`` rows are a tree in depth-first pre-order (1 or 0); with ``owners`` of
    no other request's nodes.

    In one, and only in one, the parent of node ``i`` is the last node before it whose subtree reaches ``i``, subtrees
    nest, and depths count up from 0 to at most ``max_depth``: while all nodes before ``i`` comply, those whose subtree
    reaches ``i`` are ancestors of ``i - 1`` or that node.
    """
    count = tl.load(tree.ends)
    root = (count >= 1) & (count <= rows) & (tl.load(tree.parents) == -1) & (tl.load(tree.depths) == 0)
    wrong = tl.where(root, 0, 1)
    count = tl.where(root, count, 0)
    for start in range(1, count, _NODES):
        i = start + tl.arange(0, _NODES)
        inside = i < count
        parent = tl.load(tree.parents + i.to(tl.int64) * tree.parents_stride, mask=inside, other=-1)
        end = tl.load(tree.ends + i.to(tl.int64) * tree.ends_stride, mask=inside, other=0)
        depth = tl.load(tree.depths + i.to(tl.int64) * tree.depths_stride, mask=inside, other=0)
        nearest = tl.full([_NODES], -1, tl.int32)
        for before in range(0, start + _NODES, _NODES):
            j = before + tl.arange(0, _NODES)
            reach = tl.load(tree.ends + j.to(tl.int64) * tree.ends_stride, mask=j < count, other=0)
            reaches = (j[None, :] < i[:, None]) & (reach[None, :] > i[:, None])
            nearest = tl.maximum(nearest, tl.max(tl.where(reaches, j[None, :], -1), axis=1))
        right = (nearest >= 0) & (parent == nearest)
        above = tl.where(right, parent, 0).to(tl.int64)
        parent_end = tl.load(tree.ends + above * tree.ends_stride, mask=inside, other=0)
        parent_depth = tl.load(tree.depths + above * tree.depths_stride, mask=inside, other=0)
        right = right & (end > i) & (end <= parent_end) & (depth == parent_depth + 1) & (depth <= max_depth)
        if owners is not None:
            right = right & (tl.load(owners + i, mask=inside, other=-1) == request)
        wrong += tl.sum(tl.where(inside & (right == 0), 1, 0))
    return tl.where(wrong == 0, 1, 0)


@triton.jit
def tree_at(tree, root):
    """A batch's trees, whose pointers stand at its first row, as the tree that begins at a row."""
    return Tree(
        tree.tokens + root * tree.tokens_stride, tree.tokens_stride,
        tree.parents + root * tree.parents_stride, tree.parents_stride,
        tree.depths + root * tree.depths_stride, tree.depths_stride,
        tree.ends + root * tree.ends_stride, tree.ends_stride,
    )  # fmt: skip


@triton.jit
def open_tree(trees, cu_nodes, cu_nodes_stride, owners, active, active_stride, total_nodes, max_depth, request):
    """The row of a request's root, how many nodes count (0: it is idle or has none), and whether it is malformed (1 or
    0): the root stands alone then, or not even that can be read."""
    root = request * 0
    count = tl.full([], 0, tl.int32)
    malformed = tl.full([], 0, tl.int32)
    live = tl.full([], 1, tl.int32)
    if active is not None:
        live = tl.load(active + request * active_stride).to(tl.int32)
    if live != 0:
        begin = tl.load(cu_nodes + request * cu_nodes_stride)
        end = tl.load(cu_nodes + (request + 1) * cu_nodes_stride)
        if (begin < 0) | (end < begin) | (end > total_nodes):
            malformed += 1
        elif end > begin:
            size = tl.load(trees.ends + begin.to(tl.int64) * trees.ends_stride)
            if size != 0:
                root = begin.to(tl.int64)
                right = is_tree(tree_at(trees, root), owners + root, request, end - begin, max_depth)
                malformed += 1 - right
                count = tl.where(right != 0, size, 1)
    return root, count, malformed


@triton.jit
def end_of(tree, count, node):
    """The end of a node's subtree; ``count`` bounds that of a root that stands alone."""
    return tl.minimum(tl.load(tree.ends + node.to(tl.int64) * tree.ends_stride), count)


@triton.jit
def find_child(tree, count, node, start, low, high):
    """The first child of a node, from local index ``start`` on, whose token is in ``[low, high)``; -1 if there is
    none."""
    end = end_of(tree, count, node)
    found = tl.full([], _FAR, tl.int32)
    for first in range(start, end, _NODES):
        i = first + tl.arange(0, _NODES)
        inside = i < end
        parent = tl.load(tree.parents + i.to(tl.int64) * tree.parents_stride, mask=inside, other=-1)
        token = tl.load(tree.tokens + i.to(tl.int64) * tree.tokens_stride, mask=inside, other=-1).to(tl.int64)
        wanted = inside & (parent == node) & (token >= low) & (token < high)
        found = tl.minimum(found, tl.min(tl.where(wanted, i, _FAR)))
    return tl.where(found == _FAR, -1, found)


@triton.jit
def token_of(tree, node):
    """The token of a node, int64."""
    return tl.load(tree.tokens + node.to(tl.int64) * tree.tokens_stride).to(tl.int64)


@triton.jit
def depth_of(tree, node):
    """The depth of a node; a root that stands alone in a malformed tree has depth 0, whatever is written there."""
    return tl.where(node == 0, 0, tl.load(tree.depths + node.to(tl.int64) * tree.depths_stride))


@triton.jit
def parent_of(tree, node):
    """The parent of a node, -1 of the root."""
    above = tl.load(tree.parents + node.to(tl.int64) * tree.parents_stride)
    return tl.where(node == 0, -1, above)
