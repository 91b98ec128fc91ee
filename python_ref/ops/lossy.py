"""Rules that do NOT keep the target's law: those of other engines, and one for benchmarks.

Each says how far off it is: ``divergence`` receives, for each token that is decided, the total-variation distance
between the law that the rule gives it (over its own randomness, for these drafts) and the target's processed law.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..types import RESIDUAL_FALLBACK, VerifyResult
from . import checks, law, race
from .law import GREEDY, Row, Settings
from .philox import COIN, RESIDUAL, Place
from .rejection import follow_argmax
from .residual import Residual, scalar
from .sample import draw_target
from .walk import Options, Walk, check, top_down, walk_all


def _coin(walk: Walk, value: float, doubt: float, limit: float, contexts: list[int], child: int) -> bool:
    """The coin of a child against ``value / limit``."""
    depth = walk.nodes.depths[child] - 1
    place = Place(walk.settings.seed, contexts[walk.request] + depth + 1, COIN, depth, child)
    return race.coin(scalar(value, doubt), scalar(limit), 0, place, walk.margin)


def _children(walk: Walk, node: int) -> list[int]:
    """The present children of a node, of equal ones the first."""
    found: dict[int, int] = {}
    for child in walk.children(node):
        found.setdefault(walk.nodes.tokens[child], child)
    return list(found.values())


def _draw(walk: Walk, node: int, row: Row, contexts: list[int]) -> int:
    """The token that plain decoding draws after a node."""
    position = contexts[walk.request] + walk.nodes.depths[node] + 1
    return draw_target(row.logits, walk.settings, position, walk.margin)


def threshold(
    tree: Any,
    logits: Tensor,
    sampling: Any,
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
    out: Any = None,
    margin: Tensor | None = None,
) -> VerifyResult:
    """Deterministic drafts with two thresholds, as SGLang has them. Lossless at (1, 1), lossy below.

    One coin ``u`` per node, that of its first present child. Children in order; with ``s`` the
    target's mass on those up to and with child ``c``, ``c`` is followed if ``u accumulated < s``, or
    ``p(c) >= single``. If none is, the token is drawn from ``p`` without the children. ``p(c) = 0``
    is never followed; of equal siblings the first counts.

    Args:
        tree: as in :func:`python_ref.ops.verify.match`, and so are all arguments without a text.
        logits: see there.
        sampling: see there; temperature 0 is the argmax walk.
        context_lens: see there.
        single: threshold of one draft's probability, in [0, 1].
        accumulated: what the mass is divided by, in (0, 1].
        rows: see there.
        allowed: see there.
        allowed_rows: see there.
        active: see there.
        max_tokens: see there.
        logprobs: see there.
        divergence: ``[B, max_depth+1]`` float32, receives the distance of each token's law.
        out: see there.
        margin: see there.

    Returns:
        The decisions; status 4 where nothing of ``p`` was left, and ``p`` was sampled.
    """
    op = "verify.threshold"
    options = Options(rows, allowed, allowed_rows, active, max_tokens, logprobs, out, margin, divergence)
    batch, _ = check(op, tree, logits, options)
    checks.sampling(op, "sampling", sampling, batch)
    checks.tensor(op, "context_lens", context_lens, (batch,))
    checks.number(op, "single", single, 0.0, 1.0)
    checks.number(op, "accumulated", accumulated, 0.0, 1.0, above=True)
    contexts = context_lens.tolist()

    def decide(walk: Walk, node: int, row: Row) -> tuple[int, int | None]:
        if walk.settings.greedy:
            return follow_argmax(walk, node, row)
        p = law.weights(row.logits, walk.settings).normalised()
        if not bool(p.w.any()):
            return -1, None
        children = _children(walk, node)
        walk.divergence = _threshold_divergence(
            [float(p.w[walk.nodes.tokens[c]]) for c in children], single, accumulated
        )
        mass = doubt = 0.0
        left = Residual(p, None, replacement=True)
        for child in children:
            token = walk.nodes.tokens[child]
            here, unsure = float(p.w[token]), float(p.doubt[token])
            mass, doubt = mass + here, doubt + unsure
            if here > 0:
                if _coin(walk, mass, doubt, accumulated, contexts, children[0]):
                    return token, child
                if unsure > 0:
                    walk.margin(abs(here - single) / unsure)
                if here >= single:
                    return token, child
            elif unsure > 0:
                walk.margin(0.0)
        for child in children:
            token = walk.nodes.tokens[child]
            walk.margin.of_remainder(left.w.without([token]))
            left.reject(token)
        drawn_from = left.w
        if left.exhausted:
            walk.status |= RESIDUAL_FALLBACK
            walk.margin(0.0)
            drawn_from = p
        depth = walk.nodes.depths[node]
        place = Place(walk.settings.seed, contexts[walk.request] + depth + 1, RESIDUAL, depth, node)
        return race.two_level(drawn_from, place, walk.margin), None

    return walk_all(tree, logits, law.all_settings(sampling), top_down(decide), options)


def _threshold_divergence(masses: list[float], single: float, accumulated: float) -> float:
    """What the children get beyond their probability: all others get less than theirs."""
    distance = total = given = 0.0
    for mass in masses:
        total += mass
        sure = mass > 0 and mass >= single
        until = 1.0 if sure else min(1.0, total / accumulated)
        distance += max(until - given - mass, 0.0)
        given = until
        if sure:
            break
    return distance


def typical(
    tree: Any,
    logits: Tensor,
    sampling: Any,
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
    out: Any = None,
    margin: Tensor | None = None,
) -> VerifyResult:
    """Typical acceptance, as Medusa has it: a draft that is not unlikely is accepted. Lossy.

    A draft passes if ``p(c) > min(epsilon, delta exp(-H(p)))``, with the entropy of its parent's
    processed law in nats. The path goes to the deepest node all of whose ancestors pass, of equally
    deep ones to the first; the token after it is drawn as in plain decoding.

    Args:
        tree: as in :func:`python_ref.ops.verify.match`, and so are all arguments without a text.
        logits: see there.
        sampling: see there; temperature 0 is the argmax walk.
        context_lens: see there.
        epsilon: what is always likely enough, in [0, 1].
        delta: factor of the entropy's threshold, 0 or more.
        rows: see there.
        allowed: see there.
        allowed_rows: see there.
        active: see there.
        max_tokens: cuts what was decided.
        logprobs: see there.
        divergence: ``[B, max_depth+1]`` float32, receives the distance of each token's law.
        out: see there.
        margin: see there.

    Returns:
        The decisions. Status speaks of the rows of all nodes that pass and have children.

    Source: Cai et al. 2024, arXiv 2401.10774, section 2.3.1 (where ``alpha`` is ``delta``).
    """
    op = "verify.typical"
    options = Options(rows, allowed, allowed_rows, active, max_tokens, logprobs, out, margin, divergence)
    batch, _ = check(op, tree, logits, options)
    checks.sampling(op, "sampling", sampling, batch)
    checks.tensor(op, "context_lens", context_lens, (batch,))
    checks.number(op, "epsilon", epsilon, 0.0, 1.0)
    checks.number(op, "delta", delta, 0.0, math.inf)
    contexts = context_lens.tolist()

    def passing(walk: Walk, node: int) -> list[int]:
        children = walk.children(node)
        if not children:
            return []
        p = law.weights(walk.row(node).logits, walk.settings).normalised()
        if not bool(p.w.any()):
            return []
        least = min(epsilon, delta * math.exp(-float(law.entropy(p))))
        slack = (1 + float(law.entropy(p))) * least if least < epsilon else 0.0
        found = []
        for child in children:
            token = walk.nodes.tokens[child]
            has, unsure = float(p.w[token]), float(p.doubt[token]) + slack
            if unsure > 0:
                walk.margin(abs(has - least) / unsure)
            if has > least:
                found.append(child)
        return found

    def rule(walk: Walk, limit: int) -> None:
        if walk.settings.greedy:
            return top_down(follow_argmax)(walk, limit)
        if not walk.nodes.count or limit <= 0:
            return None
        passed = {0}
        for node in range(walk.nodes.count):
            if node in passed:
                passed.update(passing(walk, node))
        last = min(passed, key=lambda node: (-walk.nodes.depths[node], node))
        path = [last]
        while path[0] != 0:
            path.insert(0, walk.nodes.parents[path[0]])
        for above, node in zip(path, path[1:], strict=False):
            if len(walk.tokens) < limit:
                row, token = walk.row(above), walk.nodes.tokens[node]
                walk.divergence = 1 - float(law.weights(row.logits, walk.settings).normalised().w[token])
                walk.emit(above, row, token)
        if len(walk.tokens) < limit:
            row = walk.row(last)
            walk.emit(last, row, _draw(walk, last, row, contexts))
        return None

    return walk_all(tree, logits, law.all_settings(sampling), rule, options)


def relaxed(
    tree: Any,
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
    out: Any = None,
    margin: Tensor | None = None,
) -> VerifyResult:
    """Relaxed acceptance, as TensorRT-LLM has it for thinking: near the argmax is good enough. Lossy.

    With ``p`` the softmax over the allowed ids, the first child is followed that is one of the
    ``top_k`` best ids and has ``p(argmax) - p(c) <= delta``. If there is none, the token is the
    argmax. ``top_k = 1`` is ``verify.greedy``.

    Args:
        tree: as in :func:`python_ref.ops.verify.greedy`, and so are all arguments without a text.
        logits: see there.
        top_k: ids that are good enough, 1 or more; equal logits by id.
        delta: how much less likely than the argmax they may be, in [0, 1].
        rows: see there.
        allowed: see there.
        allowed_rows: see there.
        relax: ``[B]`` bool; other requests are verified as by ``verify.greedy``.
        active: see there.
        max_tokens: see there.
        logprobs: see there; ``"processed"`` gives 0 and the largest logit.
        divergence: ``[B, max_depth+1]`` float32, receives 1 where a token is not the argmax, the
            distance to the law of greedy decoding; 0 elsewhere.
        out: see there.
        margin: see there.

    Returns:
        The decisions.
    """
    op = "verify.relaxed"
    options = Options(rows, allowed, allowed_rows, active, max_tokens, logprobs, out, margin, divergence)
    batch, _ = check(op, tree, logits, options)
    checks.integer(op, "top_k", top_k, 1, 2**31 - 1)
    checks.number(op, "delta", delta, 0.0, 1.0)
    checks.optional(op, "relax", relax, batch, (torch.bool,))
    plain = Settings(1.0, 0, 1.0, 0.0, 0, "top_k_first")

    def decide(walk: Walk, node: int, row: Row) -> tuple[int, int | None]:
        best = law.best(row.logits)
        if best < 0 or (relax is not None and not bool(relax[walk.request])):
            return walk.follow(node, best)
        p = law.weights(row.logits, plain).normalised()
        for child in walk.children(node):
            token = walk.nodes.tokens[child]
            logit, ids = row.logits[token], torch.arange(row.logits.numel())
            rank = int(((row.logits > logit) | ((row.logits == logit) & (ids < token))).sum())
            if token != best and rank < top_k and bool(p.w[token] > 0):
                gap, slack = float(p.w[best] - p.w[token]), float(p.doubt[best] + p.doubt[token])
                if row.logits[token] < row.logits[best]:
                    walk.margin(abs(gap - delta) / slack)
                if gap > delta:
                    continue
            elif token != best:
                continue
            walk.divergence = float(token != best)
            return token, child
        return best, None

    return walk_all(tree, logits, [GREEDY] * batch, top_down(decide), options)


def synthetic(
    tree: Any,
    logits: Tensor,
    sampling: Any,
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
    out: Any = None,
    margin: Tensor | None = None,
) -> VerifyResult:
    """Accept drafts at given rates, whatever they are: for benchmarks. Lossy.

    The first present child of a node of depth ``d`` is followed with probability ``rates[d]``; else
    the token is drawn as in plain decoding, and the request stops.

    Args:
        tree: as in :func:`python_ref.ops.verify.match`, and so are all arguments without a text.
        logits: see there.
        sampling: see there; at temperature 0 the argmax is drawn, and drafts are followed all the same.
        context_lens: see there.
        rates: ``[n]`` float32, ``n >= max_depth``; what is not positive never accepts, 1 and above
            always.
        rows: see there.
        allowed: see there.
        allowed_rows: see there.
        active: see there.
        max_tokens: see there.
        logprobs: see there.
        divergence: ``[B, max_depth+1]`` float32, receives the distance of each token's law.
        out: see there.
        margin: see there.

    Returns:
        The decisions. At a dead end nothing is followed.
    """
    op = "verify.synthetic"
    options = Options(rows, allowed, allowed_rows, active, max_tokens, logprobs, out, margin, divergence)
    batch, _ = check(op, tree, logits, options)
    checks.sampling(op, "sampling", sampling, batch)
    checks.tensor(op, "context_lens", context_lens, (batch,))
    checks.tensor(op, "rates", rates, ("n",), (torch.float32,))
    checks.at_least(op, "rates", rates, tree.max_depth)
    contexts, chances = context_lens.tolist(), rates.double().tolist()

    def decide(walk: Walk, node: int, row: Row) -> tuple[int, int | None]:
        best = law.best(row.logits)
        if best < 0:
            return -1, None
        children = walk.children(node)
        if children:
            token, chance = walk.nodes.tokens[children[0]], chances[walk.nodes.depths[node]]
            chance = min(chance, 1.0) if chance > 0 else 0.0
            likely = float(token == best)
            if not walk.settings.greedy:
                likely = float(law.weights(row.logits, walk.settings).normalised().w[token])
            walk.divergence = chance * (1 - likely)
            if _coin(walk, chance, 0.0, 1.0, contexts, children[0]):
                return token, children[0]
        return _draw(walk, node, row, contexts), None

    return walk_all(tree, logits, law.all_settings(sampling), top_down(decide), options)
