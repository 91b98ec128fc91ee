# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""sample: one token per request from its processed law. draft: the children of one node per row.

Who does what: ``law.scan_kernel`` reads every row once, a program per block; then one program per row finds the cut
of its filters, and draws. Memory traffic: one read of each row, and of one block per draw; under filters a few
reads of the blocks that can hold the cut; for drafts without replacement ``arrivals.heads_kernel`` reads what the cut
leaves once more, and each of them reads about one more block. Deterministic: a row's result depends on nothing but the row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arrivals import heads_kernel, take_arrivals
from .cut import at
from .launch import Settings, blocks_of, find_laws, flags, mask_of, on_device_of, power_of_two, step
from .law import NO_BOUND, Law, best_key, draw, entropy_of, find_masses, law_of, load_kept, memory_of, settings_of
from .race import first_of, race_of_blocks
from .random import DRAFT, TARGET, block_noise, id_noise, listed_id_noise
from .row import (
    BLOCK,
    NOTHING,
    Row,
    id_of_key,
    key_of,
    mass_of_tile,
    value_of_key,
    weigh_exactly,
)
from .varying import VARYING

_NAN = tl.constexpr(1)
_DEAD_END = tl.constexpr(2)
_MALFORMED = tl.constexpr(8)

_BLOCK = tl.constexpr(BLOCK)
_LATE = tl.constexpr(float("inf"))
_FAR = tl.constexpr(2**31 - 1)

#: How the drafts that are not the best ids are drawn.
_ARRIVALS = tl.constexpr(0)  # without replacement
_REPLACEMENT = tl.constexpr(1)
_COUPLED = tl.constexpr(2)


@triton.jit(do_not_specialize=VARYING)
def sample_kernel(
    logits, height, columns, row_stride,
    allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words,
    temperature, temperature_stride, top_k, top_k_stride, top_p, top_p_stride, min_p, min_p_stride, order,
    seed, seed_stride, positions, positions_stride, active, active_stride,
    tops, sums, nans, cuts, masses, blocks,
    tokens, tokens_stride, status, status_stride,
    FILTERED: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """One request."""
    b = tl.program_id(0).to(tl.int64)
    token = tl.full([], -1, tl.int64)
    flag = tl.full([], 0, tl.int32)
    live = tl.full([], 1, tl.int32)
    if active is not None:
        live = tl.load(active + b * active_stride).to(tl.int32)
    if live != 0:
        memory = memory_of(
            logits, height, columns, row_stride, columns, b,
            allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words, b,
        )  # fmt: skip
        row = Row(memory, allowed, None, 0, None, 0)
        settings = settings_of(
            temperature, temperature_stride, top_k, top_k_stride, top_p, top_p_stride, min_p, min_p_stride, order, b
        )
        largest, cut, total, row_masses, row_tops, has_nan = law_of(
            (tops, sums, nans, cuts, masses), b, settings.temperature, blocks, FILTERED, NB
        )
        law = Law(row, settings.temperature, largest, cut, total, row_masses, row_tops)
        if law.largest > float("-inf"):
            if settings.temperature > 0.0:
                key = tl.load(seed + b * seed_stride)
                position = tl.load(positions + b * positions_stride)
                zero = b * 0
                token = draw(law, key, position, TARGET, zero, zero, TILE, NB)
            else:
                token = id_of_key(best_key(row, law.tops, law.largest, blocks, TILE, NB))
        flag = has_nan * _NAN + tl.where(token < 0, _DEAD_END, 0)
    tl.store(tokens + b * tokens_stride, token)
    tl.store(status + b * status_stride, flag)


def sample_sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seed: Tensor,
    filter_order: int,
    positions: Tensor,
    allowed: Tensor | None,
    allowed_rows: Tensor | None,
    active: Tensor | None,
    out_tokens: Tensor,
    status: Tensor,
) -> None:
    """The launcher of ``sample.sample``."""
    batch, columns = logits.shape
    if batch == 0:
        return
    blocks, mask = blocks_of(columns), mask_of(allowed, allowed_rows)
    settings = Settings(temperature, top_k, top_p, min_p, filter_order)
    with on_device_of(logits):
        laws = find_laws(logits, batch, blocks, mask, settings, batch=batch, active=active)
        sample_kernel[(batch,)](
            *(logits, batch, columns, step(logits), *mask, *settings.arguments()),
            *(
                seed,
                step(seed),
                positions,
                step(positions),
                flags(active),
                step(active),
                *laws[:3],
                *laws[4:],
                blocks.number,
            ),
            *(out_tokens, step(out_tokens), status, step(status)),
            FILTERED=settings.filtered,
            TILE=blocks.tile,
            NB=blocks.vector,
            num_warps=blocks.warps,
        )


@triton.jit
def take_best(law, chosen, count, wanted, greedy, blocks, NUM: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr):
    """Adds the best ids of a law until ``wanted`` are chosen; also their number, and the key of the last.

    A vector holds for each block a key that none of its ids left exceeds. The block of the largest is read: its best
    id is the best of all, or the key was too large.
    """
    numbers = tl.arange(0, NUM)
    index = tl.arange(0, NB)
    heads = key_of(law.tops, tl.zeros([NB], tl.int32))
    bound = tl.full([], NO_BOUND, tl.int64)
    going = count < wanted
    while going:
        high = tl.max(heads)
        if high < law.cut:
            going = count < 0  # false
        else:
            block = tl.min(tl.where(heads == high, index, _FAR))
            values, ids = load_kept(law.row, block, law.cut, bound, TILE)
            key = tl.max(key_of(values, ids))
            others = tl.max(tl.where(index == block, NOTHING, heads))
            best = (key >= others) & (key != NOTHING)
            weight = weigh_exactly(value_of_key(key), law.largest, law.temperature)
            there = best & (greedy | (weight > 0))
            chosen = tl.where(numbers == tl.where(there, count, -1), id_of_key(key), chosen)
            count += there.to(tl.int32)
            bound = tl.where(best, key, bound)
            heads = tl.where(index == block, tl.where(best, key - 1, key), heads)
            going = (count < wanted) & (there | (best == 0))
    return chosen, count, bound


@triton.jit
def _load_left(law, block, bound, chosen, removed, TILE: tl.constexpr, NUM: tl.constexpr):
    """A tile of the law without the first ``removed`` of the chosen ids."""
    values, ids = load_kept(law.row, block, law.cut, bound, TILE)
    for j in range(0, removed):
        values = tl.where(ids == at(chosen, j, NUM), float("-inf"), values)
    return values, ids


@triton.jit
def _draw_listed(
    law, bound, chosen, removed, seed, position, depth, node, draws, blocks,
    STREAM: tl.constexpr, NUM: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """One id of a law by the two-level race of a listed row, the ids of whose blocks lie anywhere in it: one reading
    for each block of ids."""
    zero = position * 0
    token = zero - 1
    top_keys = key_of(law.tops, tl.zeros([NB], tl.int32))
    winner = tl.full([], -1, tl.int32)
    earliest = tl.full([], _LATE, tl.float64)
    current = tl.full([], -1, tl.int32)
    while current < _FAR:
        following = tl.full([], _FAR, tl.int32)
        mass = tl.full([], 0.0, tl.float64)
        for b in range(0, blocks):
            if at(top_keys, b, NB) >= law.cut:
                values, ids = _load_left(law, b, bound, chosen, removed, TILE, NUM)
                names = tl.where(values == float("-inf"), _FAR, ids // _BLOCK)
                following = tl.minimum(following, tl.min(tl.where(names > current, names, _FAR)))
                here = tl.where(names == current, values, float("-inf"))
                mass += mass_of_tile(here, law.largest, law.temperature)
        if mass > 0:
            score = block_noise(current, seed, position, STREAM, depth, node, draws) / mass
            if (winner < 0) | (score < earliest):
                winner = current
                earliest = score
        current = following
    if winner >= 0:
        earliest = tl.full([], _LATE, tl.float64)
        for b in range(0, blocks):
            if at(top_keys, b, NB) >= law.cut:
                values, ids = _load_left(law, b, bound, chosen, removed, TILE, NUM)
                values = tl.where(ids // _BLOCK == winner, values, float("-inf"))
                weights = weigh_exactly(values, law.largest, law.temperature)
                noise = listed_id_noise(ids, seed, position, STREAM, depth, node, draws)
                scores = tl.where(weights > 0, noise / tl.where(weights > 0, weights, 1.0), _LATE)
                score = tl.min(scores)
                name = first_of(noise, weights, ids).to(tl.int64)
                sooner = (name >= 0) & ((token < 0) | (score < earliest) | ((score == earliest) & (name < token)))
                token = tl.where(sooner, name, token)
                earliest = tl.where(sooner, score, earliest)
    return token


@triton.jit
def _take_draws(
    law, chosen, count, wanted, bound, seed, position, depth, node, blocks,
    MODE: tl.constexpr, LISTED: tl.constexpr, NUM: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """Adds the winners of two-level races until ``wanted`` are chosen, and their number."""
    numbers = tl.arange(0, NUM)
    index = tl.arange(0, NB)
    masses = law.masses
    if not LISTED:
        if count > 0:
            masses = find_masses(law.row, law.temperature, law.largest, law.cut, bound, law.tops, blocks, TILE, NB)
    draws = position * 0
    going = count < wanted
    while going:
        removed = tl.full([], 0, tl.int32)
        if MODE == _COUPLED:
            removed = count
        token = position * 0 - 1
        if LISTED:
            if MODE == _COUPLED:
                zero = position * 0
                token = _draw_listed(
                    law, bound, chosen, removed, seed, position, zero, zero, zero, blocks, TARGET, NUM, TILE, NB
                )
            else:
                token = _draw_listed(
                    law, bound, chosen, removed, seed, position, depth, node, draws, blocks, DRAFT, NUM, TILE, NB
                )
        elif MODE == _COUPLED:
            token = _draw_left(
                law, masses, bound, chosen, removed, seed, position, draws, draws, draws, TARGET, NUM, TILE, NB
            )
            if token >= 0:
                block = (token // _BLOCK).to(tl.int32)
                values, ids = _load_left(law, block, bound, chosen, removed, TILE, NUM)
                values = tl.where(ids == token, float("-inf"), values)
                masses = tl.where(index == block, mass_of_tile(values, law.largest, law.temperature), masses)
        else:
            token = _draw_left(
                law, masses, bound, chosen, removed, seed, position, depth, node, draws, DRAFT, NUM, TILE, NB
            )
        chosen = tl.where(numbers == tl.where(token >= 0, count, -1), token, chosen)
        count += (token >= 0).to(tl.int32)
        going = (token >= 0) & (count < wanted)
        if MODE == _REPLACEMENT:
            draws += 1
    return chosen, count


@triton.jit
def _draw_left(
    law, masses, bound, chosen, removed, seed, position, depth, node, draws,
    STREAM: tl.constexpr, NUM: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """One id of what is left of a law by the two-level race, int64; -1 if there is none."""
    token = position * 0 - 1
    block = race_of_blocks(masses, seed, position, STREAM, depth, node, draws, NB)
    if block >= 0:
        values, ids = _load_left(law, block, bound, chosen, removed, TILE, NUM)
        weights = weigh_exactly(values, law.largest, law.temperature)
        noise = id_noise(block * TILE, seed, position, STREAM, depth, node, draws, TILE)
        token += 1 + first_of(noise, weights, ids)
    return token


@triton.jit(do_not_specialize=VARYING)
def draft_kernel(
    logits, height, columns, row_stride,
    allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words,
    temperature, temperature_stride, top_k, top_k_stride, top_p, top_p_stride, min_p, min_p_stride, order,
    seed, seed_stride, batch, positions, positions_stride, requests, requests_stride, tree_depths, tree_depths_stride,
    nodes, nodes_stride, id_of, id_of_stride,
    tops, sums, nans, cuts, masses, heads, blocks,
    num, top, certainty, min_confidence, min_confidence_stride, max_entropy, max_entropy_stride,
    drafts, drafts_stride, status, status_stride,
    MODE: tl.constexpr, FILTERED: tl.constexpr, NUM: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """The children of one node."""
    r = tl.program_id(0).to(tl.int64)
    numbers = tl.arange(0, NUM)
    chosen = tl.full([NUM], -1, tl.int64)
    count = tl.full([], 0, tl.int32)
    request = r
    if requests is not None:
        request = tl.load(requests + r * requests_stride).to(tl.int64)
    flag = tl.where(request == -1, 0, _MALFORMED)
    if (request >= 0) & (request < batch):
        memory = memory_of(
            logits, height, columns, row_stride, columns, r,
            allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words, r,
        )  # fmt: skip
        row = Row(memory, allowed, id_of, id_of_stride, None, 0)
        settings = settings_of(
            temperature, temperature_stride, top_k, top_k_stride, top_p, top_p_stride, min_p, min_p_stride,
            order, request,
        )  # fmt: skip
        largest, cut, total, row_masses, row_tops, has_nan = law_of(
            (tops, sums, nans, cuts, masses), r, settings.temperature, blocks, FILTERED, NB
        )
        law = Law(row, settings.temperature, largest, cut, total, row_masses, row_tops)
        goes_on = law.largest > float("-inf")
        if min_confidence is not None:
            least = tl.load(min_confidence + request * min_confidence_stride)
            goes_on = goes_on & ((tl.load(certainty + 2 * r) < least) == 0)
        if max_entropy is not None:
            most = tl.load(max_entropy + request * max_entropy_stride)
            goes_on = goes_on & ((tl.load(certainty + 2 * r + 1) > most) == 0)
        if goes_on:
            key = tl.load(seed + request * seed_stride)
            position = tl.load(positions + r * positions_stride).to(tl.int64)
            depth = r * 0
            node = r * 0
            if tree_depths is not None:
                depth = tl.load(tree_depths + r * tree_depths_stride).to(tl.int64)
            if nodes is not None:
                node = tl.load(nodes + r * nodes_stride).to(tl.int64)
            greedy = settings.temperature == 0.0
            bound = tl.full([], NO_BOUND, tl.int64)
            wanted = tl.where(greedy, num, top)
            if wanted > 0:
                chosen, count, bound = take_best(law, chosen, count, wanted, greedy, blocks, NUM, TILE, NB)
            if (greedy == 0) & (count < num):
                if MODE == _ARRIVALS:
                    chosen, count = take_arrivals(
                        law, heads + r * blocks, chosen, count, num, bound, key, position, depth, node, blocks,
                        id_of is not None, NUM, TILE, NB,
                    )  # fmt: skip
                else:
                    chosen, count = _take_draws(
                        law, chosen, count, num, bound, key, position, depth, node, blocks,
                        MODE, id_of is not None, NUM, TILE, NB,
                    )  # fmt: skip
        flag = has_nan * _NAN + tl.where(law.largest == float("-inf"), _DEAD_END, 0)
    tl.store(drafts + r * drafts_stride + numbers, chosen, mask=numbers < num)
    tl.store(status + r * status_stride, flag)


@triton.jit(do_not_specialize=VARYING)
def certainty_kernel(
    logits, height, columns, row_stride,
    allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words,
    temperature, temperature_stride, batch, requests, requests_stride, id_of, id_of_stride,
    tops, sums, nans, cuts, masses, plain_tops, plain_sums, plain_nans, blocks, certainty,
    FILTERED: tl.constexpr, TILE: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """The largest probability of the law of one row, and its entropy. ``plain_*``: of the rows of requests at temperature
    0, as they are at temperature 1."""
    r = tl.program_id(0).to(tl.int64)
    request = r
    if requests is not None:
        request = tl.load(requests + r * requests_stride).to(tl.int64)
    confidence = tl.full([], 0.0, tl.float64)
    nats = tl.full([], 0.0, tl.float64)
    if (request >= 0) & (request < batch):
        memory = memory_of(
            logits, height, columns, row_stride, columns, r,
            allowed, allowed_rows, allowed_rows_stride, allowed_height, allowed_stride, words, r,
        )  # fmt: skip
        row = Row(memory, allowed, id_of, id_of_stride, None, 0)
        given = tl.load(temperature + request * temperature_stride)
        if given > 0.0:
            largest, cut, total, row_masses, row_tops, _ = law_of(
                (tops, sums, nans, cuts, masses), r, given, blocks, FILTERED, NB
            )
            if largest > float("-inf"):
                confidence = 1.0 / total
                nats = entropy_of(Law(row, given, largest, cut, total, row_masses, row_tops), blocks, TILE, NB)
        else:
            one = tl.full([], 1.0, tl.float32)
            largest, cut, total, row_masses, row_tops, _ = law_of(
                (plain_tops, plain_sums, plain_nans, None, None), r, one, blocks, False, NB
            )
            if largest > float("-inf"):
                confidence = 1.0 / total
                nats = entropy_of(Law(row, one, largest, cut, total, row_masses, row_tops), blocks, TILE, NB)
    tl.store(certainty + 2 * r, confidence)
    tl.store(certainty + 2 * r + 1, nats)


def sample_draft(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seed: Tensor,
    filter_order: int,
    positions: Tensor,
    requests: Tensor | None,
    depths: Tensor | None,
    nodes: Tensor | None,
    allowed: Tensor | None,
    allowed_rows: Tensor | None,
    draft_to_target: Tensor | None,
    min_confidence: Tensor | None,
    max_entropy: Tensor | None,
    replacement: bool,
    top: int,
    coupled: bool,
    drafts: Tensor,
    status: Tensor,
    certainty: Tensor | None,
) -> None:
    """The launcher of ``sample.draft``."""
    count, columns = logits.shape
    batch, num = temperature.shape[0], drafts.shape[1]
    if count == 0:
        return
    blocks, mask = blocks_of(columns), mask_of(allowed, allowed_rows)
    settings = Settings(temperature, top_k, top_p, min_p, filter_order)
    with on_device_of(logits):
        laws = find_laws(logits, count, blocks, mask, settings, id_of=draft_to_target, batch=batch, requests=requests)
        places = (
            *(seed, step(seed), batch, positions, step(positions), requests, step(requests)),
            *(depths, step(depths), nodes, step(nodes), draft_to_target, step(draft_to_target)),
        )
        sure = None
        if any(given is not None for given in (min_confidence, max_entropy, certainty)):
            sure = torch.empty((count, 2), dtype=torch.float64, device=logits.device)
            cold = (temperature > 0).logical_not()  # also NaN
            warm = Settings(torch.ones_like(temperature))
            plain = find_laws(
                *(logits, count, blocks, mask, warm),
                id_of=draft_to_target,
                batch=batch,
                requests=requests,
                active=cold,
            )
            certainty_kernel[(count,)](
                *(logits, count, columns, step(logits), *mask, temperature, step(temperature), batch),
                *(requests, step(requests), draft_to_target, step(draft_to_target)),
                *(*laws[:3], *laws[4:], *plain[:3], blocks.number, sure),
                FILTERED=settings.filtered,
                TILE=blocks.tile,
                NB=blocks.vector,
                num_warps=blocks.warps,
            )
            if certainty is not None:
                certainty.copy_(sure)
        stops = (min_confidence, step(min_confidence), max_entropy, step(max_entropy))
        mode = 2 if coupled else 1 if replacement else 0
        heads = None
        if mode == 0:
            heads = torch.empty((count, blocks.number), dtype=torch.float64, device=logits.device)
            heads_kernel[(count, blocks.number)](
                *(logits, count, columns, step(logits), *mask, temperature, step(temperature), *places),
                *(laws.tops, laws.owners, laws.cuts, heads, blocks.number),
                TILE=blocks.tile,
                NB=blocks.vector,
                num_warps=blocks.warps,
            )
        draft_kernel[(count,)](
            *(logits, count, columns, step(logits), *mask, *settings.arguments(), *places),
            *(*laws[:3], *laws[4:], heads, blocks.number, num, top, sure, *stops),
            *(drafts, step(drafts), status, step(status)),
            MODE=mode,
            FILTERED=settings.filtered,
            NUM=power_of_two(num),
            TILE=blocks.tile,
            NB=blocks.vector,
            num_warps=blocks.warps,
        )
