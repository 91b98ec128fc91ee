# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""ngram_lookup: what followed an earlier occurrence of the last n tokens, for the largest n in [min_n, max_n] that has
one; among its occurrences the most recent one with ``num`` tokens after it, else the earliest.

Who does what: one program per request; a tile is 1,024 places at which an occurrence may end, and the length of the
match that ends at each is counted backwards, up to max_n tokens, until no place matches any more. Memory traffic:
``max_n`` reads of the history, from the caches after the first. Integers only.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import flags, on_device_of, power_of_two, step
from .varying import VARYING

_FAR = tl.constexpr(2**31 - 1)

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
