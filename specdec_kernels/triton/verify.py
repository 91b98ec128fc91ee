# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""The verify family: one walk down the tree of each request. At a node a rule decides one token. Either it is that of a
child, which is then visited, or it is the request's last token. Two rules decide a node only once those below it are
known; the files of the rules say how.

Who does what: ``law.scan_kernel`` reads the row of every live node (and, for rejection, those that children were drawn
from), a program per block; then one program per request walks. Memory traffic: one read of these rows; the walk reads
one block per draw, a few times those that can hold a filter's cut, and what the rule adds. Deterministic: a request's
result depends on nothing but its own rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bottom_up import bottom_up
from .inputs import UNDRAWN, Drafted, find_drafts, inputs
from .launch import Blocks, Mask, Settings, blocks_of, find_laws, mask_of, on_device_of, step
from .law import Law, best_key, draw, settings_of
from .lossy import Lossy, above_thresholds, at_given_rates, near_the_best, typical
from .random import TARGET
from .rejection import accept_or_reject
from .row import Row, id_of_key
from .varying import VARYING
from .visit import DEAD_END, MALFORMED, Drafts, Request, Result, Target, emit, emit_path, finish, law_at, memory_at
from .walk import Tree, depth_of, find_child, open_tree, tree_at

GREEDY = tl.constexpr(0)
MATCH = tl.constexpr(1)
TOKEN = tl.constexpr(2)
BOTTOM_UP = tl.constexpr(3)
GREEDY_PLUS_ONE = tl.constexpr(4)
THRESHOLD = tl.constexpr(5)
TYPICAL = tl.constexpr(6)
RELAXED = tl.constexpr(7)
SYNTHETIC = tl.constexpr(8)

#: Of the rules of rejection, in the schema's order.
_REJECTION = (TOKEN, BOTTOM_UP, BOTTOM_UP, GREEDY_PLUS_ONE)


@triton.jit(do_not_specialize=VARYING)
def verify_kernel(
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
    seed, seed_stride, context_lens, context_lens_stride,
    first: tl.float64, second: tl.float64, given, given_stride, kept,
    out_tokens, num_tokens, path, status, logprobs, lse, divergence,
    RULE: tl.constexpr, REPLACEMENT: tl.constexpr, MODE: tl.constexpr,
    FILTERED: tl.constexpr, DRAFT_FILTERED: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """One request."""
    b = tl.program_id(0).to(tl.int64)
    width = max_depth + 1
    trees = Tree(tokens, tokens_stride, parents, parents_stride, depths, depths_stride, ends, ends_stride)
    root, count, malformed = open_tree(
        trees, cu_nodes, cu_nodes_stride, owners, active, active_stride, total_nodes, max_depth, b
    )
    tree = tree_at(trees, root)
    flag = malformed * MALFORMED
    node = tl.where(count > 0, 0, -1)
    settings = settings_of(
        temperature, temperature_stride, top_k, top_k_stride, top_p, top_p_stride, min_p, min_p_stride, order, b
    )
    limit = width.to(tl.int64)
    if max_tokens is not None:
        limit = tl.minimum(limit, tl.load(max_tokens + b * max_tokens_stride).to(tl.int64))
    key = b * 0
    context = b * 0
    if (RULE != GREEDY) & (RULE != RELAXED):
        key = tl.load(seed + b * seed_stride)
        context = tl.load(context_lens + b * context_lens_stride).to(tl.int64)
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
    request = Request(b, root, count, tree, key, context, settings, limit)
    result = Result(out_tokens, num_tokens, path, status, logprobs, lse, divergence, width)
    number = tl.full([], 0.0, tl.float64)
    lossy = Lossy(number + first, number + second, given, given_stride)
    vocab = columns.to(tl.int64)
    emitted = b * 0
    if (RULE == BOTTOM_UP) | (RULE == TYPICAL):
        if (settings.temperature > 0.0) & (node >= 0) & (limit > 0):
            if RULE == BOTTOM_UP:
                last, token, seen = bottom_up(
                    target, drafts, request, kept, blocks, REPLACEMENT, FILTERED, DRAFT_FILTERED, TILE, NB
                )
            else:
                last, token, seen = typical(target, lossy, request, kept, blocks, FILTERED, TILE, NB)
            emitted = emit_path(result, target, request, last, token, blocks, RULE == TYPICAL, FILTERED, MODE, TILE, NB)
            flag = flag | seen
            node = node * 0 - 1
    scale = settings.temperature
    if RULE == RELAXED:
        scale = scale * 0.0 + 1.0
    while (node >= 0) & (emitted < limit):
        token = b * 0 - 1
        child = node * 0 - 1
        distance = number
        row = Row(memory_at(target, request, node), allowed, None, 0, None, 0)
        largest, cut, total, row_masses, row_tops, seen = law_at(target, request, node, scale, blocks, FILTERED, NB)
        law = Law(row, scale, largest, cut, total, row_masses, row_tops)
        flag = flag | seen
        depth = depth_of(tree, node)
        position = context + depth + 1
        if largest > float("-inf"):
            if RULE == RELAXED:
                token, child, distance = near_the_best(law, lossy, request, node, vocab, blocks, TILE, NB)
            elif RULE == SYNTHETIC:
                token, child, distance = at_given_rates(
                    law, lossy, request, node, depth, position, vocab, blocks, TILE, NB
                )
            elif (RULE == GREEDY) | (settings.temperature == 0.0):
                token = id_of_key(best_key(row, law.tops, largest, blocks, TILE, NB))
                child = find_child(tree, count, node, node + 1, token, token + 1)
            elif RULE == MATCH:
                zero = b * 0
                token = draw(law, key, position, TARGET, zero, zero, TILE, NB)
                if token >= 0:
                    child = find_child(tree, count, node, node + 1, token, token + 1)
            elif RULE == THRESHOLD:
                token, child, distance, seen = above_thresholds(
                    law, lossy, request, node, depth, position, vocab, blocks, TILE, NB
                )
                flag = flag | seen
            elif (RULE == TOKEN) | (RULE == GREEDY_PLUS_ONE):
                token, child, seen = accept_or_reject(
                    law, target, drafts, request, node, depth, position, vocab, blocks,
                    RULE == GREEDY_PLUS_ONE, REPLACEMENT, DRAFT_FILTERED, TILE, NB,
                )  # fmt: skip
                flag = flag | seen
        flag = tl.where(token < 0, flag | DEAD_END, flag)
        emit(result, request, emitted, node, token, row, largest, total, distance, blocks, MODE, TILE)
        emitted += 1
        node = child
    finish(result, request, emitted, flag, MODE)


def launch(
    rule: tl.constexpr,
    tree: tuple[Tensor, ...],
    logits: Tensor,
    settings: Settings,
    seed: Tensor | None,
    context_lens: Tensor | None,
    rows: Tensor | None,
    mask: Mask,
    options: tuple[Any, ...],
    *,
    blocks: Blocks | None = None,
    drafted: Drafted = UNDRAWN,
    numbers: tuple[float, float] = (0.0, 0.0),
    given: Tensor | None = None,
) -> None:
    """Find the laws of the target's rows, and walk.

    Args:
        rule: one of those above.
        tree: ``cu_nodes``, ``tokens``, ``parents``, ``depths``, ``ends``.
        logits: of the target.
        settings: of the target's law.
        seed: of the noise.
        context_lens: committed tokens.
        rows: row of each node.
        mask: allowed ids.
        options: ``active``, ``max_tokens``, ``logprobs_mode``, and the outputs.
        blocks: how rows are cut; None: as those of the target.
        drafted: laws of the drafts.
        numbers: two numbers of a lossy rule.
        given: its tensor.
    """
    batch, count = tree[0].shape[0] - 1, tree[1].shape[0]
    active, max_tokens, mode, *result = options
    out_tokens, num_tokens, path, status, logprobs, lse, divergence = (*result, None)[:7]
    cut = blocks_of(logits.shape[1]) if blocks is None else blocks
    laws = find_laws(
        logits, count, cut, mask, settings, rows=rows, batch=batch, tree=tree, active=active,
        temperature=1.0 if rule is RELAXED else 0.0,
    )  # fmt: skip
    per_node = 2 if rule is BOTTOM_UP else 1 if rule is TYPICAL else 0
    kept = torch.empty((per_node, count), dtype=torch.float64, device=logits.device) if per_node else None
    verify_kernel[(batch,)](
        *inputs(tree, path.shape[1] - 1, logits, settings, rows, mask, laws, drafted, active, max_tokens, cut),
        *(seed, step(seed), context_lens, step(context_lens)),
        *(*numbers, given, step(given), kept),
        *(out_tokens, num_tokens, path, status, logprobs, lse, divergence),
        RULE=rule,
        REPLACEMENT=drafted.replacement,
        MODE=mode,
        FILTERED=settings.filtered,
        DRAFT_FILTERED=drafted.filtered,
        TILE=cut.tile,
        NB=cut.vector,
        num_warps=cut.warps,
    )


def verify_greedy(
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    logits: Tensor,
    rows: Tensor | None,
    allowed: Tensor | None,
    allowed_rows: Tensor | None,
    *options: Any,
) -> None:
    """The launcher of ``verify.greedy``."""
    if cu_nodes.shape[0] == 1:
        return
    tree, mask = (cu_nodes, tokens, parents, depths, ends), mask_of(allowed, allowed_rows)
    with on_device_of(logits):
        launch(GREEDY, tree, logits, Settings(), None, None, rows, mask, options)


def verify_match(
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seed: Tensor,
    filter_order: int,
    context_lens: Tensor,
    rows: Tensor | None,
    allowed: Tensor | None,
    allowed_rows: Tensor | None,
    *options: Any,
) -> None:
    """The launcher of ``verify.match``."""
    if cu_nodes.shape[0] == 1:
        return
    tree, mask = (cu_nodes, tokens, parents, depths, ends), mask_of(allowed, allowed_rows)
    settings = Settings(temperature, top_k, top_p, min_p, filter_order)
    with on_device_of(logits):
        launch(MATCH, tree, logits, settings, seed, context_lens, rows, mask, options)


def verify_rejection(
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
    seed: Tensor,
    filter_order: int,
    draft_temperature: Tensor | None,
    draft_top_k: Tensor | None,
    draft_top_p: Tensor | None,
    draft_min_p: Tensor | None,
    draft_filter_order: int,
    context_lens: Tensor,
    rule: int,
    replacement: bool,
    rows: Tensor | None,
    draft_rows: Tensor | None,
    allowed: Tensor | None,
    allowed_rows: Tensor | None,
    draft_allowed_rows: Tensor | None,
    draft_to_target: Tensor | None,
    target_to_draft: Tensor | None,
    *options: Any,
) -> None:
    """The launcher of ``verify.rejection``."""
    if cu_nodes.shape[0] == 1:
        return
    tree, settings = (cu_nodes, tokens, parents, depths, ends), Settings(temperature, top_k, top_p, min_p, filter_order)
    chosen = _REJECTION[rule]
    replacement = replacement and chosen is not GREEDY_PLUS_ONE  # its last child was drawn without the others
    drawn = Settings(draft_temperature, draft_top_k, draft_top_p, draft_min_p, draft_filter_order)
    draft_mask = mask_of(None if draft_allowed_rows is None else allowed, draft_allowed_rows)
    with on_device_of(logits):
        blocks, drafted = find_drafts(
            *(tree, logits, draft_logits, drawn, draft_rows, draft_mask, draft_to_target, target_to_draft, options[0]),
            replacement=replacement,
        )
        launch(
            *(chosen, tree, logits, settings, seed, context_lens, rows, mask_of(allowed, allowed_rows), options),
            blocks=blocks,
            drafted=drafted,
        )
