# mypy: ignore-errors
"""The token rule of rejection at one node: children are accepted or rejected in draw order, each by a coin; if none
is left, a token is drawn from what is left of the target's law.

Who does what: part of the program that walks down a request's tree. Memory traffic: per child two logits; per
rejected child what ``residual.py`` says; one block of both rows for the last token.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .law import Law, law_of, memory_of, settings_of
from .random import coin
from .residual import MOST, Rejected, drafts_left, draw_residual, fold, masses_left, weight_at
from .row import NO_CUT, Row
from .walk import find_child, token_of

_NAN = tl.constexpr(1)
_FALLBACK = tl.constexpr(4)
_MALFORMED = tl.constexpr(8)

#: A sum this small is rounding.
_LEAST = tl.constexpr(1e-30)


@triton.jit
def accept_or_reject(
    law, tree, count, node, owner, slot, depth, position, key, request, vocab, flag, blocks,
    draft_logits, draft_height, draft_columns, draft_row_stride, draft_rows, draft_rows_stride,
    draft_allowed, draft_allowed_rows, draft_allowed_rows_stride, draft_allowed_height,
    draft_allowed_stride, draft_words, draft_to_target, draft_to_target_stride, target_to_draft,
    target_to_draft_stride, draft_temperature, draft_temperature_stride, draft_top_k,
    draft_top_k_stride, draft_top_p, draft_top_p_stride, draft_min_p, draft_min_p_stride,
    draft_order, draft_tops, draft_sums, draft_nans, draft_cuts, draft_masses,
    REPLACEMENT: tl.constexpr, DRAFT_FILTERED: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """The token that the rule decides at a node, the child that holds it (-1: none), and the status."""
    child = find_child(tree, count, node, node + 1, request * 0, vocab)
    sampled = child < -1  # false
    q = law  # not read where the drafts are deterministic
    if draft_logits is not None:
        settings = settings_of(
            draft_temperature, draft_temperature_stride, draft_top_k, draft_top_k_stride, draft_top_p,
            draft_top_p_stride, draft_min_p, draft_min_p_stride, draft_order, request,
        )  # fmt: skip
        index = owner
        sampled = (child >= 0) & (settings.temperature > 0.0)
        if draft_rows is not None:
            index = tl.load(draft_rows + owner * draft_rows_stride).to(tl.int64)
            sampled = sampled & (index != -1)
        lost = sampled & ((index < 0) | (index >= draft_height))
        flag = tl.where(lost, flag | _MALFORMED, flag)
        child = tl.where(lost, -1, child)
        sampled = sampled & (child >= 0)
        memory = memory_of(
            draft_logits, draft_height, draft_columns, draft_row_stride, vocab.to(tl.int32), index,
            draft_allowed, draft_allowed_rows, draft_allowed_rows_stride, draft_allowed_height, draft_allowed_stride,
            draft_words, owner,
        )  # fmt: skip
        row = Row(
            memory, draft_allowed, draft_to_target, draft_to_target_stride, target_to_draft, target_to_draft_stride
        )
        largest = tl.full([], float("-inf"), tl.float32)
        cut = tl.full([], NO_CUT, tl.int64)
        total = tl.full([], 0.0, tl.float64)
        masses = tl.zeros([NB], tl.float64)
        if sampled:
            found = (draft_tops, draft_sums, draft_nans, draft_cuts, draft_masses)
            largest, cut, total, masses, _, has_nan = law_of(
                found, slot, settings.temperature, blocks, DRAFT_FILTERED, NB
            )
            flag = flag | has_nan * _NAN
        q = Law(row, settings.temperature, largest, cut, total, masses, law.tops)  # its maxima are not needed any more
    left = tl.full([], 1.0, tl.float64)
    q_masses = law.masses
    if draft_logits is not None:
        left = q.total
        q_masses = q.masses
    numbers = tl.arange(0, MOST)
    rejected_count = tl.full([], 0, tl.int32)
    rejected_tokens = tl.full([MOST], -1, tl.int64)
    rests = tl.full([MOST], 1.0, tl.float64)
    inverses = tl.full([MOST], 1.0, tl.float64)
    masses = law.masses / law.total
    token = request * 0 - 1
    accepted = child * 0 - 1
    failed = child < -1  # false
    while (child >= 0) & (rejected_count < MOST):
        drafted = token_of(tree, child)
        u = coin(key, position, depth, child)
        rejected = Rejected(rejected_count, rejected_tokens, rests, inverses)
        again = tl.sum(tl.where(rejected_tokens == drafted, 1, 0)) > 0
        q_weight = left * 0.0
        q_share = left * 0.0 + 1.0
        if draft_logits is not None:
            if sampled:
                q_weight = weight_at(q, drafted)
                q_share = tl.where(left > 0, q_weight / tl.where(left > 0, left, 1.0), 0.0)
                if not REPLACEMENT:
                    q_share = tl.where(again, 0.0, q_share)
        p_share = fold(weight_at(law, drafted) / law.total, q_weight, drafted, rejected, sampled, REPLACEMENT)
        if (p_share > 0) & ((p_share >= q_share) | (u * q_share < p_share)):
            token = drafted
            accepted = child
            child = child * 0 - 1
        else:
            rejected_tokens = tl.where(numbers == rejected_count, drafted, rejected_tokens)
            rests = tl.where(numbers == rejected_count, left, rests)
            rejected_count += 1
            rejected = Rejected(rejected_count, rejected_tokens, rests, inverses)
            masses = masses_left(law, q, rejected, masses, sampled, blocks, REPLACEMENT, TILE, NB)
            remainder = tl.sum(masses)
            if remainder > _LEAST:
                inverse = 1.0 / remainder
                inverses = tl.where(numbers == rejected_count - 1, inverse, inverses)
                masses = masses * inverse
                if draft_logits is not None:
                    if not REPLACEMENT:
                        if sampled & (left > 0):
                            q_masses = drafts_left(q, q_masses, rejected, TILE, NB)
                            left = tl.sum(q_masses)
                next_start = tl.load(tree.ends + child.to(tl.int64) * tree.ends_stride)
                child = find_child(tree, count, node, next_start, request * 0, vocab)
            else:
                failed = child >= 0  # true
                child = child * 0 - 1
    # Where nothing is left of the target's law, which exact arithmetic does not know, the law itself is drawn from.
    attempt = tl.where(failed, 1, 0)
    while (token < 0) & (attempt < 2):
        if attempt == 1:
            flag = flag | _FALLBACK
            rejected_count = rejected_count * 0
            masses = law.masses
        rejected = Rejected(rejected_count, rejected_tokens, rests, inverses)
        token = draw_residual(law, q, masses, rejected, sampled, key, position, depth, node, REPLACEMENT, TILE, NB)
        attempt += 1
    return token, accepted, flag
