"""The law of what the fused ops emit, by chi-square over a million trials of three steps and more."""

import pytest
import torch
from oracle.enumeration import random_table

import specdec_kernels as sk

from .texts import SOUND, Case, Decoding, check, check_drafts, p_value

TRIALS = 1_000_000
P3, Q3 = random_table(3, 1), random_table(3, 2)
P2, Q2 = random_table(2, 5), random_table(2, 6)
P4, Q4 = random_table(4, 3), random_table(4, 4)
FILTERS = {"temperature": 0.7, "top_k": 2}

# name -> case, trials: a million for each rule on chains and on trees
CASES = {
    "match, chain": (Case(P3, Q3, rule="match", coupled=True, settings={"min_p": 0.2}), TRIALS),
    "match, siblings": (Case(P3, Q3, (-1, 0, 0), rule="match", coupled=True), TRIALS // 2),
    "match, tree": (Case(P2, Q2, (-1, 0, 1, 0), length=7, rule="match", coupled=True), TRIALS // 2),
    "rejection, chain": (Case(P4, Q4, settings=FILTERS, draft_settings={"top_p": 0.8}), TRIALS),
    "rejection, siblings without replacement": (Case(P3, Q3, (-1, 0, 0)), TRIALS // 2),
    "rejection, tree with replacement": (Case(P2, Q2, (-1, 0, 1, 0), length=7, replacement=True), TRIALS // 2),
}


def trials_on(backend, trials):
    """The oracle is no fused op: a few trials show that the tests hold for it."""
    return trials if backend != "reference" else 300


@pytest.mark.op("sample_draft", "verify_match", "verify_rejection")
@pytest.mark.parametrize("name", CASES)
def test_texts_have_the_law_of_the_target(backend, name):
    case, trials = CASES[name]
    p, fewest = check(Decoding(case, backend), trials_on(backend, trials))
    assert p > SOUND
    assert fewest >= 3


class Plain(Decoding):
    """One token per step."""

    def step(self, roots, lengths, seeds):
        settings = self.sampling(seeds, self.case.settings)
        drawn = sk.sample.sample(self.target[roots], settings, lengths, backend=self.backend)
        return drawn.unsqueeze(1), torch.ones_like(lengths)


@pytest.mark.op("sample_sample")
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.5, "top_p": 0.9, "filter_order": "joint"}], ids=["full", "cut"]
)
def test_plain_sampling_has_the_law_of_the_target(backend, settings):
    case = Case(P3, P3, length=4, settings=settings)
    p, fewest = check(Plain(case, backend), trials_on(backend, TRIALS // 2))
    assert p > SOUND
    assert fewest == 4


@pytest.mark.op("sample_draft")
@pytest.mark.parametrize("replacement", [False, True], ids=["without replacement", "with replacement"])
def test_drafts_have_the_law_of_the_drafter(backend, replacement):
    decoding = Decoding(Case(P3, Q3, replacement=replacement), backend)
    assert check_drafts(decoding, trials_on(backend, TRIALS // 2)) > SOUND


def test_the_expected_laws_are_laws():
    for case, _ in CASES.values():
        assert float(case.expected().sum()) == pytest.approx(1.0, abs=1e-12)


def test_impossible_outcomes_are_not_forgiven():
    expected = torch.tensor([0.5, 0.5, 0.0])
    assert p_value(torch.tensor([500, 500, 0]), expected) == 1.0
    assert p_value(torch.tensor([500, 499, 1]), expected) == 0.0
