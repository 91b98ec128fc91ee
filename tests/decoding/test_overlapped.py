"""The overlapped loop gives the text of the plain one: any drafter, batch, order, end."""

import math
import random

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk
from python_ref.decoding import Decoder, Request
from python_ref.decoding.static_drafter import Drafts
from python_ref.drafters import Eagle3Drafter, IndependentDrafter, NgramDrafter

from .heads import head_of
from .helpers import VOCAB, corrupted, model_of, noise, perfect, plain, prompt_of, requests_of
from .overlapping import StaticScripted, decoder_of, drafters, generate

NAMES = (
    "none",
    "ngram",
    "independent",
    "itself",
    "cold",
    "eagle3",
    "eagle3 of the best",
    "eagle3 tree",
    "eagle3 wide tree",
    "dflash",
    "dflash of the best",
    "ddtree",
)


@pytest.fixture(scope="module")
def target():
    return model_of(0, num_hidden_layers=6)


@pytest.fixture(scope="module")
def model():
    return model_of(0)


def scripted(requests, texts, num_draft, seed=None):
    script = perfect(requests, texts)
    return StaticScripted(script if seed is None else corrupted(script, seed), num_draft)


# ---- identical text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", NAMES)
def test_text_and_drafts_are_those_of_the_plain_loop(name, temperature, target):
    requests = requests_of(5, temperature)
    assert min(len(request.prompt) for request in requests) == 1
    loop = Decoder(target, ops=sk, drafter=drafters(target)[name], max_batch=3)
    expected = [output.tokens for output in loop.generate(requests)]
    assert expected == plain(target, requests)
    for compact in (True, False):
        decoder = decoder_of(target, drafters(target)[name], max_batch=3, compact=compact)
        assert generate(decoder, requests) == expected
        ours, theirs = decoder.statistics, loop.statistics
        for field in ("requests", "prompt_tokens", "new_tokens", "request_steps"):
            assert getattr(ours, field) == getattr(theirs, field), field
        if name != "ngram":  # which copy is taken depends on how many tokens are wanted, and that is not the same
            assert (ours.drafted, ours.accepted) == (theirs.drafted, theirs.accepted)


@pytest.mark.parametrize("name", ["independent", "eagle3", "eagle3 tree"])
def test_a_row_remembers_nothing_of_the_request_before(name, target):
    """A second run takes the rows of the first one, among them one for a prompt of a single token."""
    decoder = decoder_of(target, drafters(target)[name], max_batch=1)
    requests = requests_of(4, 0.0, new=6)
    generate(decoder, requests[1:])
    text = generate(decoder, requests[:1])
    ours = decoder.statistics
    fresh = decoder_of(target, drafters(target)[name], max_batch=1)
    assert generate(fresh, requests[:1]) == text
    assert (ours.drafted, ours.accepted) == (fresh.statistics.drafted, fresh.statistics.accepted)


@pytest.mark.parametrize("name", NAMES)
def test_the_rule_greedy_gives_it_too(name, target):
    requests = requests_of(4, 0.0)
    decoder = decoder_of(target, drafters(target)[name], rule="greedy", num_draft=3, max_batch=2)
    assert generate(decoder, requests) == plain(target, requests)


def test_neither_batch_nor_order_nor_pages_nor_chunks_change_the_text(model):
    requests = [
        Request(prompt_of(i, 1 + i % 13), max_new_tokens=1 + i % 9, temperature=(0.0, 0.6, 1.0, 1.5)[i % 4], seed=i * i)
        for i in range(24)
    ]
    expected = plain(model, requests)
    for setting in range(16):
        chosen = random.Random(setting)
        num_draft = chosen.choice((1, 2, 3, 7))
        drafter = None if setting == 0 else scripted(requests, expected, num_draft, setting)
        decoder = decoder_of(
            model,
            drafter,
            num_draft=num_draft,
            max_batch=chosen.choice((1, 2, 3, 5, 8, 30)),
            page_size=chosen.choice((1, 2, 4, 16, 32)),
            prefill_chunk=chosen.choice((1, 2, 5, 32)),
            prefill_budget=chosen.choice((1, 4, 100)),
            num_pages=chosen.choice((None, 70)),
            compact=chosen.choice((True, False)),
        )
        order = chosen.sample(range(24), 24)
        assert generate(decoder, [requests[i] for i in order]) == [expected[i] for i in order], setting


@pytest.mark.parametrize("name", ["none", "independent", "eagle3", "eagle3 tree"])
def test_small_pages_few_of_them_and_small_chunks(name, target):
    requests = requests_of(6, 0.9, new=8)
    options = {"max_batch": 4, "page_size": 1, "prefill_chunk": 3, "prefill_budget": 4, "num_draft": 3, "num_pages": 90}
    assert generate(decoder_of(target, drafters(target)[name], **options), requests) == plain(target, requests)


def test_a_decoder_serves_many_runs(model):
    requests = requests_of(3, 0.7)
    expected = plain(model, requests)
    decoder = decoder_of(model, NgramDrafter(sk))
    for _ in range(3):
        assert generate(decoder, requests) == expected
        assert decoder.statistics.requests == 3
    assert generate(decoder, []) == []


def test_the_oracle_gives_the_same(target):
    requests = requests_of(3, 0.8, new=6)
    expected = plain(target, requests)
    for drafter in (
        None,
        NgramDrafter(oracle),
        IndependentDrafter(model_of(1), oracle),
        Eagle3Drafter(head_of(target, draft_vocab=17), oracle),
        Eagle3Drafter(head_of(target), oracle, beams=2, nodes=6),
    ):
        assert generate(decoder_of(target, drafter, ops=oracle, num_draft=2), requests) == expected


def test_noise_holes_and_nothing_change_no_text(model):
    requests = requests_of(4, 1.1)
    expected = plain(model, requests)
    for script in (noise(3), lambda text, count: [-1] * count, lambda text, count: []):
        assert generate(decoder_of(model, StaticScripted(script, 4)), requests) == expected


# ---- ends ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["match", "greedy"])
@pytest.mark.parametrize("at", [0, 1, 3, 6])
def test_a_stop_token_within_a_step_ends_the_text_and_the_extra_step_is_dropped(model, rule, at):
    prompt = prompt_of(3, 4)
    endless = Request(prompt, max_new_tokens=12, stop_tokens=())
    text = plain(model, [endless])[0]
    first = text.index(text[at])
    other = Request(prompt_of(4, 3), max_new_tokens=20)
    requests = [Request(prompt, max_new_tokens=12, stop_tokens=(text[at], VOCAB + 5)), other]
    expected = [text[: first + 1], plain(model, [other])[0]]
    for num_draft in (1, 2, 8):
        decoder = decoder_of(model, scripted([endless, other], [text, expected[1]], num_draft), rule=rule)
        outputs = decoder.generate(requests)
        assert [output.tokens for output in outputs] == expected
        assert outputs[0].finish_reason == "stop" and outputs[1].finish_reason == "length"
        assert decoder.statistics.new_tokens == first + 1 + 20
        assert decoder.statistics.dropped >= 1
        decoder.check_pages()


def test_stop_tokens_come_from_the_configuration_unless_the_request_names_its_own():
    prompt = prompt_of(3, 4)
    text = plain(model_of(0), [Request(prompt, max_new_tokens=6)])[0]
    stopping = model_of(0, eos_token_id=text[2])
    assert generate(decoder_of(stopping), [Request(prompt, max_new_tokens=6)]) == [text[: text.index(text[2]) + 1]]
    assert generate(decoder_of(stopping), [Request(prompt, max_new_tokens=6, stop_tokens=())]) == [text]


@pytest.mark.parametrize("new", [1, 2, 3, 5])
def test_length_limits_that_end_within_a_step(model, new):
    requests = [Request(prompt_of(i, 1 + i), max_new_tokens=new, temperature=0.5, seed=i) for i in range(4)]
    expected = plain(model, requests)
    long = [Request(request.prompt, max_new_tokens=20, temperature=0.5, seed=request.seed) for request in requests]
    for num_draft in (1, 3, 8):
        decoder = decoder_of(model, scripted(long, plain(model, long), num_draft), max_batch=3)
        outputs = decoder.generate(requests)
        assert [output.tokens for output in outputs] == expected
        assert {output.finish_reason for output in outputs} == {"length"}
        assert decoder.statistics.drafted == [] or len(decoder.statistics.drafted) <= new - 1
        decoder.check_pages()


class Eager(StaticScripted):
    """Gives its chain as a tree, whatever the limits are."""

    def draft(self, lanes):
        made = super().draft(lanes)
        chains = torch.cat((lanes.roots.unsqueeze(1), made.tokens), dim=1)
        return Drafts(tree=sk.tree.from_chains(chains, (made.counts + 1).masked_fill(~lanes.active, 0)))


@pytest.mark.parametrize("new", [1, 2, 5])
def test_a_tree_that_is_deeper_than_the_limit_is_cut(model, new):
    long = requests_of(3, 0.5, new=20)
    requests = [Request(r.prompt, max_new_tokens=new, temperature=r.temperature, seed=r.seed) for r in long]
    drafter = Eager(perfect(long, plain(model, long)), 7)
    decoder = decoder_of(model, drafter)
    assert generate(decoder, requests) == plain(model, requests)
    assert decoder.statistics.drafted == decoder.statistics.accepted == [3] * (new - 1)


def test_without_drafts_no_step_is_dropped_at_a_length_limit(model):
    decoder = decoder_of(model)
    decoder.generate(requests_of(4, 0.5))
    assert decoder.statistics.dropped == 0


@pytest.mark.parametrize("prompt", [40, 63])
def test_the_models_positions_limit_the_text(target, prompt):
    requests = [Request(prompt_of(5, prompt), max_new_tokens=200, temperature=0.9), Request([3], max_new_tokens=200)]
    expected = plain(target, requests)
    assert len(expected[0]) == 64 - prompt
    small = {"max_position_embeddings": 50}
    made = (
        NgramDrafter(sk),
        StaticScripted(lambda text, count: [1] * count, 9),
        scripted(requests, expected, 7),
        IndependentDrafter(model_of(1, **small), sk),
        IndependentDrafter(target, sk),
        Eagle3Drafter(head_of(target, **small), sk),
        Eagle3Drafter(head_of(target, **small), sk, beams=3, nodes=12),
    )
    for i, drafter in enumerate(made):
        decoder = decoder_of(target, drafter, num_draft=7, page_size=4, compact=i % 2 == prompt % 2)
        outputs = decoder.generate(requests)
        assert [output.tokens for output in outputs] == expected
        assert outputs[0].finish_reason == "length"
        decoder.check_pages()


@pytest.mark.parametrize("name", ["independent", "eagle3", "eagle3 tree"])
def test_a_drafter_of_fewer_positions_drafts_what_the_plain_one_does(name, target):
    small = {"max_position_embeddings": 20}
    made = {
        "independent": lambda: IndependentDrafter(model_of(0, num_hidden_layers=6, **small), sk),
        "eagle3": lambda: Eagle3Drafter(head_of(target, **small), sk),
        "eagle3 tree": lambda: Eagle3Drafter(head_of(target, **small), sk, beams=3, nodes=12),
    }[name]
    requests = [Request(prompt_of(i, (3, 18, 19, 20, 21, 30)[i]), max_new_tokens=30, seed=i) for i in range(6)]
    loop = Decoder(target, ops=sk, drafter=made(), prefill_chunk=8)
    expected = [output.tokens for output in loop.generate(requests)]
    decoder = decoder_of(target, made(), prefill_chunk=8)
    assert generate(decoder, requests) == expected
    assert sum(decoder.statistics.drafted) > 0
    assert (decoder.statistics.drafted, decoder.statistics.accepted) == (
        loop.statistics.drafted,
        loop.statistics.accepted,
    )


@pytest.mark.parametrize("rule", ["match", "greedy"])
def test_dead_ends(rule):
    prompt = prompt_of(6, 3)
    text = plain(model_of(0), [Request(prompt, max_new_tokens=10)])[0]
    last = next(i for i, token in enumerate(text) if token not in prompt and i >= 2)
    dead = model_of(0)
    dead.model.embed_tokens.weight[text[last]] = math.nan
    kept = text[: text.index(text[last]) + 1]
    for drafter in (None, StaticScripted(lambda known, count: (text + text)[len(known) - 3 :][:count], 4)):
        for compact in (True, False):
            decoder = decoder_of(dead, drafter, rule=rule, compact=compact)
            output = decoder.generate([Request(prompt, max_new_tokens=10)])[0]
            assert output.tokens == kept and output.finish_reason == "dead_end"
            decoder.check_pages()


# ---- what is refused ----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(model):
    for options, text in (
        ({"rule": "rejection"}, "OverlappedDecoder: rule must be one of match, greedy, got 'rejection'"),
        ({"num_draft": -1}, "OverlappedDecoder: num_draft must be at least 0, got -1"),
        ({"max_batch": 0}, "OverlappedDecoder: max_batch must be at least 1, got 0"),
        ({"num_pages": 0}, "OverlappedDecoder: num_pages must be at least 1, got 0"),
        ({"prefill_budget": 0}, "OverlappedDecoder: prefill_budget must be at least 1, got 0"),
        ({"drafter": object()}, "OverlappedDecoder: drafter must have a static form, got object"),
    ):
        with pytest.raises(ValueError) as error:
            decoder_of(model, **options)
        assert str(error.value) == text
    decoder = decoder_of(model, rule="greedy", num_pages=2)
    for request, text in (
        (Request([0] * 64), "submit: prompt must have fewer than 64 tokens, got 64"),
        (Request([VOCAB]), f"submit: prompt must hold tokens from 0 to {VOCAB - 1}, got {VOCAB}"),
        (Request([1], temperature=1.0), "submit: temperature must be 0 under the rule 'greedy', got 1.0"),
        (Request([1], max_new_tokens=60), "submit: request must fit 2 pages, got one of 4"),
    ):
        with pytest.raises(ValueError) as error:
            decoder.submit(request)
        assert str(error.value) == text
        assert decoder.idle


def test_a_seed_of_64_bits(model):
    requests = [Request([1, 2], max_new_tokens=5, temperature=1.0, seed=seed) for seed in (2**64 - 1, 2**63, -1)]
    expected = plain(model, requests)
    assert expected[0] == expected[2]
    assert generate(decoder_of(model), requests) == expected


def test_threads_of_torch_are_those_of_the_caller(model):
    before, seen = torch.get_num_threads(), []

    def script(text, count):
        seen.append(torch.get_num_threads())
        return []

    decoder = decoder_of(model, StaticScripted(script, 1))
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        try:
            decoder.generate([Request([1], max_new_tokens=2)])
        finally:
            torch.set_num_threads(before)
        assert set(seen) == {threads}
        seen.clear()
