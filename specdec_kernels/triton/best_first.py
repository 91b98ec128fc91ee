# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""best_first: the most probable nodes of the tree over a product of laws.

Who does what: ``choose_kernel`` takes the nodes of one request one after the other; every node that it has taken offers
its next child, and the best offer of all is the next node. ``place_kernel`` puts them into depth-first pre-order; with
a total budget it first finds out, by bisection in the lists of all requests, how many of its own are to stay. Memory
traffic: the ranks that are looked at, from the caches after the first time, and 12 bytes per node between the kernels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device_of, power_of_two, step
from .tree_build import rank_of_score
from .tree_layout import LAYOUT_FIELDS, PAIRS, Columns, chunk_of, lay_out, write_nodes
from .varying import VARYING

_LARGEST_TOKEN = tl.constexpr(2**31 - 1)
_FAR = tl.constexpr(2**31 - 1)
_NO_OFFER = tl.constexpr(2**63 - 1)
_SIGN = tl.constexpr(-(2**31))

#: Ranks that are looked at together, and requests whose budgets are.
RANKS, SEARCH = 64, 256


class Laws(NamedTuple):
    """The laws of one request."""

    log_probs: Any
    log_prob_depth: Any
    log_prob_rank: Any
    ids: Any
    id_depth: Any
    id_rank: Any
    levels: Any
    ranks: Any


@triton.jit
def _find(laws, level, rank, least, RANKS: tl.constexpr):
    """The first rank of a level, from ``rank`` on, that is present (-1 if there is none), its log-probability, and its
    id; ``least`` is the smallest of the ranks before."""
    found = rank * 0 - 1
    token = rank * 0
    going = (level < laws.levels) & (rank < laws.ranks) & (least > float("-inf"))
    while going:
        r = rank + tl.arange(0, RANKS)
        inside = r < laws.ranks
        at = level.to(tl.int64) * laws.log_prob_depth + r.to(tl.int64) * laws.log_prob_rank
        log_prob = tl.load(laws.log_probs + at, mask=inside, other=0.0)
        log_prob = tl.where(log_prob == log_prob, log_prob, float("-inf"))
        at = level.to(tl.int64) * laws.id_depth + r.to(tl.int64) * laws.id_rank
        ids = tl.load(laws.ids + at, mask=inside, other=-1).to(tl.int64)
        here = tl.min(tl.where((ids >= 0) & (ids <= _LARGEST_TOKEN), r, _FAR))
        least = tl.minimum(least, tl.min(tl.where(inside & (r <= here), log_prob, 0.0)))
        token = tl.sum(tl.where(r == here, ids, 0)).to(tl.int32)
        there = (here < _FAR) & (least > float("-inf"))
        found = tl.where(there, here, -1)
        rank += RANKS
        going = (there == 0) & (rank < laws.ranks) & (least > float("-inf"))
    return found, least, token


@triton.jit
def _offer(score, depth, parent):
    """64 bits in the order (larger score, smaller depth, earlier parent); nothing for a score of -inf."""
    key = ((-rank_of_score(score)).to(tl.int64) << 32) | (depth << 16) | parent
    return tl.where(score > float("-inf"), key, _NO_OFFER)


@triton.jit
def _score_of(key):
    rank = -(key >> 32).to(tl.int32)
    bits = tl.where(rank >= 0, rank, -rank | _SIGN)
    return bits.to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=VARYING)
def choose_kernel(
    root_tokens, root_tokens_stride, log_probs, log_probs_row_stride, log_probs_depth_stride, log_probs_rank_stride,
    token_ids, token_ids_row_stride, token_ids_depth_stride, token_ids_rank_stride, budgets, budgets_stride,
    max_nodes, levels, ranks, cu_nodes, counts, keys, names, batch, TILE: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """The nodes of one request in order: the root, which is number 0, counts. A request without a root has none."""
    b = tl.program_id(0).to(tl.int64)
    tl.store(cu_nodes + b, (b * max_nodes).to(tl.int32), mask=b == 0)
    if b < batch:
        tl.store(cu_nodes + b + 1, ((b + 1) * max_nodes).to(tl.int32))
        laws = Laws(
            log_probs + b * log_probs_row_stride, log_probs_depth_stride, log_probs_rank_stride,
            token_ids + b * token_ids_row_stride, token_ids_depth_stride, token_ids_rank_stride, levels, ranks,
        )  # fmt: skip
        root = tl.load(root_tokens + b * root_tokens_stride).to(tl.int64)
        budget = b * 0 + max_nodes
        if budgets is not None:
            budget = tl.minimum(tl.load(budgets + b * budgets_stride).to(tl.int64), budget)
        awake = (budget > 0) & (root >= 0) & (root <= _LARGEST_TOKEN)
        keys += b * max_nodes
        names += b * max_nodes
        i = tl.arange(0, TILE)
        nothing = tl.full([], 0, tl.int32)
        zero = tl.full([], 0.0, tl.float32)
        # Of each node: what it offers; rank and log-probability of that; its own score, and the id that it offers.
        rank, least, token = _find(laws, nothing, nothing, zero, RANKS)
        offers = tl.where(i == 0, tl.where(rank >= 0, _offer(least, nothing + 1, nothing), _NO_OFFER), _NO_OFFER)
        ranked = (rank.to(tl.int64) << 32) | (least.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
        ranked = tl.where(i == 0, ranked, 0)
        named = tl.where(i == 0, token.to(tl.int64), 0)
        count = tl.where(awake, 1, 0).to(tl.int32)
        best = tl.min(offers)
        going = (best < _NO_OFFER) & (count < budget) & awake
        while going:
            parent = (best & 0xFFFF).to(tl.int32)
            level = ((best >> 16) & 0xFFFF).to(tl.int32)
            score = _score_of(best)
            mine = i == parent
            law = tl.sum(tl.where(mine, ranked, 0))
            own = tl.sum(tl.where(mine, named, 0))
            tl.store(keys + count, best)
            tl.store(names + count, own.to(tl.int32))
            # The parent's next child, and the first one of the new node.
            least = law.to(tl.int32).to(tl.float32, bitcast=True)
            rank, least, token = _find(laws, level - 1, (law >> 32).to(tl.int32) + 1, least, RANKS)
            above = (own >> 32).to(tl.int32).to(tl.float32, bitcast=True)
            offer = tl.where(rank >= 0, _offer(above + least, level, parent), _NO_OFFER)
            packed = (rank.to(tl.int64) << 32) | (least.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
            offers = tl.where(mine, offer, offers)
            ranked = tl.where(mine, packed, ranked)
            named = tl.where(mine, (own >> 32 << 32) | token.to(tl.int64), named)
            fresh = i == count
            rank, least, token = _find(laws, level, nothing, zero, RANKS)
            offer = tl.where(rank >= 0, _offer(score + least, level + 1, count), _NO_OFFER)
            packed = (rank.to(tl.int64) << 32) | (least.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
            offers = tl.where(fresh, offer, offers)
            ranked = tl.where(fresh, packed, ranked)
            bits = score.to(tl.int32, bitcast=True).to(tl.int64)
            named = tl.where(fresh, (bits << 32) | token.to(tl.int64), named)
            count += 1
            best = tl.min(offers)
            going = (best < _NO_OFFER) & (count < budget)
        tl.store(counts + b, count)


@triton.jit
def _nodes_that_stay(b, count, counts, keys, total_budget, max_nodes, batch, TILE: tl.constexpr, OTHERS: tl.constexpr,
                     SEARCH: tl.constexpr):  # fmt: skip
    """How many nodes of a request stay, when the batch shares a budget."""
    left = tl.full([], 0, tl.int64) + total_budget
    for start in range(0, batch, SEARCH):
        k = start + tl.arange(0, SEARCH)
        left -= tl.sum((tl.load(counts + k, mask=k < batch, other=0) > 0).to(tl.int64))
    i = tl.arange(0, TILE)
    below = (i > 0) & (i < count)
    mine = tl.load(keys + b * max_nodes + i, mask=below, other=0) >> 16  # score and depth
    before = tl.zeros([TILE], tl.int32)
    for start in range(0, batch, OTHERS):
        k = (start + tl.arange(0, OTHERS)).to(tl.int64)
        size = tl.load(counts + k, mask=k < batch, other=0)
        size = tl.where(k == b, 0, size)
        high = tl.maximum(size, 1)[None, :] + tl.zeros([TILE, OTHERS], tl.int32)
        low = tl.full([TILE, OTHERS], 1, tl.int32)
        going = tl.max(high) > 1
        while going:
            middle = (low + high) // 2
            searched = low < high
            theirs = tl.load(keys + k[None, :] * max_nodes + middle, mask=searched, other=0) >> 16
            first = (theirs < mine[:, None]) | ((theirs == mine[:, None]) & (k[None, :] < b))
            low = tl.where(searched & first, middle + 1, low)
            high = tl.where(searched & (first == 0), middle, high)
            going = tl.max(high - low) > 0
        before += tl.sum(low - 1, 1)
    stay = below & (i - 1 + before < left)
    return tl.minimum(count, 1) + tl.sum(stay.to(tl.int32))


@triton.jit(do_not_specialize=VARYING)
def place_kernel(
    root_tokens, root_tokens_stride, counts, keys, names, total_budget, max_nodes,
    tokens, parents, depths, ends, status, scores, space, batch,
    SHARED: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, OTHERS: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    """The nodes of one request in depth-first pre-order."""
    b = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + b)
    if SHARED:
        count = _nodes_that_stay(b, count, counts, keys, total_budget, max_nodes, batch, TILE, OTHERS, SEARCH)
    i = tl.arange(0, TILE)
    below = (i > 0) & (i < count)
    key = tl.load(keys + b * max_nodes + i, mask=below, other=0)
    token = tl.load(names + b * max_nodes + i, mask=below, other=0).to(tl.int64)
    token = tl.where(i == 0, tl.load(root_tokens + b * root_tokens_stride).to(tl.int64), token)
    places = lay_out((key & 0xFFFF).to(tl.int32), count, space + b * 4 * TILE, TILE, CHUNK)
    columns = Columns(tokens, parents, depths, ends)
    row = write_nodes(columns, b * max_nodes, places, token, count, max_nodes, TILE)
    if scores is not None:
        score = tl.where(i < count, tl.where(below, _score_of(key), 0.0), float("-inf"))
        tl.store(scores + row, score, mask=i < max_nodes)
    tl.store(status + b, 0)


def tree_best_first(
    root_tokens: Tensor,
    log_probs: Tensor,
    token_ids: Tensor,
    budgets: Tensor | None,
    max_nodes: int,
    total_budget: int,
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    status: Tensor,
    scores: Tensor | None,
) -> None:
    """The launcher of ``tree.best_first``."""
    batch, depth, ranks = log_probs.shape
    tile = power_of_two(max_nodes)

    def new(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=root_tokens.device)

    with on_device_of(root_tokens):
        counts, names, keys = new(batch), new(batch, max_nodes), new(batch, max_nodes, dtype=torch.int64)
        choose_kernel[(max(batch, 1),)](
            *(root_tokens, step(root_tokens), log_probs, step(log_probs), step(log_probs, 1), step(log_probs, 2)),
            *(token_ids, step(token_ids), step(token_ids, 1), step(token_ids, 2), budgets, step(budgets)),
            *(max_nodes, min(depth, max_nodes), ranks, cu_nodes, counts, keys, names, batch),
            TILE=tile,
            RANKS=min(RANKS, power_of_two(ranks)),
        )
        if batch == 0:
            return
        place_kernel[(batch,)](
            *(root_tokens, step(root_tokens), counts, keys, names, min(total_budget, batch * max_nodes), max_nodes),
            *(tokens, parents, depths, ends, status, scores, new(batch, LAYOUT_FIELDS, tile), batch),
            SHARED=total_budget >= 0,
            TILE=tile,
            CHUNK=chunk_of(tile),
            OTHERS=max(min(PAIRS // tile, power_of_two(batch)), 1),
            SEARCH=min(SEARCH, power_of_two(batch)),
        )
