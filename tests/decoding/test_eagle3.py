"""The EAGLE-3 drafter: the text is that of plain decoding, and its state is that of a computation from scratch."""

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk
from python_ref.decoding import Decoder, Request
from python_ref.drafters import Eagle3Drafter

from .heads import dynamic_tree, entries, head_of, log_law
from .helpers import VOCAB, model_of, plain, prompt_of, requests_of

LAYERS = 6
DRAFTERS = {
    "chain": {},
    "chain of the best": {"temperature": 0.0},
    "small pages": {"page_size": 1},
    "tree": {"beams": 3, "nodes": 12},
    "wide tree": {"beams": 6, "nodes": 40, "page_size": 2},
    "narrow tree": {"beams": 2, "nodes": 3},
    "roots alone": {"beams": 2, "nodes": 1},
}


@pytest.fixture(scope="module")
def target():
    return model_of(0, num_hidden_layers=LAYERS)


def tokens_of(outputs):
    return [output.tokens for output in outputs]


@pytest.mark.parametrize("draft_vocab", [VOCAB, 17])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_match_gives_the_text_of_plain_decoding(temperature, draft_vocab, target):
    """Requests that join late, of lengths that are all different; among them a prompt of one token."""
    requests = requests_of(5, temperature, new=9)
    assert min(len(request.prompt) for request in requests) == 1
    expected = plain(target, requests)
    for name, options in DRAFTERS.items():
        drafter = Eagle3Drafter(head_of(target, draft_vocab=draft_vocab), sk, **options)
        decoder = Decoder(target, ops=sk, drafter=drafter, num_draft=4, max_batch=4, prefill_chunk=3)
        assert tokens_of(decoder.generate(requests)) == expected, name
        assert sorted(drafter.cache.free_pages) == list(range(drafter.cache.num_pages)), name
        assert (sum(decoder.statistics.drafted) > 0) == (name != "roots alone"), name


@pytest.mark.parametrize("rule", ["greedy", "rejection"])
def test_at_temperature_0_every_rule_gives_that_text(rule, target):
    requests = requests_of(3, 0.0, new=9)
    expected = plain(target, requests)
    for name, options in DRAFTERS.items():
        drafter = Eagle3Drafter(head_of(target, draft_vocab=17), sk, **options)
        decoder = Decoder(target, ops=sk, drafter=drafter, rule=rule, num_draft=3, max_batch=4)
        assert tokens_of(decoder.generate(requests)) == expected, name


@pytest.mark.parametrize("shape", ["chain", "tree"])
@pytest.mark.parametrize(("rule", "temperature"), [("match", 0.8), ("rejection", 0.8), ("greedy", 0.0)])
def test_both_packages_of_ops_draft_the_same(rule, temperature, shape, target):
    requests = requests_of(4, temperature, new=8)
    results = []
    for ops in (sk, oracle):
        drafter = Eagle3Drafter(head_of(target, draft_vocab=17), ops, **DRAFTERS[shape])
        decoder = Decoder(target, ops=ops, drafter=drafter, rule=rule, num_draft=3, max_batch=4)
        texts = tokens_of(decoder.generate(requests))
        results.append((texts, decoder.statistics.drafted, decoder.statistics.accepted))
    assert results[0] == results[1]


class Watched(Eagle3Drafter):
    """Compares the state before each proposal with what the texts alone lead to, and keeps the proposals."""

    def __init__(self, head, target, **options):
        super().__init__(head, sk, **options)
        self.target, self.known, self.proposals = target, [], []

    def propose(self, batch, limits, rule):
        proposal = super().propose(batch, limits, rule)
        for row in batch.live:
            text, state = batch.texts[row], self._rows[row]
            assert state.waiting == 0 or limits[row] == 0 or len(text) == 1
            if state.known:
                self._compare(row, text[: state.known + 1])
            self.known.append((batch.serials[row], state.known))
        self.proposals.append(([list(text) for text in batch.texts], list(limits), proposal))
        return proposal

    def _compare(self, row, text):
        _, keys, values = entries(self.head, self.target, text)
        pages = torch.tensor(self.cache.pages(row))
        for wanted, stored in ((keys, self.cache.keys(0)), (values, self.cache.values(0))):
            found = stored[pages].flatten(0, 1)[: len(text) - 1]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def rich(temperature, count=5, new=30):
    """Requests at a temperature where chance brings target and head together often, and apart often."""
    lengths = (2, 9, 1, 5, 14)
    return [
        Request(prompt_of(i, lengths[i]), max_new_tokens=new - i, temperature=temperature, seed=i) for i in range(count)
    ]


@pytest.mark.parametrize("options", [{}, {"beams": 6, "nodes": 40}], ids=["chain", "tree"])
def test_the_state_is_that_of_a_computation_from_scratch(options, target):
    """After every step, accepted and rejected drafts alike, the cache holds what the committed text leads to."""
    head = head_of(target, draft_vocab=20, scale=0.5)
    drafter = Watched(head, target, **options)
    decoder = Decoder(target, ops=sk, drafter=drafter, num_draft=4, max_batch=5, page_size=2, prefill_chunk=4)
    decoder.generate(rich(1.5, 5, 24))
    steps = {}
    for serial, known in drafter.known:
        steps.setdefault(serial, []).append(known)
    grown = {b - a for known in steps.values() for a, b in zip(known, known[1:], strict=False)}
    assert {1, 2, 3} <= grown  # none, one and two drafts accepted
    assert len({tuple(known) for known in steps.values()}) == len(steps)


@pytest.mark.parametrize("draft_vocab", [VOCAB, 17])
def test_a_chain_is_the_head_s_best_guess_at_each_place(draft_vocab, target):
    head = head_of(target, draft_vocab=draft_vocab)
    drafter = Watched(head, target, temperature=0.0)
    Decoder(target, ops=sk, drafter=drafter, num_draft=4, max_batch=3).generate(rich(0.8, 3, 12))
    compared = 0
    for texts, limits, proposal in drafter.proposals[:8]:
        for row, count in enumerate(proposal.counts):
            drafts = proposal.tokens[row, :count].tolist()
            assert count == (limits[row] if len(texts[row]) > 1 else 0)
            for i, token in enumerate(drafts):
                assert token == int(log_law(head, target, texts[row], drafts[:i]).argmax())
                compared += 1
    assert compared > 40


@pytest.mark.parametrize("draft_vocab", [VOCAB, 17])
def test_under_rejection_drafts_come_with_the_law_that_they_were_drawn_from(draft_vocab, target):
    """Drawn again from what is handed over, with the noise of drafts, they are the same."""
    head = head_of(target, draft_vocab=draft_vocab)
    drafter = Watched(head, target)
    Decoder(target, ops=sk, drafter=drafter, rule="rejection", num_draft=3, max_batch=3).generate(rich(1.2, 3, 10))
    compared = 0
    for texts, _, made in drafter.proposals:
        assert (made.draft_to_target is None) == (made.target_to_draft is None) == (draft_vocab == VOCAB)
        for row, count in enumerate(made.counts):
            for i in range(count):
                place = torch.tensor([i])
                again = sk.sample.draft(
                    made.logits[made.rows[row, i], None],
                    made.sampling,
                    torch.tensor([len(texts[row]) + i]),
                    replacement=True,
                    num=1,
                    requests=torch.tensor([row]),
                    depths=place,
                    nodes=place,
                    draft_to_target=made.draft_to_target,
                )
                assert int(again) == int(made.tokens[row, i])
                compared += 1
    assert compared > 20


def paths_of(tree, row):
    """The paths of a request's tree, from tokens and parents alone."""
    first = int(tree.cu_nodes[row])
    live = int(tree.ends[first]) if int(tree.cu_nodes[row + 1]) > first else 0
    paths = []
    for node in range(first, first + live):
        parent = int(tree.parents[node])
        paths.append(() if parent < 0 else (*paths[parent], int(tree.tokens[node])))
    return paths


@pytest.mark.parametrize(
    ("beams", "nodes", "depth", "draft_vocab"),
    [(3, 14, 4, VOCAB), (3, 14, 4, 17), (2, 30, 5, 17), (5, 9, 2, 4), (4, 100, 3, 6)],
)
def test_a_tree_is_that_of_the_algorithm(beams, nodes, depth, draft_vocab, target):
    """Level by level over a growing cache gives the tree that recomputing every path gives."""
    head = head_of(target, draft_vocab=draft_vocab, scale=1.0)
    drafter = Watched(head, target, beams=beams, nodes=nodes)
    requests = rich(1.0, 3, 10)
    Decoder(target, ops=sk, drafter=drafter, num_draft=depth, max_batch=3).generate(requests)
    sizes = set()
    for texts, limits, proposal in drafter.proposals[:4]:
        for row, limit in enumerate(limits):
            found = paths_of(proposal.tree, row)
            if len(texts[row]) == 1 or limit == 0:
                assert len(found) <= 1
                continue
            wanted = dynamic_tree(head, target, texts[row], beams, limit, nodes)
            assert len(found) == len(set(found)) and set(found) == set(wanted)
            sizes.add(limit)
    assert max(sizes) == depth


def test_neither_batch_nor_pages_nor_chunks_change_the_drafts(target):
    """What is drafted for a request is its own affair."""
    requests = rich(0.9, 5, 13)
    counted = set()
    for options in ({"beams": 3, "nodes": 12}, {}):
        results = []
        for batch, page, chunk in ((1, 16, 32), (5, 1, 2), (2, 4, 7)):
            drafter = Eagle3Drafter(head_of(target, draft_vocab=17), sk, page_size=page, **options)
            decoder = Decoder(target, ops=sk, drafter=drafter, num_draft=3, max_batch=batch, prefill_chunk=chunk)
            outputs = decoder.generate(requests)
            results.append((tokens_of(outputs), [output.steps for output in outputs]))
        assert results[0] == results[1] == results[2]
        counted.add(sum(results[0][1]))
    assert len(counted) == 2


def test_a_head_of_few_positions_drafts_as_long_as_it_has_them(target):
    requests = [Request(prompt_of(1, 5), max_new_tokens=20), Request(prompt_of(2, 14), max_new_tokens=20)]
    expected = plain(target, requests)
    for options in ({}, {"beams": 2, "nodes": 6}):
        drafter = Eagle3Drafter(head_of(target, max_position_embeddings=12), sk, **options)
        decoder = Decoder(target, ops=sk, drafter=drafter, num_draft=4, prefill_chunk=6, max_batch=2)
        assert tokens_of(decoder.generate(requests)) == expected
        # The longer prompt is beyond the head from the start; the other one is drafted for up to entry 11.
        assert 0 < decoder.statistics.drafted[0] <= 12 - 3


def test_a_drafter_serves_run_after_run_and_larger_batches(target):
    drafter = Eagle3Drafter(head_of(target), sk, beams=2, nodes=6)
    for count in (1, 4, 2):
        requests = requests_of(count, 0.7)
        decoder = Decoder(target, ops=sk, drafter=drafter, num_draft=3, max_batch=count)
        assert tokens_of(decoder.generate(requests)) == plain(target, requests)


def test_a_request_may_end_in_the_middle_of_what_was_accepted(target):
    """The features of the rest have been given already; the row's next request must not meet them."""
    requests = rich(0.8, 5, 20)
    stop = plain(target, requests)[0][3]
    requests = [Request(r.prompt, r.max_new_tokens, r.temperature, seed=r.seed, stop_tokens=[stop]) for r in requests]
    expected = plain(target, requests)
    assert any(text[-1] == stop for text in expected)
    for options in ({}, {"beams": 4, "nodes": 20}):
        drafter = Watched(head_of(target, scale=0.5), target, **options)
        decoder = Decoder(target, ops=sk, drafter=drafter, num_draft=5, max_batch=2)
        assert tokens_of(decoder.generate(requests)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "Eagle3Drafter: temperature must be at least 0, got -1.0"),
        ({"temperature": float("nan")}, "Eagle3Drafter: temperature must be at least 0, got nan"),
        ({"beams": 0}, "Eagle3Drafter: beams must be from 1 to 32, got 0"),
        ({"beams": 33}, "Eagle3Drafter: beams must be from 1 to 32, got 33"),
        ({"nodes": 0}, "Eagle3Drafter: nodes must be from 1 to 1024, got 0"),
        ({"nodes": 1025}, "Eagle3Drafter: nodes must be from 1 to 1024, got 1025"),
    ],
)
def test_values_out_of_range_are_refused(options, message, target):
    with pytest.raises(ValueError) as caught:
        Eagle3Drafter(head_of(target), sk, **options)
    assert str(caught.value) == message


def test_the_widest_tree_stays_within_what_the_ops_take(target):
    drafter = Eagle3Drafter(head_of(target), sk, beams=32, nodes=1024)
    request = Request(prompt_of(3, 4), max_new_tokens=8)
    decoder = Decoder(target, ops=sk, drafter=drafter, num_draft=15, max_batch=1)
    assert tokens_of(decoder.generate([request])) == plain(target, [request])
    assert 0 < len(decoder.statistics.drafted) <= 4
