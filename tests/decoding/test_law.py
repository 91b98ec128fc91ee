"""Speculative decoding under ``rejection`` keeps the law of the target's text: a chi-square over whole generations."""

import itertools

import pytest
import torch
from laws.texts import FOUND, SOUND, p_value

import python_ref.ops as oracle
import specdec_kernels as sk
from python_ref.decoding import Decoder, Request
from python_ref.drafters import Eagle3Drafter, IndependentDrafter, NgramDrafter, Proposal
from python_ref.models.transformer import causal
from python_ref.ops import law

from .heads import head_of
from .helpers import model_of

TINY = {
    "vocab_size": 4,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
PROMPT = (2,)  # nothing to prefill; lookup needs a text that repeats itself
REPEATING = (2, 0, 2)
LENGTH = 3
TRIALS = 6000


@pytest.fixture(scope="module")
def target():
    return model_of(3, scale=1.0, **TINY)


@pytest.fixture(scope="module")
def small():
    return model_of(4, scale=1.0, **TINY)


def expected_law(model, prompt, settings):
    """Probability of each text of three tokens, by the model and the processed law alone."""
    shares = torch.ones(4**LENGTH, dtype=torch.float64)
    sampling = law.all_settings(oracle.Sampling.of(1, **settings))[0]
    for number, text in enumerate(itertools.product(range(4), repeat=LENGTH)):
        tokens = torch.tensor([*prompt, *text])
        with torch.inference_mode():
            logits = model.logits(model(tokens, torch.arange(len(tokens)), causal(1)))
        for i, token in enumerate(text):
            row = law.read_row(logits[len(prompt) - 1 + i])
            shares[number] *= law.weights(row.logits, sampling).normalised().w[token]
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-6)  # rows in float32, a batch of their own
    return shares / shares.sum()


def p_of(model, drafter, prompt=PROMPT, trials=TRIALS, **settings):
    """The p-value of the first tokens of many generations, which go on behind them."""
    requests = [Request(prompt, max_new_tokens=LENGTH + 1, seed=seed, **settings) for seed in range(trials)]
    decoder = Decoder(model, ops=sk, drafter=drafter, rule="rejection", num_draft=2, max_batch=100)
    outputs = decoder.generate(requests)
    accepted = decoder.statistics.acceptance
    assert all(0.05 < share < 1 for share in accepted[:2])
    numbers = torch.tensor([output.tokens[:LENGTH] for output in outputs]) @ torch.tensor([16, 4, 1])
    return p_value(torch.bincount(numbers, minlength=64), expected_law(model, prompt, settings))


SETTINGS = {"temperature": 0.8, "top_k": 3}


class FixedTree:
    """A root with two children, the first of them with two more: a function of the text's last token."""

    def propose(self, batch, limits, rule):
        tokens, parents, offsets = [], [], [0]
        for row, limit in enumerate(limits):
            if batch.active[row]:
                root, nodes = batch.texts[row][-1], (1, 3, 5)[min(limit, 2)]
                tokens += [(root + step) % 4 for step in (0, 1, 2, 3, 1)][:nodes]
                parents += [-1, 0, 0, 1, 1][:nodes]
            offsets.append(len(tokens))
        columns = (torch.tensor(column, dtype=torch.int32) for column in (parents, offsets))
        tree, _ = sk.tree.from_parents(torch.tensor(tokens), *columns, max_nodes=5, max_depth=2)
        return Proposal(tree=tree)

    def observe(self, batch, committed):
        """Nothing to learn."""


@pytest.mark.parametrize("drafter", ["sampled", "stopping", "cold", "lookup", "head", "tree", "tree of the head"])
def test_the_law_of_the_text_is_the_targets(target, small, drafter):
    made = {
        "sampled": IndependentDrafter(small, sk),
        "stopping": IndependentDrafter(small, sk, min_confidence=0.368, max_entropy=1.096),
        "cold": IndependentDrafter(small, sk, temperature=0.0),
        "lookup": NgramDrafter(sk, max_n=2),
        "head": Eagle3Drafter(head_of(target, draft_vocab=3, scale=1.0, vocab_size=4), sk),
        "tree": FixedTree(),
        "tree of the head": Eagle3Drafter(
            head_of(target, draft_vocab=3, scale=1.0, vocab_size=4), sk, beams=2, nodes=6
        ),
    }[drafter]
    prompt = PROMPT if drafter in ("sampled", "stopping", "cold", "tree") else REPEATING
    trials = TRIALS // 2 if "head" in drafter else TRIALS  # it reads prompts too
    assert p_of(target, made, prompt, trials, **SETTINGS) > SOUND


class RawLaw(IndependentDrafter):
    """Hands over the law before temperature and filters."""

    def propose(self, batch, limits, rule):
        made = super().propose(batch, limits, rule)
        plain = sk.Sampling.of(batch.size, temperature=3.0)
        return made._replace(sampling=plain)


class ShiftedRows(IndependentDrafter):
    """The law of each draft is that of the next one."""

    def propose(self, batch, limits, rule):
        made = super().propose(batch, limits, rule)
        return made if made.rows is None else made._replace(rows=made.rows.roll(1, 0))


@pytest.mark.parametrize("wrong", [RawLaw, ShiftedRows])
def test_a_drafter_that_breaks_the_protocol_is_found(target, small, wrong):
    assert p_of(target, wrong(small, sk), temperature=0.8) < FOUND
