"""What a step of verification must expect, in closed form: no coin is tossed.

Acceptance probabilities are functions of the tree and of the laws, so the mean number of emitted tokens of a step is one, too:
an estimate without variance of how good the drafts were, under each rule that could have judged them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..types import Expectation
from . import checks, law
from . import drafts as draft_laws
from .drafts import Drafts
from .mass import Mass
from .residual import Residual, whole
from .walk import Options, Walk, check

#: The thresholds of ``p / q`` among which :func:`bound` looks: ``2 ** (j / 4)``.
STEPS = range(-32, 33)

#: Largest weights of ``q`` that :func:`bound` takes into account.
_MOST = 16


def expect(
    tree: Any,
    logits: Tensor,
    draft_logits: Tensor | None,
    sampling: Any,
    draft_sampling: Any,
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
    out: Any = None,
) -> Expectation:
    """The mean of ``num_tokens`` over coins and residuals, of each rule of ``verify.rejection``.

    ``token``: node ``v`` is visited with probability ``r(v)``, ``r(root) = 1``, and its ``k``-th child with
    ``r(v) a_k prod_{j<k} (1 - a_j)``, where ``a`` is the probability to accept it; the mean is the sum of ``r``.
    ``traversal`` (and ``block``): the path ends at the ``i``-th node in post-order with probability
    ``A_i prod_{j<i} (1 - A_j)``. ``greedy_plus_one``: as ``token``, with the residual's mass on the chosen children.
    A rule's value means something for drafts that were drawn as that rule wants them. At temperature 0 all are the length of
    the argmax walk.

    Args:
        tree: as in :func:`python_ref.ops.verify.rejection`, and so are all arguments without a text.
        logits: see there.
        draft_logits: see there.
        sampling: see there; no seed is needed.
        draft_sampling: see there.
        replacement: see there.
        rows: see there.
        draft_rows: see there.
        allowed: see there.
        allowed_rows: see there.
        draft_to_target: see there.
        target_to_draft: see there.
        draft_allowed_rows: see there.
        active: ``[B]`` bool; others get 0.
        max_tokens: ``[B]`` int32 or int64; more tokens are not counted.
        out: a result of the same shape to write into.

    Returns:
        The means, and the bound of :func:`bound` at the root.

    Raises:
        TypeError, ValueError: on a wrong dtype or shape.

    Deterministic. Reads values on the host: not for CUDA graphs.
    """
    op = "verify.expect"
    options = Options(rows, allowed, allowed_rows, active, max_tokens, None, None, None)
    batch, count = check(op, tree, logits, options)
    checks.sampling(op, "sampling", sampling, batch, needs_seed=False)
    drafts = None
    if draft_logits is not None:
        maps = (draft_rows, draft_to_target, target_to_draft, draft_allowed_rows)
        draft_laws.check(op, logits, draft_logits, draft_sampling, maps, allowed, batch, count)
        drafts = Drafts(draft_logits, draft_sampling, allowed, *maps)
    made = torch.zeros((len(Expectation._fields), batch), dtype=torch.float64)
    for b, s in enumerate(law.all_settings(sampling)):
        if active is not None and not active[b]:
            continue
        limit = tree.max_depth + 1 if max_tokens is None else min(int(max_tokens[b]), tree.max_depth + 1)
        walk = Walk(tree, logits, b, s, options)
        if walk.nodes.count and limit > 0:
            made[:, b] = torch.tensor(_of_request(walk, drafts, replacement, limit), dtype=torch.float64)
    result = Expectation(*(row.float().to(tree.tokens.device) for row in made))
    if out is None:
        return result
    for target, source in zip(out, result, strict=True):
        target.copy_(source)
    return out  # type: ignore[no-any-return]


def _of_request(walk: Walk, drafts: Drafts | None, replacement: bool, limit: int) -> tuple[float, ...]:
    nodes = walk.nodes
    if walk.settings.greedy:
        reached = _argmax_length(walk, max(limit, 2))  # the bound knows no limit
        length = float(min(reached, limit))
        return length, length, length, float(reached > 1)
    count = nodes.count
    down, plus_one = [1.0] + [0.0] * (count - 1), [1.0] + [0.0] * (count - 1)
    budgets, lasting = [whole()] + [whole()] * (count - 1), [0.0] * count
    best = 0.0
    handed = [1.0] + [0.0] * (count - 1)
    for v in range(count):
        lasting[v] = handed[v]
        if not (down[v] > 0 or plus_one[v] > 0 or handed[v] > 0) or not walk.children(v):
            continue
        p = law.weights(walk.row(v).logits, walk.settings).normalised()
        if not bool(p.w.any()):
            continue
        q, children = draft_laws.laws(drafts, walk, v)
        tokens = [nodes.tokens[child] for child in children]
        if v == 0:
            best = bound(p, q, tokens, replacement)
        _top_down(down, v, Residual(p, q, replacement), children, tokens)
        _plus_one(plus_one, v, Residual(p, q, True), children, tokens, walk.last_child(v))
        left = Residual(p, q, replacement, budgets[v])
        for child, token in zip(children, tokens, strict=True):
            budgets[child] = left.handed_down(token)
            handed[child] = float(budgets[child].w)
            left.reject(token)
        lasting[v] = float(left.budget.w)
    lasting[0] = 1.0
    token, other = (sum(r for v, r in enumerate(reached) if nodes.depths[v] < limit) for reached in (down, plus_one))
    mean, going_on = 0.0, 1.0
    for v in sorted(range(count), key=lambda v: nodes.ends[v] - 1 - nodes.depths[v]):
        mean += going_on * lasting[v] * min(nodes.depths[v] + 1, limit)
        going_on *= 1 - lasting[v]
    return token, mean, other, best


def _top_down(reached: list[float], v: int, left: Residual, children: list[int], tokens: list[int]) -> None:
    here = reached[v]
    for child, token in zip(children, tokens, strict=True):
        accepted = float(left.handed_down(token).w)
        reached[child] = here * accepted
        here *= 1 - accepted
        left.reject(token)


def _plus_one(reached: list[float], v: int, left: Residual, children: list[int], tokens: list[int], last: int) -> None:
    here = reached[v]
    if last in children:
        sampled = tokens[children.index(last)]
        left.exclude([token for child, token in zip(children, tokens, strict=True) if child != last])
        accepted = float(left.handed_down(sampled).w)
        reached[last] = here * accepted
        here *= 1 - accepted
        left.reject(sampled)
        if left.exhausted:
            return
    seen: set[int] = set()
    for child, token in zip(children, tokens, strict=True):
        if child != last or last not in children:
            reached[child] = 0.0 if token in seen else here * float(left.w.w[token])
            seen.add(token)


def _argmax_length(walk: Walk, limit: int) -> int:
    node: int | None = 0
    length = 0
    while node is not None and length < limit:
        length += 1
        _, node = walk.follow(node, law.best(walk.row(node).logits))
    return length


def bound(p: Mass, q: Mass | None, tokens: list[int], replacement: bool) -> float:
    """What no rule exceeds: the probability that the next token is one of the drafts, over drafts and noise.

    It is ``1 + min_H (p(H) - Q(H))`` over all sets of ids, with ``Q(H)`` the probability that all ``K`` drafts lie in ``H``
    (the value of an optimal transport; Khisti et al. 2024, arXiv 2410.18234; Hu et al. 2025, arXiv 2502.18779, section 3).
    Here ``H`` runs over the sets ``p <= 2^(j/4) q``, which contain the minimum for one draft, and nearly for independent ones,
    where ``Q(H) = q(H)^K``. Without replacement ``Q(H)`` is bounded from below by
    ``prod_k (q(H) - s_k) / (1 - s_k)`` with ``s_k`` the ``k`` largest probabilities of ``q`` together (each behind the 16th
    counts as much as that one), so that the result is a bound still. Chosen drafts: the mass of ``p`` on them, which is
    reached.
    """
    if not tokens:
        return 0.0
    if q is None:
        return min(1.0, float(p.w[list(dict.fromkeys(tokens))].sum()))
    number = len(tokens)
    largest = [0.0] * number
    if not replacement:
        ranked = q.w.sort(descending=True).values[: number - 1]
        ranked = torch.cat((ranked[:_MOST], ranked[_MOST - 1 : _MOST].expand(len(ranked[_MOST:]))))
        tops = ranked.cumsum(0).tolist()
        largest[1:] = (tops + [1.0] * number)[: number - 1]  # 1: of fewer ids there is nothing left
    value = 1.0
    for j in STEPS:
        inside = p.w <= 2.0 ** (j / 4) * q.w
        mass, share = float(p.w[inside].sum()), float(q.w[inside].sum())
        together = math.prod(max(share - s, 0.0) / (1 - s) if s < 1 else 0.0 for s in largest)
        value = min(value, 1 + mass - together)
    return max(0.0, value)
