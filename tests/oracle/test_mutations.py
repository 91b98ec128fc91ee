"""Bugs known from the field, planted one by one: the exact tests must find each of them."""

from dataclasses import replace

import pytest
import torch

from python_ref.ops import drafts, law, mass, philox, race, rejection, residual, sample, walk
from python_ref.ops.philox import COIN, RESIDUAL, Place

from .decoding import Case
from .enumeration import random_table
from .test_laws import P2, P3, P4, Q2, Q3, Q4, law_error, noise_met

CHAIN = Case(P3, Q3, (1, 1))
SIBLINGS = Case(P4, random_table(4, 5), (2,))  # laws in which both children are rejected at times
TWICE = Case(P3, Q3, (2,), replacement=True)


def skip_duplicate_siblings(patch):
    real = walk.Walk.children

    def unique(self, node):
        seen, kept = set(), []
        for child in real(self, node):
            if self.nodes.tokens[child] not in seen:
                seen.add(self.nodes.tokens[child])
                kept.append(child)
        return kept

    patch.setattr(walk.Walk, "children", unique)


def keep_q_without_normalising(patch):
    patch.setattr(residual, "without", lambda q, token: q.without([token]))


def keep_q_after_a_draw_without_replacement(patch):
    patch.setattr(residual, "without", lambda q, token: q)


def share_residual_noise_with_drafts(patch):
    patch.setattr(rejection, "RESIDUAL", philox.DRAFT)


def share_coins_with_drafts(patch):
    real = race.coin
    patch.setattr(race, "coin", real)  # the enumerator replaces it; the place is what is wrong
    patch.setattr(rejection, "COIN", philox.DRAFT)
    moved = lambda *a: Place(a[0], a[1], a[2], a[3], a[4] - 1 if a[2] == philox.DRAFT else a[4])  # noqa: E731
    patch.setattr(rejection, "Place", moved)


def use_raw_q(patch):
    real = law.weights
    raw = lambda logits, s: real(logits, s._replace(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0))  # noqa: E731

    def draft_law(self, walk, node):
        row = law.read_row(self.logits[walk.nodes.first + node])
        return raw(row.logits, self.settings[walk.request]).normalised()

    patch.setattr(drafts.Drafts, "law", draft_law)


def forget_the_residual(patch):
    patch.setattr(residual, "residual", lambda w, q: w)


def residual_of_the_first_child_only(patch):
    target = {}

    def first_residual(w, q):
        target.setdefault("w", w)
        return target["w"].minus(q)

    def forgetful(walk, node):
        target.clear()
        return real(walk, node)

    real = walk.Walk.row
    patch.setattr(walk.Walk, "row", forgetful)
    patch.setattr(residual, "residual", first_residual)


def accept_by_reversed_ratio(patch):
    patch.setattr(race, "accepts", lambda p, q, u: p > 0 and (q >= p or u * p < q))


def forget_the_normaliser(patch):
    def reject(self, token):
        self.w = residual.residual(self.w, self.law_of(token))
        self.q = residual.without(self.q, token)

    patch.setattr(residual.Residual, "reject", reject)


def drop_from_counter(patch, **fields):
    real = Place.counter.fget
    patch.setattr(Place, "counter", property(lambda place: real(place._replace(**fields))))


def shift_position(patch, module, stream):
    def shifted(seed, position, kind, *rest):
        return Place(seed, position + (kind == stream), kind, *rest)

    patch.setattr(module, "Place", shifted)


# name -> (plant the bug, case, length of the text)
WRONG_LAW = {
    "duplicate siblings are skipped": (skip_duplicate_siblings, TWICE, 2),
    "q is not renormalised without replacement": (keep_q_without_normalising, SIBLINGS, 1),
    "q keeps the rejected id without replacement": (keep_q_after_a_draw_without_replacement, SIBLINGS, 1),
    "q loses the rejected id with replacement": (
        lambda patch: None,
        replace(TWICE, replacement=None),
        1,
    ),
    "residual and draft share noise": (share_residual_noise_with_drafts, CHAIN, 2),
    "coin and draft share noise": (share_coins_with_drafts, CHAIN, 2),
    "raw instead of processed q": (
        use_raw_q,
        Case(P4, Q4, (1,), draft_settings=(("temperature", 0.5), ("top_k", 3))),
        1,
    ),
    "the residual is not applied": (forget_the_residual, CHAIN, 1),
    "the residual knows only the last rejection": (residual_of_the_first_child_only, SIBLINGS, 1),
    "the residual is not normalised between siblings": (forget_the_normaliser, SIBLINGS, 1),
    "the ratio is upside down": (accept_by_reversed_ratio, CHAIN, 1),
    "coins of siblings share noise": (lambda patch: drop_from_counter(patch, node=0), SIBLINGS, 1),
}


@pytest.mark.parametrize("name", WRONG_LAW)
def test_a_wrong_law_is_found(name, monkeypatch):
    plant, case, length = WRONG_LAW[name]
    if case.replacement is None:  # drawn with replacement, verified without
        real = sample.draft
        case = replace(case, replacement=False)
        monkeypatch.setattr(sample, "draft", lambda *a, **k: real(*a, **{**k, "replacement": True}))
    plant(monkeypatch)
    assert law_error(case, length)[0] > 1e-3


# These bugs leave this rule's law intact, for it never looks at noise that it does not use; bottom-up rules do. They show as
# noise that is met twice.
REUSED_NOISE = {
    "node is dropped from the counter": ({"node": 0}, Case(P2, Q2, (2, 1), replacement=True), 1),
    "draw is dropped from the counter": ({"draw": 0}, Case(P2, Q2, (2,), replacement=True), 1),
    "position is dropped from the counter": ({"position": 0}, Case(P2, Q2, (1,)), 2),
    "stream is dropped from the counter": ({"stream": 0}, Case(P2, Q2, (1,)), 1),
}


@pytest.mark.parametrize("name", REUSED_NOISE)
def test_reused_noise_is_found(name, monkeypatch):
    fields, case, length = REUSED_NOISE[name]
    assert law_error(case, length)[2] == 0
    drop_from_counter(monkeypatch, **fields)
    assert law_error(case, length)[2] > 0


def test_a_counter_without_depth_is_found(monkeypatch):
    """While every step has a tree of the same shape, the node tells the depth: only the place of the noise shows it."""
    drop_from_counter(monkeypatch, depth=0)
    met, expected = noise_met("chain")
    assert met != expected


SHIFTED = {
    "coin": (rejection, COIN, "chain"),
    "residual": (rejection, RESIDUAL, "tree"),
    "draft": (sample, philox.DRAFT, "chain"),
    "target": (sample, philox.TARGET, "match"),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_a_position_off_by_one_is_found(name, monkeypatch):
    module, stream, where = SHIFTED[name]
    shift_position(monkeypatch, module, stream)
    met, expected = noise_met(where)
    assert met != expected


def test_a_coin_that_accepts_the_impossible_is_found(monkeypatch):
    """With ``u q <= p`` a draft of q = 0 is accepted although p is 0: a masked token would be emitted."""
    zero = mass.Mass(torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))

    def outcome():
        place = Place(0, 0, COIN)
        return race.coin(zero, zero, 0, place, mass.Margin())

    assert not outcome()
    assert not race.accepts(0.5, 1.0, 0.5)  # and at equality the draft is rejected
    monkeypatch.setattr(race, "accepts", lambda p, q, u: u * q <= p)
    assert outcome()
