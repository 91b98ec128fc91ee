# mypy: ignore-errors
"""What a program that verifies a request knows of the nodes that it visits, and what it writes.

Who does what: one program visits the nodes of its request. Memory traffic: of a node's rows what ``law.scan_kernel``
left, a number per block; of the rows themselves only what a rule asks for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .law import Law, law_of, memory_of, scan_tile, settings_of
from .residual import weight_at
from .row import NO_CUT, Row, value_of, weigh_exactly
from .walk import depth_of, parent_of, token_of

#: Bits of the status.
NAN = tl.constexpr(1)
DEAD_END = tl.constexpr(2)
FALLBACK = tl.constexpr(4)
MALFORMED = tl.constexpr(8)

_PROCESSED = tl.constexpr(1)
_RAW = tl.constexpr(2)

_WIDTH = tl.constexpr(64)


class Target(NamedTuple):
    """The rows of the target, and what is known of them."""

    logits: Any
    height: Any
    columns: Any
    row_stride: Any
    rows: Any
    rows_stride: Any
    allowed: Any
    allowed_rows: Any
    allowed_rows_stride: Any
    allowed_height: Any
    allowed_stride: Any
    words: Any
    total_nodes: Any
    tops: Any
    sums: Any
    nans: Any
    cuts: Any
    masses: Any


class Drafts(NamedTuple):
    """The rows that the children of nodes were drawn from, and what is known of them; without ``logits`` there are
    none."""

    logits: Any
    height: Any
    columns: Any
    row_stride: Any
    rows: Any
    rows_stride: Any
    allowed: Any
    allowed_rows: Any
    allowed_rows_stride: Any
    allowed_height: Any
    allowed_stride: Any
    words: Any
    id_of: Any
    id_of_stride: Any
    column_of: Any
    column_of_stride: Any
    temperature: Any
    temperature_stride: Any
    top_k: Any
    top_k_stride: Any
    top_p: Any
    top_p_stride: Any
    min_p: Any
    min_p_stride: Any
    order: Any
    tops: Any
    sums: Any
    nans: Any
    cuts: Any
    masses: Any


class Request(NamedTuple):
    """One request: its tree, whose pointers stand at row ``root``, with ``count`` nodes."""

    index: Any
    root: Any
    count: Any
    tree: Any
    seed: Any
    context: Any
    settings: Any
    limit: Any  # tokens at most


class Result(NamedTuple):
    """Where decisions go; each has ``width`` of them per request."""

    tokens: Any
    num_tokens: Any
    path: Any
    status: Any
    logprobs: Any
    lse: Any
    divergence: Any
    width: Any


@triton.jit
def _row_of(target, owner):
    index = owner
    if target.rows is not None:
        index = tl.load(target.rows + owner * target.rows_stride).to(tl.int64)
    return index


@triton.jit
def _slot_of(target, request, node):
    """Where ``law.scan_kernel`` left what it knows of a node."""
    return tl.where(node == 0, target.total_nodes + request.index, request.root + node)


@triton.jit
def memory_at(target, request, node):
    """Where the target's row of a node lies."""
    owner = request.root + node
    return memory_of(
        target.logits, target.height, target.columns, target.row_stride, target.columns, _row_of(target, owner),
        target.allowed, target.allowed_rows, target.allowed_rows_stride, target.allowed_height, target.allowed_stride,
        target.words, owner,
    )  # fmt: skip


@triton.jit
def law_at(target, request, node, temperature, blocks, FILTERED: tl.constexpr, NB: tl.constexpr):
    """The fields of the target's law at a node, from ``largest`` on, and the status of its row."""
    index = _row_of(target, request.root + node)
    largest, cut, total, masses, tops, has_nan = law_of(
        (target.tops, target.sums, target.nans, target.cuts, target.masses),
        _slot_of(target, request, node), temperature, blocks, FILTERED, NB,
    )  # fmt: skip
    flag = tl.where((index < 0) | (index >= target.height), MALFORMED, 0) | has_nan * NAN
    return largest, cut, total, masses, tops, flag


@triton.jit
def _draft_row_of(drafts, owner):
    index = owner
    if drafts.rows is not None:
        index = tl.load(drafts.rows + owner * drafts.rows_stride).to(tl.int64)
    return index


@triton.jit
def drafts_memory_at(drafts, target, request, node):
    """Where the row lies that the children of a node were drawn from."""
    owner = request.root + node
    return memory_of(
        drafts.logits, drafts.height, drafts.columns, drafts.row_stride, target.columns, _draft_row_of(drafts, owner),
        drafts.allowed, drafts.allowed_rows, drafts.allowed_rows_stride, drafts.allowed_height, drafts.allowed_stride,
        drafts.words, owner,
    )  # fmt: skip


@triton.jit
def drafts_at(drafts, target, request, node, child, blocks, DRAFT_FILTERED: tl.constexpr, NB: tl.constexpr):
    """What the children of a node were drawn from: whether at random, the temperature and the fields of the law up to
    ``masses``, the status of its row; and the first child, -1 where the row is out of range."""
    settings = settings_of(
        drafts.temperature, drafts.temperature_stride, drafts.top_k, drafts.top_k_stride, drafts.top_p,
        drafts.top_p_stride, drafts.min_p, drafts.min_p_stride, drafts.order, request.index,
    )  # fmt: skip
    index = _draft_row_of(drafts, request.root + node)
    sampled = (child >= 0) & (settings.temperature > 0.0)
    if drafts.rows is not None:
        sampled = sampled & (index != -1)
    lost = sampled & ((index < 0) | (index >= drafts.height))
    flag = tl.where(lost, MALFORMED, 0)
    child = tl.where(lost, -1, child)
    sampled = sampled & (child >= 0)
    largest = tl.full([], float("-inf"), tl.float32)
    cut = tl.full([], NO_CUT, tl.int64)
    total = tl.full([], 0.0, tl.float64)
    masses = tl.zeros([NB], tl.float64)
    if sampled:
        largest, cut, total, masses, _, has_nan = law_of(
            (drafts.tops, drafts.sums, drafts.nans, drafts.cuts, drafts.masses),
            _slot_of(target, request, node), settings.temperature, blocks, DRAFT_FILTERED, NB,
        )  # fmt: skip
        flag = flag | has_nan * NAN
    return sampled, settings.temperature, largest, cut, total, masses, flag, child


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


@triton.jit
def emit(
    result, request, number, node, token, row, largest, total, divergence, blocks,
    MODE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Writes the token decided at a node, with the row and its largest logit and sum of weights."""
    place = request.index * result.width + number
    tl.store(result.tokens + place, token)
    tl.store(result.path + place, node)
    if result.divergence is not None:
        tl.store(result.divergence + place, divergence.to(tl.float32))
    if MODE != 0:
        logprob = tl.full([], float("-inf"), tl.float64)
        row_lse = tl.full([], float("-inf"), tl.float64)
        if token >= 0:
            t = request.settings.temperature.to(tl.float64)
            if MODE == _RAW:
                plain = Row(row.memory, None, None, 0, None, 0)
                largest, total = _raw_sums(plain, blocks, TILE)
                t = t * 0.0 + 1.0
                t = tl.where(t == t, t, 1.0)
            if (MODE == _PROCESSED) & (request.settings.temperature == 0.0):
                logprob = t
                row_lse = largest.to(tl.float64)
            else:
                log_sum = tl.log(total)
                logprob = (value_of(row, token).to(tl.float64) - largest.to(tl.float64)) / t - log_sum
                row_lse = largest.to(tl.float64) / t + log_sum
        tl.store(result.logprobs + place, logprob.to(tl.float32))
        tl.store(result.lse + place, row_lse.to(tl.float32))


@triton.jit
def emit_path(
    result, target, request, last, token, blocks,
    DIVERGES: tl.constexpr, FILTERED: tl.constexpr, MODE: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """Writes the path that ends at ``last``, and ``token`` after it, up to the limit; the number of tokens.

    ``DIVERGES``: the drafts of the path were taken for sure.
    """
    node = last
    number = depth_of(request.tree, last).to(tl.int64)
    count = tl.minimum(number + 1, request.limit)
    while node >= 0:
        if number < request.limit:
            row = Row(memory_at(target, request, node), target.allowed, None, 0, None, 0)
            temperature = request.settings.temperature
            largest, cut, total, masses, tops, _ = law_at(target, request, node, temperature, blocks, FILTERED, NB)
            divergence = total * 0.0
            if DIVERGES:
                if node != last:
                    law = Law(row, temperature, largest, cut, total, masses, tops)
                    divergence = 1.0 - weight_at(law, token) / total
            emit(result, request, number, node, token, row, largest, total, divergence, blocks, MODE, TILE)
        token = token_of(request.tree, node)
        node = parent_of(request.tree, node)
        number -= 1
    return count


@triton.jit
def finish(result, request, emitted, flag, MODE: tl.constexpr):
    """Writes what is one of a request, and fills the rest of its rows."""
    tl.store(result.num_tokens + request.index, emitted.to(tl.int32))
    tl.store(result.status + request.index, flag)
    for start in range(0, result.width, _WIDTH):
        rest = start + tl.arange(0, _WIDTH)
        inside = (rest >= emitted) & (rest < result.width)
        place = request.index * result.width + rest
        tl.store(result.tokens + place, -1, mask=inside)
        tl.store(result.path + place, -1, mask=inside)
        if result.divergence is not None:
            tl.store(result.divergence + place, 0.0, mask=inside)
        if MODE != 0:
            tl.store(result.logprobs + place, 0.0, mask=inside)
            tl.store(result.lse + place, 0.0, mask=inside)
