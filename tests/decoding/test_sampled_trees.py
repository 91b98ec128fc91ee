"""Sampled trees of a smaller model, under every rule that there is."""

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk
from python_ref.decoding import Decoder, OverlappedDecoder, Request
from python_ref.drafters import RATIO_RULES, IndependentDrafter, IndependentTreeDrafter
from python_ref.drafters.independent_tree import Shape

from .helpers import model_of, plain, requests_of
from .test_law import PROMPT, SETTINGS, SOUND, TINY, expected_law, p_value

TEMPERATURES = [0.0, 0.8]


def tokens_of(outputs):
    return [output.tokens for output in outputs]


def test_shapes_are_trees_in_depth_first_order():
    shape = Shape.of((2, 1, 2))
    assert shape.parents == [-1, 0, 1, 2, 2, 0, 5, 6, 6]
    assert shape.depths == [0, 1, 2, 3, 3, 1, 2, 3, 3]
    assert shape.ends == [9, 5, 5, 4, 5, 9, 9, 8, 9]
    assert shape.at(2) == [2, 6]


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("rule", ["match", "greedy"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_text_is_that_of_plain_decoding(rule, temperature, replacement):
    if rule == "greedy" and temperature:
        return
    model = model_of(0)
    requests = requests_of(5, temperature)
    drafter = IndependentTreeDrafter(model_of(1), sk, (3, 2, 1), replacement=replacement)
    decoder = Decoder(model, ops=sk, drafter=drafter, rule=rule, num_draft=3, max_batch=3)
    assert tokens_of(decoder.generate(requests)) == plain(model, requests)
    assert drafter.cache.num_pages == len(drafter.cache.free_pages)
    assert decoder.statistics.accepted[0] > 0


def test_with_the_target_as_drafter_every_chosen_draft_is_accepted():
    """And so the cache of the drafter holds what it should, step after step."""
    model = model_of(0)
    requests = requests_of(4, 0.0, new=20)
    drafter = IndependentTreeDrafter(model, sk, (2, 2, 1))
    decoder = Decoder(model, ops=sk, drafter=drafter, num_draft=3)
    assert tokens_of(decoder.generate(requests)) == plain(model, requests)
    assert decoder.statistics.acceptance == [1.0] * 3


@pytest.mark.parametrize("rule", RATIO_RULES)
def test_both_packages_of_ops_give_the_same_text(rule):
    model = model_of(0)
    requests = requests_of(4, 0.9, new=8, top_p=0.95)
    results = []
    for ops in (sk, oracle):
        for make in (
            lambda ops=ops: IndependentDrafter(model_of(1), ops),
            lambda ops=ops: IndependentTreeDrafter(model_of(1), ops, (2, 2)),
            lambda ops=ops: IndependentTreeDrafter(model_of(1), ops, (2, 2), replacement=True),
        ):
            decoder = Decoder(model, ops=ops, drafter=make(), rule=rule, num_draft=2, expects=True)
            made = tokens_of(decoder.generate(requests))
            expected = {name: round(value, 3) for name, value in decoder.statistics.expected.items()}
            results.append((made, decoder.statistics.accepted, expected))
    assert results[:3] == results[3:]


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("rule", RATIO_RULES)
def test_the_law_of_the_text_is_the_targets(rule, replacement):
    """A chi-square over whole generations, two steps and more each."""
    target, small = (model_of(seed, scale=1.0, **TINY) for seed in (3, 4))
    drafter = IndependentTreeDrafter(small, sk, (2, 1), replacement=replacement)
    requests = [Request(PROMPT, max_new_tokens=4, seed=seed, **SETTINGS) for seed in range(3000)]
    decoder = Decoder(target, ops=sk, drafter=drafter, rule=rule, num_draft=2, max_batch=100)
    numbers = torch.tensor([output.tokens[:3] for output in decoder.generate(requests)]) @ torch.tensor([16, 4, 1])
    assert p_value(torch.bincount(numbers, minlength=64), expected_law(target, PROMPT, SETTINGS)) > SOUND


@pytest.mark.parametrize(
    ("rule", "field"), [("rejection", "token"), ("traversal", "traversal"), ("block", "traversal")]
)
def test_what_was_accepted_is_what_was_to_be_expected(rule, field):
    """Measured against the closed form, whose mean it is: within four standard errors of it."""
    model = model_of(0)
    drafter = IndependentTreeDrafter(model_of(1), sk, (2, 2, 1))
    decoder = Decoder(model, ops=sk, drafter=drafter, rule=rule, num_draft=3, max_batch=32, expects=True)
    decoder.generate(requests_of(64, 1.0, new=16))
    statistics = decoder.statistics
    measured, expected = statistics.mean_tokens_per_step, statistics.expected_tokens_per_step(field)
    assert 1.05 < expected and abs(measured - expected) < 4 * 1.0 / statistics.request_steps**0.5
    assert statistics.expected["traversal"] > statistics.expected["token"]


def test_there_is_no_form_for_the_loop_that_never_waits():
    drafter = IndependentTreeDrafter(model_of(1), sk)
    with pytest.raises(ValueError, match="must have a static form, got IndependentTreeDrafter"):
        OverlappedDecoder(model_of(0), ops=sk, drafter=drafter)


@pytest.mark.parametrize("branching", [(), (0,), (300,), (64, 64)])
def test_shapes_that_the_ops_do_not_take_are_refused(branching):
    with pytest.raises(ValueError, match="IndependentTreeDrafter: branching must"):
        IndependentTreeDrafter(model_of(1), sk, branching)
