"""A drafter that stops where it is not sure: it drafts less, and the text has the target's law all the same."""

import math

import pytest

import specdec_kernels as sk
from python_ref.decoding import Decoder, Request
from python_ref.drafters import IndependentDrafter

from .helpers import model_of


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_a_drafter_that_is_not_sure_drafts_less_and_says_the_same(rule, temperature):
    model, requests = (
        model_of(0),
        [Request([3, i], max_new_tokens=20, temperature=temperature, seed=i) for i in range(4)],
    )
    drafted, texts = [], []
    for bounds in ({}, {"min_confidence": 0.075}, {"max_entropy": 3.27}, {"min_confidence": 1.0}):
        decoder = Decoder(model, ops=sk, drafter=IndependentDrafter(model_of(1), sk, **bounds), rule=rule, num_draft=4)
        texts.append([output.tokens for output in decoder.generate(requests)])
        drafted.append(sum(decoder.statistics.drafted))
    assert drafted[0] > drafted[1] > drafted[3] and drafted[0] > drafted[2] > drafted[3] == 0
    if rule == "match" or temperature == 0:
        assert all(text == texts[0] for text in texts)


@pytest.mark.parametrize("bound", [-0.1, 1.5, math.nan])
def test_a_confidence_is_a_probability(bound):
    with pytest.raises(ValueError, match=f"IndependentDrafter: min_confidence must be from 0 to 1, got {bound}"):
        IndependentDrafter(model_of(1), sk, min_confidence=bound)


@pytest.mark.parametrize("bound", [-0.1, math.nan])
def test_an_entropy_is_not_negative(bound):
    with pytest.raises(ValueError, match=f"IndependentDrafter: max_entropy must be at least 0, got {bound}"):
        IndependentDrafter(model_of(1), sk, max_entropy=bound)


def test_the_loop_that_never_waits_does_not_take_it():
    drafter = IndependentDrafter(model_of(1), sk, max_entropy=1.0)
    with pytest.raises(ValueError, match="drafter must not stop early, got min_confidence or max_entropy"):
        drafter.static(3)
