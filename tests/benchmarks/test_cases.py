"""The calls to be timed: none, half or all of the drafts are really accepted, and clearly."""

import pytest
import torch

import python_ref.ops as oracle
from bench import cases, contest
from bench.cases import CLEAR, Laws
from bench.data import ACCEPTED, Sizes, accepted_drafts, normal
from bench.runner import admit

SIZES = Sizes(requests=4, nodes=6, vocab=200)
LOGITS = normal(SIZES, seed=1)
SETTINGS = [{"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 0.7, "top_k": 20}]
DTYPES = [torch.float32, torch.bfloat16]


def test_half_of_an_odd_number_is_half_on_average():
    assert accepted_drafts("half", Sizes()) == [3, 4] * 4
    assert accepted_drafts("half", Sizes(nodes=9)) == [4] * 8
    assert accepted_drafts("none", Sizes()) == [0] * 8
    assert accepted_drafts("all", Sizes()) == [7] * 8


def confirmed(case):
    """The case, after the oracle has said of it what it says of itself."""
    batch = len(case.accepted)
    margin = torch.empty(batch, dtype=torch.float64)
    result = getattr(oracle.verify, case.op.removeprefix("verify_"))(**case.arguments, margin=margin)
    for name in ("tokens", "num_tokens", "path", "status"):
        ours, theirs = getattr(case.expected, name), getattr(result, name)
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype, name
    assert float(margin.min()) >= CLEAR
    assert case.expected.num_tokens.tolist() == [n + 1 for n in case.accepted]
    return case


@pytest.mark.parametrize("which", ACCEPTED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_greedy(dtype, which):
    target = LOGITS.target.to(dtype)
    decided = cases.decide(target, SIZES, {"temperature": 0.0})
    case = confirmed(cases.greedy(target, SIZES, decided, which))
    assert case.accepted == accepted_drafts(which, SIZES)
    assert case.row_reads == {"none": 4, "half": 14, "all": 24}[which]


def test_rows_that_must_be_read_are_those_of_visited_nodes():
    for nodes, accepted, visited in ((1, [0, 0], 2), (4, [0, 3, 1], 7), (4, [3], 4)):
        assert cases.row_reads("verify_greedy", accepted, nodes) == visited
        drafts = sum(min(a + 1, nodes - 1) for a in accepted)  # the law of each draft that is looked at
        assert cases.row_reads("verify_rejection", accepted, nodes) == visited + drafts


@pytest.mark.parametrize("which", ACCEPTED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_match(settings, dtype, which):
    target = LOGITS.target.to(dtype)
    case = confirmed(cases.match(target, SIZES, cases.decide(target, SIZES, settings), which))
    assert case.accepted == accepted_drafts(which, SIZES)


@pytest.mark.parametrize("which", ACCEPTED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_rejection(settings, dtype, which):
    logits = LOGITS.to(dtype)
    case = confirmed(cases.rejection(logits, SIZES, Laws(logits, settings), which))
    assert case.accepted == accepted_drafts(which, SIZES)
    # Of a request that stops before its last node the draft's row at the stop is read, too.
    assert case.row_reads == {"none": 8, "half": 28, "all": 44}[which]
    tokens = case.arguments["tree"].tokens.view(4, 6)
    laws = Laws(logits, settings)
    for b in range(4):
        for node in range(5):
            assert laws("draft", 6 * b + node)[tokens[b, node + 1]] > 0, "a draft that its law does not draw"


def test_coins_are_those_that_rejection_tosses():
    """Raised to the other side of its threshold, a coin that was accepted would be rejected."""
    laws = Laws(LOGITS, {"temperature": 1.0})
    case = cases.rejection(LOGITS, SIZES, laws, "half")
    tokens, coins = case.arguments["tree"].tokens.view(4, 6), cases.coins(case)
    for b, accepted in enumerate(case.accepted):
        for node in range(accepted + 1):
            p, q = (float(laws(which, 6 * b + node)[tokens[b, node + 1]]) for which in ("target", "draft"))
            assert (coins[b, node] * q < p) == (node < accepted)


def test_an_outcome_that_the_laws_forbid_is_reported():
    logits = LOGITS._replace(draft=LOGITS.target)  # nothing is ever rejected
    with pytest.raises(RuntimeError, match=r"no seed in 50 decides requests \[0, 1, 2, 3\] clearly"):
        cases.rejection(logits, SIZES, Laws(logits, {"temperature": 1.0}), "none")


@pytest.mark.parametrize("settings", SETTINGS)
def test_draws(settings):
    rows = LOGITS.target[:5]
    for case in (cases.sample(rows, settings), cases.draft(rows, settings, 3)):
        margin = torch.empty(5, dtype=torch.float64)
        again = getattr(oracle.sample, case.op.removeprefix("sample_"))(**case.arguments, margin=margin)
        assert torch.equal(case.expected, again)
        assert float(margin.min()) >= CLEAR


def test_fused_ops_pass_the_gate_that_the_suite_puts_before_them():
    settings = {"temperature": 1.0, "top_p": 0.9}
    decided = cases.decide(LOGITS.target, SIZES, settings)
    best = cases.decide(LOGITS.target, SIZES, {"temperature": 0.0})
    made = [
        cases.greedy(LOGITS.target, SIZES, best, "half"),
        cases.match(LOGITS.target, SIZES, decided, "half"),
        cases.rejection(LOGITS, SIZES, Laws(LOGITS, settings), "half"),
        cases.sample(LOGITS.target, settings),
        cases.draft(LOGITS.target, settings, 2),
    ]
    for case in made:
        [variant] = contest.backends(case, ("cpu",))
        assert admit(variant) is None, case.op
