"""Sampling from logits: plain decoding, and drafting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import DEAD_END, MALFORMED, NAN
from . import checks, law, race
from .law import Settings
from .mass import Margin
from .philox import DRAFT, TARGET, Place


def _give(values: Tensor, out: Tensor | None, like: Tensor) -> Tensor:
    if out is None:
        return values.to(like.device)
    out.copy_(values)
    return out


def draw_target(logits: Tensor, s: Settings, position: int, margin: Margin) -> int:
    """The token of plain decoding at a position: stream 0, depth 0, node 0; -1 at a dead end."""
    if s.greedy:
        return law.best(logits)
    return race.two_level(law.weights(logits, s), Place(s.seed, position, TARGET), margin)


def sample(
    logits: Tensor,
    sampling: Any,
    positions: Tensor,
    *,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
    active: Tensor | None = None,
    status: Tensor | None = None,
    out: Tensor | None = None,
    margin: Tensor | None = None,
) -> Tensor:
    """One token per request from its processed law: plain decoding.

    ``token = argmin_x E(x) / w(x)`` over the ids of the block ``argmin_b E(b) / sum_b w``.

    Args:
        logits: ``[B, V]`` float32, bfloat16 or float16, any strides.
        sampling: settings, one per request.
        positions: ``[B]`` int32 or int64, absolute position of the token to be drawn.
        allowed: ``[rows, ceil(V/32)]`` int32, bit ``i`` of word ``w`` allows id ``32 w + i``.
        allowed_rows: ``[B]`` int32 or int64, row of ``allowed``, -1 = unrestricted; None: row ``b``.
        active: ``[B]`` bool; others get -1 and status 0.
        status: ``[B]`` int32, overwritten with 1 (NaN) and 2 (dead end: nothing can be drawn).
        out: ``[B]`` int64 to write into.
        margin: ``[B]`` float64, receives the smallest margin of the decisions (inf: none).

    Returns:
        ``[B]`` int64, -1 at a dead end.

    Raises:
        TypeError, ValueError: on a wrong dtype or shape.

    Deterministic, independent of the batch. Reads values on the host: not for CUDA graphs.
    """
    op = "sample.sample"
    checks.logits(op, "logits", logits)
    batch, vocab = logits.shape
    checks.sampling(op, "sampling", sampling, batch)
    checks.tensor(op, "positions", positions, (batch,))
    checks.law(op, allowed, allowed_rows, batch, vocab)
    checks.optional(op, "active", active, batch, (torch.bool,))
    tokens = torch.full((batch,), -1, dtype=torch.int64)
    flags = torch.zeros(batch, dtype=torch.int32)
    if margin is not None:
        margin.fill_(torch.inf)
    for b, s in enumerate(law.all_settings(sampling)):
        if active is not None and not active[b]:
            continue
        near = Margin(margin is not None)
        row = law.read_row(logits[b], law.allowed_mask(allowed, allowed_rows, b, vocab))
        token = draw_target(row.logits, s, int(positions[b]), near)
        tokens[b] = token
        flags[b] = NAN * row.has_nan | DEAD_END * (token < 0)
        if margin is not None:
            margin[b] = near.value
    if status is not None:
        status.copy_(flags)
    return _give(tokens, out, logits)


def draft(
    logits: Tensor,
    sampling: Any,
    positions: Tensor,
    num: int,
    replacement: bool = False,
    requests: Tensor | None = None,
    depths: Tensor | None = None,
    nodes: Tensor | None = None,
    *,
    top: int = 0,
    coupled: bool = False,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
    draft_to_target: Tensor | None = None,
    min_confidence: Tensor | None = None,
    max_entropy: Tensor | None = None,
    status: Tensor | None = None,
    certainty: Tensor | None = None,
    out: Tensor | None = None,
    margin: Tensor | None = None,
) -> Tensor:
    """Draft tokens of each row in draw order: the children of one node each.

    At temperature 0 they are the ``num`` best ids. Else the first ``top`` are the best ids, and the
    others come from the rest of the law: with ``replacement`` each by a two-level race of its own
    (draw 0, 1, ...); without, as the first arrivals of one race of all ids; ``coupled``, by the
    race of plain decoding, run again without the ids already drawn. A row stops, and has no
    children, if its law ``q`` (at temperature 0 the softmax of the allowed logits) has ``max q`` below
    ``min_confidence`` or ``-sum q log q`` above ``max_entropy``.

    Args:
        logits: ``[R, V]`` float32, bfloat16 or float16, any strides; ``[R, V_draft]`` with
            ``draft_to_target``.
        sampling: settings ``[B]``, one per request.
        positions: ``[R]`` int32 or int64, absolute position of the children.
        num: tokens per row, 1 to 256.
        replacement: draw independently; False: each id at most once.
        requests: ``[R]`` int32 or int64, request of each row, -1 = idle; None: row ``r`` is ``r``.
        depths: ``[R]`` int32 or int64, depth of the node whose children are drawn; None: 0.
        nodes: ``[R]`` int32 or int64, its local index; None: 0.
        top: how many of the best ids come first.
        coupled: share the noise of ``verify.match`` at the position; for ``match`` only.
        allowed: mask over target ids, as in :func:`sample`.
        allowed_rows: ``[R]`` int32 or int64, row of ``allowed``, -1 = unrestricted; None: row ``r``.
        draft_to_target: ``[V_draft]`` int32 or int64, target id of each draft id; a negative one
            does not exist. Order and noise are those of the target ids.
        min_confidence: ``[B]`` float32; NaN: no stop.
        max_entropy: ``[B]`` float32, nats; NaN: no stop.
        status: ``[R]`` int32, overwritten with 1 (NaN), 2 (nothing to draw), 8 (request out of
            range).
        certainty: ``[R, 2]`` float32, receives ``max q`` and the entropy, 0 where there is no law.
        out: ``[R, num]`` int64 to write into.
        margin: ``[R]`` float64, receives the smallest margin of the decisions (inf: none).

    Returns:
        ``[R, num]`` int64 target ids, -1 where fewer exist and in rows that stop.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or range.

    Deterministic, independent of the batch. Reads values on the host: not for CUDA graphs.
    """
    op = "sample.draft"
    checks.logits(op, "logits", logits)
    count, columns = logits.shape
    batch = checks.sampling(op, "sampling", sampling, count if requests is None else "B")
    checks.tensor(op, "positions", positions, (count,))
    for name, value in (("requests", requests), ("depths", depths), ("nodes", nodes)):
        checks.optional(op, name, value, count)
    checks.integer(op, "num", num, 1, 256)
    checks.integer(op, "top", top, 0, num)
    checks.optional(op, "draft_to_target", draft_to_target, columns)
    checks.law(op, allowed, allowed_rows, count, columns if draft_to_target is None else None)
    checks.optional(op, "min_confidence", min_confidence, batch, (torch.float32,))
    checks.optional(op, "max_entropy", max_entropy, batch, (torch.float32,))
    ids, column = torch.arange(columns), torch.arange(columns)
    if draft_to_target is not None:
        ids, column = torch.sort(draft_to_target.detach().cpu().long(), stable=True)
        ids, column = ids[ids >= 0], column[ids >= 0]
    drafts = torch.full((count, num), -1, dtype=torch.int64)
    flags = torch.zeros(count, dtype=torch.int32)
    certain = torch.zeros(count, 2, dtype=torch.float64)
    looks = any(given is not None for given in (min_confidence, max_entropy, certainty))
    if margin is not None:
        margin.fill_(torch.inf)
    every = law.all_settings(sampling)
    for r in range(count):
        request = r if requests is None else int(requests[r])
        if not 0 <= request < batch:
            flags[r] = 0 if request == -1 else MALFORMED
            continue
        s, near = every[request], Margin(margin is not None)
        row = law.read_row(logits[r])
        mask = law.allowed_mask(allowed, allowed_rows, r, ids)
        values = row.logits[column]
        values = values if mask is None else values.masked_fill(~mask, -torch.inf)
        depth, node = (0 if x is None else int(x[r]) for x in (depths, nodes))
        place = Place(s.seed, int(positions[r]), DRAFT, depth, node)
        chosen: list[int] = []
        dead = not values.numel() or law.best(values) < 0
        if not dead:
            stops = False
            if looks:
                sure = law.weights(values, law.PLAIN if s.greedy else s).normalised()
                best = int(sure.w.argmax())
                certain[r] = torch.stack((sure.w[best], law.entropy(sure)))
                stops = law.is_unlikely(sure, best, min_confidence, request, near)
                stops |= law.is_uncertain(sure, max_entropy, request, near)
            if not stops:
                chosen = _children(values, ids, s, place, num, top, replacement, coupled, near)
        drafts[r, : len(chosen)] = ids[chosen]
        flags[r] = NAN * row.has_nan | DEAD_END * dead
        if margin is not None:
            margin[r] = near.value
    if status is not None:
        status.copy_(flags)
    if certainty is not None:
        certainty.copy_(certain)
    return _give(drafts, out, logits)


def _children(
    logits: Tensor,
    ids: Tensor,
    s: Settings,
    place: Place,
    num: int,
    top: int,
    replacement: bool,
    coupled: bool,
    margin: Margin,
) -> list[int]:
    """The entries drawn at one node that is no dead end, in draw order."""
    if s.greedy:
        return [int(entry) for entry in law.ranking(logits)[:num]]
    mass = law.weights(logits, s)
    chosen: list[int] = []
    if top:
        best = law.ranking(logits)[:top]
        margin.of_cut(mass, best)
        chosen = [int(entry) for entry in best if mass.w[entry] > 0]
        mass = mass.without(chosen)
    left = num - len(chosen)
    if not replacement and not coupled:
        return chosen + race.order_of(mass, place, left, margin, ids)
    for k in range(left):
        if coupled:
            again = Place(place.seed, place.position, TARGET)
        else:
            again = place._replace(draw=k)
        entry = race.two_level(mass, again, margin, ids)
        if entry < 0:
            break
        chosen.append(entry)
        if coupled:
            mass = mass.without([entry])
    return chosen
