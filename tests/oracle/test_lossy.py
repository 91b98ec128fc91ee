"""Lossy rules are as far off as they say, and thresholds of 1 are none: by exact enumeration."""

import random

import pytest
import torch

from python_ref import ops
from python_ref.ops import lossy
from python_ref.ops.walk import Walk

from .decoding import Case, _in_preorder, deterministic
from .definition import law
from .enumeration import Enumerator, World
from .test_laws import FILTERS, P2, P3, P4, Q2, Q3, Q4, law_error

VOCAB = 5


def instance(numbers, rule):
    """A node with children, some of them the same and some absent, and the options of a rule; sometimes filtered."""
    row = [numbers.gauss(0, 1.5) for _ in range(VOCAB)]
    if numbers.random() < 0.3:
        row[numbers.randrange(VOCAB)] = float("-inf")
    children = [numbers.randrange(-1, VOCAB) for _ in range(numbers.randint(1, 4))]
    settings = {"temperature": numbers.choice((0.6, 1.0, 1.7)), "top_k": numbers.choice((0, 0, 3))}
    if rule == "threshold":
        options = {"single": numbers.choice((0.0, 0.2, 0.4, 1.0)), "accumulated": numbers.choice((0.1, 0.5, 0.8, 1.0))}
    else:
        options = {"rates": torch.tensor([numbers.choice((0.0, 0.3, 0.75, 1.0, 2.0)), 0.5])}
    return row, children, settings, options


def emitted(rule, row, children, settings, options, monkeypatch):
    """The law of the token after the root, what the op says of its divergence, and the same before it is rounded."""
    tree = _in_preorder([(-1, 0, 0), *((0, 1, token) for token in children)])
    logits = torch.tensor([row] * (len(children) + 1))
    sampling, context = ops.Sampling.of(1, seed=3, **settings), torch.tensor([7])
    exact, said = [], []
    real = Walk.emit

    def emit(walk, node, row, token):
        exact.append(walk.divergence)
        real(walk, node, row, token)

    def program():
        exact.clear()
        divergence = torch.full((1, 2), torch.nan)
        result = getattr(ops.verify, rule)(tree, logits, sampling, context, **options, divergence=divergence)
        said.append((exact[0], float(divergence[0, 0])))
        assert float(divergence[0, 0]) == float(torch.tensor(exact[0], dtype=torch.float32))
        return int(result.tokens[0, 0])

    found = [0.0] * VOCAB
    with monkeypatch.context() as patch:
        patch.setattr(Walk, "emit", emit)
        for token, world in Enumerator(World()).branches(program):
            found[token] += world.probability
    assert len(set(said)) == 1  # it does not depend on the noise
    return found, said[0][0]


@pytest.mark.parametrize("rule", ["threshold", "synthetic"])
def test_the_law_is_as_far_from_the_targets_as_the_rule_says(rule, monkeypatch):
    numbers, seen = random.Random(5), []
    for _ in range(150):
        row, children, settings, options = instance(numbers, rule)
        found, said = emitted(rule, row, children, settings, options, monkeypatch)
        target, _ = law(torch.tensor(row).tolist(), **settings)
        assert sum(found) == pytest.approx(1.0, abs=1e-12)
        distance = sum(abs(a - b) for a, b in zip(found, target, strict=True)) / 2
        assert distance == pytest.approx(said, abs=1e-12), (row, children, settings, options)
        seen.append(said)
    assert sum(said > 0.05 for said in seen) > 40 and sum(said < 1e-12 for said in seen) > 10


def test_typical_says_how_far_a_certain_token_is_off():
    """The law under the rule is one of a single token where a draft is accepted, and the target's where none is."""
    numbers = random.Random(6)
    accepted = 0
    for _ in range(60):
        row, children, settings, _ = instance(numbers, "synthetic")
        tree = _in_preorder([(-1, 0, 0), *((0, 1, token) for token in children)])
        logits, divergence = torch.tensor([row] * (len(children) + 1)), torch.zeros(1, 2)
        sampling = ops.Sampling.of(1, seed=3, **settings)
        result = ops.verify.typical(tree, logits, sampling, torch.tensor([7]), divergence=divergence)
        target, _ = law(torch.tensor(row).tolist(), **settings)
        followed = int(result.num_tokens[0]) == 2
        expected = 1 - target[int(result.tokens[0, 0])] if followed else 0.0
        assert float(divergence[0, 0]) == pytest.approx(expected, abs=1e-6)
        accepted += followed
    assert 10 < accepted < 60


LOSSLESS = {
    "chain": (deterministic(Case(P3, Q3, (1, 1), rule="threshold")), 4),
    "siblings": (deterministic(Case(P4, Q4, (3, (1, 0, 0)), rule="threshold")), 3),
    "every id": (deterministic(Case(P3, Q3, (3,), rule="threshold")), 3),
    "tree": (deterministic(Case(P2, Q2, (2, 1), rule="threshold")), 4),
    "filters": (deterministic(Case(P4, Q4, (2, 1), rule="threshold", target_settings=FILTERS)), 3),
    "mask": (deterministic(Case(P4, Q4, (2, 1), rule="threshold", allowed=(0, 2, 3))), 3),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_thresholds_of_one_keep_the_law(name):
    case, length = LOSSLESS[name]
    error, branches, _ = law_error(case, length)
    assert error < 1e-12 and branches > 10


OFF = {
    "single": ("threshold", (("single", 0.3),)),
    "accumulated": ("threshold", (("accumulated", 0.7),)),
    "typical": ("typical", ()),
    "synthetic": ("synthetic", (("rates", torch.tensor([0.8, 0.8])),)),
}


@pytest.mark.parametrize("name", OFF)
def test_lossy_settings_are_found(name):
    rule, options = OFF[name]
    assert law_error(deterministic(Case(P3, Q3, (2, 1), rule=rule, options=options)), 3)[0] > 1e-3


def test_the_distance_is_that_of_the_formula():
    assert lossy._threshold_divergence([0.15, 0.3], 1.0, 0.5) == pytest.approx(0.15 + 0.3)
    assert lossy._threshold_divergence([0.15, 0.3], 0.25, 1.0) == pytest.approx(0.85 - 0.3)
    assert lossy._threshold_divergence([0.15, 0.3], 1.0, 1.0) == 0.0
