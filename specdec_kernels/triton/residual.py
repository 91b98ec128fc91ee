# mypy: ignore-errors
"""The law that is left to be emitted after drafts came to nothing, as a fold over scalars.

With p the target's law, q that of the drafts, a_0 the budget with which the node is visited (1 unless the rule is a
bottom-up one), and c_1 .. c_k the drafts that came to nothing,

    w(x) = a_0 p(x);   for j < k:   w(x) = max(w(x) - q_j(x), 0) / D_j,   D_j = S_j + 1 - a_j,   a_{j+1} = S_j / D_j

where S_j is the sum of the numerators, and q_j is q (drawn with replacement), q without c_1 .. c_j and normalised
(without), or 1 at c_j (a deterministic draft). w sums to the budget that is left; with the budget 1 D_j is S_j. Nothing
of the size of the vocabulary is stored. The budget a_0 is part of the law ``p`` that these functions are given: its
``total`` is divided by it.

Who does what: the program that walks down a request's tree computes a tile of w when it is needed. Memory traffic:
per rejected draft one read of the blocks of both rows where p has mass (of a deterministic draft only the block of
its id). The scalars of the rejected drafts lie in vectors of ``MOST`` registers, so a node has at most that many
children that count; sample.draft draws no more. Sums inside blocks of 4,096 ids, then over blocks, each in one order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .cut import at
from .law import NO_BOUND, load_kept
from .race import race_of_blocks, race_of_ids
from .random import RESIDUAL
from .row import BLOCK, key_of, mass_of_tile, value_of, weigh, weigh_exactly
from .walk import end_of, find_child, token_of

#: Rejected drafts of one node.
MOST = tl.constexpr(256)

_BLOCK = tl.constexpr(BLOCK)

#: A sum this small is rounding.
LEAST = tl.constexpr(1e-30)


class Rejected(NamedTuple):
    """The drafts rejected so far: vectors of their tokens, of the mass of q that each was drawn from (relative to the
    largest weight of q), and of ``1 / D``. An id that a draft was drawn without is as if drawn from an endless mass."""

    count: Any
    tokens: Any
    rests: Any
    inverses: Any


@triton.jit
def fold(w, q, ids, rejected, sampled, REPLACEMENT: tl.constexpr):
    """What is left at some ids, from p and the unnormalised weights of q, float64."""
    for j in range(0, rejected.count):
        token = at(rejected.tokens, j, MOST)
        inverse = at(rejected.inverses, j, MOST)
        if sampled:
            rest = at(rejected.rests, j, MOST)
            share = tl.where(rest > 0, 1.0 / tl.where(rest > 0, rest, 1.0), 0.0)
            w = tl.maximum(w - q * share, 0.0) * inverse
            if not REPLACEMENT:
                q = tl.where(ids == token, 0.0, q)
        else:
            w = tl.where(ids == token, 0.0, w) * inverse
    return w


@triton.jit
def weight_at(law, token):
    """The weight of one id in a law, float64; 0 if it was filtered or does not exist."""
    value = value_of(law.row, token)
    value = tl.where(key_of(value, token) >= law.cut, value, float("-inf"))
    return weigh_exactly(value, law.largest, law.temperature)


@triton.jit
def fold_tile(p, q, block, rejected, sampled, REPLACEMENT: tl.constexpr, TILE: tl.constexpr):
    """What is left at the ids of a block, and the ids."""
    values, ids = load_kept(p.row, block, p.cut, NO_BOUND, TILE)
    w = weigh_exactly(values, p.largest, p.temperature) / p.total
    drafts = tl.zeros([TILE], tl.float64)
    if sampled:
        values, _ = load_kept(q.row, block, q.cut, NO_BOUND, TILE)
        drafts = weigh_exactly(values, q.largest, q.temperature)
    return fold(w, drafts, ids, rejected, sampled, REPLACEMENT), ids


@triton.jit
def masses_left(
    p, q, rejected, masses, sampled, blocks, REPLACEMENT: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr
):
    """The masses of the blocks once the last of the rejected drafts (whose inverse is 1 still) is taken out of
    ``masses``, those before it."""
    index = tl.arange(0, NB)
    last = at(rejected.tokens, rejected.count - 1, MOST)
    for b in range(0, blocks):
        if at(masses, b, NB) > 0:
            if sampled | (last // _BLOCK == b):
                values, ids = load_kept(p.row, b, p.cut, NO_BOUND, TILE)
                drafts = tl.full([TILE], float("-inf"), tl.float32)
                if sampled:
                    drafts, _ = load_kept(q.row, b, q.cut, NO_BOUND, TILE)
                if sampled & (rejected.count == 1):  # nothing is far below a maximum: single precision will do
                    share = tl.where(q.total > 0, 1.0 / tl.where(q.total > 0, q.total, 1.0), 0.0).to(tl.float32)
                    rest = weigh(values, p.largest, p.temperature) * (1.0 / p.total).to(tl.float32)
                    rest -= weigh(drafts, q.largest, q.temperature) * share
                    left = tl.sum(tl.maximum(rest, 0.0)).to(tl.float64)
                else:
                    w = weigh_exactly(values, p.largest, p.temperature) / p.total
                    weights = weigh_exactly(drafts, q.largest, q.temperature)
                    left = tl.sum(fold(w, weights, ids, rejected, sampled, REPLACEMENT))
                masses = tl.where(index == b, left, masses)
    return masses


@triton.jit
def drafts_left(q, masses, rejected, TILE: tl.constexpr, NB: tl.constexpr):
    """The masses of the blocks of q without the rejected drafts, of which all but the last are out of ``masses``.

    The mass of a block is summed anew: the difference of two sums is nothing but rounding where the drafter was sure.
    """
    block = at(rejected.tokens, rejected.count - 1, MOST) // _BLOCK
    values, ids = load_kept(q.row, block.to(tl.int32), q.cut, NO_BOUND, TILE)
    for j in range(0, rejected.count):
        values = tl.where(ids == at(rejected.tokens, j, MOST), float("-inf"), values)
    return tl.where(tl.arange(0, NB) == block, mass_of_tile(values, q.largest, q.temperature), masses)


@triton.jit
def shares_at(p, q, token, rejected, left, sampled, REPLACEMENT: tl.constexpr):
    """What is left to be emitted at the token of the next draft, and the probability that it was drawn with; ``left``:
    the mass of q that it was drawn from."""
    q_weight = left * 0.0
    q_share = left * 0.0 + 1.0
    if sampled:
        q_weight = weight_at(q, token)
        q_share = tl.where(left > 0, q_weight / tl.where(left > 0, left, 1.0), 0.0)
        if not REPLACEMENT:
            again = tl.sum(tl.where(rejected.tokens == token, 1, 0)) > 0
            q_share = tl.where(again, 0.0, q_share)
    return fold(weight_at(p, token) / p.total, q_weight, token, rejected, sampled, REPLACEMENT), q_share


@triton.jit
def budget_of(p, q, token, rejected, left, sampled, REPLACEMENT: tl.constexpr):
    """The budget that the next draft, which holds that token, is visited with."""
    p_share, q_share = shares_at(p, q, token, rejected, left, sampled, REPLACEMENT)
    certain = p_share >= q_share
    ratio = tl.where(certain, 1.0, p_share / tl.where(certain, 1.0, q_share))
    return tl.where(p_share > 0, ratio, 0.0)


@triton.jit
def reject(
    p, q, token, count, tokens, rests, inverses, masses, q_masses, left, budget, sampled, blocks,
    REPLACEMENT: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """What ``count`` to ``budget`` become once a draft has come to nothing, and whether nothing is left although the
    budget is 1, which exact arithmetic does not know.

    ``masses``: of the blocks of w. ``q_masses``, ``left``: of those of q that drafts are still drawn from, and their
    sum.
    """
    numbers = tl.arange(0, MOST)
    tokens = tl.where(numbers == count, token, tokens)
    rests = tl.where(numbers == count, left, rests)
    count += 1
    rejected = Rejected(count, tokens, rests, inverses)
    masses = masses_left(p, q, rejected, masses, sampled, blocks, REPLACEMENT, TILE, NB)
    remainder = tl.sum(masses)
    whole = budget >= 1.0
    exhausted = whole & (remainder <= LEAST)
    inverse = 1.0 / tl.where(exhausted, 1.0, tl.where(whole, remainder, remainder + (1.0 - budget)))
    budget = tl.where(whole, budget, remainder * inverse)
    inverses = tl.where(numbers == count - 1, inverse, inverses)
    masses = masses * inverse
    if not REPLACEMENT:
        if sampled & (left > 0):
            q_masses = drafts_left(q, q_masses, rejected, TILE, NB)
            left = tl.sum(q_masses)
    return count, tokens, rests, inverses, masses, q_masses, left, budget, exhausted


@triton.jit
def try_children(
    p, q, request, node, child, place, here, spent, budget, q_masses, left, sampled, blocks, vocab,
    REPLACEMENT: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """What ``reject`` leaves once the children of a node, from ``child`` on, have all come to nothing. The budget of
    each is stored at ``place``, times ``here``; of that ``spent`` times the budget goes with it (1 or 0)."""
    tree = request.tree
    count = tl.full([], 0, tl.int32)
    tokens = tl.full([MOST], -1, tl.int64)
    rests = tl.full([MOST], 1.0, tl.float64)
    inverses = tl.full([MOST], 1.0, tl.float64)
    masses = p.masses / p.total
    exhausted = child < -1  # false
    while (child >= 0) & (count < MOST):
        drafted = token_of(tree, child)
        handed = budget_of(p, q, drafted, Rejected(count, tokens, rests, inverses), left, sampled, REPLACEMENT)
        tl.store(place + child, here * handed)
        here *= 1.0 - spent * handed
        count, tokens, rests, inverses, masses, q_masses, left, budget, exhausted = reject(
            p, q, drafted, count, tokens, rests, inverses, masses, q_masses, left, budget, sampled, blocks,
            REPLACEMENT, TILE, NB,
        )  # fmt: skip
        next_start = end_of(tree, request.count, child)
        child = tl.where(exhausted, -1, find_child(tree, request.count, node, next_start, vocab * 0, vocab))
    return count, tokens, rests, inverses, masses, budget, exhausted


@triton.jit
def draw_residual(
    p, q, masses, rejected, sampled, seed, position, depth, node,
    REPLACEMENT: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """An id of the law that is left, int64; -1 if there is none."""
    zero = position * 0
    block = race_of_blocks(masses, seed, position, RESIDUAL, depth, node, zero, NB)
    token = zero - 1
    if block >= 0:
        w, ids = fold_tile(p, q, block, rejected, sampled, REPLACEMENT, TILE)
        token += 1 + race_of_ids(ids, block * TILE, w, seed, position, RESIDUAL, depth, node, zero, TILE)
    return token
