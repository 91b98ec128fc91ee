"""The emitted law equals the target's, by exact enumeration of every draft, coin and residual, over several steps."""

from dataclasses import replace

import pytest
import torch

from .decoding import Case, deterministic, step
from .enumeration import law_of_text, noise_of, random_table

FILTERS = (("temperature", 0.7), ("top_k", 2))
P3, Q3 = random_table(3, 1), random_table(3, 2)
P4, Q4 = random_table(4, 3), random_table(4, 4)
P2, Q2 = random_table(2, 5), random_table(2, 6)

# Some rows of the drafter are surer than this, others are not.
SURE3, SURE4 = ((("min_confidence", float(q.softmax(1).amax(1).median() + 1e-3)),) for q in (Q3, Q4))
VAGUE3, MASKED3 = (
    (("max_entropy", float(torch.distributions.Categorical(logits=q).entropy().median() + 1e-3)),)
    for q in (Q3, Q3[:, [0, 2]])
)

# name -> case, history, length of the text whose law is compared
CASES = {
    "chain of 1, V=4": (Case(P4, Q4), 3),
    "chain of 2, V=3": (Case(P3, Q3, (1, 1)), 3),
    "chain of 3, V=2": (Case(P2, Q2, (1, 1, 1)), 3),
    "drafter equals target": (Case(P3, P3, (1, 1)), 3),
    "drafter far off": (Case(P3 * 3, -P3 * 3, (1, 1)), 3),
    "filters on the target": (Case(P3, Q3, (1, 1), target_settings=FILTERS), 3),
    "filters on the drafter": (Case(P3, Q3, (1, 1), draft_settings=FILTERS), 3),
    "top-p and min-p": (
        Case(
            P3,
            Q3,
            (1, 1),
            target_settings=(("top_p", 0.8), ("filter_order", "joint")),
            draft_settings=(("min_p", 0.3), ("temperature", 1.5)),
        ),
        3,
    ),
    "reduced draft vocabulary": (Case(P4, Q4[:, :2].contiguous(), (1, 1), draft_to_target=(3, 1)), 3),
    "mask on the target": (Case(P3, Q3, (1, 1), allowed=(0, 2)), 3),
    "mask on both": (Case(P4, Q4, (1, 1), allowed=(0, 3), mask_drafts=True), 3),
    "deterministic chain": (deterministic(Case(P3, Q3, (1, 1))), 4),
    "deterministic siblings": (deterministic(Case(P4, Q4, (3, (1, 0, 0)))), 3),
    "deterministic, then sampled": (Case(P3, Q3, (1, 1), deterministic_depths=(0,)), 3),
    "target at temperature 0": (Case(P3, Q3, (2,), target_settings=(("temperature", 0.0),)), 3),
    "2 siblings without replacement": (Case(P4, Q4, (2,)), 2),
    "3 siblings without replacement": (Case(P4, Q4, (3,)), 1),
    "siblings without replacement until nothing is left": (Case(P3, Q3, (3,)), 2),
    "fewer ids than siblings": (Case(P3, Q3, (3,), draft_settings=(("top_k", 2),)), 2),
    "2 siblings with replacement": (Case(P3, Q3, (2,), replacement=True), 2),
    "3 siblings with replacement": (Case(P3, Q3, (3,), replacement=True), 1),
    "tree 2x2 without replacement": (Case(P2, Q2, (2, 2)), 4),
    "tree 2x2 with replacement": (Case(P2, Q2, (2, 2), replacement=True), 2),
    "tree with replacement, three steps": (Case(P2, Q2, (2, (1, 0)), replacement=True), 3),
    "uneven tree": (Case(P2, Q2, (2, (1, 0), (2,))), 3),
    "uneven tree with replacement": (Case(P2, Q2, (1, (2,), (0, 1)), replacement=True), 2),
    "a chain that stops": (Case(P3, Q3, (1, 1), stops=SURE3), 3),
    "a masked chain that stops": (Case(P3, Q3, (1, 1), stops=MASKED3, allowed=(0, 2), mask_drafts=True), 3),
    "siblings that stop": (Case(P4, Q4, (2,), stops=SURE4), 2),
    "match, a tree that stops": (Case(P3, Q3, (2, 1), rule="match", stops=SURE3), 2),
    "match, any chain": (Case(P2, Q2, (1, 1), rule="match"), 3),
    "match, coupled tree": (Case(P3, Q3, (2, 1), rule="match", coupled=True), 3),
    "match, best first": (Case(P3, Q3, (2, 1), rule="match", top=1), 3),
}

# The same for the rules that decide otherwise; `block` is `traversal`.
BOTTOM_UP = {
    "chain of 1": (Case(P4, Q4), 3),
    "chain of 2": (Case(P3, Q3, (1, 1)), 3),
    "chain of 3": (Case(P2, Q2, (1, 1, 1)), 4),
    "drafter equals target": (Case(P3, P3, (1, 1)), 3),
    "drafter far off": (Case(P3 * 3, -P3 * 3, (1, 1)), 3),
    "filters on both": (Case(P3, Q3, (1, 1), target_settings=FILTERS, draft_settings=(("min_p", 0.3),)), 3),
    "reduced draft vocabulary": (Case(P4, Q4[:, :2].contiguous(), (1, 1), draft_to_target=(3, 1)), 3),
    "mask on the target": (Case(P3, Q3, (1, 1), allowed=(0, 2)), 3),
    "mask on both": (Case(P4, Q4, (1, 1), allowed=(0, 3), mask_drafts=True), 3),
    "a chain that stops": (Case(P3, Q3, (1, 1), stops=SURE3), 3),
    "siblings that stop by their entropy": (Case(P3, Q3, (2,), stops=VAGUE3), 3),
    "deterministic siblings": (deterministic(Case(P4, Q4, (3, (1, 0, 0)))), 3),
    "deterministic, then sampled": (Case(P3, Q3, (1, 1), deterministic_depths=(0,)), 3),
    "target at temperature 0": (Case(P3, Q3, (2,), target_settings=(("temperature", 0.0),)), 3),
    "3 siblings without replacement": (Case(P4, Q4, (3,)), 1),
    "siblings until nothing is left": (Case(P3, Q3, (3,)), 2),
    "fewer ids than siblings": (Case(P3, Q3, (3,), draft_settings=(("top_k", 2),)), 2),
    "2 siblings with replacement": (Case(P3, Q3, (2,), replacement=True), 2),
    "tree 2x2 without replacement": (Case(P2, Q2, (2, 2)), 3),
    "tree 2x2 with replacement": (Case(P2, Q2, (2, 2), replacement=True), 2),
    "uneven tree": (Case(P2, Q2, (2, (1, 0), (2,))), 3),
    "uneven tree with replacement": (Case(P2, Q2, (1, (2,), (0, 1)), replacement=True), 2),
}
PLUS_ONE = {
    "chain of 2": (Case(P3, Q3, (1, 1)), 3),
    "2 children": (Case(P4, Q4, (2,)), 3),
    "3 children": (Case(P4, Q4, (3,)), 2),
    "all ids": (Case(P3, Q3, (3,)), 3),
    "tree 2x2": (Case(P3, Q3, (2, 2)), 3),
    "tree 1x2": (Case(P3, Q3, (1, 2)), 3),
    "children that stop": (Case(P4, Q4, (2,), stops=SURE4), 2),
    "fewer ids than children": (Case(P3, Q3, (3,), draft_settings=(("top_k", 2),)), 2),
    "filters on both": (Case(P4, Q4, (2, 1), target_settings=FILTERS, draft_settings=(("top_p", 0.7),)), 3),
    "reduced draft vocabulary": (Case(P4, Q4[:, :2].contiguous(), (2,), draft_to_target=(3, 1)), 2),
    "mask on the target": (Case(P4, Q4, (2,), allowed=(0, 2)), 2),
    "mask on both": (Case(P4, Q4, (2,), allowed=(0, 1, 3), mask_drafts=True), 3),
    "deterministic": (deterministic(Case(P4, Q4, (3,))), 3),
    "target at temperature 0": (Case(P3, Q3, (2,), target_settings=(("temperature", 0.0),)), 3),
}
CASES |= {f"traversal, {name}": (replace(case, rule="traversal"), length) for name, (case, length) in BOTTOM_UP.items()}
CASES |= {
    f"greedy_plus_one, {name}": (replace(case, rule="greedy_plus_one"), length)
    for name, (case, length) in PLUS_ONE.items()
}


def law_error(case, length, history=(0, 1)):
    """Largest error of a probability of the emitted law, branches followed, and noise met again."""
    emitted, branches, reused = law_of_text(lambda text: step(case, text), history, length)
    expected = case.expected(history, length)
    texts = emitted.keys() | expected.keys()
    error = max(abs(emitted.get(text, 0.0) - expected.get(text, 0.0)) for text in texts)
    return error, branches, reused


@pytest.mark.parametrize("name", CASES)
def test_emitted_law_is_the_targets(name):
    case, length = CASES[name]
    error, branches, reused = law_error(case, length)
    assert error < 1e-12
    if case.coupled:
        assert reused > 0  # coupling is the one wanted reuse: of the target's noise by the drafter
    else:
        assert reused == 0
    assert branches >= 1 if dict(case.target_settings).get("temperature") == 0.0 else branches > 10


def test_the_cases_span_three_steps_and_more():
    """A text of n tokens needs n steps on the branches where every draft is rejected."""
    lengths = [length for case, length in CASES.values() if len(case.shape) > 1]
    assert sum(length >= 3 for length in lengths) >= 15


# Where the noise of one step lies: (stream, position, depth, node, draw) of a chain of two drafts after two tokens, and of
# a tree (root; a, its child b; c). Written out by hand from the contract; "race" or "coin" says what it decides.
CHAIN_NOISE = {
    ("race", 1, 2, 0, 0, 0),  # draft a, child of the root
    ("race", 1, 3, 1, 1, 0),  # draft b, child of a
    ("coin", 2, 2, 0, 1, 0),
    ("coin", 2, 3, 1, 2, 0),
    ("race", 3, 2, 0, 0, 0),  # residual at the root
    ("race", 3, 3, 1, 1, 0),  # residual at a
    ("race", 3, 4, 2, 2, 0),  # bonus at b
}
TREE_NOISE = {
    ("race", 1, 2, 0, 0, 0),  # drafts a and c, with replacement
    ("race", 1, 2, 0, 0, 1),
    ("race", 1, 3, 1, 1, 0),  # draft b
    ("coin", 2, 2, 0, 1, 0),
    ("coin", 2, 2, 0, 3, 0),  # c is node 3 in pre-order
    ("coin", 2, 3, 1, 2, 0),
    ("race", 3, 2, 0, 0, 0),
    ("race", 3, 3, 1, 1, 0),
    ("race", 3, 4, 2, 2, 0),
    ("race", 3, 3, 1, 3, 0),
}
NOISE = {
    "chain": (Case(P3, Q3, (1, 1)), CHAIN_NOISE),
    "tree": (Case(P3, Q3, (2, (1, 0)), replacement=True), TREE_NOISE),
    "match": (Case(P3, Q3, (1, 1), rule="match"), {("race", 0, 2 + d, 0, 0, 0) for d in range(3)}),
}


def noise_met(name):
    """The noise that the verification and the drafts of one step meet on any branch, and what it should be."""
    case, expected = NOISE[name]
    met = set()
    for branch in noise_of(lambda: step(case, (0, 1))):
        for kind, (position, stream_depth, node_draw) in branch:
            met.add((kind, stream_depth & 255, position, stream_depth >> 8, node_draw >> 8, node_draw & 255))
    if case.rule == "match":
        met = {noise for noise in met if noise[1] != 1}
    return met, expected


@pytest.mark.parametrize("name", NOISE)
def test_noise_lies_where_the_contract_says(name):
    met, expected = noise_met(name)
    assert met == expected


def test_expected_law_is_a_law():
    for case, length in CASES.values():
        assert sum(case.expected((0, 1), length).values()) == pytest.approx(1.0, abs=1e-12)


def test_enumeration_sees_noise_that_is_used_twice():
    """Two races that share a variable are not independent, and the enumeration says so."""
    from python_ref.ops import race
    from python_ref.ops.mass import Margin, Mass
    from python_ref.ops.philox import Place

    half = Mass(torch.tensor([0.5, 0.5], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))

    def twice(second):
        def program(text):
            first = race.two_level(half, Place(0, 1, 0), Margin())
            return first, race.two_level(half, second, Margin())

        return law_of_text(program, (), 2)

    law, _, reused = twice(Place(0, 1, 0, depth=1))
    assert reused == 0 and len(law) == 4
    law, _, reused = twice(Place(0, 1, 0))
    assert reused == 2 and law == {(0, 0): 0.5, (1, 1): 0.5}
