# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""The draft family.

ngram_lookup: what followed an earlier occurrence of the last n tokens, for the largest n in [min_n, max_n] that has
one; among its occurrences the most recent one with ``num`` tokens after it, else the earliest.

Who does what: one program per request; a tile is 1,024 places at which an occurrence may end, and the length of the
match that ends at each is counted backwards, up to max_n tokens, until no place matches any more. Memory traffic:
``max_n`` reads of the history, from the caches after the first. Integers only.

expand: the best children of beams, and the best beams. Who does what: ``scan_kernel`` runs one program per row and
block of 4,096 ids, ``children_kernel`` one per row, which reads the block of the best id that is left until it has all;
then ``beams_kernel`` one per request. Memory traffic: one read of the rows of beams that exist, and one of a block for
each child, from the caches.

block: the inputs of the next block of a block drafter. Who does what: one program per request. Memory traffic: one write
of the result. Integers only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Settings, blocks_of, find_laws, flags, mask_of, on_device_of, power_of_two, step
from .law import Law, entropy_of, law_of, memory_of
from .paged import locate, pages_of
from .row import Row, value_of
from .sample import take_best
from .tree_build import rank_of_score
from .varying import VARYING

_FAR = tl.constexpr(2**31 - 1)
_LARGEST_TOKEN = tl.constexpr(2**31 - 1)
_NO_CHILD = tl.constexpr(2**63 - 1)
_MOST_SLOTS = tl.constexpr(2**63 - 1)
_MALFORMED = tl.constexpr(8)
_NO_PAGE = tl.constexpr(16)

#: Places that are looked at together.
PLACES = 1024


@triton.jit(do_not_specialize=VARYING)
def ngram_lookup_kernel(
    history, row_stride, columns, lengths, lengths_stride, min_n, max_n, active, active_stride, drafts, num, counts,
    TILE: tl.constexpr, NUM: tl.constexpr,
):  # fmt: skip
    """One request."""
    b = tl.program_id(0).to(tl.int64)
    live = tl.full([], 1, tl.int32)
    if active is not None:
        live = tl.load(active + b * active_stride).to(tl.int32)
    length = tl.load(lengths + b * lengths_stride).to(tl.int64)
    length = tl.where(live != 0, tl.minimum(tl.maximum(length, 0), columns), 0).to(tl.int32)
    text = history + b * row_stride
    high = tl.minimum(max_n, length - 1)
    best = min_n - 1 + length * 0  # the longest match so far
    recent = tl.full([], -1, tl.int32)  # the last place with such a match and `num` tokens behind it
    earliest = tl.full([], _FAR, tl.int32)
    stop = tl.where(high >= min_n, length, 0)
    for start in range(min_n, stop, TILE):
        end = start + tl.arange(0, TILE)
        matches = end < length
        matched = tl.zeros([TILE], tl.int32)
        n = tl.full([], 0, tl.int32)
        going = n < high
        while going:
            wanted = tl.load(text + (length - 1 - n))
            token = tl.load(text + (end - 1 - n), mask=matches & (end > n), other=0)
            matches = matches & (end > n) & (token == wanted)
            matched += matches.to(tl.int32)
            n += 1
            going = (n < high) & (tl.max(matches.to(tl.int32)) > 0)
        longest = tl.max(matched)
        if (longest >= best) & (longest >= min_n):
            here = matched == longest
            full = here & (end + num <= length)
            last = tl.max(tl.where(full, end, -1))
            first = tl.min(tl.where(here, end, _FAR))
            recent = tl.where(longest > best, last, tl.maximum(recent, last))
            earliest = tl.where(longest > best, first, tl.minimum(earliest, first))
            best = longest
    end = tl.where(recent >= 0, recent, tl.where(best >= min_n, earliest, length))
    count = tl.minimum(length - end, num)
    for start in range(0, num, NUM):
        i = start + tl.arange(0, NUM)
        token = tl.load(text + (end + i), mask=i < count, other=-1)
        tl.store(drafts + b * num + i, token, mask=i < num)
    tl.store(counts + b, count)


@triton.jit(do_not_specialize=VARYING)
def children_kernel(
    logits, height, columns, row_stride, scores, scores_row_stride, scores_column_stride, width, draft_to_target,
    draft_to_target_stride, min_confidence, min_confidence_stride, max_entropy, max_entropy_stride,
    tops, sums, nans, blocks, tokens, child_scores, num,
    NUM: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """The children of one beam."""
    r = tl.program_id(0).to(tl.int64)
    numbers = tl.arange(0, NUM)
    chosen = tl.full([NUM], -1, tl.int64)
    reached = tl.full([NUM], float("-inf"), tl.float32)
    above = tl.full([], 0.0, tl.float32)
    if scores is not None:
        above = tl.load(scores + (r // width) * scores_row_stride + (r % width) * scores_column_stride)
    if above > float("-inf"):
        memory = memory_of(logits, height, columns, row_stride, columns, r, None, None, 0, 0, 0, 0, r)
        row = Row(memory, None, None, 0, None, 0)
        temperature = tl.full([], 1.0, tl.float32)
        largest, cut, total, masses, row_tops, has_nan = law_of(
            (tops, sums, nans, None, None), r, temperature, blocks, False, NB
        )
        law = Law(row, temperature, largest, cut, total, masses, row_tops)
        goes_on = largest > float("-inf")
        if max_entropy is not None:
            if goes_on:
                most = tl.load(max_entropy + r // width * max_entropy_stride)
                goes_on = (entropy_of(law, blocks, TILE, NB) > most) == 0
        if goes_on:
            count = tl.full([], 0, tl.int32)
            light = largest > float("-inf")  # also ids whose weight is 0
            chosen, count, bound = take_best(law, chosen, count, num, light, blocks, NUM, TILE, NB)
            logit = value_of(row, chosen)
            share = logit.to(tl.float64) - largest.to(tl.float64) - tl.log(total)
            reached = (above.to(tl.float64) + share).to(tl.float32)
            if draft_to_target is not None:
                known = chosen >= 0
                at = tl.where(known, chosen, 0) * draft_to_target_stride
                chosen = tl.load(draft_to_target + at, mask=known, other=-1).to(tl.int64)
            if min_confidence is not None:
                least = tl.load(min_confidence + r // width * min_confidence_stride)
                chosen = tl.where(tl.exp(share) < least, -1, chosen)
            there = (chosen >= 0) & (chosen <= _LARGEST_TOKEN) & (reached > float("-inf"))
            chosen = tl.where(there, chosen, -1)
            reached = tl.where(there, reached, float("-inf"))
    tl.store(tokens + r * num + numbers, chosen, mask=numbers < num)
    tl.store(child_scores + r * num + numbers, reached, mask=numbers < num)


@triton.jit(do_not_specialize=VARYING)
def beams_kernel(child_scores, width, beams, num, TILE: tl.constexpr):
    """The best children of one request."""
    b = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, TILE)
    score = tl.load(child_scores + b * width + columns, mask=columns < width, other=float("-inf"))
    keys = ((-rank_of_score(score)).to(tl.int64) << 32) | columns
    keys = tl.where(score > float("-inf"), keys, _NO_CHILD)
    for j in range(0, num):
        best = tl.min(keys)
        tl.store(beams + b * num + j, tl.where(best == _NO_CHILD, -1, best & _FAR).to(tl.int32))
        keys = tl.where(keys == best, _NO_CHILD, keys)


def draft_expand(
    logits: Tensor,
    scores: Tensor | None,
    num: int,
    draft_to_target: Tensor | None,
    min_confidence: Tensor | None,
    max_entropy: Tensor | None,
    tokens: Tensor,
    child_scores: Tensor,
    beams: Tensor,
) -> None:
    """The launcher of ``draft.expand``."""
    rows, columns = logits.shape
    batch = beams.shape[0]
    width = 1 if scores is None else scores.shape[1]
    if batch == 0:
        return
    with on_device_of(logits):
        if rows > 0:
            blocks = blocks_of(columns)
            plain = Settings(torch.ones(1, device=logits.device).expand(rows))
            there = None if scores is None else (scores > -torch.inf).reshape(-1)
            laws = find_laws(logits, rows, blocks, mask_of(None, None), plain, batch=rows, active=there)
            children_kernel[(rows,)](
                *(logits, rows, columns, step(logits), scores, step(scores), 0 if scores is None else scores.stride(1)),
                *(width, draft_to_target, step(draft_to_target), min_confidence, step(min_confidence)),
                *(max_entropy, step(max_entropy), *laws[:3], blocks.number, tokens, child_scores, num),
                NUM=power_of_two(num),
                TILE=blocks.tile,
                NB=blocks.vector,
                num_warps=blocks.warps,
            )
        beams_kernel[(batch,)](
            *(child_scores, width * num, beams, beams.shape[1]), TILE=power_of_two(width * num), num_warps=4
        )


def draft_ngram_lookup(
    history: Tensor,
    lengths: Tensor,
    min_n: int,
    max_n: int,
    active: Tensor | None,
    drafts: Tensor,
    counts: Tensor,
) -> None:
    """The launcher of ``draft.ngram_lookup``."""
    batch, columns = history.shape
    num = drafts.shape[1]
    if batch == 0:
        return
    most = max(columns, 1)  # no suffix is longer
    with on_device_of(history):
        ngram_lookup_kernel[(batch,)](
            *(history, step(history), columns, lengths, step(lengths), min(min_n, most), min(max_n, most)),
            *(flags(active), step(active), drafts, num, counts),
            TILE=max(min(PLACES, power_of_two(columns)), 16),
            NUM=min(PLACES, power_of_two(num)),
        )


@triton.jit(do_not_specialize=VARYING)
def block_kernel(
    tokens, tokens_stride, tokens_column_stride, width, num_tokens, num_tokens_stride, context_lens, context_lens_stride,
    mask_token, table, table_stride, table_columns_stride, table_height, table_columns, table_rows, table_rows_stride,
    active, active_stride, roots, ids, positions, flat_slots, new_context_lens, status, status_stride, most, size,
    PAGE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The next block of one request, by one warp: the old length is read before the new one is written."""
    b = tl.program_id(0).to(tl.int64)
    live = tl.full([], 1, tl.int32)
    if active is not None:
        live = tl.load(active + b * active_stride).to(tl.int32)
    given = tl.load(num_tokens + b * num_tokens_stride)
    count = tl.where(live != 0, tl.minimum(tl.maximum(given, 0), width), 0)
    length = tl.load(context_lens + b * context_lens_stride).to(tl.int64)
    wrong = (live != 0) & ((given < 0) | (given > width) | (length < 0))
    begin = tl.minimum(tl.maximum(length, 0), (1 << 62) - 1) + count  # beyond any table
    length = tl.where(count > 0, tl.minimum(begin, most), length)
    at = b * tokens_stride + (count.to(tl.int64) - 1) * tokens_column_stride
    root = tl.load(tokens + at, mask=count > 0, other=-1).to(tl.int64)
    there = (root >= 0) & (root <= _LARGEST_TOKEN)
    root = tl.where(there, root, -1)
    wanted = tl.where(there, size, 0)  # slots
    lost = tl.full([], 0, tl.int32)
    for start in tl.range(0, size, TILE, num_stages=1):
        j = start + tl.arange(0, TILE)
        inside = j < size
        tl.store(ids + b * size + j, tl.where((j > 0) & (j < wanted), mask_token, root), mask=inside)
        position = tl.where(there, begin + j, 0)
        tl.store(positions + b * size + j, position, mask=inside)
        if flat_slots is not None:
            pages = pages_of(
                table, table_stride, table_columns_stride, table_height, table_columns, table_rows, table_rows_stride,
                _MOST_SLOTS // PAGE, b,
            )  # fmt: skip
            page, offset, found = locate(pages, position, j < wanted, PAGE)
            tl.store(flat_slots + b * size + j, tl.where(found, page * PAGE + offset, -1), mask=inside)
            lost += tl.sum(tl.where((j < wanted) & (found == 0), 1, 0), axis=0)
    tl.store(roots + b, root)
    tl.store(new_context_lens + b, length)
    if status is not None:
        bits = tl.where(wrong, _MALFORMED, 0) | tl.where(lost > 0, _NO_PAGE, 0)
        tl.store(status + b * status_stride, bits)


def draft_block(
    tokens: Tensor,
    num_tokens: Tensor,
    context_lens: Tensor,
    mask_token: int,
    block_table: Tensor | None,
    table_rows: Tensor | None,
    page_size: int,
    active: Tensor | None,
    roots: Tensor,
    ids: Tensor,
    positions: Tensor,
    slots: Tensor | None,
    new_context_lens: Tensor,
    status: Tensor | None,
) -> None:
    """The launcher of ``draft.block``."""
    batch, size = ids.shape
    if batch == 0:
        return
    height, columns = (0, 0) if block_table is None else block_table.shape
    with on_device_of(tokens):
        block_kernel[(batch,)](
            *(tokens, step(tokens), step(tokens, 1), tokens.shape[1], num_tokens, step(num_tokens)),
            *(context_lens, step(context_lens), mask_token, block_table, step(block_table)),
            *(0 if block_table is None else step(block_table, 1), height, columns, table_rows, step(table_rows)),
            *(flags(active), step(active), roots, ids, positions, slots, new_context_lens, status, step(status)),
            *(torch.iinfo(context_lens.dtype).max, size),
            PAGE=max(page_size, 1),
            TILE=min(PLACES, power_of_two(size)),
            num_warps=1,
        )
