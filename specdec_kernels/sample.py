"""Sampling straight from logits: plain decoding and drafting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _backend, _validate
from ._schema import FILTER_ORDERS
from .types import Sampling

__all__ = ["draft", "sample"]

#: The draw has eight bits in the counter of the generator.
MAX_DRAWS = 256


def sample(
    logits: Tensor,
    sampling: Sampling,
    positions: Tensor,
    *,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
    active: Tensor | None = None,
    status: Tensor | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One token per request from its processed law: plain decoding.

    The token depends on nothing but the row, the request's settings, its seed and the position;
    ``verify.match`` draws the same token at the same position.

    Args:
        logits: ``[B, V]`` float32, bfloat16 or float16, any row stride.
        sampling: settings per request.
        positions: ``[B]`` int32 or int64, absolute position of the token to be drawn.
        allowed: ``[rows, ceil(V/32)]`` int32, bit ``i`` of word ``w`` is set iff id ``32w+i`` may
            be drawn; None: all may.
        allowed_rows: ``[B]`` int32 or int64, row of ``allowed`` of each request, -1 = unrestricted.
            None: row ``b``.
        active: ``[B]`` bool; a request that is not active gets -1 and is not read.
        status: ``[B]`` int32, receives the bits of :class:`Status`; None: not reported.
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``[B]`` int64 of any stride, written in place.

    Returns:
        ``[B]`` int64; -1 where no token is allowed (status 2).

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Deterministic; independent of the batch. CUDA-graph safe. Reads each row once; further reads
    only under filters.
    Source: two-level exponential race over Philox-4x32-10 (docs/randomness.md).
    """
    op = "sample.sample"

    def check() -> None:
        _validate.rows(op, "logits", logits, ("B", "V"), None)
        batch, vocab = logits.shape
        device = logits.device
        _validate.sampling(op, "sampling", sampling, batch, device)
        _validate.tensor(op, "positions", positions, (batch,), _validate.INDICES, device)
        _validate.law(op, allowed, allowed_rows, batch, vocab, device)
        _validate.batch_options(op, active, None, batch, device)
        _validate.output(op, "status", status, (batch,), _validate.INT32, device, strided=True)
        _validate.output(op, "out", out, (batch,), _validate.INT64, device, strided=True)

    def launch(kernel: Callable[..., None]) -> Tensor:
        batch = logits.shape[0]
        token = positions.new_empty(batch, dtype=torch.int64) if out is None else out
        flags = positions.new_empty(batch, dtype=torch.int32) if status is None else status
        order = FILTER_ORDERS.index(sampling.filter_order)
        kernel(logits, *sampling[:5], order, positions, allowed, allowed_rows, active, token, flags)
        _validate.raise_on_bad_data(op, flags)
        return token

    return _backend.run("sample_sample", backend, logits, check, launch)


def draft(
    logits: Tensor,
    sampling: Sampling,
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
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Draft tokens of each row in draw order: the children of one node each.

    At temperature 0 these are the ``num`` best ids, which ``verify.rejection`` treats as
    deterministic.

    Drafting can end where the drafter is not sure: a row whose law has its largest probability
    below ``min_confidence``, or an entropy above ``max_entropy``, has no children. The stop looks at
    the law alone, never at what was drawn, so that every rule of ``verify`` stays lossless. The law
    is the processed one, at temperature 0 the softmax of the allowed logits.

    Args:
        logits: ``[R, V]`` float32, bfloat16 or float16, any row stride; with ``draft_to_target``
            ``[R, V_draft]``.
        sampling: settings per request, ``[B]``.
        positions: ``[R]`` int32 or int64, absolute position of the children.
        num: tokens per row, 1 to 256.
        replacement: independent draws; False: each id at most once (the order of the draw is the
            order of the scores).
        requests: ``[R]`` int32 or int64, request of each row, -1 = idle. None: ``R == B`` and row
            ``r`` is request ``r``.
        depths: ``[R]`` int32 or int64, depth of the node whose children are drawn; None: 0. Goes
            into the counter.
        nodes: ``[R]`` int32 or int64, the node's local index, or any number that is unique among
            the request's rows of that depth; None: 0. Goes into the counter.
        top: the first ``top`` tokens are the best ids, and the rest is drawn from what is left of
            the law.
        coupled: draw with the noise of ``verify.match`` at the same position, so that it accepts
            more. For ``match`` only: ratio tests need independent noise.
        allowed: bit mask over target ids, as in :func:`sample`.
        allowed_rows: ``[R]`` int32 or int64, row of ``allowed`` of each row.
        draft_to_target: ``[V_draft]`` int32 or int64, absolute target id of each draft id.
        min_confidence: ``[B]`` float32, least probability of the best id; NaN or None: no stop.
        max_entropy: ``[B]`` float32, largest entropy in nats; NaN or None: no stop.
        status: ``[R]`` int32, receives the bits of :class:`Status`; None: not reported.
        certainty: ``[R, 2]`` float32, contiguous, receives the largest probability of the law and its
            entropy in nats, which both stops look at; 0 and 0 where nothing can be drawn, and of
            idle rows. None: not computed.
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``[R, num]`` int64 of any row stride, written in place.

    Returns:
        ``[R, num]`` int64 target ids; -1 where fewer ids exist, and in a row that stops (its status
        is not that of a dead end).

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    Deterministic; independent of the batch. CUDA-graph safe. Stops and ``certainty`` cost one more
    look at each row.
    Source: Gumbel top-k (Kool et al. 2019, arXiv 1903.06059) as an exponential race; coupled draws:
        Daliri et al. 2024, arXiv 2408.07978; entropy stops: SVIP, Zhang et al. 2024, arXiv 2411.18462.
    """
    op = "sample.draft"

    def check() -> None:
        _validate.rows(op, "logits", logits, ("R", "V"), None)
        count, vocab = logits.shape
        device = logits.device
        batch: int | str = count if requests is None else "B"
        _validate.sampling(op, "sampling", sampling, batch, device)
        _validate.tensor(op, "positions", positions, (count,), _validate.INDICES, device)
        for name, value in (("requests", requests), ("depths", depths), ("nodes", nodes)):
            if value is not None:
                _validate.tensor(op, name, value, (count,), _validate.INDICES, device)
        if draft_to_target is not None:
            _validate.tensor(op, "draft_to_target", draft_to_target, (vocab,), _validate.INDICES, device)
        # With a map the mask is over target ids, whose number is not known here.
        mask_vocab = vocab if draft_to_target is None else None
        _validate.law(op, allowed, allowed_rows, count, mask_vocab, device)
        _validate.integer(op, "num", num, 1, MAX_DRAWS)
        _validate.integer(op, "top", top, 0, num)
        _validate.stops(op, min_confidence, max_entropy, sampling.temperature.shape[0], device)
        _validate.output(op, "status", status, (count,), _validate.INT32, device, strided=True)
        _validate.output(op, "certainty", certainty, (count, 2), _validate.FLOAT32, device)
        _validate.output(op, "out", out, (count, num), _validate.INT64, device, strided=True)
        if out is not None and num > 1 and out.stride(1) != 1:
            raise ValueError(f"{op}: out must have unit stride in the last dimension, got {out.stride(1)}")
        if out is not None and count > 1 and out.stride(0) < num:
            raise ValueError(f"{op}: out must have rows that do not overlap, got row stride {out.stride(0)}")
        _validate.flag(op, "replacement", replacement)
        _validate.flag(op, "coupled", coupled)

    def launch(kernel: Callable[..., None]) -> Tensor:
        _validate.integer(op, "num", num, 1, MAX_DRAWS)
        _validate.integer(op, "top", top, 0, num)
        _validate.flag(op, "replacement", replacement)
        _validate.flag(op, "coupled", coupled)
        count = logits.shape[0]
        if out is None:
            drafts = positions.new_empty(count, num, dtype=torch.int64)
        else:
            _validate.tensor(op, "out", out, (count, num), _validate.INT64, logits.device)
            drafts = out
        flags = positions.new_empty(count, dtype=torch.int32) if status is None else status
        order = FILTER_ORDERS.index(sampling.filter_order)
        where = (positions, requests, depths, nodes, allowed, allowed_rows, draft_to_target)
        stops = (min_confidence, max_entropy)
        kernel(logits, *sampling[:5], order, *where, *stops, replacement, top, coupled, drafts, flags, certainty)
        _validate.raise_on_bad_data(op, flags)
        return drafts

    return _backend.run("sample_draft", backend, logits, check, launch)
