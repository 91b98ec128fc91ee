"""Identical text: of the two packages of ops, and of plain and speculative decoding under ``match`` and ``greedy``."""

import random

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk
from python_ref.decoding import Decoder, Request
from python_ref.drafters import IndependentDrafter, NgramDrafter
from python_ref.models.transformer import causal

from .helpers import OPS, Scripted, corrupted, model_of, noise, perfect, plain, prompt_of, requests_of

SHAPES = {
    "qwen3": {},
    "llama, one head, odd sizes": {
        "family": "LlamaForCausalLM",
        "hidden_size": 18,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 33,
    },
    "qwen2, many heads, tied": {
        "family": "Qwen2ForCausalLM",
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
}
TEMPERATURES = (0.0, 0.7, 1.4)


def drafters(requests, texts, ops=sk):
    """Every kind of drafter, by name."""
    known = perfect(requests, texts)
    return {
        "perfect": Scripted(known),
        "corrupted": Scripted(corrupted(known, 1)),
        "noise": Scripted(noise(2)),
        "holes": Scripted(lambda text, count: [-1] * count),
        "nothing": Scripted(lambda text, count: []),
        "ngram": NgramDrafter(ops),
        "ngram of one": NgramDrafter(ops, min_n=1, max_n=1),
        "independent": IndependentDrafter(model_of(1), ops),
        "itself": IndependentDrafter(model_of(0), ops),
        "stopping": IndependentDrafter(model_of(0), ops, min_confidence=0.07, max_entropy=3.3),
        "cold": IndependentDrafter(model_of(1), ops, temperature=0.0, page_size=2, prefill_chunk=4),
    }


def tokens_of(outputs):
    return [output.tokens for output in outputs]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_match_gives_the_text_of_plain_decoding_for_any_drafter(shape, temperature):
    model = model_of(0, **SHAPES[shape])
    requests = requests_of(5, temperature)
    expected = plain(model, requests)
    assert [len(text) for text in expected] == [request.max_new_tokens for request in requests]
    for name, drafter in drafters(requests, expected).items():
        outputs = Decoder(model, ops=sk, drafter=drafter, num_draft=4).generate(requests)
        assert tokens_of(outputs) == expected, name


@pytest.mark.parametrize(
    "filters", [{"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.4}, {"top_k": 9, "top_p": 0.9, "min_p": 0.01}]
)
def test_match_gives_the_text_of_plain_decoding_under_filters(filters):
    model = model_of(0)
    requests = requests_of(4, 1.2, **filters)
    expected = plain(model, requests)
    assert expected != plain(model, requests_of(4, 1.2))
    for name in ("corrupted", "ngram", "independent", "itself"):
        drafter = drafters(requests, expected)[name]
        outputs = Decoder(model, ops=sk, drafter=drafter, num_draft=3).generate(requests)
        assert tokens_of(outputs) == expected, name


def test_greedy_gives_the_text_of_plain_decoding():
    model = model_of(0)
    requests = requests_of(5, 0.0)
    expected = plain(model, requests)
    for name, drafter in drafters(requests, expected).items():
        for rule in ("greedy", "rejection"):
            outputs = Decoder(model, ops=sk, drafter=drafter, rule=rule, num_draft=5).generate(requests)
            assert tokens_of(outputs) == expected, (name, rule)


def test_neither_batch_nor_pages_nor_chunks_nor_number_of_drafts_change_the_text():
    """Many prompts and seeds, each setting with a batch, pages and chunks of its own, free pages in any order."""
    model = model_of(0)
    requests = [
        Request(prompt_of(i, 1 + i % 13), max_new_tokens=5 + i % 6, temperature=(0.0, 0.6, 1.0, 1.5)[i % 4], seed=i * i)
        for i in range(24)
    ]
    expected = plain(model, requests)
    assert len({tuple(text) for text in expected}) > 20
    known = perfect(requests, expected)
    for setting in range(12):
        chosen = random.Random(setting)
        decoder = Decoder(
            model,
            ops=sk,
            drafter=None if setting == 0 else Scripted(corrupted(known, setting)),
            num_draft=chosen.choice((0, 1, 2, 3, 7, 15)),
            max_batch=chosen.choice((1, 2, 3, 5, 8, 30)),
            page_size=chosen.choice((1, 2, 4, 16, 32)),
            prefill_chunk=chosen.choice((1, 2, 5, 32)),
            logprobs=chosen.choice((None, "raw")),
        )
        chosen.shuffle(decoder.cache.free_pages)
        order = chosen.sample(range(24), 24)
        outputs = decoder.generate([requests[i] for i in order])
        assert tokens_of(outputs) == [expected[i] for i in order], setting
        assert sorted(decoder.cache.free_pages) == list(range(decoder.cache.num_pages))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_does_not_change_the_text(threads):
    before = torch.get_num_threads()
    requests = requests_of(3, 0.9)
    model = model_of(0)
    expected = plain(model, requests)
    torch.set_num_threads(threads)
    try:
        drafter = IndependentDrafter(model_of(1), sk)
        assert tokens_of(Decoder(model, ops=sk, drafter=drafter).generate(requests)) == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_both_packages_of_ops_give_the_same_text(rule, temperature):
    """The same logits to the bit, decided in single and in double precision."""
    model = model_of(0)
    requests = requests_of(5, temperature, new=9, top_p=0.95)
    known = plain(model, requests)
    for name in ("none", "corrupted", "ngram", "independent"):
        results = []
        for ops in OPS.values():
            drafter = None if name == "none" else drafters(requests, known, ops)[name]
            decoder = Decoder(model, ops=ops, drafter=drafter, rule=rule, logprobs="processed")
            outputs = decoder.generate(requests)
            statistics = decoder.statistics
            results.append((tokens_of(outputs), statistics.drafted, statistics.accepted, statistics.steps))
        assert results[0] == results[1], name


def test_the_oracle_alone_gives_identical_text_too():
    """Its own linear layer is row-invariant as well."""
    model = model_of(0, linear=oracle.linear)
    requests = requests_of(3, 0.8, new=8)
    expected = plain(model, requests, ops=oracle)
    for name, drafter in drafters(requests, expected, oracle).items():
        outputs = Decoder(model, ops=oracle, drafter=drafter, num_draft=3).generate(requests)
        assert tokens_of(outputs) == expected, name


def test_with_other_logits_the_texts_part_only_at_a_close_call():
    """The linear layers of the two packages round differently: where a text parts, the oracle's margin is small."""
    requests = requests_of(12, 0.9, new=20)
    texts = {}
    for name, ops in OPS.items():
        texts[name] = plain(model_of(0, linear=ops.linear), requests, ops)
    parted = 0
    model = model_of(0, linear=oracle.linear)
    for request, ours, theirs in zip(requests, texts["kernels"], texts["oracle"], strict=True):
        if ours == theirs:
            continue
        parted += 1
        shared = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        text = [*request.prompt, *theirs[:shared]]
        margin = torch.zeros(1, dtype=torch.float64)
        with torch.inference_mode():
            hidden = model(torch.tensor(text), torch.arange(len(text)), causal(1))
            logits = model.logits(hidden)[-1:]
            settings = oracle.Sampling.of(1, temperature=request.temperature, seed=request.seed)
            oracle.sample.sample(logits, settings, torch.tensor([len(text)]), margin=margin)
        assert float(margin) < 1e-4
    assert parted <= 1


def test_log_probabilities_do_not_depend_on_the_drafts():
    model = model_of(0)
    requests = requests_of(4, 0.8, top_k=5)
    for mode in ("processed", "raw"):
        alone = Decoder(model, ops=sk, logprobs=mode).generate(requests)
        drafter = Scripted(corrupted(perfect(requests, tokens_of(alone)), 4))
        together = Decoder(model, ops=sk, drafter=drafter, logprobs=mode).generate(requests)
        assert tokens_of(alone) == tokens_of(together)
        assert [output.logprobs for output in alone] == [output.logprobs for output in together]
        assert all(len(output.logprobs) == len(output.tokens) for output in alone)
        assert all(value <= 1e-6 for output in alone for value in output.logprobs)
