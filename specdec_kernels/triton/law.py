# mypy: ignore-errors
"""The processed law of a row, without a buffer of the size of the vocabulary: a cut in the order of keys, the best
logit, and the mass of every block of 4,096 ids. Weights are ``exp((l - max) / T)``: the best id has 1. The weights of
a block are computed again when they are needed.

The rows that are asked for have slots. For plain rows a slot is a row. For a batch of trees slot ``i`` is node ``i``,
unless it is a root: the root of request ``b`` has slot ``T + b``, its own even where the requests of a malformed batch
overlap.

Who does what: ``scan_kernel`` runs one program per slot and block, and leaves the block's maximum and its sum of
weights relative to that. Where filters are given, ``law_kernel`` takes a row at a time in each of up to 512
programs, and leaves the cut and the
masses under it. What needs a row's law loads these as vectors of one element per block. Memory traffic: one read of
the row, and 12 bytes per block; under filters what ``cut.py`` says, one more read of the blocks that keep something,
and 8 bytes per block. Sums run inside a block in one fixed order in float32, then over the blocks in one fixed order
in float64; they depend on nothing but the row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .cut import at, find_cut
from .race import race_of_blocks, race_of_ids
from .row import NO_CUT, Memory, Row, key_of, load_tile, mask_row, mass_of_tile, weigh, weigh_exactly
from .varying import VARYING

#: Above every key.
NO_BOUND = tl.constexpr(2**63 - 1)


class Settings(NamedTuple):
    """One request's settings; a field that is absent has the value that is off."""

    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    order: Any


class Law(NamedTuple):
    """A law. ``masses`` and ``tops`` have one element per block; ``masses`` and ``total`` are relative to ``largest``."""

    row: Any
    temperature: Any
    largest: Any
    cut: Any
    total: Any
    masses: Any
    tops: Any


@triton.jit
def settings_of(
    temperature, temperature_stride, top_k, top_k_stride, top_p, top_p_stride, min_p, min_p_stride, order, request
):
    """The settings of a request; a temperature that is not above 0 (NaN is not) becomes 0, and turns the filters off."""
    t = tl.full([], 0.0, tl.float32)
    k = tl.full([], 0, tl.int32)
    p = tl.full([], 1.0, tl.float32)
    m = tl.full([], 0.0, tl.float32)
    if temperature is not None:
        t = tl.load(temperature + request * temperature_stride)
        t = tl.where(t > 0.0, t, 0.0)
    if top_k is not None:
        k = tl.where(t > 0.0, tl.load(top_k + request * top_k_stride), k)
    if top_p is not None:
        p = tl.where(t > 0.0, tl.load(top_p + request * top_p_stride), p)
    if min_p is not None:
        m = tl.where(t > 0.0, tl.load(min_p + request * min_p_stride), m)
    return Settings(t, k, p, m, order)


@triton.jit
def scan_tile(row, block, temperature, TILE: tl.constexpr):
    """A block's maximum, its sum of weights relative to that, and whether it held a NaN (0 or 1)."""
    values, _, nan = load_tile(row, block * TILE, TILE)
    has_nan = tl.max(nan.to(tl.int32))
    if row.column_of is not None:  # a NaN counts also where no target id stands
        columns = block * TILE + tl.arange(0, TILE)
        raw = tl.load(row.memory.data + columns, mask=columns < row.memory.columns, other=0.0).to(tl.float32)
        has_nan = tl.max((raw != raw).to(tl.int32))
    top = tl.max(values)
    total = tl.full([], 0.0, tl.float32)
    if (temperature > 0.0) & (top > float("-inf")):
        total = tl.sum(weigh(values, top, temperature))
    return top, total, has_nan


@triton.jit
def load_kept(row, block, cut, bound, TILE: tl.constexpr):
    """A tile whose entries with a key below ``cut``, or not below ``bound``, are -inf; and its ids."""
    values, ids, _ = load_tile(row, block * TILE, TILE)
    keys = key_of(values, ids)
    return tl.where((keys >= cut) & (keys < bound), values, float("-inf")), ids


@triton.jit
def best_key(row, tops, largest, blocks, TILE: tl.constexpr, NB: tl.constexpr):
    """The key of the best entry of a row that has one."""
    index = tl.arange(0, NB)
    first = tl.min(tl.where(tops == largest, index, NB - 1))
    values, ids, _ = load_tile(row, first * TILE, TILE)
    best = tl.max(key_of(values, ids))
    if row.id_of is not None:
        if row.column_of is None:  # listed ids do not ascend
            for b in range(first + 1, blocks):
                if at(tops, b, NB) == largest:
                    values, ids, _ = load_tile(row, b * TILE, TILE)
                    best = tl.maximum(best, tl.max(key_of(values, ids)))
    return best


@triton.jit
def find_masses(row, temperature, largest, cut, bound, tops, blocks, TILE: tl.constexpr, NB: tl.constexpr):
    """The masses of the blocks between a cut and a bound."""
    index = tl.arange(0, NB)
    top_keys = key_of(tops, tl.zeros([NB], tl.int32))
    masses = tl.zeros([NB], tl.float64)
    for b in range(0, blocks):
        if at(top_keys, b, NB) >= cut:
            values, _ = load_kept(row, b, cut, bound, TILE)
            masses = tl.where(index == b, mass_of_tile(values, largest, temperature), masses)
    return masses


@triton.jit
def _is_filtered(settings):
    return (settings.top_k > 0) | (settings.top_p < 1.0) | (settings.min_p > 0.0)


@triton.jit
def _masses_of(tops, sums, temperature):
    """The masses of the blocks of a scanned row that has a best id, without filters, relative to the best."""
    return tl.where(sums > 0, sums.to(tl.float64) * weigh_exactly(tops, tl.max(tops), temperature), 0.0)


@triton.jit
def law_of(found, slot, temperature, blocks, FILTERED: tl.constexpr, NB: tl.constexpr):
    """The fields of the law of a slot, from ``largest`` on, and whether its row held a NaN. At a dead end ``largest`` is
    -inf; at temperature 0 it and ``tops`` alone count. ``found``: what the kernels below left."""
    tops_at, sums_at, nans_at, cuts_at, masses_at = found
    index = tl.arange(0, NB)
    inside = index < blocks
    place = slot * blocks + index
    tops = tl.load(tops_at + place, mask=inside, other=float("-inf"))
    any_nan = tl.max(tl.load(nans_at + place, mask=inside, other=0))
    cut = tl.full([], NO_CUT, tl.int64)
    if FILTERED:
        cut = tl.load(cuts_at + slot)
        masses = tl.load(masses_at + place, mask=inside, other=0.0)
    else:
        sums = tl.load(sums_at + place, mask=inside, other=0.0)
        masses = _masses_of(tops, sums, temperature)
    return tl.max(tops), cut, tl.sum(masses), masses, tops, any_nan


@triton.jit
def draw(law, seed, position, stream: tl.constexpr, depth, node, TILE: tl.constexpr, NB: tl.constexpr):
    """One id of a law by the two-level race (of a row that is not listed), int64."""
    zero = position.to(tl.int64) * 0
    block = race_of_blocks(law.masses, seed, position, stream, depth, node, zero, NB)
    token = zero - 1
    if block >= 0:
        values, ids = load_kept(law.row, block, law.cut, NO_BOUND, TILE)
        weights = weigh_exactly(values, law.largest, law.temperature)
        token += 1 + race_of_ids(ids, block * TILE, weights, seed, position, stream, depth, node, zero, TILE)
    return token


@triton.jit
def entropy_of(law, blocks, TILE: tl.constexpr, NB: tl.constexpr):
    """In nats; a weight relative to the largest is its own logarithm's argument, so nothing overflows."""
    surprise = law.total * 0.0
    for b in range(0, blocks):
        if at(law.masses, b, NB) > 0:
            values, _ = load_kept(law.row, b, law.cut, NO_BOUND, TILE)
            weights = weigh(values, law.largest, law.temperature)
            surprise -= tl.sum(tl.where(weights > 0, weights * tl.log(weights), 0.0)).to(tl.float64)
    return tl.maximum(tl.log(law.total) + surprise / law.total, 0.0)


@triton.jit
def _request_of_node(
    cu_nodes, cu_nodes_stride, parents, parents_stride, ends, ends_stride, total, batch, node, SEARCH: tl.constexpr
):
    """The request among whose live nodes a node is, -1 if none, and its root. If there are several, which makes the
    batch malformed, that with the last root, then the last: so all nodes of what is a tree have one request."""
    found = tl.full([], -1, tl.int64)
    for start in range(0, batch, SEARCH):
        index = start + tl.arange(0, SEARCH)
        begin = tl.load(cu_nodes + index * cu_nodes_stride, mask=index < batch, other=0).to(tl.int64)
        end = tl.load(cu_nodes + (index + 1) * cu_nodes_stride, mask=index < batch, other=0)
        around = (begin >= 0) & (begin <= node) & (node < end) & (end <= total)
        size = tl.load(ends + begin * ends_stride, mask=around, other=0)
        parent = tl.load(parents + begin * parents_stride, mask=around, other=0)
        around = around & (node - begin < size) & (parent == -1)
        found = tl.maximum(found, tl.max(tl.where(around, (begin << 32) | index, -1)))
    return tl.where(found < 0, -1, found).to(tl.int32), (found >> 32).to(tl.int32)


@triton.jit
def memory_of(
    logits, height, columns, row_stride, entries, index,
    allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words, owner,
):  # fmt: skip
    """Where a row lies; one whose index is out of range has no entries."""
    there = (index >= 0) & (index < height)
    data = logits + tl.where(there, index, 0).to(tl.int64) * row_stride
    columns = tl.where(there, columns, 0)
    entries = tl.where(there, entries, 0)
    mask, words, free = mask_row(allowed, allowed_rows, allowed_rows_stride, allowed_height, words, owner)
    return Memory(data, columns, entries, mask * allowed_stride, words, free)


@triton.jit(do_not_specialize=VARYING)
def scan_kernel(
    logits, height, columns, row_stride, entries, rows, rows_stride,
    allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words,
    id_of, id_of_stride, column_of, column_of_stride, cu_nodes, cu_nodes_stride, total,
    temperature, temperature_stride, batch, requests, requests_stride,
    parents, parents_stride, ends, ends_stride, active, active_stride,
    tops, sums, nans, owners, blocks,
    OF_CHILDREN: tl.constexpr, TEMPERATURE: tl.constexpr, TILE: tl.constexpr, SEARCH: tl.constexpr,
):  # fmt: skip
    """One block of the row of one slot. Slots that belong to no request that is at work are not read, and marked with
    -1.

    ``OF_CHILDREN``: the rows are those that children were drawn from; leaves and deterministic ones are not read.
    ``TEMPERATURE``: where none is given.
    """
    slot = tl.program_id(0)
    block = tl.program_id(1)
    node = slot
    request = slot
    if cu_nodes is not None:
        if slot < total:
            request, root = _request_of_node(
                cu_nodes, cu_nodes_stride, parents, parents_stride, ends, ends_stride, total, batch, node, SEARCH
            )
            live = (request >= 0) & (node > root)
        else:
            request = slot - total
            root = tl.load(cu_nodes + request * cu_nodes_stride)
            end = tl.load(cu_nodes + (request + 1) * cu_nodes_stride)
            node = root
            live = (root >= 0) & (root < end) & (end <= total)
        if OF_CHILDREN:
            end = tl.load(ends + node.to(tl.int64) * ends_stride, mask=live, other=0)
            live = live & (end > node - root + 1)
    elif requests is not None:
        named = tl.load(requests + slot.to(tl.int64) * requests_stride).to(tl.int64)
        live = (named >= 0) & (named < batch)
        request = tl.where(live, named, -1).to(tl.int32)
    else:
        live = slot < batch
    if active is not None:
        live = live & (tl.load(active + request.to(tl.int64) * active_stride, mask=live, other=0) != 0)
    t = tl.full([], TEMPERATURE, tl.float32)
    if temperature is not None:
        t = tl.load(temperature + request.to(tl.int64) * temperature_stride, mask=live, other=0.0)
    index = node.to(tl.int64)
    if rows is not None:
        index = tl.load(rows + index * rows_stride, mask=live, other=-1).to(tl.int64)
    if OF_CHILDREN:
        live = live & (t > 0.0) & (index >= 0)
    if block == 0:
        tl.store(owners + slot, tl.where(live, request, -1))
    if live:
        memory = memory_of(
            logits, height, columns, row_stride, entries, index,
            allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words, node,
        )  # fmt: skip
        row = Row(memory, allowed, id_of, id_of_stride, column_of, column_of_stride)
        top, total_weight, has_nan = scan_tile(row, block, t, TILE)
        place = slot.to(tl.int64) * blocks + block
        tl.store(tops + place, top)
        tl.store(sums + place, total_weight)
        tl.store(nans + place, has_nan)


@triton.jit(do_not_specialize=VARYING)
def law_kernel(
    logits, height, columns, row_stride, entries, rows, rows_stride,
    allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words,
    id_of, id_of_stride, column_of, column_of_stride, cu_nodes, cu_nodes_stride, total,
    temperature, temperature_stride, top_k, top_k_stride, top_p, top_p_stride, min_p, min_p_stride, order,
    tops, sums, owners, cuts, masses, scratch, slots, blocks,
    TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """The cuts and the masses of the rows of slots; a program takes every so manyth of them, one after the other."""
    program = tl.program_id(0)
    for index in range(program, slots, tl.num_programs(0)):
        slot = program.to(tl.int64) * 0 + index  # interpreted, an index is a Python int
        request = tl.load(owners + slot)
        if request >= 0:
            settings = settings_of(
                temperature, temperature_stride, top_k, top_k_stride, top_p, top_p_stride, min_p, min_p_stride,
                order, request.to(tl.int64),
            )  # fmt: skip
            node = slot
            if cu_nodes is not None:
                if slot >= total:
                    node = tl.load(cu_nodes + (slot - total) * cu_nodes_stride).to(tl.int64)
            row_index = node
            if rows is not None:
                row_index = tl.load(rows + node * rows_stride).to(tl.int64)
            memory = memory_of(
                logits, height, columns, row_stride, entries, row_index,
                allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words, node,
            )  # fmt: skip
            row = Row(memory, allowed, id_of, id_of_stride, column_of, column_of_stride)
            block = tl.arange(0, NB)
            place = slot * blocks + block
            inside = block < blocks
            row_tops = tl.load(tops + place, mask=inside, other=float("-inf"))
            row_sums = tl.load(sums + place, mask=inside, other=0.0)
            largest = tl.max(row_tops)
            cut = tl.full([], NO_CUT, tl.int64)
            row_masses = tl.zeros([NB], tl.float64)
            if (largest > float("-inf")) & (settings.temperature > 0.0):
                row_masses = _masses_of(row_tops, row_sums, settings.temperature)
                if _is_filtered(settings):
                    best = best_key(row, row_tops, largest, blocks, TILE, NB)
                    cut = find_cut(
                        row, settings.temperature, settings.top_k, settings.top_p, settings.min_p, settings.order,
                        largest, best, row_tops, scratch, program, blocks, TILE, NB,
                    )  # fmt: skip
                    row_masses = find_masses(
                        row, settings.temperature, largest, cut, NO_BOUND, row_tops, blocks, TILE, NB
                    )
            tl.store(cuts + slot, cut)
            tl.store(masses + place, row_masses, mask=inside)
