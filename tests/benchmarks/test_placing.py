"""A large batch made of a small one has the outcome of the small one, request by request."""

import pytest
import torch

import specdec_kernels as sk
from bench import cases, contest, gates
from bench.baselines import Settings
from bench.cases import Laws
from bench.data import Sizes, normal
from bench.placing import Placed
from bench.runner import admit

SIZES = Sizes(requests=2, nodes=4, vocab=64)
LOGITS = normal(SIZES)
SETTINGS = {"temperature": 1.0, "top_p": 0.9}


def made(op):
    if op == "greedy":
        return cases.greedy(LOGITS.target, SIZES, cases.decide(LOGITS.target, SIZES, {"temperature": 0.0}), "half")
    if op == "match":
        return cases.match(LOGITS.target, SIZES, cases.decide(LOGITS.target, SIZES, SETTINGS), "half")
    return cases.rejection(LOGITS, SIZES, Laws(LOGITS, SETTINGS), "half")


def baselines_of(op):
    laws = Laws(LOGITS, SETTINGS)
    if op == "greedy":
        decided = cases.decide(LOGITS.target, SIZES, {"temperature": 0.0})
        return contest.greedy(LOGITS.target, decided.tokens, "half", SIZES)
    if op == "match":
        return contest.match(LOGITS.target, laws, "half", SIZES)
    return contest.rejection(made(op), LOGITS, laws, SIZES)


@pytest.mark.parametrize("requests", [1, 2, 3, 8])
@pytest.mark.parametrize("op", ["greedy", "match", "rejection"])
def test_ops_and_baselines_give_what_is_expected_of_the_batch(op, requests):
    place = Placed(2, requests, "cpu")
    case = place.case(made(op))
    assert case.arguments["tree"].cu_nodes.tolist() == [4 * b for b in range(requests + 1)]
    assert case.arguments["logits"].shape == (4 * requests, 64) and case.expected.tokens.shape == (requests, 4)
    assert case.accepted == [1 + b % 2 for b in range(requests)]
    for variant in (*contest.backends(case, ("cpu", "reference")), *contest.variants(baselines_of(op), False, place)):
        assert admit(variant) is None, variant.name


@pytest.mark.parametrize("op", ["greedy", "match", "rejection"])
def test_another_outcome_of_a_copy_is_refused(op):
    case = Placed(2, 6, "cpu").case(made(op))
    result = case.call("cpu")()
    tokens = result.tokens.clone()
    tokens[5, 0] += 1
    assert gates.of_case(case)(result) is None
    assert gates.of_case(case)(result._replace(tokens=tokens)).startswith("tokens[5, 0] must be")


def test_needed_rows_are_those_of_all_requests():
    for requests, visited in ((1, 2), (2, 5), (3, 7), (8, 20)):
        assert Placed(2, requests, "cpu").case(made("match")).row_reads == visited
        assert Placed(2, requests, "cpu").case(made("rejection")).row_reads == 2 * visited  # none reaches its last node


def test_what_comes_twice_is_copied_once_and_has_memory_of_its_own():
    place = Placed(2, 6, "cpu")
    first = place(LOGITS.target)
    assert place(LOGITS.target) is first
    assert first.is_contiguous() and first.untyped_storage().nbytes() >= 3 * LOGITS.target.untyped_storage().nbytes()


def test_records_lists_and_plain_values():
    place = Placed(2, 3, "cpu")
    settings = place(Settings(torch.tensor([[0.5], [0.7]])))
    assert settings.temperature.flatten().tolist() == pytest.approx([0.5, 0.7, 0.5]) and settings.top_k is None
    sampling = place(sk.Sampling.of(2, seed=[3, 4]))
    assert sampling.seed.tolist() == [3, 4, 3] and sampling.filter_order == "top_k_first"
    assert place((1, "x", None)) == (1, "x", None)


def test_rows_that_belong_to_no_request_are_refused():
    with pytest.raises(ValueError, match=r"Placed: a tensor must have rows for 2 requests, got \[3, 1\]"):
        Placed(2, 4, "cpu")(torch.zeros(3, 1))
