"""The closed-form means of a step of verification; public as ``specdec_kernels.verify.expect``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import _backend, _validate
from ._schema import FILTER_ORDERS
from ._verify_drafts import Drafts, check_draft_mask, check_drafts, flat_drafts
from .types import Expectation, Sampling, TokenTree


def expect(
    tree: TokenTree,
    logits: Tensor,
    draft_logits: Tensor | None,
    sampling: Sampling,
    draft_sampling: Sampling | None,
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
    backend: str | None = None,
    out: Expectation | None = None,
) -> Expectation:
    """The mean of ``num_tokens`` of this step under each rule of :func:`specdec_kernels.verify.rejection`, exactly.

    What a rule accepts is a matter of coins, but the probabilities are functions of the tree and of the laws: the mean over
    all coins and residuals is known without a toss. So it is a measure of the drafts without variance, for controllers of
    draft lengths and for choosing a rule: call it next to ``rejection``, with the same arguments. The value of a rule means
    something for drafts that were drawn as that rule wants them: ``greedy_plus_one`` with ``sample.draft(top=num - 1)``,
    the others without ``top``. At temperature 0 all are the length of the argmax walk.

    Args:
        tree: draft trees; siblings in draw order.
        logits: ``[T, V]`` float32, bfloat16 or float16, any row stride; the target's logits at each node.
        draft_logits: what the children were drawn from, as in ``rejection``; None: all drafts are deterministic.
        sampling: settings per request of the target; the seed is not used.
        draft_sampling: settings per request of the draws. None only without ``draft_logits``.
        replacement: whether siblings were drawn with replacement.
        rows: ``[T]`` int32 or int64, row of ``logits`` of each node. None: row ``i``.
        draft_rows: ``[T]`` int32 or int64, row of ``draft_logits`` of each node's children, -1 = deterministic. None: row ``i``.
        allowed: bit mask of the ids that may be emitted, as in :func:`specdec_kernels.verify.greedy`.
        allowed_rows: ``[T]`` int32 or int64, row of ``allowed`` of each node, -1 = unrestricted. None: row ``i``.
        draft_to_target: ``[V_draft]`` int32 or int64, as in ``rejection``.
        target_to_draft: ``[V]`` int32 or int64, its inverse; given together.
        draft_allowed_rows: ``[T]`` int32 or int64, row of ``allowed`` under which each node's children were drawn.
        active: ``[B]`` bool; others get 0.
        max_tokens: ``[B]`` int32 or int64; more tokens are not counted.
        backend: see :func:`specdec_kernels.use_backend`.
        out: a result made by an earlier call of the same shape, written in place.

    Returns:
        An :class:`specdec_kernels.Expectation`.

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Deterministic; independent of the batch. CUDA-graph safe.
    Complexity: one read of the rows of all inner nodes, and two more per child.
    Source: means by the recursion of the rules; the bound: Khisti et al. 2024, arXiv 2410.18234, and Hu et al. 2025, arXiv
        2502.18779, section 3.
    """
    op = "verify.expect"
    drafts = Drafts(draft_logits, draft_sampling, draft_rows, draft_to_target, target_to_draft, draft_allowed_rows)

    def check() -> None:
        batch, count, device = _validate.token_tree(op, tree)
        _validate.rows(op, "logits", logits, ("T", "V"), device)
        _validate.sampling(op, "sampling", sampling, batch, device, needs_seed=False)
        _validate.flag(op, "replacement", replacement)
        _validate.node_rows(op, "rows", rows, "logits", logits, count)
        check_drafts(op, logits, drafts, batch, count)
        _validate.law(op, allowed, allowed_rows, count, logits.shape[1], device)
        check_draft_mask(op, drafts, allowed, count, device)
        _validate.batch_options(op, active, max_tokens, batch, device)
        if out is not None:
            if not isinstance(out, Expectation):
                raise TypeError(f"{op}: out must be an Expectation, got {type(out).__name__}")
            for name, value in zip(Expectation._fields, out, strict=True):
                _validate.output(op, f"out.{name}", value, (batch,), _validate.FLOAT32, device)

    def launch(kernel: Callable[..., None]) -> Expectation:
        _validate.bounds(op, tree)
        _validate.flag(op, "replacement", replacement)
        batch = tree.cu_nodes.shape[0] - 1
        made = out
        if made is None:
            made = Expectation(*(logits.new_empty(batch, dtype=_validate.FLOAT32[0]) for _ in Expectation._fields))
        settings, maps = flat_drafts(drafts, rows, allowed, allowed_rows)
        order = FILTER_ORDERS.index(sampling.filter_order)
        head = (*tree[:5], logits, draft_logits, *sampling[:4], order, *settings, replacement)
        kernel(*head, *maps, active, max_tokens, tree.max_depth, *made)
        return made

    return _backend.run("verify_expect", backend, getattr(tree, "tokens", None), check, launch)
