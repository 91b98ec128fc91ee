# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Tree attention: the softmax over the keys of one split, for a tile of query rows and heads that share them.

Who does what: a program takes an item of the plan after the other: up to ``BM`` rows, one key/value head, one split. It
goes through the keys ``BN`` at a time. All rows see the whole context, so no mask is made there but for windows; the
nodes of the tree come last, with one. Memory traffic: the keys and values of a split once, as long as the other
tiles of the request find them in the L2 cache. Deterministic: a tile of keys is cut by its position, and nothing that
belongs to another request is looked at.

What a row does not see does not reach it, whatever it is: keys that nobody sees are not read, and in a tile that some
rows see in part, values that are not finite are added apart, to those who see them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._library import triton_is_interpreted
from .paged import PLAIN, all_exist, load_row, load_rows, locate, pages_of
from .plan import cut_context, items_of, request_at
from .varying import VARYING

_MALFORMED = tl.constexpr(8)
_PAGE_OUT_OF_RANGE = tl.constexpr(16)

_INTERPRETED = tl.constexpr(triton_is_interpreted())
_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_NONE = tl.constexpr(float("-inf"))
_FAR = tl.constexpr(2**31 - 1)
_FAR_BEHIND = tl.constexpr(-(2**30))
_CHECKED = tl.constexpr(512)  # page ids looked at together


@triton.jit
def product(a, b, c):
    """``a @ b + c`` in float32; ``a`` is rounded to the type of ``b``; interpreted it is not, where there is no bfloat16."""
    if _INTERPRETED:
        made = tl.dot(a.to(tl.float32), b.to(tl.float32), c)
    else:
        made = tl.dot(a.to(b.dtype), b, c, input_precision="ieee")
    return made


@triton.jit
def _capped(y, softcap):
    """``softcap * tanh(y)``."""
    z = tl.abs(y)
    e = tl.exp(-2.0 * z)
    square = y * y
    series = y * (1.0 + square * (-0.3333333333333333 + square * (0.13333333333333333 - 0.05396825396825397 * square)))
    return softcap * tl.where(z < 0.125, series, tl.where(y < 0, e - 1.0, 1.0 - e) / (1.0 + e))


@triton.jit
def store_rounded(at, values, mask):
    """Stores float32 as the type of the memory, rounded to the nearest also where the interpreter cuts bits off."""
    if _INTERPRETED and at.dtype.element_ty == tl.bfloat16:
        bits = values.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        values = tl.where(values == values, rounded, values)
    tl.store(at, values.to(at.dtype.element_ty), mask=mask)


@triton.jit
def settle(largest, total, sinks, sinks_stride, heads):
    """The factor of a row's weighted values, and its log-sum-exp, once all its keys are in."""
    top = largest
    sink = largest
    if sinks is not None:
        sink = tl.load(sinks + heads * sinks_stride) * _LOG2E
        top = tl.maximum(top, sink)
    safe = tl.where(top == _NONE, 0.0, top)
    shrink = tl.exp2(largest - safe)
    whole = total * shrink
    if sinks is not None:
        whole += tl.exp2(sink - safe)
    nothing = whole == 0.0
    some = tl.where(nothing, 1.0, whole)
    return tl.where(nothing, 0.0, shrink / some), tl.where(nothing, _NONE, (safe + tl.log2(some)) * _LN2)


@triton.jit
def write(out, mixed, weight, live, exists, FIRST: tl.constexpr, WIDTH: tl.constexpr, DV: tl.constexpr):
    """Stores one part of the results of rows that begin at ``out``; 0 for rows that do not live."""
    d = FIRST + tl.arange(0, WIDTH)
    mask = exists[:, None] & (d < DV)[None, :]
    store_rounded(out[:, None] + d[None, :], tl.where(live[:, None], mixed * weight[:, None], 0.0), mask)


@triton.jit
def _keep(at, mixed, FIRST: tl.constexpr, WIDTH: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr):
    """Stores one part of the weighted values of a split."""
    d = FIRST + tl.arange(0, WIDTH)
    m = tl.arange(0, BM)
    tl.store(at + m[:, None] * DV + d[None, :], mixed, mask=(d < DV)[None, :])


@triton.jit
def _scores(
    query, rows, live, sign, q0, q1, key, at, wanted,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, FORM: tl.constexpr, TYPE: tl.constexpr, CHUNK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """``[BM, BN]`` products of queries and keys, and the first part of the keys. ``CHUNK``: so many dimensions at a
    time, the queries read again."""
    s = tl.zeros([BM, BN], tl.float32)
    k0 = s
    if CHUNK > 0:
        for first in tl.static_range(0, D0, CHUNK):
            q = load_rows(query, rows, live, first, CHUNK, D, PLAIN, tl.float32, True)
            k = load_rows(key, at, wanted, first, CHUNK, D, FORM, tl.float32, MASKED)
            s = product(q * sign, tl.trans(k), s)
    else:
        k0 = load_rows(key, at, wanted, 0, D0, D, FORM, TYPE, MASKED)
        s = product(q0, tl.trans(k0), s)
        if D1 > 0:
            k1 = load_rows(key, at, wanted, D0, D1, D, FORM, TYPE, MASKED)
            s = product(q1, tl.trans(k1), s)
    return s, k0


@triton.jit
def _weigh(largest, total, s, visible, softcap, factor, CAPPED: tl.constexpr, MASKED: tl.constexpr):
    """With the scores of one more tile, of which ``visible`` count: the largest score of each row in units of log 2,
    the sum of weights relative to it, what earlier weights are to be multiplied by, and the weights of the tile.
    ``factor`` is not negative."""
    if CAPPED:
        s = _capped(s * (factor / softcap), softcap)
        unit = _LOG2E
    else:
        unit = factor * _LOG2E
    if MASKED:
        s = tl.where(visible, s, _NONE)
    highest = tl.max(s, axis=1)
    top = tl.maximum(largest, tl.where(highest == _NONE, _NONE, highest * unit))
    safe = tl.where(top == _NONE, 0.0, top)
    weights = tl.exp2(tl.fma(s, tl.zeros_like(s) + unit, tl.zeros_like(s) - safe[:, None]))
    if MASKED:
        weights = tl.where(visible, weights, 0.0)
    fade = tl.exp2(largest - safe)
    return top, tl.fma(total, fade, tl.sum(weights, axis=1)), fade, weights


@triton.jit
def _finite(v):
    return tl.abs(v.to(tl.float32)) < float("inf")


@triton.jit
def _add_odd(mixed, value, at, sees, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, FORM: tl.constexpr):
    """Adds what is not finite in one row of values to the rows that see it."""
    v = load_row(value, at, FIRST, WIDTH, DIM, FORM)
    return tl.where(sees[:, None] & (_finite(v) == 0)[None, :], mixed + v[None, :], mixed)


@triton.jit(do_not_specialize=VARYING)
def attend_kernel(
    plan, batch, query, query_stride, query_heads_stride, query_nodes, query_nodes_stride,
    key, key_page_stride, key_slot_stride, key_heads_stride,
    value, value_page_stride, value_slot_stride, value_heads_stride, num_pages,
    table, table_stride, columns_stride, table_height, table_columns, table_rows, table_rows_stride,
    context_lens, context_lens_stride, depths, depths_stride, ends, ends_stride, node_slots, node_slots_stride,
    scale, softcap, window, most, shortest, capacity, sinks, sinks_stride, key_scale, key_scale_stride, value_scale,
    value_scale_stride, out, lse, states, status, status_stride, heads, kv_heads,
    G: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, KEY_FORM: tl.constexpr,
    KEY_TYPE: tl.constexpr, CHUNK: tl.constexpr, DV: tl.constexpr, V0: tl.constexpr, V1: tl.constexpr,
    VALUE_FORM: tl.constexpr, VALUE_TYPE: tl.constexpr, SHARED: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    """Items of a plan, every so many. With ``states`` what was found of a split goes there; else there is one split, and
    the results are written."""
    items = items_of(plan, batch) * kv_heads
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        place = item // kv_heads
        kv_head = (item % kv_heads).to(tl.int64)
        mine = request_at(plan, batch, place, False, SEARCH)
        b = mine.number.to(tl.int64)
        inside = place - mine.item_begin
        split = inside // mine.work
        tile = mine.work_begin - mine.tile_begin + inside % mine.work
        m = tl.arange(0, BM)
        n = tl.arange(0, BN)
        flat = tile * BM + m
        row = mine.row_begin + flat // G
        head = kv_head * G + flat % G
        exists = row < mine.row_end
        own = exists & (row >= mine.row_first)
        node = row - mine.row_first
        if query_nodes is not None:
            node = tl.load(query_nodes + row.to(tl.int64) * query_nodes_stride, mask=own, other=-1)
        live = own & (node >= 0) & (node < mine.nodes)
        node = tl.where(live, node, 0).to(tl.int32)
        root = mine.root.to(tl.int64)
        depth = node * 0
        if WINDOW:
            depth = tl.load(depths + (root + node) * depths_stride, mask=live & (node > 0), other=0)
        largest = tl.full([BM], _NONE, tl.float32)
        total = tl.zeros([BM], tl.float32)
        mixed = tl.zeros([BM, V0], tl.float32)
        rest = tl.zeros([BM, V1 if V1 > 0 else 1], tl.float32)
        if tl.max(live.to(tl.int32), axis=0) != 0:
            factor = scale
            if key_scale is not None:
                factor = scale * tl.load(key_scale + kv_head * key_scale_stride)
            sign = tl.where(factor < 0, -1.0, 1.0)
            factor = factor * sign
            rows = row.to(tl.int64) * query_stride + head * query_heads_stride
            q0 = mixed
            q1 = mixed
            if CHUNK == 0:
                q0 = load_rows(query, rows, live, 0, D0, D, PLAIN, tl.float32, True)
                q0 = (q0 * sign).to(KEY_TYPE)
                if D1 > 0:
                    q1 = load_rows(query, rows, live, D0, D1, D, PLAIN, tl.float32, True)
                    q1 = (q1 * sign).to(KEY_TYPE)
            pages = pages_of(
                table, table_stride, columns_stride, table_height, table_columns, table_rows, table_rows_stride,
                num_pages, b,
            )  # fmt: skip
            key_at = key + kv_head * key_heads_stride
            value_at = value + kv_head * value_heads_stride
            context = tl.maximum(tl.load(context_lens + b * context_lens_stride).to(tl.int64), 0)
            context = tl.minimum(context, 1 << 60)  # beyond any table; sums with it do not overflow
            start, stop, length, splits = cut_context(context, capacity, window, most, shortest, BN)
            first = start + split * length
            last = first + tl.minimum(length, stop - first)  # `length` may be close to 2^31
            after = last // BN * BN  # whole tiles end here
            middle = first  # from here on all rows see all keys
            lowest = context * 0  # the first position that is seen
            if WINDOW:
                low = context + depth - window + 1
                lowest = tl.min(tl.where(live, low, _FAR), axis=0)
                highest = tl.max(tl.where(live, low, 0), axis=0)
                first = tl.maximum(first, tl.minimum(lowest, after).to(tl.int32) // BN * BN)
                middle = (tl.minimum(highest, after).to(tl.int32) + BN - 1) // BN * BN
                middle = tl.minimum(tl.maximum(middle, first), after)
            known = all_exist(pages, middle // PAGE, (after + PAGE - 1) // PAGE, _CHECKED)
            middle = tl.where(known != 0, middle, after)
            # (A lower bound that comes from a reduction keeps Triton from overlapping loads with products.)
            for number in tl.range(0, (after - middle) // BN):
                t = middle + number * BN + n
                page = tl.load(pages.table + (t // PAGE).to(tl.int64) * pages.columns_stride).to(tl.int64)
                slot = (t % PAGE).to(tl.int64)
                at = page * key_page_stride + slot * key_slot_stride
                s, k0 = _scores(
                    query, rows, live, sign, q0, q1, key_at, at, exists,
                    D, D0, D1, KEY_FORM, KEY_TYPE, CHUNK, BM, BN, False,
                )  # fmt: skip
                largest, total, fade, weights = _weigh(largest, total, s, exists, softcap, factor, CAPPED, False)
                at = page * value_page_stride + slot * value_slot_stride
                if SHARED:
                    v0 = k0
                else:
                    v0 = load_rows(value_at, at, exists, 0, V0, DV, VALUE_FORM, VALUE_TYPE, False)
                mixed = product(weights, v0, mixed * fade[:, None])
                if V1 > 0:
                    v1 = load_rows(value_at, at, exists, V0, V1, DV, VALUE_FORM, VALUE_TYPE, False)
                    rest = product(weights, v1, rest * fade[:, None])
            # The rest with a mask: tiles of the context that not all rows see, then what follows the last whole tile,
            # and behind it the nodes of the tree.
            nodes = tl.where(split == splits - 1, mine.nodes, 0)
            front = (middle - first) // BN
            missing = tl.zeros([BN], tl.int32)
            for number in tl.range(0, front + (last - after + nodes + BN - 1) // BN, num_stages=1):
                t = tl.where(number < front, first + number * BN, after + (number - front) * BN) + n
                j = t - last
                is_node = (j >= 0) & (j < nodes)
                # Nodes from `since` to before `until` see it.
                since = tl.where(j < nodes, tl.maximum(j, 0), _FAR)
                until = tl.where(j < 0, _FAR, mine.nodes)
                if BLOCK:
                    since = tl.where(j < nodes, 0, _FAR)
                else:
                    end = tl.load(ends + (root + j) * ends_stride, mask=is_node, other=_FAR)
                    until = tl.minimum(until, end)
                visible = live[:, None] & (since[None, :] <= node[:, None]) & (node[:, None] < until[None, :])
                if WINDOW:
                    above = tl.load(depths + (root + j) * depths_stride, mask=is_node & (j > 0), other=0)
                    above = tl.where(j < 0, tl.maximum(t - context, _FAR_BEHIND).to(tl.int32), above)
                    visible = visible & (depth[:, None] - above[None, :] < window)
                wanted = tl.max(visible.to(tl.int32), axis=0) != 0
                if tl.max(wanted.to(tl.int32), axis=0) != 0:
                    position = t.to(tl.int64)
                    offset = j
                    if node_slots is not None:
                        offset = tl.load(node_slots + (root + j) * node_slots_stride, mask=is_node, other=0)
                    position = tl.where(is_node, tl.where(offset < 0, -1, context + offset), position)
                    page, slot, there = locate(pages, position, wanted & (position >= 0), PAGE)
                    flag = tl.where(position < 0, _MALFORMED, _PAGE_OUT_OF_RANGE)
                    missing = missing | tl.where(wanted & (there == 0), flag, 0)
                    visible = visible & there[None, :]
                    at = page * key_page_stride + slot * key_slot_stride
                    s, k0 = _scores(
                        query, rows, live, sign, q0, q1, key_at, at, there,
                        D, D0, D1, KEY_FORM, KEY_TYPE, CHUNK, BM, BN, True,
                    )  # fmt: skip
                    largest, total, fade, weights = _weigh(largest, total, s, visible, softcap, factor, CAPPED, True)
                    at = page * value_page_stride + slot * value_slot_stride
                    if SHARED:
                        v0 = k0
                    else:
                        v0 = load_rows(value_at, at, there, 0, V0, DV, VALUE_FORM, VALUE_TYPE, True)
                    finite = _finite(v0)
                    odd = tl.max(tl.where(finite, 0, 1), axis=1)
                    mixed = product(weights, tl.where(finite, v0, 0.0), mixed * fade[:, None])
                    if V1 > 0:
                        v1 = load_rows(value_at, at, there, V0, V1, DV, VALUE_FORM, VALUE_TYPE, True)
                        finite = _finite(v1)
                        odd = tl.maximum(odd, tl.max(tl.where(finite, 0, 1), axis=1))
                        rest = product(weights, tl.where(finite, v1, 0.0), rest * fade[:, None])
                    left = tl.sum(odd)
                    while left > 0:
                        chosen = n == tl.min(tl.where(odd != 0, n, _FAR))
                        one = tl.sum(tl.where(chosen, at, 0))
                        sees = tl.max(tl.where(chosen[None, :] & visible, 1, 0), axis=1) != 0
                        mixed = _add_odd(mixed, value_at, one, sees, 0, V0, DV, VALUE_FORM)
                        if V1 > 0:
                            rest = _add_odd(rest, value_at, one, sees, V0, V1, DV, VALUE_FORM)
                        odd = tl.where(chosen, 0, odd)
                        left -= 1
            if status is not None:
                beyond = (nodes > 0) & (context > capacity) & (lowest < context)  # what the table has no column for
                bits = tl.max(missing & _MALFORMED, axis=0) | tl.max(missing & _PAGE_OUT_OF_RANGE, axis=0)
                bits = bits | tl.where(beyond, _PAGE_OUT_OF_RANGE, 0)
                if bits != 0:
                    tl.atomic_or(status + b * status_stride, bits)
        if states is not None:
            at = states + (place.to(tl.int64) * kv_heads + kv_head) * (BM * (DV + 2))
            tl.store(at + m, largest)
            tl.store(at + BM + m, total)
            _keep(at + 2 * BM, mixed, 0, V0, DV, BM)
            if V1 > 0:
                _keep(at + 2 * BM, rest, V0, V1, DV, BM)
        else:
            to = row.to(tl.int64) * heads + head
            weight, whole = settle(largest, total, sinks, sinks_stride, head)
            if value_scale is not None:
                weight = weight * tl.load(value_scale + kv_head * value_scale_stride)
            tl.store(lse + to, tl.where(live, whole, _NONE), mask=exists)
            write(out + to * DV, mixed, weight, live, exists, 0, V0, DV)
            if V1 > 0:
                write(out + to * DV, rest, weight, live, exists, V0, V1, DV)
