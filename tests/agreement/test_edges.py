"""Edges of the contract: empty batches, roots alone, idle requests, padding, ties, and values that are no numbers."""

import math

import pytest
import torch

import specdec_kernels as sk

from . import compare
from .calls import LAW, RULES, call, check, equal, outcome
from .cases import FLOATS, ORDERS, Draw, chain_tree, rows
from .verify_cases import UNDRAWN

INF, NAN = math.inf, math.nan
VERIFY = LAW[2:]
RULE = pytest.mark.parametrize("rule", RULES)
EVERY = pytest.mark.op(*LAW)


def verify(backend, rule, tree, logits, temperature=1.0, **options):
    """A rule of the verify family on short notice; drafts are deterministic, and accepted by a rule that asks for rates."""
    op, chosen = RULES[rule]
    arguments = {"tree": tree, "logits": logits, **chosen, **options}
    batch = tree.cu_nodes.numel() - 1
    if op not in UNDRAWN:
        arguments["sampling"] = sk.Sampling.of(batch, temperature=temperature, seed=list(range(batch)))
        arguments["context_lens"] = torch.zeros(batch, dtype=torch.int64)
    if op == "verify_rejection":
        arguments |= {"draft_logits": None, "draft_sampling": None}
    if op == "verify_synthetic":
        arguments.setdefault("rates", torch.ones(tree.max_depth))
    return compare.verify(backend, op, arguments, compare.Tally(f"{rule} by hand, {backend}"))


def sample(backend, logits, temperature=1.0, **options):
    """``sample.sample`` on short notice: tokens and status."""
    count = logits.shape[0]
    filters = {name: options.pop(name) for name in ("top_k", "top_p", "min_p", "filter_order") if name in options}
    settings = sk.Sampling.of(count, temperature=temperature, seed=list(range(count)), **filters)
    arguments = {"logits": logits, "sampling": settings, "positions": torch.arange(count), **options}
    tokens, status = outcome(backend, "sample_sample", arguments)
    return tokens.tolist(), status.tolist()


def draft(backend, logits, num, temperature=1.0, **options):
    count = logits.shape[0]
    settings = sk.Sampling.of(count, temperature=temperature, seed=list(range(count)))
    arguments = {"logits": logits, "sampling": settings, "positions": torch.arange(count), "num": num, **options}
    tokens, status = outcome(backend, "sample_draft", arguments)
    return tokens.tolist(), status.tolist()


# ---- empty, alone, idle, padded ---------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("op", LAW)
def test_no_requests(backend, op):
    for seed in range(8):
        arguments = call(op, seed, batch=0)
        for field in outcome(backend, op, arguments):
            assert field.shape[0] == 0


@pytest.mark.op(*VERIFY)
@RULE
def test_no_requests_but_rows(backend, rule):
    empty = torch.zeros(3, dtype=torch.int32)
    tree = sk.TokenTree(torch.zeros(1, dtype=torch.int32), empty, empty, empty, empty, max_nodes=0, max_depth=2)
    assert verify(backend, rule, tree, torch.full((3, 4), NAN)).tokens.shape == (0, 3)


@EVERY
@pytest.mark.parametrize("op", LAW)
@pytest.mark.parametrize("vocab", [1, 2, 3])
def test_hardly_any_ids(backend, op, vocab):
    tally = compare.Tally(f"{op}, V={vocab}, {backend}")
    for seed in range(12):
        check(backend, op, call(op, seed, vocab=vocab, batch=3), tally)
    tally.close(near=0.1, different=0.1)


@pytest.mark.op(*VERIFY)
@RULE
def test_a_root_alone_gives_one_token(backend, rule):
    tree = chain_tree([[4], [5]])
    logits = torch.tensor([[0.0, 9.0, 1.0], [0.0, 1.0, -INF]])
    result = verify(backend, rule, tree, logits)
    assert result.num_tokens.tolist() == [1, 1] and result.path.tolist() == [[0], [0]]
    if rule in ("greedy", "relaxed"):
        assert result.tokens.tolist() == [[1], [1]]
    if rule in ("match", "typical", "synthetic"):  # the token of plain decoding at the same position
        plain, _ = sample(backend, logits, positions=torch.ones(2, dtype=torch.int64))
        assert result.tokens.flatten().tolist() == plain


@pytest.mark.op(*VERIFY)
@RULE
def test_what_is_not_visited_is_not_read(backend, rule):
    """Padding, idle and inactive requests, and nodes behind a rejection hold NaN: it would show in the status. A draft of
    a probability above 0 is visited by the rules that look ahead."""
    wanted, row = [3, 2, 1], torch.where(torch.eye(6) > 0, 0.0, -INF)
    live = [row[3], row[2], row[1]]
    bad = torch.full((6,), NAN)
    #        accepted to the end  padding  idle         rejected at once        inactive      behind the last request
    logits = torch.stack([*live, bad, *[bad] * 4, row[5], bad, bad, bad, *[bad] * 4, bad])
    tokens = torch.tensor([0, 3, 2, 77, *[0] * 4, 0, 1, 2, 77, *[0] * 4, 0])
    parents = torch.tensor([-1, 0, 1, 5] * 4 + [9], dtype=torch.int32)
    depths = torch.tensor([0, 1, 2, 9] * 4 + [9], dtype=torch.int32)
    ends = torch.tensor([3, 3, 3, -5, 0, 3, 3, 9, 3, 3, 3, 9, 3, 3, 3, 9, 7], dtype=torch.int32)
    offsets = torch.tensor([0, 4, 8, 12, 16], dtype=torch.int32)
    tree = sk.TokenTree(offsets, tokens, parents, depths, ends, max_nodes=3, max_depth=2)
    if rule == "synthetic":  # which accepts whatever the draft is
        tokens[9] = -1
    result = verify(backend, rule, tree, logits, active=torch.tensor([True, True, True, False]), logprobs="raw")
    assert result.status.tolist() == [0, 0, 0, 0]
    assert result.num_tokens.tolist() == [3, 0, 1, 0]
    assert result.tokens.tolist() == [wanted, [-1] * 3, [5, -1, -1], [-1] * 3]
    assert result.path.tolist() == [[0, 1, 2], [-1] * 3, [0, -1, -1], [-1] * 3]
    assert result.logprobs[1].tolist() == result.lse[3].tolist() == [0.0] * 3


@pytest.mark.op(*VERIFY)
@RULE
def test_absent_nodes_take_their_subtree_with_them(backend, rule):
    for hole in (-1, 6, 2**31 - 1, -(2**31)):
        tree = chain_tree([[0, hole, 2]])
        logits = torch.eye(6)[[3, 2, 1]] * 40
        result = verify(backend, rule, tree, logits)
        assert result.tokens.tolist() == [[3, -1, -1]] and result.num_tokens.tolist() == [1]


@pytest.mark.op(*VERIFY)
@RULE
@pytest.mark.parametrize("most", [-1, 0, 1, 2, 3, 9])
def test_the_number_of_tokens_is_clamped(backend, rule, most):
    tree = chain_tree([[0, 3, 2]])
    logits = torch.eye(6)[[3, 2, 1]] * 40
    result = verify(backend, rule, tree, logits, max_tokens=torch.tensor([most]))
    count = min(max(most, 0), 3)
    assert result.num_tokens.tolist() == [count]
    assert result.tokens.tolist() == [[3, 2, 1][:count] + [-1] * (3 - count)]
    assert result.path.tolist() == [[0, 1, 2][:count] + [-1] * (3 - count)]


# ---- values -------------------------------------------------------------------------------------------------------------


@EVERY
def test_ties_go_to_the_lowest_id(backend):
    flat = torch.zeros(1, 9)
    assert sample(backend, flat, 0.0) == ([0], [0])
    assert sample(backend, flat, top_k=1) == ([0], [0])
    assert sample(backend, flat, top_p=1e-6) == ([0], [0])
    assert draft(backend, flat, 4, 0.0)[0] == [[0, 1, 2, 3]]
    assert draft(backend, flat, 3, top=3)[0] == [[0, 1, 2]]
    for order in ORDERS:
        seen = {token for token in sample(backend, flat.expand(300, -1), top_k=3, filter_order=order)[0]}
        assert seen == {0, 1, 2}
        # With nine equal ids an id stays while less than 0.5 lies before it: 0/9, 1/9, ..., 4/9.
        seen = {token for token in sample(backend, flat.expand(300, -1), top_p=0.5, filter_order=order)[0]}
        assert seen == {0, 1, 2, 3, 4}


@pytest.mark.op(*VERIFY)
@RULE
def test_of_equal_siblings_the_first_is_followed(backend, rule):
    i32 = torch.int32
    tree = sk.TokenTree(
        torch.tensor([0, 3], dtype=i32),
        torch.tensor([0, 2, 2]),
        torch.tensor([-1, 0, 0], dtype=i32),
        torch.tensor([0, 1, 1], dtype=i32),
        torch.tensor([3, 2, 3], dtype=i32),
        max_nodes=3,
        max_depth=1,
    )
    result = verify(backend, rule, tree, torch.eye(4)[[2, 1, 3]] * 40)
    followed = 2 if rule == "greedy_plus_one" else 1  # there the last one is tried first
    assert result.path.tolist() == [[0, followed]] and result.tokens.tolist() == [[2, [1, 3][followed - 1]]]


@EVERY
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-6, INF])
def test_dead_ends(backend, temperature):
    dead = torch.full((2, 5), -INF)
    assert sample(backend, dead, temperature) == ([-1, -1], [2, 2])
    assert draft(backend, dead, 2, temperature) == ([[-1, -1]] * 2, [2, 2])
    masked = {"allowed": torch.tensor([[0]], dtype=torch.int32), "allowed_rows": torch.tensor([0, -1])}
    tokens, status = sample(backend, torch.eye(2, 5) * 99, temperature, **masked)
    assert status == [2, 0] and tokens[0] == -1 and tokens[1] >= 0
    assert sample(backend, torch.full((1, 5), NAN), temperature) == ([-1], [3])


@pytest.mark.op(*VERIFY)
@RULE
def test_a_dead_end_counts_as_a_token(backend, rule):
    tree = chain_tree([[0, 3, 2]])
    logits = torch.stack([torch.eye(6)[3] * 40, torch.full((6,), -INF), torch.eye(6)[1]])
    result = verify(backend, rule, tree, logits, logprobs="raw")
    assert result.tokens.tolist() == [[3, -1, -1]] and result.num_tokens.tolist() == [2]
    assert result.status.tolist() == [2]
    assert result.logprobs[0, 1:].tolist() == [-INF, 0.0]


@EVERY
@pytest.mark.parametrize("dtype", FLOATS)
def test_numbers_that_are_none(backend, dtype):
    assert sample(backend, torch.tensor([[1.0, NAN, 0.0]], dtype=dtype), 0.0) == ([0], [1])
    assert sample(backend, torch.tensor([[1.0, INF, INF]], dtype=dtype), 0.0) == ([1], [0])
    assert sample(backend, torch.tensor([[1.0, INF, NAN]], dtype=dtype), 1.0) == ([1], [1])
    assert draft(backend, torch.tensor([[INF, 1.0, NAN, -INF, INF]], dtype=dtype), 4, 0.0) == ([[0, 4, 1, -1]], [1])
    both = torch.tensor([[INF, -INF, INF]], dtype=dtype).expand(60, -1)
    assert set(sample(backend, both)[0]) == {0, 2}


@EVERY
@pytest.mark.parametrize("op", LAW)
@pytest.mark.parametrize("kind", ["nan", "empty", "flat", "mixed", "adjacent", "huge", "few"])
def test_rows_of_one_kind(backend, op, kind):
    tally = compare.Tally(f"{op}, {kind} rows, {backend}")
    for seed in range(12):
        check(backend, op, call(op, seed, batch=3, kinds=(kind,), malformed=0.0), tally)
    tally.close(near=0.1, different=0.1)


@EVERY
@pytest.mark.parametrize("op", [op for op in (LAW[0], *VERIFY) if op not in UNDRAWN])
def test_cold_rows_in_a_warm_batch(backend, op):
    """What has temperature 0 is decided without randomness, and its neighbours as if it were not there."""
    for seed in range(6):
        arguments = call(op, seed, odd=False, batch=6)
        settings = arguments["sampling"]
        cold = torch.arange(6) % 2 == 0
        mixed = settings._replace(temperature=torch.where(cold, 0.0, settings.temperature + 0.1))
        ours = outcome(backend, op, arguments | {"sampling": mixed})
        for temperature, chosen in ((torch.zeros(6), cold), (settings.temperature + 0.1, ~cold)):
            alike = outcome(backend, op, arguments | {"sampling": settings._replace(temperature=temperature)})
            assert equal([field[chosen] for field in ours], [field[chosen] for field in alike])
        if op == "verify_synthetic":  # whose rates hold at any temperature
            continue
        other = settings._replace(temperature=torch.zeros(6), seed=settings.seed + 1)
        frozen = outcome(backend, op, arguments | {"sampling": other})
        assert equal([field[cold] for field in ours], [field[cold] for field in frozen])


@EVERY
def test_the_rules_agree_with_each_other_at_temperature_0(backend):
    draw = Draw(5)
    for seed in range(6):
        arguments = call("verify_rejection", seed, odd=False, batch=4)
        settings = arguments["sampling"]._replace(temperature=torch.zeros(4))
        arguments |= {"sampling": settings, "context_lens": draw.whole_tensor(0, 9, (4,))}
        greedy = {"tree", "logits", "rows", "allowed", "allowed_rows", "active", "max_tokens", "logprobs"}
        decided = {}
        for rule, (op, chosen) in RULES.items():
            if rule == "synthetic":
                continue
            names = greedy if op in UNDRAWN else greedy | {"sampling", "context_lens"}
            more = {"top_k": 1} if rule == "relaxed" else {}
            if op == "verify_rejection":
                names = set(arguments)
            given = {name: value for name, value in arguments.items() if name in names} | chosen | more
            decided[rule] = outcome(backend, op, given)[:3]  # NaN among the drafter's logits is no matter of the others
        assert all(equal(decided["greedy"], other) for other in decided.values())


@EVERY
@pytest.mark.parametrize("vocab", [31, 32, 33, 63, 64, 65])
def test_masks_end_with_the_vocabulary(backend, vocab):
    """Bits past the vocabulary stand for no id, and the bit of the last id counts."""
    words = (vocab + 31) // 32
    logits = rows(Draw(1), 4, vocab, torch.float32, ("normal",))
    last = torch.zeros((4, words), dtype=torch.int32)
    last[:, (vocab - 1) // 32] = -(2**31) if vocab % 32 == 0 else 1 << (vocab - 1) % 32
    for temperature in (0.0, 1.0):
        assert sample(backend, logits, temperature, allowed=last) == ([vocab - 1] * 4, [0] * 4)
        past = torch.zeros((4, words), dtype=torch.int32)
        if vocab % 32:
            past[:, -1] = -1 << vocab % 32
        assert sample(backend, logits, temperature, allowed=past) == ([-1] * 4, [2] * 4)


# ---- what is left lies far below the best -----------------------------------------------------------------------------


@pytest.mark.op("sample_draft")
@pytest.mark.parametrize("vocab", [8, 9000])
@pytest.mark.parametrize("options", [{"coupled": True}, {"replacement": True, "top": 1}, {}, {"top": 2}])
def test_draws_go_on_when_the_best_id_is_gone(backend, vocab, options):
    logits = torch.full((4, vocab), -9.0) + torch.linspace(0, 0.5, vocab)
    logits[:, 5] = 0.0
    logits[1, 6] = -4.0
    for temperature in (0.05, 0.1):
        for top_k in (0, 3):
            settings = sk.Sampling.of(4, temperature=temperature, top_k=top_k, seed=[0, 1, 2, 3])
            positions = torch.arange(4)
            arguments = {"logits": logits, "sampling": settings, "positions": positions, "num": 4, **options}
            tokens, _ = outcome(backend, "sample_draft", arguments)
            expected, _ = outcome("reference", "sample_draft", arguments)
            assert torch.equal(tokens.cpu(), expected)
            assert bool((tokens[:, :3] >= 0).all())


@pytest.mark.op("sample_draft")
def test_mapped_draws_go_on_when_the_best_id_is_gone(backend):
    logits = torch.full((4, 40), -9.0) + torch.linspace(0, 0.5, 40)
    logits[:, 5] = 0.0
    there = torch.arange(40) * 300 + 7
    settings = sk.Sampling.of(4, temperature=0.1, seed=[0, 1, 2, 3])
    arguments = {"logits": logits, "sampling": settings, "positions": torch.arange(4), "num": 3}
    arguments |= {"coupled": True, "draft_to_target": there}
    tokens, _ = outcome(backend, "sample_draft", arguments)
    assert torch.equal(tokens.cpu(), outcome("reference", "sample_draft", arguments)[0])
    assert bool((tokens >= 0).all())


@pytest.mark.op("verify_rejection")
def test_an_empty_draft_law_has_no_rows(backend):
    """No row of ``draft_logits`` is not the same as no ``draft_logits``."""
    tree = chain_tree([[0, 1]])
    options = {
        "draft_logits": torch.empty(0, 6),
        "draft_sampling": sk.Sampling.of(1),
        "draft_rows": torch.zeros(2).long(),
    }
    arguments = {"tree": tree, "logits": torch.zeros(2, 6), "sampling": sk.Sampling.of(1), **options}
    arguments["context_lens"] = torch.zeros(1, dtype=torch.int64)
    result = sk.verify.rejection(
        **{k: compare.move(v, compare.device_of(backend)) for k, v in arguments.items()}, backend=backend
    )
    assert int(result.num_tokens[0]) == 1 and int(result.status[0]) == sk.Status.MALFORMED
