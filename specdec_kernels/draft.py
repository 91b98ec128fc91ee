"""Draft-side helpers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _backend, _validate
from .types import Block, Expansion

__all__ = ["block", "budget", "expand", "ngram_lookup"]

#: Most children of a beam, and most beams of a request.
MAX_EXPAND = 64

LARGEST_TOKEN = 2**31 - 1

#: Most requests, elements of ``scores``, and elements of ``costs`` of :func:`budget`.
MOST_REQUESTS, MOST_SCORES, MOST_COSTS = 2**22, 2**31 - 1, 2**22


def ngram_lookup(
    history: Tensor,
    lengths: Tensor,
    min_n: int = 1,
    max_n: int = 4,
    num: int = 7,
    *,
    active: Tensor | None = None,
    backend: str | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Prompt lookup: what followed when the last tokens stood in the text before.

    For ``n`` from ``max_n`` down to ``min_n`` the last ``n`` tokens are looked up in the history
    before them; the first ``n`` with an occurrence wins. Among its occurrences the most recent one
    that is followed by at least ``num`` tokens is taken; if there is none, the earliest, whose
    continuation is the longest.

    Args:
        history: ``[B, L]`` int32 or int64, prompt and generated tokens, any row stride.
        lengths: ``[B]`` int32 or int64, valid tokens of each row; clipped to ``[0, L]``.
        min_n: shortest suffix, at least 1.
        max_n: longest suffix, at least ``min_n``.
        num: drafts wanted, at least 1.
        active: ``[B]`` bool; other requests get no drafts.
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``(drafts, counts)`` of an earlier call of the same shape, written in place.

    Returns:
        ``drafts [B, num]`` in the dtype of ``history``, -1 beyond ``counts``, and ``counts [B]``
        int32.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    Deterministic. CUDA-graph safe. Complexity: ``O(L * max_n)`` per request at worst.
    Source: prompt lookup decoding (Saxena 2023).
    """
    op = "draft.ngram_lookup"

    def check() -> None:
        _validate.tensor(op, "history", history, ("B", "L"), _validate.INDICES)
        batch, device = history.shape[0], history.device
        if history.shape[1] > 1 and history.stride(1) != 1:
            raise ValueError(f"{op}: history must have unit stride in the last dimension, got {history.stride(1)}")
        _validate.tensor(op, "lengths", lengths, (batch,), _validate.INDICES, device)
        _validate.integer(op, "min_n", min_n, 1)
        _validate.integer(op, "max_n", max_n, min_n)
        _validate.integer(op, "num", num, 1)
        _validate.batch_options(op, active, None, batch, device)
        if out is not None:
            if not isinstance(out, (tuple, list)) or len(out) != 2:
                raise TypeError(f"{op}: out must be a pair of tensors, got {type(out).__name__}")
            _validate.output(op, "out[0]", out[0], (batch, num), (history.dtype,), device)
            _validate.output(op, "out[1]", out[1], (batch,), _validate.INT32, device)

    def launch(kernel: Callable[..., None]) -> tuple[Tensor, Tensor]:
        _validate.integer(op, "num", num, 1)
        if bool in (type(min_n), type(max_n)):
            check()
        batch = history.shape[0]
        if out is None:
            drafts, counts = history.new_empty(batch, num), lengths.new_empty(batch, dtype=torch.int32)
        else:
            drafts, counts = out
            _validate.tensor(op, "out[0]", drafts, (batch, num), (history.dtype,), history.device)
        kernel(history, lengths, min_n, max_n, active, drafts, counts)
        return drafts, counts

    return _backend.run("draft_ngram_lookup", backend, history, check, launch)


def expand(
    logits: Tensor,
    scores: Tensor | None,
    num: int,
    beams: int,
    *,
    draft_to_target: Tensor | None = None,
    min_confidence: Tensor | None = None,
    max_entropy: Tensor | None = None,
    backend: str | None = None,
    out: Expansion | None = None,
) -> Expansion:
    """One level of an EAGLE-2 tree: the best children of each beam, and the best beams of the next level.

    Row ``r`` of the logits is beam ``r % W`` of request ``r // W``. Its children are its ``num`` best ids in the order
    (larger logit, then lower id), with the score of the beam plus the log-probability of the id. NaN counts as -inf,
    +inf as the largest finite float.

    Args:
        logits: ``[R, V]`` float32, bfloat16 or float16, any row stride; ``R = B * W``.
        scores: ``[B, W]`` float32, any strides, log-probability of the path to each beam, ``W`` at most 64; -inf or
            NaN: there is no such beam, and its row is not read. None: the first level, ``W = 1`` and all are 0.
        num: children of each beam, 1 to 64.
        beams: beams of the next level, 1 to 64.
        draft_to_target: ``[V]`` int32 or int64, absolute target id of each draft id. Children are chosen by draft ids,
            and mapped at the end; one without a target id (negative) does not exist. None: draft ids are target ids.
        min_confidence: ``[B]`` float32; a child whose probability under its row is smaller does not exist. NaN or
            None: no such bound.
        max_entropy: ``[B]`` float32; a beam whose row has a larger entropy, in nats, has no children. NaN or None: no
            such bound.
        backend: see :func:`specdec_kernels.use_backend`.
        out: an expansion made by an earlier call of the same shape, written in place.

    Returns:
        :class:`Expansion`: ``tokens [B, W*num]`` int64 and ``scores [B, W*num]`` float32 of all children, those of beam
        ``w`` in columns ``w*num`` and following, -1 and -inf where fewer exist; ``beams [B, beams]`` int32, the columns
        of the best children of each request by (larger score, then lower column), -1 where fewer exist.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    Deterministic; independent of the batch. CUDA-graph safe. Complexity: one read of each row, and another one of the
    blocks of 4,096 ids in which the best stand; ``max_entropy`` looks at each row once more.
    The children are deterministic drafts, so that leaving out some of them biases nothing.
    Source: EAGLE-2, Li et al. 2024, arXiv 2406.16858, section 4.1; entropy: SVIP, Zhang et al. 2024, arXiv 2411.18462.
    """
    op = "draft.expand"

    def check() -> None:
        _validate.rows(op, "logits", logits, ("R", "V"), None)
        count, device = logits.shape[0], logits.device
        batch, width = count, 1
        if scores is not None:
            _validate.tensor(op, "scores", scores, ("B", "W"), _validate.FLOAT32, device)
            batch, width = scores.shape
            if width > MAX_EXPAND:
                raise ValueError(f"{op}: scores must have at most {MAX_EXPAND} columns, got {width}")
            if count != batch * width:
                raise ValueError(f"{op}: logits must have {batch * width} rows, got {count}")
        check_host()
        if draft_to_target is not None:
            _validate.tensor(op, "draft_to_target", draft_to_target, (logits.shape[1],), _validate.INDICES, device)
        _validate.stops(op, min_confidence, max_entropy, batch, device)
        if out is not None:
            if not hasattr(out, "beams"):
                raise TypeError(f"{op}: out must be an Expansion, got {type(out).__name__}")
            _validate.output(op, "out.tokens", out.tokens, (batch, width * num), _validate.INT64, device)
            _validate.output(op, "out.scores", out.scores, (batch, width * num), _validate.FLOAT32, device)
            _validate.output(op, "out.beams", out.beams, (batch, beams), _validate.INT32, device)

    def check_host() -> None:
        _validate.integer(op, "num", num, 1, MAX_EXPAND)
        _validate.integer(op, "beams", beams, 1, MAX_EXPAND)

    def launch(kernel: Callable[..., None]) -> Expansion:
        check_host()
        batch, width = (logits.shape[0], 1) if scores is None else scores.shape
        if out is None:
            tokens = logits.new_empty(batch, width * num, dtype=torch.int64)
            reached = logits.new_empty(batch, width * num, dtype=torch.float32)
            columns = logits.new_empty(batch, beams, dtype=torch.int32)
        else:
            tokens, reached, columns = out
            if columns.shape[1] != beams:
                check()
        kernel(logits, scores, num, draft_to_target, min_confidence, max_entropy, tokens, reached, columns)
        return Expansion(tokens, reached, columns)

    return _backend.run("draft_expand", backend, logits, check, launch)


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
    backend: str | None = None,
    out: Block | None = None,
) -> Block:
    """From a verification to the inputs of the next block of a block drafter, without a look at them on the host.

    The root of request ``b`` is the last token that verification emitted, ``tokens[b, num_tokens[b] - 1]``; it stands
    at position ``context_lens[b] + num_tokens[b]``, which is also the length of the context from now on. The block is
    the root and ``block_size - 1`` mask tokens behind it.

    Example: the context is 100 and the tokens are ``[7, 8, -1]``, ``num_tokens`` 2: with a block of 4 the ids are
    ``[8, mask, mask, mask]`` at the positions ``[102, 103, 104, 105]``, and the context is 102.

    Args:
        tokens: ``[B, W]`` int32 or int64, as ``VerifyResult.tokens``, any strides.
        num_tokens: ``[B]`` int32, as ``VerifyResult.num_tokens``; outside ``[0, W]`` it is clamped, status 8. 0: the
            request is idle: no block, and its context stays what it was.
        context_lens: ``[B]`` int32 or int64, committed positions before. Below 0 counts as 0, status 8.
        mask_token: the id that stands for a position to be guessed, 0 to 2^31 - 1.
        block_size: entries of a block with its root, at least 1.
        block_table: ``[B, max_pages]`` int32 or int64 page ids of the drafter's cache; ``[rows, max_pages]`` with
            ``table_rows``. None: no slots.
        page_size: positions of a page, a power of two; given with ``block_table``.
        table_rows: ``[B]`` int32 or int64, row of ``block_table`` of each request.
        active: ``[B]`` bool; other requests are idle.
        status: ``[B]`` int32, is overwritten with bits of :class:`~specdec_kernels.types.Status`: 8, and 16 where a
            position lies outside the table or in a page below 0 (its slot is -1).
        backend: see :func:`specdec_kernels.use_backend`.
        out: a block made by an earlier call of the same shape, written in place. Its ``context_lens`` may be the
            ``context_lens`` of the call, which are then advanced.

    Returns:
        :class:`Block`: ``roots [B]`` and ``ids [B, block_size]`` in the dtype of the tokens, ``positions`` and
        ``slots [B, block_size]`` int64 (a slot is ``page * page_size + offset``; None without a table), and
        ``context_lens [B]`` in the dtype of those given. Where there is no block, ids and slots are -1 and positions 0:
        an idle request, or one whose last token is none (a dead end, -1), whose context is advanced all the same.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    Deterministic; the same on every backend. CUDA-graph safe.
    Complexity: one write of the result; one launch.
    Source: DFlash, Chen et al. 2026, arXiv 2602.06036.
    """
    op = "draft.block"

    def check() -> None:
        _validate.tensor(op, "tokens", tokens, ("B", "W"), _validate.INDICES)
        batch, device = tokens.shape[0], tokens.device
        _validate.tensor(op, "num_tokens", num_tokens, (batch,), _validate.INT32, device)
        _validate.tensor(op, "context_lens", context_lens, (batch,), _validate.INDICES, device)
        check_host()
        if block_table is not None:
            _validate.pages(op, block_table, table_rows, context_lens, batch, device)
        _validate.options(op, active, status, batch, device)
        if out is None:
            return
        if not hasattr(out, "ids"):
            raise TypeError(f"{op}: out must be a Block, got {type(out).__name__}")
        shape = (batch, block_size)
        _validate.output(op, "out.roots", out.roots, (batch,), (tokens.dtype,), device)
        _validate.output(op, "out.ids", out.ids, shape, (tokens.dtype,), device)
        _validate.output(op, "out.positions", out.positions, shape, _validate.INT64, device)
        if (out.slots is None) != (block_table is None):
            wanted, got = ("None without", "a tensor") if block_table is None else ("given with", "None")
            raise ValueError(f"{op}: out.slots must be {wanted} block_table, got {got}")
        _validate.output(op, "out.slots", out.slots, shape, _validate.INT64, device)
        _validate.output(op, "out.context_lens", out.context_lens, (batch,), (context_lens.dtype,), device)

    def check_host() -> None:
        _validate.integer(op, "mask_token", mask_token, 0, LARGEST_TOKEN)
        _validate.integer(op, "block_size", block_size, 1)
        for name, value in (("page_size", page_size), ("table_rows", table_rows)):
            if value is not None and block_table is None:
                raise ValueError(f"{op}: block_table must be given with {name}, got None")
        if block_table is None:
            return
        if page_size is None:
            raise ValueError(f"{op}: page_size must be given with block_table, got None")
        _validate.integer(op, "page_size", page_size, 1)
        if page_size & (page_size - 1):
            raise ValueError(f"{op}: page_size must be a power of two, got {page_size}")

    def launch(kernel: Callable[..., None]) -> Block:
        check_host()
        batch = tokens.shape[0]
        made = out
        if made is None:
            positions = tokens.new_empty(batch, block_size, dtype=torch.int64)
            made = Block(
                tokens.new_empty(batch),
                tokens.new_empty(batch, block_size),
                positions,
                None if block_table is None else torch.empty_like(positions),
                context_lens.new_empty(batch),
            )
        elif made.ids.shape[1] != block_size:
            check()
        flags = status
        if flags is None and _validate.DEBUG:
            flags = tokens.new_empty(batch, dtype=torch.int32)
        size = 0 if page_size is None else page_size
        kernel(tokens, num_tokens, context_lens, mask_token, block_table, table_rows, size, active, *made, flags)
        _validate.raise_on_bad_data(op, flags)
        return made

    return _backend.run("draft_block", backend, tokens, check, launch)


def budget(
    scores: Tensor,
    costs: Tensor,
    *,
    active: Tensor | None = None,
    sampled: bool = False,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """How many drafts of each request to verify: those whose expected tokens are worth the time that they cost.

    The candidates of all active requests stand in one order: larger score first, then lower request, then lower column.
    With the first ``n`` of them a step is expected to emit ``active requests + sum of exp(score)`` tokens and takes
    ``costs[n]``; the ``n`` whose tokens per time are the most is chosen (of equal ones the smallest), and
    each request gets as many drafts as it has candidates among the first ``n``.

    Example: two requests, ``exp(scores) = [[0.9, 0.5], [0.7, 0.1]]``, ``costs = [10, 11, 12, 14, 20]``. In order the
    gains are 0.9, 0.7, 0.5, 0.1, and the tokens per time of 0 to 4 drafts 2/10, 2.9/11, 3.6/12, 4.1/14, 4.2/20: the
    best are 2 drafts (0.3), one for each request.

    The scores of a path must not rise. The admitted candidates of a chain are then its first ones, and those of a tree
    are closed, because a child never comes before its parent; of equal scores the lower column comes first, so
    parents stand in lower columns. Otherwise the counts are those of the same order all the same.

    Args:
        scores: ``[B, N]`` float32, any strides: log-probability that a candidate is accepted, all before it on its path
            included (a chain: the cumulative sum; a tree: as ``Expansion.scores``, or ``scores=`` of
            ``tree.best_first``). Above 0 counts as 0; -inf and NaN: no candidate. At most 2^22 rows, 2^31 - 1 elements.
        costs: ``[C]`` float32, any stride, ``C`` from 1 to 2^22: time of a step of the whole batch with ``n`` drafts, in
            any unit, roots not counted: ``costs[0]`` is plain decoding. No more than ``C - 1`` drafts are admitted. A
            cost that is not above 0 and finite is never chosen; where none can be, no drafts are admitted.
        active: ``[B]`` bool; other requests have no candidates, emit no token, and get 0.
        sampled: for drafts that are drawn at random: the first ``n`` after which one more draft does not raise the tokens
            per time, or has no usable cost. Then nothing that comes later in the order decides whether a draft stays;
            if its score is a function of the laws up to its own, not of the token that was drawn, and the requests
            have seeds of their own (``Sampling.of`` with a list), the law of each text is unchanged. False: the best of
            all ``n``; for drafts that are a function of the text (n-grams, the best ids), for which every choice is
            lossless.
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``[B]`` int32, contiguous, written in place.

    Returns:
        ``counts [B]`` int32: drafts of each request. For a chain this is the length of the prefix to verify, for a tree
        the number of nodes below its root: ``counts + 1`` is the ``budget`` of ``tree.from_beams`` and
        ``tree.best_first``, and the ``lengths`` of ``tree.from_chains``.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    Deterministic; the same on every backend: gains are added as integers, multiples of 2^-40. CUDA-graph safe; counts
    and costs never reach the host. Complexity: a sort of the candidates, and one pass over the first ``C - 1``.
    Source: goodput, TurboSpec, Liu et al. 2024, arXiv 2406.14066.
    """
    op = "draft.budget"

    def check() -> None:
        _validate.tensor(op, "scores", scores, ("B", "N"), _validate.FLOAT32)
        batch, device = scores.shape[0], scores.device
        if batch > MOST_REQUESTS:
            raise ValueError(f"{op}: scores must have at most {MOST_REQUESTS} rows, got {batch}")
        if scores.numel() > MOST_SCORES:
            raise ValueError(f"{op}: scores must have at most {MOST_SCORES} elements, got shape {list(scores.shape)}")
        _validate.tensor(op, "costs", costs, ("C",), _validate.FLOAT32, device)
        if not 1 <= costs.shape[0] <= MOST_COSTS:
            raise ValueError(f"{op}: costs must have between 1 and {MOST_COSTS} elements, got {costs.shape[0]}")
        _validate.batch_options(op, active, None, batch, device)
        _validate.flag(op, "sampled", sampled)
        _validate.output(op, "out", out, (batch,), _validate.INT32, device)

    def launch(kernel: Callable[..., None]) -> Tensor:
        if type(sampled) is not bool:
            check()
        counts = scores.new_empty(scores.shape[0], dtype=torch.int32) if out is None else out
        kernel(scores, costs, active, sampled, counts)
        return counts

    return _backend.run("draft_budget", backend, scores, check, launch)
