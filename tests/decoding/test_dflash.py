"""The DFlash drafter: the text is that of plain decoding, and its state is that of a computation from scratch."""

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk
from python_ref.decoding import Decoder, Request
from python_ref.drafters import RATIO_RULES, DFlashDrafter

from .blocks import drafter_model, drafts_of, entries_of
from .helpers import model_of, plain, prompt_of, requests_of
from .test_law import PROMPT, SETTINGS, SOUND, TINY, expected_law, p_value

LAYERS = 6
DRAFTERS = {
    "chain": {},
    "chain of the best": {"coupled": False},
    "small pages": {"page_size": 1},
    "tree": {"nodes": 12},
    "tree of the best": {"nodes": 12, "coupled": False},
    "wide tree": {"nodes": 40, "ranks": 29, "page_size": 2},
    "root and one": {"nodes": 2, "ranks": 1},
}


@pytest.fixture(scope="module")
def target():
    return model_of(0, num_hidden_layers=LAYERS)


def tokens_of(outputs):
    return [output.tokens for output in outputs]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_match_gives_the_text_of_plain_decoding(temperature, target):
    """Requests that join late, of lengths that are all different; among them a prompt of one token."""
    requests = requests_of(5, temperature, new=9)
    expected = plain(target, requests)
    for name, options in DRAFTERS.items():
        drafter = DFlashDrafter(drafter_model(target), sk, **options)
        decoder = Decoder(target, ops=sk, drafter=drafter, num_draft=4, max_batch=4, prefill_chunk=3)
        assert tokens_of(decoder.generate(requests)) == expected, name
        assert sorted(drafter.cache.free_pages) == list(range(drafter.cache.num_pages)), name
        assert sum(decoder.statistics.drafted) > 0, name


@pytest.mark.parametrize("rule", ["greedy", "rejection"])
def test_at_temperature_0_every_rule_gives_that_text(rule, target):
    requests = requests_of(3, 0.0, new=9)
    expected = plain(target, requests)
    for name, options in DRAFTERS.items():
        drafter = DFlashDrafter(drafter_model(target), sk, **options)
        decoder = Decoder(target, ops=sk, drafter=drafter, rule=rule, num_draft=3, max_batch=4)
        assert tokens_of(decoder.generate(requests)) == expected, name


@pytest.mark.parametrize("rule", RATIO_RULES)
def test_rules_that_look_at_ratios_keep_the_law(rule):
    """The drafts of a tree have no law, and count as deterministic. A chi-square over whole generations."""
    target = model_of(3, scale=1.0, **TINY | {"num_hidden_layers": LAYERS})
    model = drafter_model(target, vocab_size=4, dflash_config={"mask_token_id": 3, "target_layer_ids": [0, 2, 3]})
    requests = [Request(PROMPT, max_new_tokens=4, seed=seed, **SETTINGS) for seed in range(1500)]
    drafter = DFlashDrafter(model, sk, nodes=6, ranks=3)
    decoder = Decoder(target, ops=sk, drafter=drafter, rule=rule, num_draft=2, max_batch=100)
    numbers = torch.tensor([output.tokens[:3] for output in decoder.generate(requests)]) @ torch.tensor([16, 4, 1])
    assert 0.05 < decoder.statistics.acceptance[0] < 1
    assert p_value(torch.bincount(numbers, minlength=64), expected_law(target, PROMPT, SETTINGS)) > SOUND


@pytest.mark.parametrize("shape", ["chain", "tree"])
@pytest.mark.parametrize(("rule", "temperature"), [("match", 0.8), ("rejection", 0.8), ("greedy", 0.0)])
def test_both_packages_of_ops_draft_the_same(rule, temperature, shape, target):
    requests = requests_of(4, temperature, new=8)
    results = []
    for ops in (sk, oracle):
        drafter = DFlashDrafter(drafter_model(target), ops, **DRAFTERS[shape])
        decoder = Decoder(target, ops=ops, drafter=drafter, rule=rule, num_draft=3, max_batch=4)
        texts = tokens_of(decoder.generate(requests))
        results.append((texts, decoder.statistics.drafted, decoder.statistics.accepted))
    assert results[0] == results[1]


class Watched(DFlashDrafter):
    """Compares cache and laws before each proposal with what the texts alone lead to."""

    def __init__(self, model, target, **options):
        super().__init__(model, sk, **options)
        self.target, self.grown, self.compared = target, [], 0

    def _block(self, cache, batch, live, depth):
        logits = super()._block(cache, batch, live, depth)
        for i, row in enumerate(live):
            text = batch.texts[row]
            wanted = drafts_of(self.model, self.target, text)
            torch.testing.assert_close(logits[i], wanted[:depth], rtol=1e-3, atol=1e-4)
            pages = torch.tensor(cache.pages(row))
            for layer in range(self.model.config.layer.num_layers if len(text) > 1 else 0):
                stored = (cache.keys(layer), cache.values(layer))
                for wanted, found in zip(entries_of(self.model, self.target, text, layer), stored, strict=True):
                    found = found[pages].flatten(0, 1)[: len(text) - 1]
                    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
            self.compared += 1
        return logits

    def observe(self, batch, committed):
        self.grown += committed
        super().observe(batch, committed)


@pytest.mark.parametrize("options", [{}, {"nodes": 20}], ids=["chain", "tree"])
def test_the_state_is_that_of_a_computation_from_scratch(options, target):
    """After every step, accepted and rejected drafts alike; the context ends strictly before the root."""
    drafter = Watched(drafter_model(target), target, **options)
    decoder = Decoder(target, ops=sk, drafter=drafter, num_draft=4, max_batch=5, page_size=2, prefill_chunk=4)
    lengths = (2, 9, 1, 5, 14)
    decoder.generate(
        [Request(prompt_of(i, n), max_new_tokens=24 - i, temperature=0.4, seed=i) for i, n in enumerate(lengths)]
    )
    assert {1, 2, 3} <= set(drafter.grown)  # none, one and two drafts accepted
    assert drafter.compared > 40


def test_a_text_may_reach_the_end_of_the_drafters_positions(target):
    """From there on nothing is drafted, and nothing is lost."""
    requests = requests_of(3, 0.8, new=30)
    model = drafter_model(target, max_position_embeddings=20)
    drafter = DFlashDrafter(model, sk)
    decoder = Decoder(target, ops=sk, drafter=drafter, num_draft=4, max_batch=4)
    assert tokens_of(decoder.generate(requests)) == plain(target, requests)
    assert sum(decoder.statistics.drafted) > 0


def test_ranks_are_worth_what_they_were(target):
    """Shares of right drafts: of the first depth of every step, of later ones where those before were right."""
    from python_ref.drafters.ranks import RankShares

    shares = RankShares(3, 2)
    before = shares.log_shares().exp()
    assert torch.equal(before, torch.tensor([[0.5, 0.25]]).repeat(3, 1))
    drafts = torch.tensor([[7, 8], [9, 1], [2, 3]])
    for _ in range(1000):
        shares.expect({4: (2, drafts)})
        shares.observe([[0, 0, 8, 5, 2]], [4])
    after = shares.log_shares().exp()
    assert after[0, 0] < 0.01  # descending, although the second was always right
    assert after[0, 1] == after[0, 0]
    assert after[1].max() < 0.01
    assert torch.equal(after[2], before[2])


@pytest.mark.parametrize(("options", "message"), [({"nodes": -1}, "nodes"), ({"ranks": 0}, "ranks")])
def test_values_out_of_range(options, message, target):
    with pytest.raises(ValueError, match=f"DFlashDrafter: {message} must be"):
        DFlashDrafter(drafter_model(target), sk, **options)
