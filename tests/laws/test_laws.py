"""The law of what the fused ops emit, by chi-square over a million trials of three steps and more."""

import pytest
import torch
from agreement.compare import device_of, move
from oracle.enumeration import random_table

import specdec_kernels as sk

from .texts import SOUND, Case, Decoding, check, check_drafts, p_value

TRIALS = 1_000_000
P3, Q3 = random_table(3, 1), random_table(3, 2)
P2, Q2 = random_table(2, 5), random_table(2, 6)
P4, Q4 = random_table(4, 3), random_table(4, 4)
FILTERS = {"temperature": 0.7, "top_k": 2}
# Drafters that are nearly sure of one id: what is left of their law after it is below the rounding of its sum.
SURE3 = torch.tensor([[0.0, -18.0, -20.0], [-25.0, 0.0, -24.0], [-40.0, -41.0, 0.0]])
SURE4 = torch.tensor(
    [[0.0, -0.2, -17.0, -18.0], [-0.3, -19.0, 0.0, -18.5], [-17.0, 0.0, -17.5, -0.1], [0.0, -30.0] * 2]
)

# name -> case, trials: a million for each rule on chains and on trees
CASES = {
    "match, chain": (Case(P3, Q3, rule="match", coupled=True, settings={"min_p": 0.2}), TRIALS),
    "match, siblings": (Case(P3, Q3, (-1, 0, 0), rule="match", coupled=True), TRIALS // 2),
    "match, tree": (Case(P2, Q2, (-1, 0, 1, 0), length=7, rule="match", coupled=True), TRIALS // 2),
    "rejection, chain": (Case(P4, Q4, settings=FILTERS, draft_settings={"top_p": 0.8}), TRIALS),
    "rejection, siblings without replacement": (Case(P3, Q3, (-1, 0, 0)), TRIALS // 2),
    "rejection, siblings of a sure drafter": (Case(P3, SURE3, (-1, 0, 0)), TRIALS // 4),
    "rejection, three siblings of a sure drafter, filtered": (
        Case(P4, SURE4, (-1, 0, 0, 0), draft_settings={"top_k": 4}),
        TRIALS // 4,
    ),
    "rejection, tree with replacement": (Case(P2, Q2, (-1, 0, 1, 0), length=7, replacement=True), TRIALS // 2),
    "block, chain": (Case(P3, Q3, (-1, 0, 1), length=7, rule="block"), TRIALS // 2),
    "block, chain, filtered": (
        Case(P4, Q4, rule="block", settings=FILTERS, draft_settings={"top_p": 0.8}),
        TRIALS // 2,
    ),
    "traversal, tree without replacement": (Case(P3, Q3, (-1, 0, 1, 0), length=7, rule="traversal"), TRIALS // 2),
    "traversal, tree with replacement": (
        Case(P2, Q2, (-1, 0, 1, 1, 0), length=7, rule="traversal", replacement=True),
        TRIALS // 4,
    ),
    "traversal, siblings of a sure drafter": (Case(P3, SURE3, (-1, 0, 0), rule="traversal"), TRIALS // 4),
    "greedy_plus_one, chain": (Case(P4, Q4, rule="greedy_plus_one"), TRIALS // 2),
    "greedy_plus_one, siblings": (Case(P4, Q4, (-1, 0, 0, 0), rule="greedy_plus_one"), TRIALS // 2),
    "threshold of 1, tree of the best": (
        Case(P3, Q3, (-1, 0, 1, 0), length=7, rule="threshold", draft_settings={"temperature": 0.0}),
        TRIALS // 2,
    ),
}


def trials_on(backend, trials):
    """The oracle is no fused op: a few trials show that the tests hold for it."""
    return trials if backend != "reference" else 300


@pytest.mark.op("sample_draft", "verify_match", "verify_rejection", "verify_threshold")
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


@pytest.mark.op("sample_sample")
def test_the_race_of_blocks_has_the_law(backend):
    """Some likely ids in each of three blocks, among thousands of unlikely ones."""
    trials = trials_on(backend, 100_000)
    row = torch.full((1, 3 * 4096 - 5), -12.0)
    likely = torch.tensor([0, 7, 4095, 4096, 5000, 8191, 8192, 12_282])
    row[0, likely] = torch.linspace(-1, 1, 8)
    seeds, settings = torch.arange(trials) * 7 - 10**6, sk.Sampling.of(1)
    many = settings._replace(
        **{name: getattr(settings, name).expand(trials) for name in settings._fields[:4]}, seed=seeds
    )
    logits, many, places = (move(x, device_of(backend)) for x in (row.expand(trials, -1), many, torch.arange(trials)))
    drawn = sk.sample.sample(logits, many, places, backend=backend).cpu()
    probabilities = row[0].double().softmax(0)
    expected = torch.cat((probabilities[likely], 1 - probabilities[likely].sum().view(1)))
    found = torch.tensor([int((drawn == i).sum()) for i in likely])
    assert p_value(torch.cat((found, trials - found.sum().view(1))), expected) > SOUND


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
