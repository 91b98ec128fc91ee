"""Verification of draft trees straight from logits: rules that keep the target's law exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import MALFORMED, NAN, RESIDUAL_FALLBACK, VerifyResult
from . import checks, law, race
from .law import GREEDY, Row, Settings
from .mass import Mass
from .philox import COIN, RESIDUAL, Place
from .sample import draw_target
from .walk import Options, Walk, check, walk_all

RULES = ("token",)


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

    def decide(walk: Walk, node: int, row: Row) -> tuple[int, int | None]:
        return walk.follow(node, law.best(row.logits))

    return walk_all(tree, logits, [GREEDY] * batch, decide, options)


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

    return walk_all(tree, logits, law.all_settings(sampling), decide, options)


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
    the processed laws ``p`` and ``q``. For each child ``c`` in draw order::

        with probability min(1, P(c) / Q(c)):  emit c and go on at c
        P = max(P - Q, 0) / sum(max(P - Q, 0))
        Q = Q                       (drawn with replacement)
          = Q without c, normalised (without replacement)

    and if no child is left: emit a token drawn from ``P`` and stop. ``P(c) = 0`` never accepts; a
    duplicate child is a child. Where no residual is left (not with drafts drawn from ``q``), the
    token is drawn from ``p`` and status 4 is set.

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
        rule: ``"token"``, children decided top-down.
        replacement: whether siblings were drawn with replacement.
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
    (SpecInfer), arXiv 2305.09781, algorithm 2 (independent siblings).
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
        _check_drafts(op, logits, draft_logits, draft_sampling, maps, allowed, batch, count)
        drafts = _Drafts(draft_logits, draft_sampling, allowed, *maps)
    contexts = context_lens.tolist()

    def decide(walk: Walk, node: int, row: Row) -> tuple[int, int | None]:
        s, nodes = walk.settings, walk.nodes
        if s.greedy:
            return walk.follow(node, law.best(row.logits))
        p = target = law.weights(row.logits, s).normalised()
        if not bool(target.w.any()):
            return -1, None
        children = walk.children(node)
        deterministic = drafts is None or not drafts.sampled(walk, node)
        q = Mass(torch.empty(0), torch.empty(0))
        if children and drafts is not None and not deterministic:
            found = drafts.law(walk, node)
            q, children = (found, children) if found is not None else (q, [])
        position = contexts[walk.request] + nodes.depths[node] + 1
        for child in children:
            token = nodes.tokens[child]
            if deterministic:
                q = _one_hot(token, p)
            place = Place(s.seed, position, COIN, nodes.depths[node], child)
            if race.coin(p, q, token, place, walk.margin):
                return token, child
            walk.margin.of_remainder(p.minus(q))
            p = _residual(p, q)
            if not bool(p.w.any()):
                walk.status |= RESIDUAL_FALLBACK
                walk.margin(0.0)
                p = target
                break
            if not replacement and not deterministic:
                q = _without(q, token)
        place = Place(s.seed, position, RESIDUAL, nodes.depths[node], node)
        return race.two_level(p, place, walk.margin), None

    return walk_all(tree, logits, law.all_settings(sampling), decide, options)


def _one_hot(token: int, like: Mass) -> Mass:
    """The law of a deterministic draft."""
    w = torch.zeros_like(like.w)
    w[token] = 1.0
    return Mass(w, torch.zeros_like(w))


def _residual(p: Mass, q: Mass) -> Mass:
    """The law to be emitted once a draft from ``q`` is rejected: ``max(p - q, 0)``, normalised."""
    return p.minus(q).normalised()


def _without(q: Mass, token: int) -> Mass:
    """The law of the next draw without replacement; all zero if nothing is left."""
    return q.without([token]).normalised()


class _Drafts:
    """The laws that the children of each node were drawn from."""

    def __init__(
        self,
        logits: Tensor,
        sampling: Any,
        allowed: Tensor | None,
        rows: Tensor | None,
        draft_to_target: Tensor | None,
        target_to_draft: Tensor | None,
        allowed_rows: Tensor | None,
    ) -> None:
        self.logits, self.rows = logits, rows
        self.allowed, self.allowed_rows = allowed, allowed_rows
        self.settings: list[Settings] = law.all_settings(sampling)
        self.column: Tensor | None = None
        if draft_to_target is not None and target_to_draft is not None:
            column = target_to_draft.detach().cpu().long()
            inside = (column >= 0) & (column < logits.shape[1])
            self.column = torch.where(inside, column, 0)
            back = draft_to_target.detach().cpu().long()[self.column]
            self.exists = inside & (back == torch.arange(column.numel()))

    def sampled(self, walk: Walk, node: int) -> bool:
        """Whether the children of a node were drawn at random."""
        if self.settings[walk.request].greedy:
            return False
        return self.rows is None or int(self.rows[walk.nodes.first + node]) != -1

    def law(self, walk: Walk, node: int) -> Mass | None:
        """The processed law of the children over target ids; None if its row is out of range."""
        owner = walk.nodes.first + node
        index = owner if self.rows is None else int(self.rows[owner])
        if not 0 <= index < self.logits.shape[0]:
            walk.status |= MALFORMED
            return None
        row = law.read_row(self.logits[index])
        walk.status |= NAN * row.has_nan
        values = row.logits
        if self.column is not None:
            values = values[self.column].masked_fill(~self.exists, -torch.inf)
        if self.allowed_rows is not None:
            mask = law.allowed_mask(self.allowed, self.allowed_rows, owner, values.numel())
            values = values if mask is None else values.masked_fill(~mask, -torch.inf)
        return law.weights(values, self.settings[walk.request]).normalised()


def _check_drafts(
    op: str,
    logits: Tensor,
    draft_logits: Tensor,
    draft_sampling: Any,
    maps: tuple[Tensor | None, ...],
    allowed: Tensor | None,
    batch: int,
    count: int,
) -> None:
    rows, to_target, to_draft, allowed_rows = maps
    vocab = columns = int(logits.shape[1])
    if (to_target is None) != (to_draft is None):
        missing = "draft_to_target" if to_target is None else "target_to_draft"
        raise ValueError(f"{op}: {missing} must be given together with its inverse, got None")
    if to_target is not None:
        checks.tensor(op, "draft_to_target", to_target, ("V_draft",))
        checks.tensor(op, "target_to_draft", to_draft, (vocab,))
        columns = int(to_target.shape[0])
    checks.logits(op, "draft_logits", draft_logits, columns)
    if draft_sampling is None:
        raise ValueError(f"{op}: draft_sampling must be given with draft_logits, got None")
    checks.sampling(op, "draft_sampling", draft_sampling, batch, needs_seed=False)
    checks.rows(op, "draft_rows", rows, "draft_logits", draft_logits.shape[0], count)
    if allowed_rows is not None and allowed is None:
        raise ValueError(f"{op}: allowed must be given with draft_allowed_rows, got None")
    checks.optional(op, "draft_allowed_rows", allowed_rows, count)
