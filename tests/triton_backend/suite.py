"""The Triton kernels against the oracle, on inputs that are small enough to interpret them.

``test_interpreted.py`` runs this file in a process of its own, because Triton decides at its import whether kernels
are interpreted. On a GPU it runs as it is: ``pytest tests/triton_backend/suite.py``.
"""

import pytest
import torch
from agreement import (
    bad_data,
    budget_cases,
    calls,
    compare,
    expect_cases,
    inject_cases,
    kv_cases,
    sample_cases,
    tree_cases,
    verify_cases,
)
from agreement.cases import Draw

import python_ref.ops as oracle
import specdec_kernels as sk

BACKEND = "triton"
VERIFY = ("verify_greedy", "verify_match", "verify_rejection")

# Rules beside those: name -> op, rule, seeds of usual calls, of odd ones: few, of which each meets what others do not.
RULES = {
    "block or traversal": ("verify_rejection", "traversal", (7139, 7154, 7183), (7228, 7278)),
    "greedy_plus_one": ("verify_rejection", "greedy_plus_one", (7215,), (7009,)),
    "threshold": ("verify_threshold", None, (7094, 7196, 7211), (7253,)),
    "typical": ("verify_typical", None, (), (7228, 7234)),
    "relaxed": ("verify_relaxed", None, (7194, 7211), (7076,)),
    "synthetic": ("verify_synthetic", None, (7091,), (7103,)),
}


def near(tally):
    tally.close(near=0.1, different=0.05)


@pytest.mark.parametrize("op", calls.LAW)
@pytest.mark.parametrize("odd", [False, True], ids=["usual", "odd"])
def test_decisions_equal_the_oracle(op, odd):
    tally = compare.Tally(f"{op}, {'odd' if odd else 'usual'} inputs, {BACKEND}")
    count = {"sample_sample": 16, "sample_draft": 10, "verify_greedy": 8}.get(op, 6)
    for seed in range(count if odd else count // 2):
        options = {} if odd else {"kinds": ("normal", "peaked")}
        make = sample_cases.Case if op.startswith("sample") else verify_cases.Case
        options |= {"rule": "token"} if op == "verify_rejection" else {}
        case = make(op, 7000 + seed, odd=odd, **options)
        calls.check(BACKEND, op, case.strided() if seed % 2 else case.arguments, tally)
    near(tally)


@pytest.mark.parametrize("name", RULES)
def test_rules_decide_as_the_oracle(name):
    op, rule, usual, odd = RULES[name]
    tally = compare.Tally(f"{name}, {BACKEND}")
    for number, seed in enumerate((*usual, *odd)):
        options = {"kinds": ("normal", "peaked"), "odd": False} if seed in usual else {}
        case = verify_cases.Case(op, seed, batch=2, rule=rule, **options)
        calls.check(BACKEND, op, case.strided() if number % 2 else case.arguments, tally)
    near(tally)


@pytest.mark.parametrize("op", [*VERIFY, "verify_typical"])
def test_malformed_batches(op):
    tally = compare.Tally(f"{op}, malformed, {BACKEND}")
    for seed in range(3):
        calls.check(BACKEND, op, calls.call(op, seed, malformed=1.0, batch=3, vocab=9, nodes=5), tally)
    near(tally)


def spread_out(vocab, ids):
    """Rows whose mass lies in several blocks."""
    logits = Draw(3).normal(2, vocab)
    logits[:, ids] = 6.0 + torch.linspace(0, 1, len(ids))
    return logits


FILTERS = (
    {},
    {"top_k": 3, "min_p": 1e-4},
    {"top_k": 5000, "top_p": 0.9},
    {"top_p": 0.97, "filter_order": "joint", "top_k": 4500},
    {"top_p": 0.8, "min_p": 0.03, "filter_order": "min_p_first"},
)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_rows_of_several_blocks(filters):
    tally = compare.Tally(f"sample_sample, {filters}, {BACKEND}")
    for logits in (spread_out(8200, [4, 4095, 4096, 8191, 8192]), torch.zeros(1, 4100)):
        count = logits.shape[0]
        settings = sk.Sampling.of(count, temperature=1.3, seed=list(range(count)), **filters)
        arguments = {"logits": logits.bfloat16(), "sampling": settings, "positions": torch.arange(count)}
        compare.draws(BACKEND, "sample_sample", arguments, tally)
    near(tally)


@pytest.mark.parametrize("options", [{}, {"coupled": True}, {"replacement": True, "top": 1}], ids=str)
@pytest.mark.parametrize("mapped", [False, True], ids=["", "mapped"])
def test_drafts_of_several_blocks(options, mapped):
    tally = compare.Tally(f"sample_draft, {options}, {BACKEND}")
    logits = spread_out(4200, [4, 4095, 4096])
    arguments = {"logits": logits, "sampling": sk.Sampling.of(2, temperature=0.7, seed=[1, 2]), "num": 3}
    if mapped:
        arguments["draft_to_target"] = Draw(5).permutation(4200) * 3
    compare.draws(BACKEND, "sample_draft", arguments | options | {"positions": torch.tensor([3, 9])}, tally)
    near(tally)


@pytest.mark.parametrize("name", ["match", "rejection", *RULES])
def test_trees_of_several_blocks(name):
    op, rule = RULES.get(name, (f"verify_{name}", "token"))[:2]
    tally = compare.Tally(f"{name}, V=4101, {BACKEND}")
    for seed in (0, 3)[: 1 + (name in ("match", "rejection"))]:
        options = {"odd": False, "vocab": 4101, "batch": 1, "nodes": 4, "depth": 2, "kinds": ("peaked",)}
        calls.check(BACKEND, op, calls.call(op, seed, rule=rule, **options), tally)
    near(tally)


def _one_child(token, logits, requests=1, **arguments):
    """Requests with a root and a child."""
    tree = sk.tree.from_chains(torch.tensor([[0, token]] * requests), backend="reference")
    sampling = sk.Sampling.of(requests, seed=list(range(requests)))
    return {
        "tree": tree,
        "logits": logits,
        "sampling": sampling,
        "context_lens": torch.zeros(requests).int(),
    } | arguments


def test_what_a_path_is_cut_from_is_not_read():
    logits = torch.tensor([[0.0, 3.0], [torch.nan, 0.0]])
    arguments = _one_child(1, logits, draft_logits=logits, rule="block")
    arguments["draft_sampling"] = arguments["sampling"]
    for limit, status in ((1, 0), (2, 1)):
        arguments["max_tokens"] = torch.tensor([limit])
        result = compare.verify(BACKEND, "verify_rejection", arguments, compare.Tally(f"cut at {limit}, {BACKEND}"))
        assert result.num_tokens.tolist() == [limit] and result.status.tolist() == [status]


def test_chosen_children_without_their_row_are_absent():
    i32 = torch.int32
    columns = ([-1, 0, 0], [0, 1, 1], [3, 2, 3])
    tree = sk.TokenTree(
        torch.tensor([0, 3], dtype=i32), torch.tensor([0, 1, 2]), *(torch.tensor(c, dtype=i32) for c in columns), 3, 1
    )
    logits = torch.tensor([[0.0, 60.0, 0.0]] * 3)
    for row, tokens, status in ((7, [1, -1], 8), (0, [1, 1], 0)):
        rows = torch.tensor([row, 0, 0])
        arguments = _one_child(1, logits, draft_logits=logits, rule="greedy_plus_one", draft_rows=rows, tree=tree)
        arguments["draft_sampling"] = arguments["sampling"]
        result = compare.verify(BACKEND, "verify_rejection", arguments, compare.Tally(f"row {row}, {BACKEND}"))
        assert result.tokens.tolist() == [tokens] and result.status.tolist() == [status]


def test_what_thresholds_leave_in_other_blocks():
    logits = torch.zeros(8, 4101)
    logits[:, [5, 4098]] = torch.tensor([20.0, 19.5])
    arguments = _one_child(5, logits, requests=4)
    result = compare.verify(BACKEND, "verify_threshold", arguments, compare.Tally(f"other blocks, {BACKEND}"))
    assert set(result.tokens[:, 0].tolist()) == {5, 4098}


@pytest.mark.parametrize("kind", ["usual", "odd", "several blocks"])
def test_means_equal_the_oracle(kind):
    options = {"odd": kind == "odd", "batch": 2, "nodes": 5}
    if kind == "several blocks":
        options |= {"vocab": 4101, "batch": 1, "nodes": 4, "depth": 2}
    for seed in range(1 if "vocab" in options else 5):
        arguments = expect_cases.arguments_of(7200 + seed, kinds=("normal", "peaked"), **options)
        made = compare.run(BACKEND, "verify_expect", arguments)
        assert all(expect_cases.same(made, oracle.verify.expect(**arguments))), f"seed {seed}"


def test_many_children():
    """More nodes than are looked at together; all but the last child of the root are rejected."""
    tally = compare.Tally(f"many children, {BACKEND}")
    i32 = torch.int32
    count = 70
    tree = sk.TokenTree(
        torch.tensor([0, count], dtype=i32),
        torch.tensor([0, *range(1, 68), 0, 5]),
        torch.tensor([-1, *[0] * 68, 68], dtype=i32),
        torch.tensor([0, *[1] * 68, 2], dtype=i32),
        torch.tensor([count, *range(2, 69), count, count], dtype=i32),
        max_nodes=count,
        max_depth=2,
    )
    logits = torch.zeros(count, 70)
    logits[:, 0] = 30.0
    for op in VERIFY[:2]:
        arguments = {"tree": tree, "logits": logits}
        if op != "verify_greedy":
            arguments |= {"sampling": sk.Sampling.of(1, seed=3), "context_lens": torch.tensor([5])}
        result = compare.verify(BACKEND, op, arguments, tally)
        assert result.path.tolist() == [[0, 68, -1]]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1), (4, 5), (2, 300)])
def test_from_chains(dtype, shape):
    batch, width = shape
    tokens = Draw(1).whole_tensor(0, 99, shape, dtype)
    for lengths in (None, Draw(2).whole_tensor(-1, width + 1, (batch,))):
        ours = compare.run(BACKEND, "tree_from_chains", {"tokens": tokens, "lengths": lengths})
        expected = oracle.tree.from_chains(tokens, lengths)
        for name in ("cu_nodes", "tokens", "parents", "depths", "ends", "status"):
            assert torch.equal(getattr(ours, name), getattr(expected, name)), name


@pytest.mark.parametrize("op", tree_cases.EXACT)
def test_trees_equal_those_of_the_oracle(op):
    for seed in range(16):
        arguments = tree_cases.call(op, seed, most=20 if seed == 15 else 9)
        if seed % 4 == 3:
            arguments = tree_cases.spread(Draw(seed), op, arguments)
        ours = tree_cases.outcome(BACKEND, op, arguments)
        assert calls.equal(ours, tree_cases.expected(op, arguments)), f"seed {seed}"


@pytest.mark.parametrize(("vocab", "count"), [(None, 10), (4100, 2)])
def test_expand(vocab, count):
    tally = compare.Tally(f"draft_expand, V={vocab}, {BACKEND}")
    for seed in range(count):
        batch = None if vocab is None else 1
        tree_cases.check_expansion(BACKEND, tree_cases.call("draft_expand", seed, batch=batch, vocab=vocab), tally)
    near(tally)


def test_ngram_lookup():
    draw = Draw(4)
    for number in range(41):
        batch, width = (draw.whole(0, 3), draw.whole(0, 24)) if number else (2, 1500)
        history = draw.whole_tensor(0, draw.whole(1, 4), (batch, width), draw.one((torch.int32, torch.int64)))
        low = draw.whole(1, 4)
        arguments = {
            "history": history,
            "lengths": draw.whole_tensor(-2, width + 2, (batch,)),
            "min_n": low,
            "max_n": draw.whole(low, 6),
            "num": draw.whole(1, 5),
            "active": draw.whole_tensor(0, 4, (batch,)) > 0,
        }
        ours = compare.run(BACKEND, "draft_ngram_lookup", arguments)
        expected = oracle.draft.ngram_lookup(**arguments)
        assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])


@pytest.mark.parametrize("op", calls.LAW)
def test_a_result_does_not_depend_on_the_batch(op):
    arguments = calls.call(op, 11, odd=False, batch=2)
    whole = calls.outcome(BACKEND, op, arguments)
    again = calls.outcome(BACKEND, op, arguments)
    assert calls.equal(whole, again)


@pytest.mark.parametrize("spoil", [False, True], ids=["usual", "spoilt"])
@pytest.mark.parametrize("make", [kv_cases.Commit, kv_cases.Write], ids=["commit", "write"])
def test_rows_of_the_cache(make, spoil):
    changed = 0
    for seed in range(3, 9):
        case = make(seed, spoil=spoil, **({"most": 1} if make is kv_cases.Commit else {}))
        changed += kv_cases.check(f"kv.{make.__name__.lower()}", case.arguments, BACKEND, f"seed {seed}")
    assert changed > 1


def test_more_buffers_than_a_launch_takes():
    """Of two layouts, and one of more dimensions than a launch knows; the first page is no page."""
    draw = Draw(2)
    buffers = [kv_cases.tensor(draw, layout, (6, 4), torch.float16, odd=False) for layout in ["nhd"] * 2 + ["deep"]]
    buffers += [torch.randn(6, 4, 2) for _ in range(10)]
    arguments = {
        "buffers": sk.KvBuffers(buffers),
        "block_table": torch.tensor([[5, 2, -1], [1, 0, 3]]),
        "context_lens": torch.tensor([3, 1], dtype=torch.int32),
        "path": torch.tensor([[0, 2, 5], [0, 3, 4]], dtype=torch.int32),
        "num_tokens": torch.tensor([3, 3], dtype=torch.int32),
        "status": torch.tensor([77, 77], dtype=torch.int32),
    }
    assert kv_cases.check("kv.commit", arguments, BACKEND, "many")


def test_gather():
    draw = Draw(6)
    for layout in kv_cases.LAYOUTS:
        values = kv_cases.tensor(draw, layout, (9, 1), draw.one(kv_cases.DTYPES))
        arguments = {
            "values": values,
            "cu_nodes": torch.tensor([0, 4, 11], dtype=torch.int32),
            "path": draw.whole_tensor(-1, 5, (2, 3), torch.int32),
            "num_tokens": torch.tensor([3, 2], dtype=torch.int32),
        }
        ours = compare.run(BACKEND, "kv_gather", arguments)
        assert torch.equal(kv_cases.bytes_of(ours), kv_cases.bytes_of(oracle.kv.gather(**arguments))), layout


@pytest.mark.parametrize("spoil", [False, True], ids=["usual", "spoilt"])
def test_inject(spoil):
    wrote = 0
    for seed in range(24):
        dims = inject_cases.DIMS if seed % 6 else inject_cases.LARGE_DIMS
        arguments = inject_cases.inject(100 + seed, spoil=spoil, dims=dims)
        wrote += kv_cases.check("kv.inject", arguments, BACKEND, f"seed {seed}")
    assert wrote > 2


def test_more_layers_than_a_launch_takes():
    for bound in (77, -1):
        arguments = inject_cases.usual(batch=1, layers=10)
        arguments["status"] = torch.tensor([77], dtype=torch.int32)
        arguments["block_table"] = arguments["block_table"].clamp(max=bound)
        assert kv_cases.check("kv.inject", arguments, BACKEND, "many layers") == (bound > 0)


@pytest.mark.parametrize("spoil", [False, True], ids=["usual", "spoilt"])
def test_block(spoil):
    for seed in range(40):
        call = inject_cases.block(seed, spoil=spoil)
        ours, theirs = kv_cases.twins(call, compare.device_of(BACKEND)), kv_cases.twins(call)
        made, expected = sk.draft.block(**ours, backend=BACKEND), oracle.draft.block(**theirs)
        for a, b in zip((*made, ours["status"]), (*expected, theirs["status"]), strict=True):
            assert a is b is None or torch.equal(a.cpu(), b), f"seed {seed}"


def test_budget(monkeypatch):
    """Some calls have several tiles of candidates, and of drafts."""
    monkeypatch.setattr("specdec_kernels.triton.budget.DRAFTS", 64)
    admitted = set()
    for seed in range(28):
        sizes = {"batch": 4 * (seed % 2), "width": 5} if seed < 24 else {"batch": 5, "width": 40, "count": 201}
        call = budget_cases.call(seed, **sizes)
        made, expected = compare.run(BACKEND, "draft_budget", call), oracle.draft.budget(**call)
        assert torch.equal(made, expected), f"seed {seed}"
        admitted.add(int(made.sum()))
    assert len(admitted) > 6 and max(admitted) > 64


@pytest.mark.parametrize("check", bad_data.CHECKS, ids=lambda check: check.__name__)
def test_bad_data(check):
    check(BACKEND)
