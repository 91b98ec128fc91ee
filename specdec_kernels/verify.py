"""Verification straight from logits: which drafts are accepted, and the token after them.

All functions take the target's logits at the nodes of a :class:`TokenTree` and give a
:class:`VerifyResult`. Only the rows of visited nodes are read, and nothing of the size of the
vocabulary is stored. ``greedy``, ``match`` and ``rejection`` keep the target's law exactly;
``threshold``, ``typical`` and ``relaxed``, rules of other engines, and ``synthetic``, for benchmarks,
do not, and can say how far off they are.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import _backend, _results, _validate
from ._schema import FILTER_ORDERS, LOGPROBS, REJECTION_RULES
from ._verify_drafts import Drafts, check_draft_mask, check_drafts, flat_drafts
from ._verify_expect import expect
from ._verify_lossy import relaxed, synthetic, threshold, typical
from .types import Sampling, TokenTree, VerifyResult

__all__ = ["expect", "greedy", "match", "rejection", "relaxed", "synthetic", "threshold", "typical"]


def greedy(
    tree: TokenTree,
    logits: Tensor,
    rows: Tensor | None = None,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
    *,
    active: Tensor | None = None,
    max_tokens: Tensor | None = None,
    logprobs: str | None = None,
    backend: str | None = None,
    out: VerifyResult | None = None,
) -> VerifyResult:
    """Follow the argmax of each node while it is a child; the first argmax that is no child is the
    bonus token.

    Example: the root's argmax is 7, its child holds 7 and has the argmax 3, the next node holds 5:
        tokens ``[7, 3, -1]``.

    Args:
        tree: draft trees.
        logits: ``[T, V]`` float32, bfloat16 or float16, any row stride; the target's logits at each
            node, after penalties.
        rows: ``[T]`` int32 or int64, row of ``logits`` of each node. None: row ``i`` belongs to
            node ``i``.
        allowed: ``[n, ceil(V/32)]`` int32, bit ``i`` of word ``w`` is set iff id ``32w+i`` may be
            emitted; None: all may.
        allowed_rows: ``[T]`` int32 or int64, row of ``allowed`` of each node, -1 = unrestricted.
            None: row ``i``.
        active: ``[B]`` bool; other requests are no-ops.
        max_tokens: ``[B]`` int32 or int64, bound of ``num_tokens``.
        logprobs: ``"raw"`` (log-softmax of the row as it came), ``"processed"`` (the law that was
            sampled: here 0) or None.
        backend: see :func:`specdec_kernels.use_backend`.
        out: a result made by an earlier call of the same shape, written in place.

    Returns:
        A :class:`VerifyResult`.

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Lossless at temperature 0. Ties go to the lowest id. Deterministic; independent of the batch.
    CUDA-graph safe.
    Complexity: one read of the visited rows, ``num_tokens`` per request.
    """
    op = "verify.greedy"

    def check() -> None:
        batch, count, device = _validate.token_tree(op, tree)
        _validate.rows(op, "logits", logits, ("T", "V"), device)
        _validate.node_rows(op, "rows", rows, "logits", logits, count)
        _validate.law(op, allowed, allowed_rows, count, logits.shape[1], device)
        _validate.batch_options(op, active, max_tokens, batch, device)
        _validate.result(op, tree, logprobs, out)

    def launch(kernel: Callable[..., None]) -> VerifyResult:
        result = _results.for_call(op, tree, logprobs, out)
        mode = LOGPROBS.index(logprobs)
        kernel(*tree[:5], logits, rows, allowed, allowed_rows, active, max_tokens, mode, *result)
        _validate.raise_on_bad_data(op, result.status)
        return result

    return _backend.run("verify_greedy", backend, getattr(tree, "tokens", None), check, launch)


def match(
    tree: TokenTree,
    logits: Tensor,
    sampling: Sampling,
    context_lens: Tensor,
    rows: Tensor | None = None,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
    *,
    active: Tensor | None = None,
    max_tokens: Tensor | None = None,
    logprobs: str | None = None,
    backend: str | None = None,
    out: VerifyResult | None = None,
) -> VerifyResult:
    """Draw each node's target token as plain decoding would, and follow it while it is a child.

    The emitted token is always the one that ``sample.sample`` draws at that position with the same
    seed, so the text is identical to plain decoding for any drafter, draft length and batch; no
    draft law is needed. For deterministic drafts the acceptance, the target's mass on the children,
    is the best that any lossless rule can reach.

    Args:
        tree: draft trees.
        logits: ``[T, V]`` float32, bfloat16 or float16, any row stride; the target's logits at each
            node, after penalties.
        sampling: settings per request. Temperature 0 is the argmax walk.
        context_lens: ``[B]`` int32 or int64, committed tokens; the token decided at node ``v`` has
            position ``context_lens + depths[v] + 1``.
        rows: ``[T]`` int32 or int64, row of ``logits`` of each node. None: row ``i`` belongs to
            node ``i``.
        allowed: bit mask of the ids that may be emitted, as in :func:`greedy`.
        allowed_rows: ``[T]`` int32 or int64, row of ``allowed`` of each node, -1 = unrestricted.
            None: row ``i``.
        active: ``[B]`` bool; other requests are no-ops.
        max_tokens: ``[B]`` int32 or int64, bound of ``num_tokens``.
        logprobs: ``"raw"``, ``"processed"`` or None, as in :func:`greedy`.
        backend: see :func:`specdec_kernels.use_backend`.
        out: a result made by an earlier call of the same shape, written in place.

    Returns:
        A :class:`VerifyResult`.

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Lossless. Deterministic; independent of the batch. CUDA-graph safe.
    Complexity: one read of the visited rows; under filters further reads of them.
    Source: shared-randomness coupling, Daliri et al. 2024, arXiv 2408.07978, section 3.
    """
    op = "verify.match"

    def check() -> None:
        batch, count, device = _validate.token_tree(op, tree)
        _validate.rows(op, "logits", logits, ("T", "V"), device)
        _validate.sampling(op, "sampling", sampling, batch, device)
        _validate.tensor(op, "context_lens", context_lens, (batch,), _validate.INDICES, device)
        _validate.node_rows(op, "rows", rows, "logits", logits, count)
        _validate.law(op, allowed, allowed_rows, count, logits.shape[1], device)
        _validate.batch_options(op, active, max_tokens, batch, device)
        _validate.result(op, tree, logprobs, out)

    def launch(kernel: Callable[..., None]) -> VerifyResult:
        result = _results.for_call(op, tree, logprobs, out)
        order = FILTER_ORDERS.index(sampling.filter_order)
        options = (rows, allowed, allowed_rows, active, max_tokens, LOGPROBS.index(logprobs))
        kernel(*tree[:5], logits, *sampling[:5], order, context_lens, *options, *result)
        _validate.raise_on_bad_data(op, result.status)
        return result

    return _backend.run("verify_match", backend, getattr(tree, "tokens", None), check, launch)


def rejection(
    tree: TokenTree,
    logits: Tensor,
    draft_logits: Tensor | None,
    sampling: Sampling,
    draft_sampling: Sampling | None,
    context_lens: Tensor,
    rule: str = "token",
    replacement: bool = False,
    rows: Tensor | None = None,
    draft_rows: Tensor | None = None,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
    draft_to_target: Tensor | None = None,
    target_to_draft: Tensor | None = None,
    *,
    draft_allowed_rows: Tensor | None = None,
    active: Tensor | None = None,
    max_tokens: Tensor | None = None,
    logprobs: str | None = None,
    backend: str | None = None,
    out: VerifyResult | None = None,
) -> VerifyResult:
    """Accept or reject sampled drafts by the ratio of the target's law ``p`` to the law ``q`` that
    they were drawn from.

    * ``"token"``: at each node the children are tried in draw order; child ``c`` is accepted with
      probability ``min(1, p(c) / q(c))``, and after a rejection ``p`` becomes the normalised
      residual ``max(p - q, 0)``. On chains this is the rule of Leviathan et al.; on branching trees
      recursive rejection sampling.
    * ``"block"``, ``"traversal"`` (one rule under two names; on chains block verification, on trees
      traversal verification): the ratios of a path are multiplied before anything is decided, and
      the longest path that passes is taken. Accepts at least as much as ``"token"`` in expectation,
      and reads the rows of all inner nodes instead of those of the accepted path.
    * ``"greedy_plus_one"``: for drafts of ``sample.draft(top=num - 1)``, of whose children all but
      the last were chosen and the last was drawn from the rest of ``q``. One coin for the last;
      else one draw from the residual, which is followed where it is one of the others. That reaches
      the optimum of any rule for these drafts.

    Args:
        tree: draft trees; siblings in draw order.
        logits: ``[T, V]`` float32, bfloat16 or float16, any row stride; the target's logits at each
            node, after penalties.
        draft_logits: ``[rows, V]`` (or ``[rows, V_draft]``), the logits that the children of a node
            were drawn from; None: all drafts are deterministic (a law of one token).
        sampling: settings per request of the target; the seed is that of coins and residuals.
        draft_sampling: settings per request of the draws, exactly as given to ``sample.draft``; at
            temperature 0 the drafts are deterministic. None only without ``draft_logits``. Its seed
            is not used.
        context_lens: ``[B]`` int32 or int64, committed tokens.
        rule: ``"token"``, ``"block"``, ``"traversal"`` or ``"greedy_plus_one"``.
        replacement: whether siblings were drawn with replacement, as given to ``sample.draft``;
            ``"greedy_plus_one"`` does not ask.
        rows: ``[T]`` int32 or int64, row of ``logits`` of each node. None: row ``i`` belongs to
            node ``i``.
        draft_rows: ``[T]`` int32 or int64, row of ``draft_logits`` that the children of each node
            were drawn from, -1 = its children are deterministic. None: row ``i``.
        allowed: bit mask of the ids that may be emitted, as in :func:`greedy`.
        allowed_rows: ``[T]`` int32 or int64, row of ``allowed`` of each node, -1 = unrestricted.
            None: row ``i``.
        draft_to_target: ``[V_draft]`` int32 or int64, absolute target id of each draft id; means nothing
            without ``draft_logits``.
        target_to_draft: ``[V]`` int32 or int64, its inverse, -1 = none; given together.
        draft_allowed_rows: ``[T]`` int32 or int64, row of ``allowed`` under which the children of
            each node were drawn, -1 = unrestricted. None: the drafts were drawn without a mask.
        active: ``[B]`` bool; other requests are no-ops.
        max_tokens: ``[B]`` int32 or int64, bound of ``num_tokens``; the bottom-up rules decide
            first and are cut then.
        logprobs: ``"raw"``, ``"processed"`` or None, as in :func:`greedy`; both are of the target.
        backend: see :func:`specdec_kernels.use_backend`.
        out: a result made by an earlier call of the same shape, written in place.

    Returns:
        A :class:`VerifyResult`. Status 4: the residual had no mass in floats, and ``p`` was
        sampled. Under the bottom-up rules status also speaks of the rows of nodes that were tried
        before the path was found.

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Lossless, if the children were drawn from ``draft_logits`` by ``sample.draft`` with the same
    settings, positions, depths and nodes. Deterministic; independent of the batch. CUDA-graph safe.
    Complexity: one read of the visited rows of both, and one more of both per rejected child.
    Source: Leviathan et al. 2023, arXiv 2211.17192, algorithm 1; Chen et al. 2024 (Sequoia), arXiv
        2402.12374, algorithm 2; Sun et al. 2024, arXiv 2403.10444, algorithm 2 (block); Weng et
        al. 2025, arXiv 2505.12398, algorithm 2 (traversal); Hu et al. 2025, arXiv 2502.18779,
        section 5 (greedy plus one).
    """
    op = "verify.rejection"

    def check() -> None:
        batch, count, device = _validate.token_tree(op, tree)
        _validate.rows(op, "logits", logits, ("T", "V"), device)
        _validate.sampling(op, "sampling", sampling, batch, device)
        _validate.tensor(op, "context_lens", context_lens, (batch,), _validate.INDICES, device)
        _validate.choice(op, "rule", rule, REJECTION_RULES)
        _validate.flag(op, "replacement", replacement)
        _validate.node_rows(op, "rows", rows, "logits", logits, count)
        drafts = Drafts(draft_logits, draft_sampling, draft_rows, draft_to_target, target_to_draft, draft_allowed_rows)
        check_drafts(op, logits, drafts, batch, count)
        _validate.law(op, allowed, allowed_rows, count, logits.shape[1], device)
        check_draft_mask(op, drafts, allowed, count, device)
        _validate.batch_options(op, active, max_tokens, batch, device)
        _validate.result(op, tree, logprobs, out)

    def launch(kernel: Callable[..., None]) -> VerifyResult:
        result = _results.for_call(op, tree, logprobs, out)
        order = FILTER_ORDERS.index(sampling.filter_order)
        _validate.flag(op, "replacement", replacement)
        given = Drafts(draft_logits, draft_sampling, draft_rows, draft_to_target, target_to_draft, draft_allowed_rows)
        drafts, maps = flat_drafts(given, rows, allowed, allowed_rows)
        kernel(
            *(*tree[:5], logits, draft_logits, *sampling[:5], order, *drafts, context_lens),
            *(REJECTION_RULES.index(rule), replacement, *maps, active, max_tokens, LOGPROBS.index(logprobs), *result),
        )
        _validate.raise_on_bad_data(op, result.status)
        return result

    return _backend.run("verify_rejection", backend, getattr(tree, "tokens", None), check, launch)
