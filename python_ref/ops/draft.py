"""Draft-side helpers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..types import MALFORMED, PAGE_OUT_OF_RANGE, Block, Expansion
from . import checks, elementary, law
from .mass import Margin
from .paging import Table, check_pages

#: Most children of a beam, and most beams of a request.
MAX_EXPAND = 64

#: Bits of a gain behind the point, and the score below which it is 0.
GAIN_BITS, LEAST_GAIN = 40, -30.0


def _continuation(text: Tensor, n: int, num: int) -> Tensor | None:
    """What followed the last ``n`` tokens where they stood before.

    Taken from the most recent occurrence that has ``num`` tokens after it; if none has, from the
    earliest, which has the most. None without an occurrence.
    """
    length = text.numel()
    windows = text[:-1].unfold(0, n, 1)  # one per start; the last ends before the text does
    starts = (windows == text[length - n :]).all(1).nonzero().flatten()
    if not starts.numel():
        return None
    full = starts[starts + n + num <= length]
    start = int(full[-1] if full.numel() else starts[0]) + n
    return text[start : start + num]


def ngram_lookup(
    history: Tensor,
    lengths: Tensor,
    min_n: int = 1,
    max_n: int = 4,
    num: int = 7,
    *,
    active: Tensor | None = None,
    out: Any = None,
) -> tuple[Tensor, Tensor]:
    """Prompt lookup: the continuation of the longest suffix that stood in the text before.

    Args:
        history: ``[B, L]`` int32 or int64, prompt and generated tokens.
        lengths: ``[B]`` int32 or int64, valid tokens, clipped to ``[0, L]``.
        min_n: shortest suffix, at least 1.
        max_n: longest suffix, tried first.
        num: drafts wanted, at least 1.
        active: ``[B]`` bool; others get no drafts.
        out: ``(drafts, counts)`` to write into.

    Returns:
        ``drafts [B, num]`` in the dtype of ``history``, -1 beyond ``counts [B]`` int32.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or range.

    Deterministic. Reads values on the host: not for CUDA graphs.
    Source: Saxena 2023, prompt lookup decoding.
    """
    op = "draft.ngram_lookup"
    checks.tensor(op, "history", history, ("B", "L"))
    batch, width = history.shape
    checks.tensor(op, "lengths", lengths, (batch,))
    checks.integer(op, "min_n", min_n, 1)
    checks.integer(op, "max_n", max_n, min_n)
    checks.integer(op, "num", num, 1)
    checks.optional(op, "active", active, batch, (torch.bool,))
    drafts = torch.full((batch, num), -1, dtype=history.dtype)
    counts = torch.zeros(batch, dtype=torch.int32)
    for b in range(batch):
        if active is not None and not active[b]:
            continue
        length = min(max(int(lengths[b]), 0), width)
        text = history[b, :length].cpu()
        for n in range(min(max_n, length - 1), min_n - 1, -1):
            found = _continuation(text, n, num)
            if found is not None:
                drafts[b, : found.numel()] = found
                counts[b] = found.numel()
                break
    if out is None:
        return drafts.to(history.device), counts.to(history.device)
    out[0].copy_(drafts)
    out[1].copy_(counts)
    return out[0], out[1]


def expand(
    logits: Tensor,
    scores: Tensor | None,
    num: int,
    beams: int,
    *,
    draft_to_target: Tensor | None = None,
    min_confidence: Tensor | None = None,
    max_entropy: Tensor | None = None,
    out: Any = None,
    margin: Tensor | None = None,
) -> Expansion:
    """One level of an EAGLE-2 tree: the best children of each beam, and the best beams among all of them.

    Row ``r`` of the logits is beam ``r % W`` of request ``r // W``. Its children are its ``num`` best ids in the order
    (larger logit, then lower id); the score of a child is that of its beam plus its log-probability, in float32. A
    child less probable than ``min_confidence`` does not exist, nor do those of a row of more than ``max_entropy``.

    Args:
        logits: ``[B * W, V]`` of a float dtype; NaN counts as -inf, +inf as the largest float32.
        scores: ``[B, W]`` float32, log-probability of the path to each beam; -inf or NaN: there is no such beam.
            None: ``W`` is 1, and all are 0.
        num: children of a beam, 1 to 64.
        beams: beams of the next level, 1 to 64.
        draft_to_target: ``[V]`` int32 or int64, absolute target id of each draft id; one that is no token leaves the
            child out.
        min_confidence: ``[B]`` float32; NaN: no bound.
        max_entropy: ``[B]`` float32, nats; NaN: no bound.
        out: an ``Expansion`` to write into.
        margin: ``[B]`` float64, receives how small a relative change of two scores (absolute, below 1) or of the
            probabilities could change what there is.

    Returns:
        An :class:`Expansion`. Children that do not exist have token -1 and score -inf; ``beams`` are columns in the
        order (larger score, then lower column).

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or range.

    Deterministic. Reads values on the host: not for CUDA graphs.
    Source: EAGLE-2, Li et al. 2024 (arXiv 2406.16858).
    """
    op = "draft.expand"
    checks.logits(op, "logits", logits)
    rows, vocab = logits.shape
    if scores is not None:
        checks.tensor(op, "scores", scores, ("B", "W"), (torch.float32,))
        if scores.shape[1] > MAX_EXPAND:
            raise ValueError(f"{op}: scores must have at most {MAX_EXPAND} columns, got {scores.shape[1]}")
    batch, width = (rows, 1) if scores is None else scores.shape
    if rows != batch * width:
        raise ValueError(f"{op}: logits must have {batch * width} rows, got {rows}")
    checks.integer(op, "num", num, 1, MAX_EXPAND)
    checks.integer(op, "beams", beams, 1, MAX_EXPAND)
    checks.optional(op, "draft_to_target", draft_to_target, vocab)
    checks.optional(op, "min_confidence", min_confidence, batch, (torch.float32,))
    checks.optional(op, "max_entropy", max_entropy, batch, (torch.float32,))
    tokens = torch.full((batch, width * num), -1, dtype=torch.int64)
    exact = torch.full((batch, width * num), -math.inf, dtype=torch.float64)
    near = [Margin(margin is not None) for _ in range(batch)]
    for r in range(rows):
        b, w = divmod(r, width)
        above = 0.0 if scores is None else float(scores[b, w])
        row = law.read_row(logits[r]).logits
        best = law.ranking(row)[:num]
        if not above > -math.inf or not best.numel():
            continue
        if min_confidence is not None or max_entropy is not None:
            p = law.weights(row, law.PLAIN).normalised()
            if law.is_uncertain(p, max_entropy, b, near[b]):
                continue
            best = best[[not law.is_unlikely(p, int(entry), min_confidence, b, near[b]) for entry in best]]
        ids = best if draft_to_target is None else draft_to_target.cpu().long()[best]
        row = row - row.max()
        reached = above + (row[best] - row.exp().sum().log())
        there = (ids >= 0) & (ids < 2**31) & (reached.float() > -math.inf)
        columns = slice(w * num, w * num + best.numel())
        tokens[b, columns] = torch.where(there, ids, -1)
        exact[b, columns] = torch.where(there, reached, -math.inf)
    given = exact.float()
    chosen = torch.full((batch, beams), -1, dtype=torch.int32)
    for b in range(batch):
        order = law.ranking(given[b].double())
        chosen[b, : min(beams, order.numel())] = order[:beams]
        if margin is not None:
            ranked = exact[b, order]
            scale = torch.maximum(ranked[:-1].abs(), ranked[1:].abs()).clamp(min=1.0)
            gaps = (-ranked.diff() / scale).nan_to_num(0.0)[:beams].tolist()
            # Scores that are equal to the last bit are equal everywhere.
            margin[b] = min((gap for gap in gaps if gap), default=math.inf)
            margin[b] = min(float(margin[b]), near[b].value)
    made = Expansion(tokens, given, chosen)
    if out is None:
        return Expansion(*(field.to(logits.device) for field in made))
    for ours, theirs in zip(out, made, strict=True):
        ours.copy_(theirs)
    return out  # type: ignore[no-any-return]


def block(
    tokens: Tensor,
    num_tokens: Tensor,
    context_lens: Tensor,
    mask_token: int,
    block_size: int,
    *,
    block_table: Tensor | None = None,
    page_size: int | None = None,
    table_rows: Tensor | None = None,
    active: Tensor | None = None,
    status: Tensor | None = None,
    out: Any = None,
) -> Block:
    """The next block of each request: its newest token and mask tokens behind it.

    Args:
        tokens: ``[B, W]`` int32 or int64, what verification emitted.
        num_tokens: ``[B]`` int32, how many; outside ``[0, W]`` it is clamped, status 8; 0: no block.
        context_lens: ``[B]`` int32 or int64, committed positions before; below 0 counts as 0, status 8.
        mask_token: id of a position to be guessed.
        block_size: entries of a block.
        block_table: ``[B, max_pages]`` int32 or int64 page ids; ``[rows, max_pages]`` with ``table_rows``.
        page_size: positions of a page, given with ``block_table``.
        table_rows: ``[B]`` int32 or int64, row of the block table of each request.
        active: ``[B]`` bool; other requests have no block.
        status: ``[B]`` int32, receives status bits: 8, and 16 where a position has no slot.
        out: a block to write into.

    Returns:
        The blocks; where there is none, ids and slots are -1 and positions 0.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or range.

    Deterministic. Reads values on the host: not for CUDA graphs.
    """
    op = "draft.block"
    checks.tensor(op, "tokens", tokens, ("B", "W"))
    batch, width = tokens.shape
    checks.tensor(op, "num_tokens", num_tokens, (batch,), (torch.int32,))
    checks.tensor(op, "context_lens", context_lens, (batch,))
    checks.integer(op, "mask_token", mask_token, 0, 2**31 - 1)
    checks.integer(op, "block_size", block_size, 1)
    checks.optional(op, "active", active, batch, (torch.bool,))
    checks.optional(op, "status", status, batch, (torch.int32,))
    if block_table is not None:
        check_pages(op, block_table, table_rows, context_lens, batch)
    roots = torch.full((batch,), -1)
    ids, positions, slots = torch.full((batch, block_size), -1), torch.zeros(batch, block_size).long(), None
    if block_table is not None:
        slots = torch.full_like(ids, -1)
    lengths, flags = context_lens.clone().cpu(), [0] * batch
    most = torch.iinfo(lengths.dtype).max
    for b in range(batch):
        if active is not None and not bool(active[b]):
            continue
        count, context = min(max(int(num_tokens[b]), 0), width), int(context_lens[b])
        flags[b] = MALFORMED * (count != int(num_tokens[b]) or context < 0)
        if count == 0:
            continue
        begin = min(max(context, 0), (2**63 - 1) // 2) + count
        lengths[b] = min(begin, most)
        root = int(tokens[b, count - 1])
        if not 0 <= root < 2**31:
            continue
        roots[b] = root
        ids[b, 0], ids[b, 1:] = root, mask_token
        positions[b] = begin + torch.arange(block_size)
        if block_table is not None and page_size is not None and slots is not None:
            pages = (2**63 - 1) // page_size
            page, offset, there = Table(block_table, table_rows, b).locate(positions[b], pages, page_size)
            slots[b] = torch.where(there, page * page_size + offset, -1)
            flags[b] |= PAGE_OUT_OF_RANGE * bool((~there).any())
    if status is not None:
        status.copy_(torch.tensor(flags, dtype=torch.int32))
    made = Block(roots.to(tokens), ids.to(tokens), positions.to(tokens.device), slots, lengths.to(tokens.device))
    if slots is not None:
        made = made._replace(slots=slots.to(tokens.device))
    if out is None:
        return made
    for old, new in zip(out, made, strict=True):
        if new is not None:
            old.copy_(new)
    return out  # type: ignore[no-any-return]


def gains(scores: Tensor) -> Tensor:
    """``exp(score)`` of scores up to 0, in units of ``2 ** -GAIN_BITS``, int64."""
    exact = elementary.exp(scores.double().clamp(min=LEAST_GAIN)) * 2.0**GAIN_BITS
    return torch.where(scores < LEAST_GAIN, 0, (exact + 0.5).long())


def budget(
    scores: Tensor,
    costs: Tensor,
    *,
    active: Tensor | None = None,
    sampled: bool = False,
    out: Any = None,
) -> Tensor:
    """How many drafts of each request to verify in a step, by what they are expected to bring and what they cost.

    Args:
        scores: ``[B, N]`` float32, log-probability that a candidate is accepted, with all before it on its path; above
            0 counts as 0, -inf and NaN: no candidate.
        costs: ``[C]`` float32, time of a step of the batch with ``n`` drafts; one that is not above 0 and finite is
            never chosen.
        active: ``[B]`` bool; others have no candidates and emit no token.
        sampled: stop at the first draft that does not raise the tokens per time; else the best number of all.
        out: ``[B]`` int32 to write into.

    Returns:
        ``counts [B]`` int32, the candidates of each request among the first ``n`` of all, in the order (larger score,
        then lower request, then lower column).

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or range.

    Deterministic: gains are integers. Reads values on the host: not for CUDA graphs.
    Source: TurboSpec, Liu et al. 2024 (arXiv 2406.14066).
    """
    op = "draft.budget"
    checks.tensor(op, "scores", scores, ("B", "N"), (torch.float32,))
    batch, width = scores.shape
    checks.tensor(op, "costs", costs, ("C",), (torch.float32,))
    if costs.shape[0] < 1:
        raise ValueError(f"{op}: costs must have at least one element, got shape [0]")
    checks.optional(op, "active", active, batch, (torch.bool,))
    times = costs.double().tolist()
    at_work = torch.ones(batch, dtype=torch.bool) if active is None else active.cpu()
    given = scores.cpu().clamp(max=0.0)
    there = (given > -math.inf) & at_work.unsqueeze(1)
    candidates = there.flatten().nonzero().flatten()
    order = candidates[given.flatten()[candidates].sort(descending=True, stable=True).indices]
    order = order[: len(times) - 1]

    def value(n: int, tokens: int) -> float:
        return tokens / times[n] if 0.0 < times[n] < math.inf else -1.0

    tokens = int(at_work.sum()) << GAIN_BITS
    best, largest = 0, value(0, tokens)
    before = largest
    for n, gain in enumerate(gains(given.flatten()[order]).tolist(), 1):
        tokens += gain
        now = value(n, tokens)
        if sampled and not now > before:
            break
        if now > largest:
            best, largest = n, now
        before = now
    counts = torch.zeros(batch, dtype=torch.int32)
    for index in order[:best].tolist():
        counts[index // width] += 1
    if out is None:
        return counts.to(scores.device)
    out.copy_(counts)
    return out  # type: ignore[no-any-return]
