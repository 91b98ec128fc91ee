# mypy: ignore-errors
"""The rules of rejection that decide at a node at once. Token: children are accepted or rejected in draw order, each by
a coin; if none is left, a token is drawn from what is left of the target's law. Greedy plus one: only the last child
has a coin, drawn as it was from the law without the others, and what is drawn in the end may be one of these.

Who does what: part of the program that walks down a request's tree. Memory traffic: per child two logits; per
rejected child what ``residual.py`` says; one block of both rows for the last token.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .law import Law
from .random import coin
from .residual import MOST, Rejected, drafts_left, draw_residual, reject, shares_at
from .row import Row
from .visit import FALLBACK, drafts_at, drafts_memory_at
from .walk import end_of, find_child, token_of


@triton.jit
def draw_left(
    law, q, masses, rejected, sampled, exhausted, key, position, depth, node,
    REPLACEMENT: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """A token of what is left, and the status: where that is nothing, the law itself is drawn from."""
    token = position * 0 - 1
    flag = tl.full([], 0, tl.int32)
    count = rejected.count
    attempt = tl.where(exhausted, 1, 0)
    while (token < 0) & (attempt < 2):
        if attempt == 1:
            flag = flag | FALLBACK
            count = count * 0
            masses = law.masses
        still = Rejected(count, rejected.tokens, rejected.rests, rejected.inverses)
        token = draw_residual(law, q, masses, still, sampled, key, position, depth, node, REPLACEMENT, TILE, NB)
        attempt += 1
    return token, flag


@triton.jit
def exclude_chosen(
    q, request, node, child, vocab, tokens, rests, q_masses, left, sampled, TILE: tl.constexpr, NB: tl.constexpr
):
    """Takes all children but the last out of q; the last one, -1 if it is absent or one of too many, and what is left of q."""
    tree = request.tree
    numbers = tl.arange(0, MOST)
    count = tl.full([], 0, tl.int32)
    seen = tl.full([], 0, tl.int32)
    end = end_of(tree, request.count, node)
    while (child >= 0) & (end_of(tree, request.count, tl.maximum(child, 0)) < end) & (seen < MOST):
        if sampled & (left > 0):
            tokens = tl.where(numbers == count, token_of(tree, child), tokens)
            rests = tl.where(numbers == count, float("inf"), rests)
            count += 1
            rejected = Rejected(count, tokens, rests, rests)
            q_masses = drafts_left(q, q_masses, rejected, TILE, NB)
            left = tl.sum(q_masses)
        seen += 1
        child = find_child(tree, request.count, node, end_of(tree, request.count, child), vocab * 0, vocab)
    child = tl.where(seen < MOST, child, -1)
    return child, count, tokens, rests, q_masses, left


@triton.jit
def accept_or_reject(
    law, target, drafts, request, node, depth, position, vocab, blocks,
    LAST_ONLY: tl.constexpr, REPLACEMENT: tl.constexpr, DRAFT_FILTERED: tl.constexpr, TILE: tl.constexpr,
    NB: tl.constexpr,
):  # fmt: skip
    """The token that the rule decides at a node, the child that holds it (-1: none), and the status. ``LAST_ONLY``:
    greedy plus one."""
    tree, key = request.tree, request.seed
    child = find_child(tree, request.count, node, node + 1, vocab * 0, vocab)
    flag = tl.full([], 0, tl.int32)
    sampled = child < -1  # false
    q = law  # not read where the drafts are deterministic
    left = tl.full([], 1.0, tl.float64)
    q_masses = law.masses
    if drafts.logits is not None:
        memory = drafts_memory_at(drafts, target, request, node)
        sampled, temperature, largest, cut, left, q_masses, flag, child = drafts_at(
            drafts, target, request, node, child, blocks, DRAFT_FILTERED, NB
        )
        row = Row(memory, drafts.allowed, drafts.id_of, drafts.id_of_stride, drafts.column_of, drafts.column_of_stride)
        q = Law(row, temperature, largest, cut, left, q_masses, law.tops)  # its maxima are not needed any more
    rejected_count = tl.full([], 0, tl.int32)
    rejected_tokens = tl.full([MOST], -1, tl.int64)
    rests = tl.full([MOST], 1.0, tl.float64)
    inverses = tl.full([MOST], 1.0, tl.float64)
    masses = law.masses / law.total
    budget = left * 0.0 + 1.0
    token = position * 0 - 1
    accepted = child * 0 - 1
    failed = child < -1  # false
    chosen = child >= 0
    if LAST_ONLY:
        child, rejected_count, rejected_tokens, rests, q_masses, left = exclude_chosen(
            q, request, node, child, vocab, rejected_tokens, rests, q_masses, left, sampled, TILE, NB
        )
    while (child >= 0) & (rejected_count < MOST):
        drafted = token_of(tree, child)
        u = coin(key, position, depth, child)
        rejected = Rejected(rejected_count, rejected_tokens, rests, inverses)
        p_share, q_share = shares_at(law, q, drafted, rejected, left, sampled, REPLACEMENT)
        if (p_share > 0) & ((p_share >= q_share) | (u * q_share < p_share)):
            token = drafted
            accepted = child
            child = child * 0 - 1
        else:
            rejected_count, rejected_tokens, rests, inverses, masses, q_masses, left, budget, failed = reject(
                law, q, drafted, rejected_count, rejected_tokens, rests, inverses, masses, q_masses, left, budget,
                sampled, blocks, REPLACEMENT, TILE, NB,
            )  # fmt: skip
            next_start = end_of(tree, request.count, child)
            child = tl.where(failed, -1, find_child(tree, request.count, node, next_start, vocab * 0, vocab))
    if token < 0:
        rejected = Rejected(rejected_count, rejected_tokens, rests, inverses)
        token, fallen = draw_left(
            law, q, masses, rejected, sampled, failed, key, position, depth, node, REPLACEMENT, TILE, NB
        )
        flag = flag | fallen
        if LAST_ONLY:
            if chosen & (token >= 0) & (failed == 0):
                end = end_of(tree, request.count, node)
                accepted = find_child(tree, request.count, node, node + 1, token, token + 1)
                accepted = tl.where(end_of(tree, request.count, tl.maximum(accepted, 0)) < end, accepted, -1)
    return token, accepted, flag
