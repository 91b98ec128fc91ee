# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""What a step of verification must expect, in closed form: python_ref/ops/expectation.py says how.

Who does what: ``law.scan_kernel`` reads the rows as for ``verify.rejection``; then one program per request takes its
nodes in the order of their indices, a parent before its children, and finds at each what the folds over its children
hand down to them. Memory traffic: per child and rule what ``residual.py`` says of a rejected draft; of the root's rows
one more read, and one of that of the drafts per child up to 16 where they were drawn without replacement. 32 bytes of
memory per node. Deterministic: a request's result depends on nothing but its own rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bottom_up import clear
from .cut import at
from .inputs import find_drafts, inputs
from .launch import Settings, find_laws, mask_of, on_device_of
from .law import NO_BOUND, Law, best_key, load_kept, settings_of
from .rejection import exclude_chosen
from .residual import MOST, Rejected, budget_of, reject, shares_at, try_children, weight_at
from .row import NOTHING, Row, id_of_key, key_of, value_of_key, weigh_exactly
from .varying import VARYING
from .visit import Drafts, Request, Target, drafts_at, drafts_memory_at, law_at, memory_at
from .walk import Tree, depth_of, end_of, find_child, open_tree, parent_of, token_of, tree_at

_STEPS = tl.constexpr(32)  # the bound looks at the sets p <= 2^(j/4) q, for j from -32 to 32
_SETS = tl.constexpr(128)  # the next power of two
_TOPS = tl.constexpr(16)  # and takes so many of the largest probabilities of q into account


@triton.jit
def _argmax_length(target, request, limit, blocks, FILTERED: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr):
    """How many tokens a request at temperature 0 emits, up to ``limit``."""
    tree = request.tree
    length = limit * 0
    node = tl.full([], 0, tl.int32)
    while (node >= 0) & (length < limit):
        row = Row(memory_at(target, request, node), target.allowed, None, 0, None, 0)
        temperature = request.settings.temperature
        largest, _, _, _, tops, _ = law_at(target, request, node, temperature, blocks, FILTERED, NB)
        child = node * 0 - 1
        if largest > float("-inf"):
            token = id_of_key(best_key(row, tops, largest, blocks, TILE, NB))
            child = find_child(tree, request.count, node, node + 1, token, token + 1)
        node = child
        length += 1
    return length


@triton.jit
def _tops(q, most, blocks, TILE: tl.constexpr, NB: tl.constexpr):
    """The sums of the largest 1, 2, .. weights of a law."""
    sums = tl.zeros([_TOPS], tl.float64)
    total = tl.full([], 0.0, tl.float64)
    bound = tl.full([], NO_BOUND, tl.int64)
    k = tl.full([], 0, tl.int32)
    while k < most:
        best = tl.full([], NOTHING, tl.int64)
        for b in range(0, blocks):
            values, ids = load_kept(q.row, b, q.cut, bound, TILE)
            best = tl.maximum(best, tl.max(key_of(values, ids)))
        total += weigh_exactly(value_of_key(best), q.largest, q.temperature)
        sums = tl.where(tl.arange(0, _TOPS) == k, total, sums)
        bound = best
        k += 1
    return sums


@triton.jit
def _bound_of_sets(p, q, number, blocks, REPLACEMENT: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr):
    """``1 + min_H (p(H) - Q(H))`` for so many drafts from q. What q leaves beside the largest weights may be tiny, so
    all is relative to sums that are taken here."""
    sets = tl.arange(0, _SETS)
    ratios = tl.exp2((sets - _STEPS).to(tl.float64) * 0.25) * (p.total / q.total)
    p_inside = tl.zeros([_SETS], tl.float64)
    q_inside = tl.zeros([_SETS], tl.float64)
    p_all = tl.full([], 0.0, tl.float64)
    q_all = tl.full([], 0.0, tl.float64)
    for b in range(0, blocks):
        values, _ = load_kept(p.row, b, p.cut, NO_BOUND, TILE)
        mine = weigh_exactly(values, p.largest, p.temperature)
        values, _ = load_kept(q.row, b, q.cut, NO_BOUND, TILE)
        other = weigh_exactly(values, q.largest, q.temperature)
        p_all += tl.sum(mine)
        q_all += tl.sum(other)
        for j in range(0, 2 * _STEPS + 1):
            inside = mine <= at(ratios, j, _SETS) * other
            p_inside = tl.where(sets == j, p_inside + tl.sum(tl.where(inside, mine, 0.0)), p_inside)
            q_inside = tl.where(sets == j, q_inside + tl.sum(tl.where(inside, other, 0.0)), q_inside)
    known = tl.minimum(number - 1, _TOPS)
    sums = tl.zeros([_TOPS], tl.float64)
    if not REPLACEMENT:
        sums = _tops(q, known, blocks, TILE, NB)
    together = tl.full([_SETS], 1.0, tl.float64)
    last = at(sums, known - 1, _TOPS) - at(sums, known - 2, _TOPS)
    k = tl.full([], 0, tl.int32)
    while k < number:
        # With the index -1 there is none.
        gone = at(sums, tl.minimum(k, known) - 1, _TOPS) + tl.maximum(k - known, 0) * last
        rest = q_all - gone
        share = tl.maximum(q_inside - gone, 0.0) / tl.where(rest > 0, rest, 1.0)
        together *= tl.where(rest > 0, share, 0.0)
        k += 1
    value = 1.0 + p_inside / p_all - together
    return tl.maximum(tl.min(tl.where(sets <= 2 * _STEPS, value, 1.0)), 0.0)


@triton.jit
def _bound(
    p, q, request, first, sampled, blocks, vocab, REPLACEMENT: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr
):
    """What no rule exceeds at the root; ``first``: its first child, -1 if there is none."""
    tree, count = request.tree, request.count
    root = first * 0
    number = first * 0
    mass = tl.full([], 0.0, tl.float64)
    child = first
    while child >= 0:
        token = token_of(tree, child)
        again = find_child(tree, count, root, root + 1, token, token + 1) < child
        mass += tl.where(again, 0.0, weight_at(p, token) / p.total)
        number += 1
        child = find_child(tree, count, root, end_of(tree, count, child), vocab * 0, vocab)
    value = tl.minimum(mass, 1.0)
    if sampled:
        value = tl.full([], 1.0, tl.float64)  # drafts that cannot have been drawn are taken wherever p is not 0
        if q.largest > float("-inf"):
            value = _bound_of_sets(p, q, number, blocks, REPLACEMENT, TILE, NB)
    return value


@triton.jit
def _try_sampled(
    p, q, request, node, first, place, here, q_masses, left, sampled, blocks, vocab,
    TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """Stores with which probability greedy plus one visits each child of a node, which it visits with ``here``."""
    tree = request.tree
    tokens = tl.full([MOST], -1, tl.int64)
    rests = tl.full([MOST], 1.0, tl.float64)
    inverses = tl.full([MOST], 1.0, tl.float64)
    masses = p.masses / p.total
    budget = here * 0.0 + 1.0
    exhausted = first < -1  # false
    drawn, count, tokens, rests, q_masses, left = exclude_chosen(
        q, request, node, first, vocab, tokens, rests, q_masses, left, sampled, TILE, NB
    )
    if (drawn >= 0) & (count < MOST):
        token = token_of(tree, drawn)
        handed = budget_of(p, q, token, Rejected(count, tokens, rests, inverses), left, sampled, False)
        tl.store(place + drawn, here * handed)
        here *= 1.0 - handed
        count, tokens, rests, inverses, masses, q_masses, left, budget, exhausted = reject(
            p, q, token, count, tokens, rests, inverses, masses, q_masses, left, budget, sampled, blocks,
            False, TILE, NB,
        )  # fmt: skip
    child = tl.where(exhausted, -1, first)
    rejected = Rejected(count, tokens, rests, inverses)
    while child >= 0:
        token = token_of(tree, child)
        again = find_child(tree, request.count, node, node + 1, token, token + 1) < child
        share, _ = shares_at(p, q, token, rejected, left, sampled, False)
        tl.store(place + child, here * share, mask=(child != drawn) & (again == 0))
        child = find_child(tree, request.count, node, end_of(tree, request.count, child), vocab * 0, vocab)


@triton.jit
def _hand_down(
    target, drafts, request, node, space, blocks,
    REPLACEMENT: tl.constexpr, FILTERED: tl.constexpr, DRAFT_FILTERED: tl.constexpr, TILE: tl.constexpr,
    NB: tl.constexpr,
):  # fmt: skip
    """What a node leaves of its budget, and the bound there, which means something at the root. ``space`` stands at the
    request's root: with which probability its nodes are visited, their budgets, and the first for greedy plus one."""
    tree, temperature = request.tree, request.settings.temperature
    vocab = target.columns.to(tl.int64)
    stride = target.total_nodes.to(tl.int64)
    visited = tl.load(space + node, mask=node > 0, other=1.0)
    remaining = tl.load(space + stride + node, mask=node > 0, other=1.0)
    plus_one = tl.load(space + 2 * stride + node, mask=node > 0, other=1.0)
    best = visited * 0.0
    child = find_child(tree, request.count, node, node + 1, vocab * 0, vocab)
    child = tl.where((visited > 0) | (remaining > 0) | (plus_one > 0), child, -1)
    if child >= 0:
        row = Row(memory_at(target, request, node), target.allowed, None, 0, None, 0)
        largest, cut, total, masses, tops, _ = law_at(target, request, node, temperature, blocks, FILTERED, NB)
        child = tl.where(largest > float("-inf"), child, -1)
        law = Law(row, temperature, largest, cut, total, masses, tops)
        sampled = child < -1  # false
        q = law  # not read where the drafts are deterministic
        left = tl.full([], 1.0, tl.float64)
        q_masses = masses
        if drafts.logits is not None:
            memory = drafts_memory_at(drafts, target, request, node)
            sampled, draft_temperature, draft_largest, draft_cut, left, q_masses, _, child = drafts_at(
                drafts, target, request, node, child, blocks, DRAFT_FILTERED, NB
            )
            draft_row = Row(
                memory, drafts.allowed, drafts.id_of, drafts.id_of_stride, drafts.column_of, drafts.column_of_stride
            )
            q = Law(draft_row, draft_temperature, draft_largest, draft_cut, left, q_masses, tops)
        if node == 0:
            best = _bound(law, q, request, child, sampled, blocks, vocab, REPLACEMENT, TILE, NB)
        if (plus_one > 0) & (child >= 0):
            _try_sampled(
                law, q, request, node, child, space + 2 * stride, plus_one, q_masses, left, sampled, blocks, vocab,
                TILE, NB,
            )  # fmt: skip
        # Top-down with the budget 1, then bottom-up with that of the node.
        fold = tl.full([], 0, tl.int32)
        while (fold < 2) & (child >= 0):
            here = tl.where(fold == 0, visited, 1.0)
            budget = tl.where(fold == 0, 1.0, remaining)
            if (here > 0) & (budget > 0):
                given = Law(row, temperature, largest, cut, total / budget, masses, tops)
                tried = try_children(
                    given, q, request, node, child, space + fold * stride, here, tl.where(fold == 0, 1.0, 0.0), budget,
                    q_masses, left, sampled, blocks, vocab, REPLACEMENT, TILE, NB,
                )  # fmt: skip
                budget = tried[5]
            remaining = tl.where(fold == 0, remaining, budget)
            fold += 1
    return visited, plus_one, remaining, best


@triton.jit(do_not_specialize=VARYING)
def expect_kernel(
    cu_nodes, cu_nodes_stride, tokens, tokens_stride, parents, parents_stride, depths, depths_stride,
    ends, ends_stride, total_nodes, max_depth,
    logits, height, columns, row_stride, rows, rows_stride,
    allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words,
    temperature, temperature_stride, top_k, top_k_stride, top_p, top_p_stride, min_p, min_p_stride, order,
    tops, sums, nans, owners, cuts, masses,
    draft_logits, draft_height, draft_columns, draft_row_stride, draft_rows, draft_rows_stride,
    draft_allowed, draft_allowed_rows, draft_allowed_rows_stride, draft_allowed_height, draft_allowed_stride,
    draft_words, draft_to_target, draft_to_target_stride, target_to_draft, target_to_draft_stride,
    draft_temperature, draft_temperature_stride, draft_top_k, draft_top_k_stride, draft_top_p, draft_top_p_stride,
    draft_min_p, draft_min_p_stride, draft_order,
    draft_tops, draft_sums, draft_nans, draft_cuts, draft_masses,
    active, active_stride, max_tokens, max_tokens_stride, blocks,
    kept, token_mean, traversal_mean, plus_one_mean, bound,
    REPLACEMENT: tl.constexpr, FILTERED: tl.constexpr, DRAFT_FILTERED: tl.constexpr, TILE: tl.constexpr,
    NB: tl.constexpr,
):  # fmt: skip
    """One request."""
    b = tl.program_id(0).to(tl.int64)
    trees = Tree(tokens, tokens_stride, parents, parents_stride, depths, depths_stride, ends, ends_stride)
    root, count, _ = open_tree(
        trees, cu_nodes, cu_nodes_stride, owners, active, active_stride, total_nodes, max_depth, b
    )
    tree = tree_at(trees, root)
    settings = settings_of(
        temperature, temperature_stride, top_k, top_k_stride, top_p, top_p_stride, min_p, min_p_stride, order, b
    )
    limit = max_depth.to(tl.int64) + 1
    if max_tokens is not None:
        limit = tl.minimum(limit, tl.load(max_tokens + b * max_tokens_stride).to(tl.int64))
    count = tl.where(limit > 0, count, 0)
    target = Target(
        logits, height, columns, row_stride, rows, rows_stride, allowed, allowed_rows, allowed_rows_stride,
        allowed_height, allowed_stride, words, total_nodes, tops, sums, nans, cuts, masses,
    )  # fmt: skip
    drafts = Drafts(
        draft_logits, draft_height, draft_columns, draft_row_stride, draft_rows, draft_rows_stride, draft_allowed,
        draft_allowed_rows, draft_allowed_rows_stride, draft_allowed_height, draft_allowed_stride, draft_words,
        draft_to_target, draft_to_target_stride, target_to_draft, target_to_draft_stride, draft_temperature,
        draft_temperature_stride, draft_top_k, draft_top_k_stride, draft_top_p, draft_top_p_stride, draft_min_p,
        draft_min_p_stride, draft_order, draft_tops, draft_sums, draft_nans, draft_cuts, draft_masses,
    )  # fmt: skip
    request = Request(b, root, count, tree, b * 0, b * 0, settings, limit)
    zero = tl.full([], 0.0, tl.float64)
    top_down = zero
    bottom_up = zero
    sampled = zero
    best = zero
    if (settings.temperature > 0.0) & (count > 0):
        stride = total_nodes.to(tl.int64)
        for column in range(0, 3):
            clear(kept + column * stride, request)
        space = kept + root
        left = space + 3 * stride
        going_on = zero + 1.0
        node = tl.full([], 0, tl.int32)
        while node < count:
            visited, plus_one, remaining, highest = _hand_down(
                target, drafts, request, node, space, blocks, REPLACEMENT, FILTERED, DRAFT_FILTERED, TILE, NB
            )
            tl.store(left + node, remaining, mask=node > 0)
            tl.debug_barrier()
            best = tl.where(node == 0, highest, best)
            counts = depth_of(tree, node) < limit
            top_down += tl.where(counts, visited, 0.0)
            sampled += tl.where(counts, plus_one, 0.0)
            # Post-order: after a leaf come those of its ancestors whose subtrees end with it. The root is the last,
            # whatever its end says where it stands alone; where the path ends nowhere else it ends there.
            at_end = node
            while (at_end >= 0) & (
                tl.where(at_end == 0, count, end_of(tree, count, tl.maximum(at_end, 0))) == node + 1
            ):
                share = tl.load(left + at_end, mask=at_end > 0, other=1.0)
                length = tl.minimum(depth_of(tree, at_end).to(tl.int64) + 1, limit)
                bottom_up += going_on * share * length.to(tl.float64)
                going_on *= 1.0 - share
                at_end = parent_of(tree, at_end)
            node += 1
    elif count > 0:
        # The bound knows no limit.
        length = _argmax_length(target, request, tl.maximum(limit, 2), blocks, FILTERED, TILE, NB)
        top_down += tl.minimum(length, limit).to(tl.float64)
        bottom_up = top_down
        sampled = top_down
        best += tl.where(length > 1, 1.0, 0.0)
    tl.store(token_mean + b, top_down.to(tl.float32))
    tl.store(traversal_mean + b, bottom_up.to(tl.float32))
    tl.store(plus_one_mean + b, sampled.to(tl.float32))
    tl.store(bound + b, best.to(tl.float32))


def verify_expect(
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    logits: Tensor,
    draft_logits: Tensor | None,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    filter_order: int,
    draft_temperature: Tensor | None,
    draft_top_k: Tensor | None,
    draft_top_p: Tensor | None,
    draft_min_p: Tensor | None,
    draft_filter_order: int,
    replacement: bool,
    rows: Tensor | None,
    draft_rows: Tensor | None,
    allowed: Tensor | None,
    allowed_rows: Tensor | None,
    draft_allowed_rows: Tensor | None,
    draft_to_target: Tensor | None,
    target_to_draft: Tensor | None,
    active: Tensor | None,
    max_tokens: Tensor | None,
    max_depth: int,
    *out: Any,
) -> None:
    """The launcher of ``verify.expect``."""
    batch, count = cu_nodes.shape[0] - 1, tokens.shape[0]
    if batch == 0:
        return
    tree, settings = (cu_nodes, tokens, parents, depths, ends), Settings(temperature, top_k, top_p, min_p, filter_order)
    drawn = Settings(draft_temperature, draft_top_k, draft_top_p, draft_min_p, draft_filter_order)
    mask = mask_of(allowed, allowed_rows)
    draft_mask = mask_of(None if draft_allowed_rows is None else allowed, draft_allowed_rows)
    with on_device_of(logits):
        blocks, drafted = find_drafts(
            *(tree, logits, draft_logits, drawn, draft_rows, draft_mask, draft_to_target, target_to_draft, active),
            replacement=replacement,
        )
        laws = find_laws(logits, count, blocks, mask, settings, rows=rows, batch=batch, tree=tree, active=active)
        kept = torch.empty((4, count), dtype=torch.float64, device=logits.device)
        expect_kernel[(batch,)](
            *inputs(tree, max_depth, logits, settings, rows, mask, laws, drafted, active, max_tokens, blocks),
            *(kept, *out),
            REPLACEMENT=replacement,
            FILTERED=settings.filtered,
            DRAFT_FILTERED=drafted.filtered,
            TILE=blocks.tile,
            NB=blocks.vector,
            num_warps=blocks.warps,
        )
