# mypy: ignore-errors
"""The rules that do not keep the target's law: threshold, typical, relaxed, synthetic. Each also says how far off a
token's law is.

Who does what: part of the program that walks down a request's tree. Memory traffic beside what the walk reads:
threshold the blocks of the drafts that come to nothing; typical one read of the rows of all inner nodes that pass, for
their entropies; relaxed one read of a row for each child that is likely enough, for its rank.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .bottom_up import clear
from .cut import reach
from .law import Law, best_key, draw, entropy_of
from .random import TARGET, coin
from .rejection import draw_left
from .residual import LEAST, MOST, Rejected, masses_left, weight_at
from .row import Row, id_of_key, key_of, value_of
from .visit import DEAD_END, law_at, memory_at
from .walk import depth_of, end_of, find_child, token_of


class Lossy(NamedTuple):
    """What a rule is given: ``single`` and ``accumulated``; ``epsilon`` and ``delta``; ``top_k`` and ``delta``, and for
    which requests (or None); the rates."""

    first: Any
    second: Any
    given: Any
    given_stride: Any


@triton.jit
def _next_child(request, node, child, vocab):
    return find_child(request.tree, request.count, node, end_of(request.tree, request.count, child), vocab * 0, vocab)


@triton.jit
def above_thresholds(law, lossy, request, node, depth, position, vocab, blocks, TILE: tl.constexpr, NB: tl.constexpr):
    """Children are taken while one coin is below the probability of all up to them, or one that is likely enough; else
    a token is drawn from the law without them. The token, the child, the divergence, the status."""
    tree, key = request.tree, request.seed
    single = lossy.first
    accumulated = lossy.second
    child = find_child(tree, request.count, node, node + 1, vocab * 0, vocab)
    u = coin(key, position, depth, child)
    numbers = tl.arange(0, MOST)
    count = tl.full([], 0, tl.int32)
    tokens = tl.full([MOST], -1, tl.int64)
    ones = tl.full([MOST], 1.0, tl.float64)
    total = tl.full([], 0.0, tl.float64)
    given = total
    divergence = total
    token = position * 0 - 1
    accepted = child * 0 - 1
    while (child >= 0) & (count < MOST):
        drafted = token_of(tree, child)
        following = _next_child(request, node, child, vocab)
        if tl.sum(tl.where(tokens == drafted, 1, 0)) == 0:  # of equal siblings the first counts
            probability = weight_at(law, drafted) / law.total
            total += probability
            sure = (probability > 0) & (probability >= single)
            here = (probability > 0) & (sure | (total >= accumulated) | (u * accumulated < total)) & (token < 0)
            token = tl.where(here, drafted, token)
            accepted = tl.where(here, child, accepted)
            until = tl.where(sure, 1.0, tl.minimum(total / accumulated, 1.0))
            divergence += tl.maximum(until - given - probability, 0.0)
            given = until
            tokens = tl.where(numbers == count, drafted, tokens)
            count += 1
            following = tl.where(sure, -1, following)
        child = following
    flag = tl.full([], 0, tl.int32)
    if token < 0:
        false = count < 0
        masses = law.masses / law.total
        number = count * 0
        while number < count:
            number += 1
            rejected = Rejected(number, tokens, ones, ones)
            masses = masses_left(law, law, rejected, masses, false, blocks, True, TILE, NB)
        rejected = Rejected(count, tokens, ones, ones)
        exhausted = tl.sum(masses) <= LEAST
        token, flag = draw_left(
            law, law, masses, rejected, false, exhausted, key, position, depth, node, True, TILE, NB
        )
    return token, accepted, divergence, flag


@triton.jit
def near_the_best(law, lossy, request, node, vocab, blocks, TILE: tl.constexpr, NB: tl.constexpr):
    """The first child that is one of the best and hardly less likely than the best; else the best. ``law``: the softmax
    over allowed ids. The token, the child, the divergence."""
    tree = request.tree
    best = id_of_key(best_key(law.row, law.tops, law.largest, blocks, TILE, NB))
    relaxed = best >= 0  # true
    if lossy.given is not None:
        relaxed = tl.load(lossy.given + request.index * lossy.given_stride) != 0
    token = best
    accepted = node * 0 - 1
    divergence = tl.full([], 0.0, tl.float64)
    if relaxed:
        top_keys = key_of(law.tops, tl.zeros([NB], tl.int32))
        child = find_child(tree, request.count, node, node + 1, vocab * 0, vocab)
        while child >= 0:
            drafted = token_of(tree, child)
            good = drafted == best
            if drafted != best:
                weight = weight_at(law, drafted)
                if (weight > 0) & ((1.0 - weight) / law.total <= lossy.second):
                    key = key_of(value_of(law.row, drafted), drafted)
                    _, rank = reach(law.row, top_keys, key, law.largest, law.temperature, blocks, TILE, NB)
                    good = rank.to(tl.float64) <= lossy.first
            token = tl.where(good, drafted, token)
            accepted = tl.where(good, child, accepted)
            child = tl.where(good, -1, _next_child(request, node, child, vocab))
        divergence = tl.where(token == best, divergence, 1.0)
    else:
        accepted = find_child(tree, request.count, node, node + 1, best, best + 1)
    return token, accepted, divergence


@triton.jit
def at_given_rates(law, lossy, request, node, depth, position, vocab, blocks, TILE: tl.constexpr, NB: tl.constexpr):
    """The first child with a given probability; else the token of plain decoding. The token, the child, the
    divergence."""
    child = find_child(request.tree, request.count, node, node + 1, vocab * 0, vocab)
    greedy = law.temperature == 0.0
    token = position * 0 - 1
    best = token
    if greedy:
        best = id_of_key(best_key(law.row, law.tops, law.largest, blocks, TILE, NB))
    divergence = tl.full([], 0.0, tl.float64)
    accepted = child * 0 - 1
    if child >= 0:
        rate = tl.load(lossy.given + depth.to(tl.int64) * lossy.given_stride).to(tl.float64)
        rate = tl.where(rate > 0.0, tl.where(rate < 1.0, rate, 1.0), 0.0)
        drafted = token_of(request.tree, child)
        likely = tl.where(drafted == best, 1.0, 0.0).to(tl.float64)
        if greedy == 0:
            likely = weight_at(law, drafted) / law.total
        divergence = rate * (1.0 - likely)
        if coin(request.seed, position, depth, child) < rate:
            token = drafted
            accepted = child
    if token < 0:
        if greedy:
            token = best
        else:
            zero = position * 0
            token = draw(law, request.seed, position, TARGET, zero, zero, TILE, NB)
    return token, accepted, divergence


@triton.jit
def typical(target, lossy, request, space, blocks, FILTERED: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr):
    """The deepest node all of whose ancestors and which itself is not unlikely, of equally deep ones the first; the
    token after it (-1 also where the limit cuts it off); the status. ``space``: a number per node of the batch."""
    tree, temperature = request.tree, request.settings.temperature
    vocab = target.columns.to(tl.int64)
    passed = space + request.root
    clear(space, request)
    flag = tl.full([], 0, tl.int32)
    token = request.index * 0 - 1
    node = tl.full([], 0, tl.int32)
    last = node
    deepest = node
    while node < request.count:
        following = node + 1
        if tl.load(passed + node, mask=node > 0, other=1.0) > 0:
            depth = depth_of(tree, node)
            last = tl.where(depth > deepest, node, last)
            deepest = tl.maximum(depth, deepest)
            child = find_child(tree, request.count, node, node + 1, vocab * 0, vocab)
            if child >= 0:
                row = Row(memory_at(target, request, node), target.allowed, None, 0, None, 0)
                largest, cut, total, masses, tops, seen = law_at(
                    target, request, node, temperature, blocks, FILTERED, NB
                )
                law = Law(row, temperature, largest, cut, total, masses, tops)
                flag = flag | seen
                if largest > float("-inf"):
                    least = lossy.second * tl.exp(-entropy_of(law, blocks, TILE, NB))
                    least = tl.minimum(least, lossy.first)
                    while child >= 0:
                        likely = weight_at(law, token_of(tree, child)) / total > least
                        tl.store(passed + child, tl.where(likely, 1.0, 0.0))
                        child = _next_child(request, node, child, vocab)
                    tl.debug_barrier()
        else:
            following = end_of(tree, request.count, node)
        node = following
    if deepest < request.limit:
        row = Row(memory_at(target, request, last), target.allowed, None, 0, None, 0)
        largest, cut, total, masses, tops, seen = law_at(target, request, last, temperature, blocks, FILTERED, NB)
        flag = flag | seen
        if largest > float("-inf"):
            law = Law(row, temperature, largest, cut, total, masses, tops)
            zero = request.index * 0
            token = draw(law, request.seed, request.context + deepest + 1, TARGET, zero, zero, TILE, NB)
        flag = tl.where(token < 0, flag | DEAD_END, flag)
    return last, token, flag
