"""Verification of draft trees straight from logits: rules that keep the target's law exactly, and lossy ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..types import VerifyResult
from . import checks, law
from . import drafts as draft_laws
from .drafts import Drafts
from .expectation import expect
from .law import GREEDY, Row
from .lossy import relaxed, synthetic, threshold, typical
from .rejection import RULES, Rejection, follow_argmax
from .sample import draw_target
from .walk import Options, Walk, check, top_down, walk_all

__all__ = ["RULES", "expect", "greedy", "match", "rejection", "relaxed", "synthetic", "threshold", "typical"]


def greedy(
    tree: Any,
    logits: Tensor,
    rows: Tensor | None = None,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
    *,
    active: Tensor | None = None,
    max_tokens: Tensor | None = None,
    logprobs: str | None = None,
    out: Any = None,
    margin: Tensor | None = None,
) -> VerifyResult:
    """Follow the argmax of each node while it is a child; the last argmax is the bonus token.

    Args:
        tree: draft trees (:class:`python_ref.ops.TokenTree`, or anything with its fields).
        logits: ``[T, V]`` float32, bfloat16 or float16, any strides: the target's, per node.
        rows: ``[T]`` int32 or int64, row of ``logits`` of each node; None: row ``i``. One out of
            range counts as a row without any allowed id (status 8 and 2).
        allowed: ``[rows, ceil(V/32)]`` int32, bit ``i`` of word ``w`` allows id ``32 w + i``.
        allowed_rows: ``[T]`` int32 or int64, row of ``allowed`` of each node, -1 = unrestricted;
            None: row ``i``.
        active: ``[B]`` bool; other requests do nothing.
        max_tokens: ``[B]`` int32 or int64, bound of ``num_tokens``.
        logprobs: ``"raw"``, ``"processed"`` or None (:func:`python_ref.ops.law.log_law`).
        out: a result of the same shape to write into.
        margin: ``[B]`` float64, receives the smallest margin of the decisions; here always inf.

    Returns:
        The decisions. Ties go to the lowest id; of equal siblings the first is followed.

    Raises:
        TypeError, ValueError: on a wrong dtype or shape.

    Deterministic. Reads values on the host: not for CUDA graphs.
    """
    options = Options(rows, allowed, allowed_rows, active, max_tokens, logprobs, out, margin)
    batch, _ = check("verify.greedy", tree, logits, options)

    return walk_all(tree, logits, [GREEDY] * batch, top_down(follow_argmax), options)


def match(
    tree: Any,
    logits: Tensor,
    sampling: Any,
    context_lens: Tensor,
    rows: Tensor | None = None,
    allowed: Tensor | None = None,
    allowed_rows: Tensor | None = None,
    *,
    active: Tensor | None = None,
    max_tokens: Tensor | None = None,
    logprobs: str | None = None,
    out: Any = None,
    margin: Tensor | None = None,
) -> VerifyResult:
    """Draw each node's token as plain decoding does, and follow it while it is a child.

    The token at node ``v`` is that of ``sample.sample`` at position
    ``context_lens + depths[v] + 1``, so the text does not depend on the drafts. Lossless.

    Args:
        tree: draft trees.
        logits: ``[T, V]``, as in :func:`greedy`.
        sampling: settings, one per request.
        context_lens: ``[B]`` int32 or int64, committed tokens.
        rows: as in :func:`greedy`, and so are all other arguments.
        allowed: see there.
        allowed_rows: see there.
        active: see there.
        max_tokens: see there.
        logprobs: see there.
        out: see there.
        margin: see there.

    Returns:
        The decisions.

    Raises:
        TypeError, ValueError: on a wrong dtype or shape.

    Deterministic. Reads values on the host: not for CUDA graphs.
    Source: Daliri et al. 2024, arXiv 2408.07978, section 3 (the coupling of drafter and target).
    """
    op = "verify.match"
    options = Options(rows, allowed, allowed_rows, active, max_tokens, logprobs, out, margin)
    batch, _ = check(op, tree, logits, options)
    checks.sampling(op, "sampling", sampling, batch)
    checks.tensor(op, "context_lens", context_lens, (batch,))
    contexts = context_lens.tolist()

    def decide(walk: Walk, node: int, row: Row) -> tuple[int, int | None]:
        position = contexts[walk.request] + walk.nodes.depths[node] + 1
        token = draw_target(row.logits, walk.settings, position, walk.margin)
        return walk.follow(node, token)

    return walk_all(tree, logits, law.all_settings(sampling), top_down(decide), options)


def rejection(
    tree: Any,
    logits: Tensor,
    draft_logits: Tensor | None,
    sampling: Any,
    draft_sampling: Any,
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
    out: Any = None,
    margin: Tensor | None = None,
) -> VerifyResult:
    """Accept or reject sampled drafts by the ratio of the target's law to theirs. Lossless.

    At a node, ``P`` is the law still to be emitted and ``Q`` the law of the next child, at first
    the processed laws ``p`` and ``q``. Rule ``"token"``: for each child ``c`` in draw order::

        with probability min(1, P(c) / Q(c)):  emit c and go on at c
        P = max(P - Q, 0) / sum(max(P - Q, 0))
        Q = Q                       (drawn with replacement)
          = Q without c, normalised (without replacement)

    and if no child is left: emit a token drawn from ``P`` and stop. ``P(c) = 0`` never accepts; a
    duplicate child is a child. Where no residual is left (not with drafts drawn from ``q``), the
    token is drawn from ``p`` and status 4 is set.

    Rules ``"block"`` and ``"traversal"``, which are one: a node is visited with a budget ``a``
    (the root with 1), and hands ``min(1, a P(c) / Q(c))`` down to child ``c``, which is visited
    with it. If nothing below accepts, then ``a P = max(a P - Q, 0) / (S + 1 - a)`` and
    ``a = S / (S + 1 - a)`` with ``S = sum(max(a P - Q, 0))``, and the next child is tried; if none
    is left, the node is accepted with probability ``a``, and the token after it is drawn from
    ``P``. So the path ends at the first node, in post-order, whose coin is below its ``a``. Nodes
    with budget 0 are not visited, nor are any after the end of the path (status speaks of what was
    read before); ``max_tokens`` cuts what was decided.

    Rule ``"greedy_plus_one"``: the last child was drawn from ``q`` without the others, which were
    chosen (``sample.draft(top=num - 1)``). It is accepted with probability
    ``min(1, P(c) / Q(c))``; else a token is drawn from the residual, and followed if it is one of
    the others. Where the last child is absent, all are chosen.

    Args:
        tree: draft trees, siblings in draw order.
        logits: ``[T, V]``, as in :func:`greedy`.
        draft_logits: ``[rows, V]`` or ``[rows, V_draft]``, what the children were drawn from; None:
            all drafts are deterministic, ``Q`` is 1 at the child.
        sampling: settings of the target, one per request; temperature 0 is the walk of
            :func:`greedy`.
        draft_sampling: settings of the drafts, as given to ``sample.draft``; at temperature 0 the
            drafts are deterministic. Its seed is not used. None only without ``draft_logits``.
        context_lens: ``[B]`` int32 or int64, committed tokens.
        rule: ``"token"``, ``"block"``, ``"traversal"`` or ``"greedy_plus_one"``.
        replacement: whether siblings were drawn with replacement; ``"greedy_plus_one"`` does not ask.
        rows: as in :func:`greedy`.
        draft_rows: ``[T]`` int32 or int64, row of ``draft_logits`` that the children of each node
            were drawn from, -1 = they are deterministic; None: row ``i``. One out of range: the
            children count as absent, status 8.
        allowed: as in :func:`greedy`.
        allowed_rows: as in :func:`greedy`.
        draft_to_target: ``[V_draft]`` int32 or int64, target id of each draft id; outside
            ``[0, V)``: it does not exist.
        target_to_draft: ``[V]`` int32 or int64, the inverse, -1 = none.
        draft_allowed_rows: ``[T]`` int32 or int64, row of ``allowed`` that masked the draws of the
            children of each node, -1 = unrestricted; None: no draw was masked.
        active: as in :func:`greedy`.
        max_tokens: as in :func:`greedy`.
        logprobs: as in :func:`greedy`, of the target's law.
        out: as in :func:`greedy`.
        margin: as in :func:`greedy`.

    Returns:
        The decisions.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or rule.

    Deterministic. Reads values on the host: not for CUDA graphs.
    Source: Leviathan et al. 2023, arXiv 2211.17192, algorithm 1 (chains); Chen et al. 2024
    (Sequoia), arXiv 2402.12374, algorithm 2 (siblings without replacement); Miao et al. 2024
    (SpecInfer), arXiv 2305.09781, algorithm 2 (independent siblings); Sun et al. 2024, arXiv
    2403.10444, algorithm 2 (block); Weng et al. 2025, arXiv 2505.12398, algorithm 2 (traversal);
    Hu et al. 2025, arXiv 2502.18779, section 5 (greedy plus one).
    """
    op = "verify.rejection"
    options = Options(rows, allowed, allowed_rows, active, max_tokens, logprobs, out, margin)
    batch, count = check(op, tree, logits, options)
    checks.sampling(op, "sampling", sampling, batch)
    checks.tensor(op, "context_lens", context_lens, (batch,))
    checks.choice(op, "rule", rule, RULES)
    drafts = None
    if draft_logits is not None:
        maps = (draft_rows, draft_to_target, target_to_draft, draft_allowed_rows)
        draft_laws.check(op, logits, draft_logits, draft_sampling, maps, allowed, batch, count)
        drafts = Drafts(draft_logits, draft_sampling, allowed, *maps)
    decisions = Rejection(context_lens.tolist(), drafts, replacement)
    return walk_all(tree, logits, law.all_settings(sampling), decisions.rule(rule), options)
