"""Bugs of block and traversal verification, planted one by one: the test of laws must find each of them."""

import pytest
import torch
from oracle.enumeration import random_table

from . import bottom_up
from .bottom_up import BottomUp
from .test_mutations import TRIALS
from .texts import FOUND, SOUND, Case, Decoding, check, texts

P3, Q3 = random_table(3, 1), random_table(3, 2)
P4, Q4 = random_table(4, 3), random_table(4, 4)
CHAIN = Case(P3, Q3, (-1, 0, 1), length=4, rule="block")
TREE = Case(P3, Q3, (-1, 0, 1, 0, 3), length=4, rule="traversal")
TWICE = Case(P4, Q4, (-1, 0, 0), length=4, rule="traversal", replacement=True)
SHARP = Case(P4, Q4 * 1.5, (-1, 0, 1), length=5, rule="block")
CASES = {"chain": CHAIN, "tree": TREE, "siblings with replacement": TWICE}


@pytest.mark.parametrize("name", CASES)
def test_without_a_bug_the_rule_has_the_law_and_decides_as_the_fused_op(name):
    case = CASES[name]
    assert check(BottomUp(case), TRIALS)[0] > SOUND
    seeds = torch.arange(20_000) * 7 - 10**6
    ours, fused = texts(BottomUp(case), seeds)[0], texts(Decoding(case), seeds)[0]
    assert int((ours != fused).sum()) <= 2  # single against double precision


# name -> implementation, case
BUGS = {
    "the budget over what is left of q": (bottom_up.BudgetOverRemainingDraftMass, TREE),
    "the last step is not capped": (bottom_up.LastStepIsNotCapped, CHAIN),
    "the first failure ends the path": (bottom_up.PathIsCutAtTheFirstFailure, CHAIN),
    "tokens are judged, blocks are resampled": (bottom_up.TokenCriterionWithTheResidualOfBlocks, CHAIN),
    "the bonus comes from the target": (bottom_up.BonusFromTheTarget, CHAIN),
    "all nodes share a coin": (bottom_up.NodesShareACoin, CHAIN),
    "subtrees of siblings share coins": (bottom_up.SubtreesOfSiblingsShareNoise, TREE),
    "the depth is not in the counter": (bottom_up.DepthIsMissingInTheCounter, SHARP),
    "pre-order in place of post-order": (bottom_up.PreOrder, CHAIN),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_wrong_law_is_found(name):
    implementation, case = BUGS[name]
    assert check(implementation(case), TRIALS)[0] < FOUND
