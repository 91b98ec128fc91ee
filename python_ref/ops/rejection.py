"""The rules of ``verify.rejection``: one lemma (:mod:`python_ref.ops.residual`), decided top-down or bottom-up."""

from __future__ import annotations

from ..types import RESIDUAL_FALLBACK
from . import drafts as draft_laws
from . import law, race
from .drafts import Drafts
from .law import Row
from .mass import Mass
from .philox import COIN, RESIDUAL, Place
from .residual import Residual, one_hot, whole
from .walk import Rule, Walk, top_down

RULES = ("token", "block", "traversal", "greedy_plus_one")


class Rejection:
    """What the rules need beside the walk."""

    def __init__(self, contexts: list[int], drafts: Drafts | None, replacement: bool) -> None:
        self.contexts, self.drafts, self.replacement = contexts, drafts, replacement

    def rule(self, name: str) -> Rule:
        """The rule of that name; every one is the argmax walk at temperature 0."""
        if name == "token":
            return top_down(self.token)
        if name == "greedy_plus_one":
            return top_down(self.greedy_plus_one)
        argmax = top_down(follow_argmax)
        return lambda walk, limit: (argmax if walk.settings.greedy else self.bottom_up)(walk, limit)

    # ---- top-down: a coin at each child decides at once --------------------------------------------------------------

    def token(self, walk: Walk, node: int, row: Row) -> tuple[int, int | None]:
        """Try the children in draw order; the residual if none is accepted."""
        if walk.settings.greedy:
            return follow_argmax(walk, node, row)
        p = law.weights(row.logits, walk.settings).normalised()
        if not bool(p.w.any()):
            return -1, None
        q, children = draft_laws.laws(self.drafts, walk, node)
        left = Residual(p, q, self.replacement)
        for child in children:
            token = walk.nodes.tokens[child]
            if self.accepted(walk, left, child):
                return token, child
            if not self.reject(walk, left, token):
                return self.draw(walk, node, p), None
        return self.draw(walk, node, left.w), None

    def greedy_plus_one(self, walk: Walk, node: int, row: Row) -> tuple[int, int | None]:
        """One coin for the last child, which was drawn from ``q`` without the others; then one draw from the residual,
        which is followed where it is one of them."""
        if walk.settings.greedy:
            return follow_argmax(walk, node, row)
        p = law.weights(row.logits, walk.settings).normalised()
        if not bool(p.w.any()):
            return -1, None
        q, children = draft_laws.laws(self.drafts, walk, node)
        left = Residual(p, q, replacement=True)
        sampled = walk.last_child(node)
        if sampled in children:
            token = walk.nodes.tokens[sampled]
            left.exclude([walk.nodes.tokens[child] for child in children if child != sampled])
            if self.accepted(walk, left, sampled):
                return token, sampled
            if not self.reject(walk, left, token):
                return self.draw(walk, node, p), None
        drawn = self.draw(walk, node, left.w)
        found = [child for child in children if child != sampled and walk.nodes.tokens[child] == drawn]
        return drawn, found[0] if found else None

    def accepted(self, walk: Walk, left: Residual, child: int) -> bool:
        """Toss the coin of a child."""
        token = walk.nodes.tokens[child]
        return race.coin(left.w, left.law_of(token), token, self.coin_of(walk, child), walk.margin)

    def reject(self, walk: Walk, left: Residual, token: int) -> bool:
        """The next child is rejected for good; False if nothing is left of the target's law."""
        walk.margin.of_remainder(left.w.minus(left.law_of(token)))
        left.reject(token)
        if left.exhausted:
            walk.status |= RESIDUAL_FALLBACK
            walk.margin(0.0)
        return not left.exhausted

    # ---- bottom-up: a child comes to nothing once all below it has ---------------------------------------------------

    def bottom_up(self, walk: Walk, limit: int) -> None:
        """Visit the nodes depth-first, and stop at the first, in post-order, whose coin is below the budget that its
        children have left it."""
        if not walk.nodes.count or limit <= 0:
            return
        frames = [self.enter(walk, 0, whole())]
        while True:
            frame = frames[-1]
            if frame.children:
                child = frame.children[0]
                budget = frame.left.handed_down(walk.nodes.tokens[child])
                if float(budget.w) > 0:
                    frames.append(self.enter(walk, child, budget))
                    continue
                walk.margin.of_absence(budget)
            else:
                budget = frame.left.budget
                node = frame.node
                place = self.coin_of(walk, node) if node else None
                sure = Mass(budget.w.clamp(max=1.0), budget.doubt)
                if place is None or race.coin(sure, one_hot(0, budget), 0, place, walk.margin):
                    break
                frames.pop()
                frame = frames[-1]
            token = walk.nodes.tokens[frame.children.pop(0)]
            if not float(frame.left.budget.w) < 1:
                walk.margin.of_remainder(frame.left.w.minus(frame.left.law_of(token)))
            frame.left.reject(token)
            if frame.left.exhausted:  # the budget is 1 all the same: the path ends here, by the target's law
                frame.children.clear()
        path = [frame.node for frame in frames]
        for above, node in zip(path, path[1:], strict=False):
            if len(walk.tokens) < limit:
                walk.emit(above, walk.row(above), walk.nodes.tokens[node])
        if len(walk.tokens) < limit:
            self.stop(walk, frames[-1])

    def enter(self, walk: Walk, node: int, budget: Mass) -> Frame:
        """Begin with a node. The row of one without children is not read: it may never be needed."""
        frame = Frame(node, Residual(Mass(budget.w, budget.doubt), None, self.replacement, budget), [])
        if walk.children(node):
            p = law.weights(walk.row(node).logits, walk.settings).normalised()
            if bool(p.w.any()):
                q, frame.children = draft_laws.laws(self.drafts, walk, node)
                frame.left, frame.p = Residual(p, q, self.replacement, budget), p
        return frame

    def stop(self, walk: Walk, frame: Frame) -> None:
        """Emit the token after the last accepted node."""
        row, token = walk.row(frame.node), -1
        p = law.weights(row.logits, walk.settings).normalised() if frame.p is None else frame.p
        if bool(p.w.any()):
            left = p if frame.p is None else frame.left.w
            if frame.left.exhausted:
                walk.status |= RESIDUAL_FALLBACK
                walk.margin(0.0)
                left = p
            token = self.draw(walk, frame.node, left)
        walk.emit(frame.node, row, token)

    # ---- noise -------------------------------------------------------------------------------------------------------

    def coin_of(self, walk: Walk, child: int) -> Place:
        """Where the coin of a node that is not the root lies."""
        depth = walk.nodes.depths[child] - 1
        return Place(walk.settings.seed, self.contexts[walk.request] + depth + 1, COIN, depth, child)

    def draw(self, walk: Walk, node: int, left: Mass) -> int:
        """Draw the token after a node from what is left there."""
        depth = walk.nodes.depths[node]
        place = Place(walk.settings.seed, self.contexts[walk.request] + depth + 1, RESIDUAL, depth, node)
        return race.two_level(left, place, walk.margin)


class Frame:
    """A node on the way from the root to where the walk is: its children still to be tried, and what is left."""

    def __init__(self, node: int, left: Residual, children: list[int]) -> None:
        self.node, self.left, self.children = node, left, children
        self.p: Mass | None = None  # None: no row was read


def follow_argmax(walk: Walk, node: int, row: Row) -> tuple[int, int | None]:
    """The decision at temperature 0."""
    return walk.follow(node, law.best(row.logits))
