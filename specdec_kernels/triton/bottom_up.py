# mypy: ignore-errors
"""Block and traversal verification: a node is decided once everything below it is.

A node is visited with a budget, which is what its parent hands down of its own, and the budget that its children leave
it is the probability that the path ends there, should it come to that. In depth-first pre-order a node's budget depends
on nothing but its parent and its elder siblings, so the nodes are visited in that order; after each come the coins of
those that are done then, which is post-order. The first coin below what is left ends the path, and what lies behind is
not visited. ``residual.py`` has the fold.

Who does what: one program per request. Memory traffic: of an inner node what ``residual.py`` says for each child, since
every one of them is a draft that may come to nothing; the same once more where the path ends, unless that is the node
that was visited last; one block of both rows for the last token. 16 bytes of memory per node keep the budgets.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .law import Law
from .random import coin
from .rejection import draw_left
from .residual import Rejected, try_children
from .row import Row
from .visit import DEAD_END, drafts_at, drafts_memory_at, law_at, memory_at
from .walk import depth_of, end_of, find_child, parent_of

_NODES = tl.constexpr(64)


@triton.jit
def clear(space, request):
    """Sets a number of each node but the root, whose place may be another request's, to 0."""
    for start in range(1, request.count, _NODES):
        node = start + tl.arange(0, _NODES)
        tl.store(space + request.root + node, 0.0, mask=node < request.count)
    tl.debug_barrier()


@triton.jit
def _advance(request, node, handed, left):
    """After a node was visited: the node that is visited next, or (the other is -1) that where the path ends."""
    tree = request.tree
    current = node  # the deepest that is not done
    offered = node + 1  # its next child, if it has one
    following = node * 0 - 1
    stop = node * 0 - 1
    while (following < 0) & (stop < 0):
        if offered < end_of(tree, request.count, current):
            budget = tl.load(handed + offered)
            following = tl.where(budget > 0, offered, following)
            offered = tl.where(budget > 0, offered, end_of(tree, request.count, offered))
        else:
            depth = depth_of(tree, current) - 1
            u = coin(request.seed, request.context + depth + 1, depth, current)
            budget = tl.load(left + current, mask=current > 0, other=1.0)
            accepted = (current == 0) | ((budget > 0) & ((budget >= 1.0) | (u < budget)))
            stop = tl.where(accepted, current, stop)
            current = tl.where(accepted, current, parent_of(tree, current))
    return following, stop


@triton.jit
def bottom_up(
    target, drafts, request, space, blocks,
    REPLACEMENT: tl.constexpr, FILTERED: tl.constexpr, DRAFT_FILTERED: tl.constexpr, TILE: tl.constexpr,
    NB: tl.constexpr,
):  # fmt: skip
    """The node where the path of a request ends, the token after it (-1 also where the limit cuts it off), and the
    status. ``space``: two numbers per node of the batch."""
    tree, seed, temperature = request.tree, request.seed, request.settings.temperature
    vocab = target.columns.to(tl.int64)
    handed = space + request.root
    left_over = handed + target.total_nodes
    clear(space, request)
    flag = tl.full([], 0, tl.int32)
    token = request.index * 0 - 1
    node = tl.full([], 0, tl.int32)
    stop = tl.full([], -1, tl.int32)
    one = tl.full([], 1.0, tl.float64)
    while node >= 0:
        budget = tl.load(handed + node, mask=node > 0, other=1.0)
        row = Row(memory_at(target, request, node), target.allowed, None, 0, None, 0)
        largest, cut, total, p_masses, tops, seen = law_at(target, request, node, temperature, blocks, FILTERED, NB)
        law = Law(row, temperature, largest, cut, total / budget, p_masses, tops)
        alive = largest > float("-inf")
        depth = depth_of(tree, node)
        position = request.context + depth + 1
        child = find_child(tree, request.count, node, node + 1, vocab * 0, vocab)
        flag = tl.where(child >= 0, flag | seen, flag)
        child = tl.where(alive, child, -1)
        sampled = child < -1  # false
        q = law  # not read where the drafts are deterministic
        left = tl.full([], 1.0, tl.float64)
        q_masses = p_masses
        if drafts.logits is not None:
            memory = drafts_memory_at(drafts, target, request, node)
            sampled, draft_temperature, draft_largest, draft_cut, left, q_masses, lost, child = drafts_at(
                drafts, target, request, node, child, blocks, DRAFT_FILTERED, NB
            )
            flag = flag | lost
            draft_row = Row(
                memory, drafts.allowed, drafts.id_of, drafts.id_of_stride, drafts.column_of, drafts.column_of_stride
            )
            q = Law(draft_row, draft_temperature, draft_largest, draft_cut, left, q_masses, tops)
        count, tokens, rests, inverses, masses, budget, exhausted = try_children(
            law, q, request, node, child, handed, one, one * 0.0, budget, q_masses, left, sampled, blocks, vocab,
            REPLACEMENT, TILE, NB,
        )  # fmt: skip
        following = node * 0 - 1
        if stop < 0:
            tl.store(left_over + node, budget, mask=node > 0)
            tl.debug_barrier()
            following, stop = _advance(request, node, handed, left_over)
        wanted = depth_of(tree, tl.maximum(stop, 0)) < request.limit
        if (stop == node) & wanted:
            flag = flag | seen
            if alive:
                rejected = Rejected(count, tokens, rests, inverses)
                token, fallen = draw_left(
                    law, q, masses, rejected, sampled, exhausted, seed, position, depth, node, REPLACEMENT, TILE, NB
                )
                flag = flag | fallen
            flag = tl.where(token < 0, flag | DEAD_END, flag)
        following = tl.where((stop >= 0) & (stop != node) & wanted, stop, following)
        node = following
    return stop, token, flag
