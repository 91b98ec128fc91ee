# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""greedy, match, rejection: one walk down the tree of each request. At a node a rule decides one token. Either it is
that of a child, which is then visited, or it is the request's last token.

Who does what: ``law.scan_kernel`` reads the row of every live node (and, for rejection, those that children were drawn
from), a program per block; then one program per request walks. Memory traffic: one read of these rows; the walk reads
one block per draw, a few times those that can hold a filter's cut, and per rejected draft the blocks where the target
has mass. Deterministic: a request's result depends on nothing but its own rows.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .launch import Blocks, Laws, Mask, Settings, blocks_of, find_laws, flags, mask_of, on_device_of, step
from .law import Law, best_key, draw, law_of, memory_of, scan_tile, settings_of
from .random import TARGET
from .rejection import accept_or_reject
from .row import Row, id_of_key, value_of, weigh_exactly
from .varying import VARYING
from .walk import Tree, depth_of, find_child, is_tree

_NAN = tl.constexpr(1)
_DEAD_END = tl.constexpr(2)
_MALFORMED = tl.constexpr(8)

_GREEDY = tl.constexpr(0)
_MATCH = tl.constexpr(1)
_REJECTION = tl.constexpr(2)

_PROCESSED = tl.constexpr(1)
_RAW = tl.constexpr(2)

_WIDTH = tl.constexpr(64)


@triton.jit
def _raw_sums(row, blocks, TILE: tl.constexpr):
    """The largest logit and the sum of weights at temperature 1 of a row as it came."""
    one = tl.full([], 1.0, tl.float32)
    largest = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float64)
    for b in range(0, blocks):
        top, mass, _ = scan_tile(row, b, one, TILE)
        if top > float("-inf"):
            highest = tl.maximum(largest, top)
            total = total * weigh_exactly(largest, highest, one)
            total += mass.to(tl.float64) * weigh_exactly(top, highest, one)
            largest = highest
    return largest, total


@triton.jit(do_not_specialize=VARYING)
def verify_kernel(
    cu_nodes, cu_nodes_stride, tokens, tokens_stride, parents, parents_stride, depths, depths_stride,
    ends, ends_stride, total_nodes, max_depth,
    logits, height, columns, row_stride, rows, rows_stride,
    allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words,
    temperature, temperature_stride, top_k, top_k_stride, top_p, top_p_stride, min_p, min_p_stride, order,
    seed, seed_stride, context_lens, context_lens_stride,
    tops, sums, nans, owners, cuts, masses,
    draft_logits, draft_height, draft_columns, draft_row_stride, draft_rows, draft_rows_stride,
    draft_allowed, draft_allowed_rows, draft_allowed_rows_stride, draft_allowed_height, draft_allowed_stride,
    draft_words, draft_to_target, draft_to_target_stride, target_to_draft, target_to_draft_stride,
    draft_temperature, draft_temperature_stride, draft_top_k, draft_top_k_stride, draft_top_p, draft_top_p_stride,
    draft_min_p, draft_min_p_stride, draft_order,
    draft_tops, draft_sums, draft_nans, draft_cuts, draft_masses,
    active, active_stride, max_tokens, max_tokens_stride, blocks,
    out_tokens, num_tokens, path, status, logprobs, lse,
    RULE: tl.constexpr, REPLACEMENT: tl.constexpr, MODE: tl.constexpr,
    FILTERED: tl.constexpr, DRAFT_FILTERED: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """One request."""
    b = tl.program_id(0).to(tl.int64)
    width = max_depth + 1
    flag = tl.full([], 0, tl.int32)
    node = tl.full([], -1, tl.int32)
    count = tl.full([], 0, tl.int32)
    root = tl.full([], 0, tl.int64)
    live = tl.full([], 1, tl.int32)
    if active is not None:
        live = tl.load(active + b * active_stride).to(tl.int32)
    if live != 0:
        begin = tl.load(cu_nodes + b * cu_nodes_stride)
        end = tl.load(cu_nodes + (b + 1) * cu_nodes_stride)
        if (begin < 0) | (end < begin) | (end > total_nodes):
            flag = flag | _MALFORMED
        elif end > begin:
            size = tl.load(ends + begin.to(tl.int64) * ends_stride)
            if size != 0:
                root = begin.to(tl.int64)
                rooted = Tree(
                    tokens, tokens_stride, parents + root * parents_stride, parents_stride,
                    depths + root * depths_stride, depths_stride, ends + root * ends_stride, ends_stride,
                )  # fmt: skip
                right = is_tree(rooted, owners + root, b, end - begin, max_depth)
                flag = tl.where(right != 0, flag, flag | _MALFORMED)
                count = tl.where(right != 0, size, 1)
                node = node * 0
    tree = Tree(
        tokens + root * tokens_stride, tokens_stride, parents + root * parents_stride, parents_stride,
        depths + root * depths_stride, depths_stride, ends + root * ends_stride, ends_stride,
    )  # fmt: skip
    settings = settings_of(
        temperature, temperature_stride, top_k, top_k_stride, top_p, top_p_stride, min_p, min_p_stride, order, b
    )
    limit = width.to(tl.int64)
    if max_tokens is not None:
        limit = tl.minimum(limit, tl.load(max_tokens + b * max_tokens_stride).to(tl.int64))
    key = b * 0
    context = b * 0
    if RULE != _GREEDY:
        key = tl.load(seed + b * seed_stride)
        context = tl.load(context_lens + b * context_lens_stride).to(tl.int64)
    vocab = columns.to(tl.int64)
    emitted = b * 0
    while (node >= 0) & (emitted < limit):
        owner = root + node
        token = b * 0 - 1
        child = node * 0 - 1
        index = owner
        if rows is not None:
            index = tl.load(rows + owner * rows_stride).to(tl.int64)
        memory = memory_of(
            logits, height, columns, row_stride, columns, index,
            allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words, owner,
        )  # fmt: skip
        row = Row(memory, allowed, None, 0, None, 0)
        flag = tl.where((index < 0) | (index >= height), flag | _MALFORMED, flag)
        slot = tl.where(node == 0, total_nodes + b, owner)
        largest, cut, total, row_masses, row_tops, has_nan = law_of(
            (tops, sums, nans, cuts, masses), slot, settings.temperature, blocks, FILTERED, NB
        )
        law = Law(row, settings.temperature, largest, cut, total, row_masses, row_tops)
        flag = flag | has_nan * _NAN
        depth = depth_of(tree, node)
        position = context + depth + 1
        followed = largest > float("-inf")
        if followed:
            if (RULE == _GREEDY) | (settings.temperature == 0.0):
                token = id_of_key(best_key(row, law.tops, largest, blocks, TILE, NB))
            elif RULE != _GREEDY:
                if RULE == _MATCH:
                    zero = b * 0
                    token = draw(law, key, position, TARGET, zero, zero, TILE, NB)
                else:
                    followed = largest == float("-inf")
                    token, child, flag = accept_or_reject(
                        law, tree, count, node, owner, slot, depth, position, key, b, vocab, flag, blocks,
                        draft_logits, draft_height, draft_columns, draft_row_stride, draft_rows, draft_rows_stride,
                        draft_allowed, draft_allowed_rows, draft_allowed_rows_stride, draft_allowed_height,
                        draft_allowed_stride, draft_words, draft_to_target, draft_to_target_stride, target_to_draft,
                        target_to_draft_stride, draft_temperature, draft_temperature_stride, draft_top_k,
                        draft_top_k_stride, draft_top_p, draft_top_p_stride, draft_min_p, draft_min_p_stride,
                        draft_order, draft_tops, draft_sums, draft_nans, draft_cuts, draft_masses,
                        REPLACEMENT, DRAFT_FILTERED, TILE, NB,
                    )  # fmt: skip
        if followed & (token >= 0):
            child = find_child(tree, count, node, node + 1, token, token + 1)
        flag = tl.where(token < 0, flag | _DEAD_END, flag)
        place = b * width + emitted
        tl.store(out_tokens + place, token)
        tl.store(path + place, node)
        if MODE != 0:
            logprob = tl.full([], float("-inf"), tl.float64)
            row_lse = tl.full([], float("-inf"), tl.float64)
            if token >= 0:
                t = settings.temperature.to(tl.float64)
                if MODE == _RAW:
                    plain = Row(row.memory, None, None, 0, None, 0)
                    largest, total = _raw_sums(plain, blocks, TILE)
                    t = t * 0.0 + 1.0
                    t = tl.where(t == t, t, 1.0)
                if (MODE == _PROCESSED) & (settings.temperature == 0.0):
                    logprob = t
                    row_lse = largest.to(tl.float64)
                else:
                    log_sum = tl.log(total)
                    logprob = (value_of(row, token).to(tl.float64) - largest.to(tl.float64)) / t - log_sum
                    row_lse = largest.to(tl.float64) / t + log_sum
            tl.store(logprobs + place, logprob.to(tl.float32))
            tl.store(lse + place, row_lse.to(tl.float32))
        emitted += 1
        node = child
    tl.store(num_tokens + b, emitted.to(tl.int32))
    tl.store(status + b, flag)
    for start in range(0, width, _WIDTH):
        rest = start + tl.arange(0, _WIDTH)
        inside = (rest >= emitted) & (rest < width)
        place = b * width + rest
        tl.store(out_tokens + place, -1, mask=inside)
        tl.store(path + place, -1, mask=inside)
        if MODE != 0:
            tl.store(logprobs + place, 0.0, mask=inside)
            tl.store(lse + place, 0.0, mask=inside)


def _launch(
    rule: tl.constexpr,
    tree: tuple[Tensor, ...],
    logits: Tensor,
    settings: Settings,
    seed: Tensor | None,
    context_lens: Tensor | None,
    rows: Tensor | None,
    mask: Mask,
    laws: Laws,
    drafts: tuple[Any, ...],
    active: Tensor | None,
    max_tokens: Tensor | None,
    mode: int,
    result: tuple[Any, ...],
    blocks: Blocks,
    replacement: bool,
    draft_filtered: bool,
) -> None:
    batch = tree[0].shape[0] - 1
    out_tokens, num_tokens, path, status, logprobs, lse = result
    verify_kernel[(batch,)](
        *(item for column in tree for item in (column, step(column))),
        *(tree[1].shape[0], path.shape[1] - 1),
        *(logits, logits.shape[0], logits.shape[1], step(logits), rows, step(rows), *mask),
        *(*settings.arguments(), seed, step(seed), context_lens, step(context_lens), *laws, *drafts),
        *(flags(active), step(active), max_tokens, step(max_tokens), blocks.number),
        *(out_tokens, num_tokens, path, status, logprobs, lse),
        RULE=rule,
        REPLACEMENT=replacement,
        MODE=mode,
        FILTERED=settings.filtered,
        DRAFT_FILTERED=draft_filtered,
        TILE=blocks.tile,
        NB=blocks.vector,
        num_warps=blocks.warps,
    )


#: The arguments of the drafts' law where there is none.
_NO_DRAFTS: tuple[Any, ...] = (
    *(None, 0, 0, 0, None, 0, *mask_of(None, None), None, 0, None, 0),
    *(*Settings().arguments(), None, None, None, None, None),
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
    active: Tensor | None,
    max_tokens: Tensor | None,
    logprobs_mode: int,
    *result: Any,
) -> None:
    """The launcher of ``verify.greedy``."""
    batch, count = cu_nodes.shape[0] - 1, tokens.shape[0]
    if batch == 0:
        return
    tree = (cu_nodes, tokens, parents, depths, ends)
    blocks, mask = blocks_of(logits.shape[1]), mask_of(allowed, allowed_rows)
    with on_device_of(logits):
        laws = find_laws(logits, count, blocks, mask, Settings(), rows=rows, batch=batch, tree=tree, active=active)
        _launch(
            *(_GREEDY, tree, logits, Settings(), None, None, rows, mask, laws, _NO_DRAFTS),
            *(active, max_tokens, logprobs_mode, result, blocks, False, False),
        )


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
    active: Tensor | None,
    max_tokens: Tensor | None,
    logprobs_mode: int,
    *result: Any,
) -> None:
    """The launcher of ``verify.match``."""
    batch, count = cu_nodes.shape[0] - 1, tokens.shape[0]
    if batch == 0:
        return
    tree, settings = (cu_nodes, tokens, parents, depths, ends), Settings(temperature, top_k, top_p, min_p, filter_order)
    blocks, mask = blocks_of(logits.shape[1]), mask_of(allowed, allowed_rows)
    with on_device_of(logits):
        laws = find_laws(logits, count, blocks, mask, settings, rows=rows, batch=batch, tree=tree, active=active)
        _launch(
            *(_MATCH, tree, logits, settings, seed, context_lens, rows, mask, laws, _NO_DRAFTS),
            *(active, max_tokens, logprobs_mode, result, blocks, False, False),
        )


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
    active: Tensor | None,
    max_tokens: Tensor | None,
    logprobs_mode: int,
    *result: Any,
) -> None:
    """The launcher of ``verify.rejection``."""
    batch, count = cu_nodes.shape[0] - 1, tokens.shape[0]
    if batch == 0:
        return
    tree, settings = (cu_nodes, tokens, parents, depths, ends), Settings(temperature, top_k, top_p, min_p, filter_order)
    vocab, mask = logits.shape[1], mask_of(allowed, allowed_rows)
    blocks = blocks_of(vocab if draft_logits is None else max(vocab, draft_logits.shape[1]))
    with on_device_of(logits):
        laws = find_laws(logits, count, blocks, mask, settings, rows=rows, batch=batch, tree=tree, active=active)
        drafts, draft_filtered = _NO_DRAFTS, False
        if draft_logits is not None:
            draft_mask = mask_of(None if draft_allowed_rows is None else allowed, draft_allowed_rows)
            draft_settings = Settings(draft_temperature, draft_top_k, draft_top_p, draft_min_p, draft_filter_order)
            draft_filtered = draft_settings.filtered
            draft_laws = find_laws(
                draft_logits, count, blocks, draft_mask, draft_settings, batch=batch, entries=vocab, rows=draft_rows,
                id_of=draft_to_target, column_of=target_to_draft, tree=tree, active=active, of_children=True,
            )  # fmt: skip
            drafts = (
                *(draft_logits, *draft_logits.shape, step(draft_logits), draft_rows, step(draft_rows), *draft_mask),
                *(draft_to_target, step(draft_to_target), target_to_draft, step(target_to_draft)),
                *(*draft_settings.arguments(), *draft_laws[:3], *draft_laws[4:]),
            )
        _launch(
            *(_REJECTION, tree, logits, settings, seed, context_lens, rows, mask, laws, drafts),
            *(active, max_tokens, logprobs_mode, result, blocks, replacement, draft_filtered),
        )
