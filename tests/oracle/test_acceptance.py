"""How many tokens a step emits on average, exactly: the rules that look ahead accept at least as many as the first one."""

import pytest
import torch

from .decoding import Case, step
from .enumeration import Enumerator, World, random_table

HISTORY = (0, 1)


def mean(case):
    """The expected number of tokens of one step."""
    total = probability = 0.0
    for tokens, world in Enumerator(World()).branches(lambda: step(case, HISTORY)):
        total += world.probability * len(tokens)
        probability += world.probability
    assert probability == pytest.approx(1.0, abs=1e-12)
    return total


def tables(vocab, seed, scale=1.5):
    """Logits of a target and of a drafter."""
    return random_table(vocab, 2 * seed + 100, scale), random_table(vocab, 2 * seed + 101, scale)


def gains(rule, instances, **options):
    """By how much the expectation of a rule exceeds that of the first one."""
    found = []
    for vocab, shape, seed in instances:
        first = Case(*tables(vocab, seed), shape, **options)
        other = Case(*tables(vocab, seed), shape, rule=rule, **options)
        found.append(mean(other) - mean(first))
    return torch.tensor(found)


def test_block_accepts_no_less_than_token_on_chains():
    found = gains("block", [(2, (1, 1, 1), 0), *((3, (1, 1), seed) for seed in range(6)), (4, (1,), 1)])
    assert float(found.min()) > -1e-12
    assert float(found[:-1].max()) > 0.01
    assert abs(float(found[-1])) < 1e-12  # one draft leaves nothing to look ahead to


@pytest.mark.parametrize("replacement", [False, True], ids=["without replacement", "with replacement"])
def test_traversal_accepts_no_less_than_token_on_trees(replacement):
    shapes = [(2, (2, 1)), (3, (2, (1, 0))), (2, (2, (1, 1)))]
    if not replacement:
        shapes += [(3, (2, 1)), (2, (1, (2,)))]
    found = gains(
        "traversal", [(vocab, shape, seed) for vocab, shape in shapes for seed in range(3)], replacement=replacement
    )
    assert float(found.min()) > -1e-12
    assert float(found.max()) > 0.01


@pytest.mark.parametrize(("children", "count"), [(2, 40), (3, 20)])
def test_greedy_plus_one_accepts_more_than_token_on_average(children, count):
    """Not for every pair of laws: the mean over many."""
    found = gains("greedy_plus_one", [(4, (children,), seed) for seed in range(count)])
    assert float(found.mean()) > 0.01
    assert float((found > -1e-12).double().mean()) > 0.6
