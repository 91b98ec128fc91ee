"""Rules that do not keep the target's law: those of other engines, and one for benchmarks.

They are public as members of ``specdec_kernels.verify``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _backend, _results, _validate
from ._schema import FILTER_ORDERS, LOGPROBS
from .types import Sampling, TokenTree, VerifyResult


class _Options(NamedTuple):
    """What all of them take."""

    rows: Tensor | None
    allowed: Tensor | None
    allowed_rows: Tensor | None
    active: Tensor | None
    max_tokens: Tensor | None
    logprobs: str | None
    divergence: Tensor | None
    out: VerifyResult | None


def _check(
    op: str, tree: TokenTree, logits: Tensor, o: _Options, sampling: Any = None, context_lens: Any = None
) -> tuple[int, torch.device]:
    batch, count, device = _validate.token_tree(op, tree)
    _validate.rows(op, "logits", logits, ("T", "V"), device)
    if op != "verify.relaxed":
        _validate.sampling(op, "sampling", sampling, batch, device)
        _validate.tensor(op, "context_lens", context_lens, (batch,), _validate.INDICES, device)
    _validate.node_rows(op, "rows", o.rows, "logits", logits, count)
    _validate.law(op, o.allowed, o.allowed_rows, count, logits.shape[1], device)
    _validate.batch_options(op, o.active, o.max_tokens, batch, device)
    _validate.result(op, tree, o.logprobs, o.out)
    shape = (batch, tree.max_depth + 1)
    _validate.output(op, "divergence", o.divergence, shape, (torch.float32,), device)
    return batch, device


def _run(
    op: str, kernel: Callable[..., None], tree: TokenTree, o: _Options, head: tuple[Any, ...], mid: tuple[Any, ...] = ()
) -> VerifyResult:
    """Call a kernel: ``head`` are the arguments before ``rows``, ``mid`` those before ``active``."""
    result = _results.for_call(op, tree, o.logprobs, o.out)
    law = (o.rows, o.allowed, o.allowed_rows, *mid, o.active, o.max_tokens, LOGPROBS.index(o.logprobs))
    kernel(*tree[:5], *head, *law, *result, o.divergence)
    _validate.raise_on_bad_data(op, result.status)
    return result


def threshold(
    tree: TokenTree,
    logits: Tensor,
    sampling: Sampling,
    context_lens: Tensor,
    single: float = 1.0,
    accumulated: float = 1.0,
    rows: Tensor | None = None,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
    *,
    active: Tensor | None = None,
    max_tokens: Tensor | None = None,
    logprobs: str | None = None,
    divergence: Tensor | None = None,
    backend: str | None = None,
    out: VerifyResult | None = None,
) -> VerifyResult:
    """Deterministic drafts with two thresholds, as SGLang has them. Lossless at (1, 1); lossy below.

    At a node one coin ``u`` is tossed. Children are tried in order; with ``s`` the target's mass on
    those up to and with child ``c``, ``c`` is followed if ``u * accumulated < s`` or
    ``p(c) >= single``. If none is, the token is drawn from ``p`` without the children. A draft with
    ``p(c) = 0`` is never followed; of equal siblings the first counts.

    Args:
        tree: draft trees.
        logits: ``[T, V]`` float32, bfloat16 or float16, any row stride; the target's logits at each
            node, after penalties.
        sampling: settings per request. Temperature 0 is the argmax walk.
        context_lens: ``[B]`` int32 or int64, committed tokens.
        single: drafts with at least this probability are followed, 0 to 1.
        accumulated: what the children's mass is divided by, above 0 to 1.
        rows: ``[T]`` int32 or int64, row of ``logits`` of each node. None: row ``i``.
        allowed: bit mask of the ids that may be emitted, as in :func:`specdec_kernels.verify.greedy`.
        allowed_rows: ``[T]`` int32 or int64, row of ``allowed`` of each node, -1 = unrestricted.
            None: row ``i``.
        active: ``[B]`` bool; other requests are no-ops.
        max_tokens: ``[B]`` int32 or int64, bound of ``num_tokens``.
        logprobs: ``"raw"``, ``"processed"`` or None, as in :func:`specdec_kernels.verify.greedy`.
        divergence: ``[B, max_depth+1]`` float32, contiguous, receives per emitted token the
            total-variation distance between its law under this rule, given the drafts, and the
            target's processed law; 0 beyond. None: not computed.
        backend: see :func:`specdec_kernels.use_backend`.
        out: a result made by an earlier call of the same shape, written in place.

    Returns:
        A :class:`VerifyResult`.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    LOSSY. Deterministic; independent of the batch. CUDA-graph safe.
    Complexity: one read of the visited rows, and one more of the last.
    """
    op = "verify.threshold"
    options = _Options(rows, allowed, allowed_rows, active, max_tokens, logprobs, divergence, out)

    def check() -> None:
        _check(op, tree, logits, options, sampling, context_lens)
        _validate.number(op, "single", single, 0.0, 1.0)
        _validate.number(op, "accumulated", accumulated, 0.0, 1.0, above=True)

    def launch(kernel: Callable[..., None]) -> VerifyResult:
        _validate.number(op, "single", single, 0.0, 1.0)
        _validate.number(op, "accumulated", accumulated, 0.0, 1.0, above=True)
        order = FILTER_ORDERS.index(sampling.filter_order)
        head = (logits, *sampling[:5], order, context_lens, float(single), float(accumulated))
        return _run(op, kernel, tree, options, head)

    return _backend.run("verify_threshold", backend, getattr(tree, "tokens", None), check, launch)


def typical(
    tree: TokenTree,
    logits: Tensor,
    sampling: Sampling,
    context_lens: Tensor,
    epsilon: float = 0.09,
    delta: float = 0.3,
    rows: Tensor | None = None,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
    *,
    active: Tensor | None = None,
    max_tokens: Tensor | None = None,
    logprobs: str | None = None,
    divergence: Tensor | None = None,
    backend: str | None = None,
    out: VerifyResult | None = None,
) -> VerifyResult:
    """Typical acceptance, as Medusa has it: a draft that is not unlikely is accepted. Lossy.

    A draft passes if ``p(c) > min(epsilon, delta * exp(-H(p)))``, with the entropy of the processed
    law at its parent in nats. The path goes to the deepest node all of whose ancestors pass, of
    equally deep ones to the first; the token after it is drawn as in plain decoding.

    Args:
        tree: draft trees.
        logits: ``[T, V]`` float32, bfloat16 or float16, any row stride; the target's logits at each
            node, after penalties.
        sampling: settings per request. Temperature 0 is the argmax walk.
        context_lens: ``[B]`` int32 or int64, committed tokens.
        epsilon: what is always likely enough, 0 to 1.
        delta: factor of the entropy's threshold, 0 or more.
        rows: ``[T]`` int32 or int64, row of ``logits`` of each node. None: row ``i``.
        allowed: bit mask of the ids that may be emitted, as in :func:`specdec_kernels.verify.greedy`.
        allowed_rows: ``[T]`` int32 or int64, row of ``allowed`` of each node, -1 = unrestricted.
            None: row ``i``.
        active: ``[B]`` bool; other requests are no-ops.
        max_tokens: ``[B]`` int32 or int64, bound of ``num_tokens``.
        logprobs: ``"raw"``, ``"processed"`` or None, as in :func:`specdec_kernels.verify.greedy`.
        divergence: ``[B, max_depth+1]`` float32, contiguous, receives per emitted token the
            total-variation distance between its law under this rule, given the drafts, and the
            target's processed law; 0 beyond. None: not computed.
        backend: see :func:`specdec_kernels.use_backend`.
        out: a result made by an earlier call of the same shape, written in place.

    Returns:
        A :class:`VerifyResult`.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    LOSSY. Deterministic; independent of the batch. CUDA-graph safe.
    Complexity: two reads of the rows of all nodes that pass and have children.
    Source: Cai et al. 2024 (Medusa), arXiv 2401.10774, section 2.3.1.
    """
    op = "verify.typical"
    options = _Options(rows, allowed, allowed_rows, active, max_tokens, logprobs, divergence, out)

    def check() -> None:
        _check(op, tree, logits, options, sampling, context_lens)
        _validate.number(op, "epsilon", epsilon, 0.0, 1.0)
        _validate.number(op, "delta", delta, 0.0)

    def launch(kernel: Callable[..., None]) -> VerifyResult:
        _validate.number(op, "epsilon", epsilon, 0.0, 1.0)
        _validate.number(op, "delta", delta, 0.0)
        order = FILTER_ORDERS.index(sampling.filter_order)
        head = (logits, *sampling[:5], order, context_lens, float(epsilon), float(delta))
        return _run(op, kernel, tree, options, head)

    return _backend.run("verify_typical", backend, getattr(tree, "tokens", None), check, launch)


def relaxed(
    tree: TokenTree,
    logits: Tensor,
    top_k: int = 10,
    delta: float = 0.0,
    rows: Tensor | None = None,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
    *,
    relax: Tensor | None = None,
    active: Tensor | None = None,
    max_tokens: Tensor | None = None,
    logprobs: str | None = None,
    divergence: Tensor | None = None,
    backend: str | None = None,
    out: VerifyResult | None = None,
) -> VerifyResult:
    """Relaxed acceptance, as TensorRT-LLM has it for thinking: near the argmax is good enough. Lossy.

    With ``p`` the softmax over the allowed ids, the first child is followed that is one of the
    ``top_k`` best ids and has ``p(argmax) - p(c) <= delta``. If there is none, the token is the
    argmax. ``top_k = 1`` is :func:`specdec_kernels.verify.greedy`.

    Args:
        tree: draft trees.
        logits: ``[T, V]`` float32, bfloat16 or float16, any row stride; the target's logits at each
            node, after penalties.
        top_k: ids that are good enough, 1 or more; equal logits by id.
        delta: how much less likely than the argmax they may be, 0 to 1.
        rows: ``[T]`` int32 or int64, row of ``logits`` of each node. None: row ``i``.
        allowed: bit mask of the ids that may be emitted, as in :func:`specdec_kernels.verify.greedy`.
        allowed_rows: ``[T]`` int32 or int64, row of ``allowed`` of each node, -1 = unrestricted.
            None: row ``i``.
        relax: ``[B]`` bool; other requests are verified as by ``verify.greedy``. None: all are relaxed.
        active: ``[B]`` bool; other requests are no-ops.
        max_tokens: ``[B]`` int32 or int64, bound of ``num_tokens``.
        logprobs: ``"raw"``, ``"processed"`` or None, as in :func:`specdec_kernels.verify.greedy`.
        divergence: ``[B, max_depth+1]`` float32, contiguous, receives per emitted token the
            total-variation distance to greedy decoding: 1 where it is not the argmax, else 0; 0
            beyond. None: not computed.
        backend: see :func:`specdec_kernels.use_backend`.
        out: a result made by an earlier call of the same shape, written in place.

    Returns:
        A :class:`VerifyResult`.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    LOSSY. Deterministic; independent of the batch. CUDA-graph safe.
    Complexity: one read of the visited rows; two more where a child is not the argmax.
    """
    op = "verify.relaxed"
    options = _Options(rows, allowed, allowed_rows, active, max_tokens, logprobs, divergence, out)

    def check() -> None:
        batch, _ = _check(op, tree, logits, options)
        _validate.integer(op, "top_k", top_k, 1, 2**31 - 1)
        _validate.number(op, "delta", delta, 0.0, 1.0)
        if relax is not None:
            _validate.tensor(op, "relax", relax, (batch,), (torch.bool,), logits.device)

    def launch(kernel: Callable[..., None]) -> VerifyResult:
        _validate.integer(op, "top_k", top_k, 1, 2**31 - 1)
        _validate.number(op, "delta", delta, 0.0, 1.0)
        return _run(op, kernel, tree, options, (logits, top_k, float(delta)), (relax,))

    return _backend.run("verify_relaxed", backend, getattr(tree, "tokens", None), check, launch)


def synthetic(
    tree: TokenTree,
    logits: Tensor,
    sampling: Sampling,
    context_lens: Tensor,
    rates: Tensor,
    rows: Tensor | None = None,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
    *,
    active: Tensor | None = None,
    max_tokens: Tensor | None = None,
    logprobs: str | None = None,
    divergence: Tensor | None = None,
    backend: str | None = None,
    out: VerifyResult | None = None,
) -> VerifyResult:
    """Accept drafts at given rates, whatever they are: for benchmarks. Lossy.

    The first present child of a node of depth ``d`` is followed with probability ``rates[d]``; else
    the token is drawn as in plain decoding, and the request stops. At a dead end nothing is
    followed.

    Args:
        tree: draft trees.
        logits: ``[T, V]`` float32, bfloat16 or float16, any row stride; the target's logits at each
            node, after penalties.
        sampling: settings per request. At temperature 0 the token that is drawn is the argmax;
            drafts are followed at the given rates all the same.
        context_lens: ``[B]`` int32 or int64, committed tokens.
        rates: ``[n]`` float32, ``n >= max_depth``, acceptance after each depth; what is not
            positive never accepts, 1 and above always.
        rows: ``[T]`` int32 or int64, row of ``logits`` of each node. None: row ``i``.
        allowed: bit mask of the ids that may be emitted, as in :func:`specdec_kernels.verify.greedy`.
        allowed_rows: ``[T]`` int32 or int64, row of ``allowed`` of each node, -1 = unrestricted.
            None: row ``i``.
        active: ``[B]`` bool; other requests are no-ops.
        max_tokens: ``[B]`` int32 or int64, bound of ``num_tokens``.
        logprobs: ``"raw"``, ``"processed"`` or None, as in :func:`specdec_kernels.verify.greedy`.
        divergence: ``[B, max_depth+1]`` float32, contiguous, receives per emitted token the
            total-variation distance between its law under this rule, given the drafts, and the
            target's processed law; 0 beyond. None: not computed.
        backend: see :func:`specdec_kernels.use_backend`.
        out: a result made by an earlier call of the same shape, written in place.

    Returns:
        A :class:`VerifyResult`.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    LOSSY. Deterministic; independent of the batch. CUDA-graph safe.
    Complexity: one read of the visited rows.
    """
    op = "verify.synthetic"
    options = _Options(rows, allowed, allowed_rows, active, max_tokens, logprobs, divergence, out)

    def check() -> None:
        _check(op, tree, logits, options, sampling, context_lens)
        _validate.tensor(op, "rates", rates, ("n",), (torch.float32,), logits.device)
        if rates.shape[0] < tree.max_depth:
            raise ValueError(f"{op}: rates must have at least {tree.max_depth} elements, got {rates.shape[0]}")

    def launch(kernel: Callable[..., None]) -> VerifyResult:
        order = FILTER_ORDERS.index(sampling.filter_order)
        return _run(op, kernel, tree, options, (logits, *sampling[:5], order, context_lens, rates))

    return _backend.run("verify_synthetic", backend, getattr(tree, "tokens", None), check, launch)
