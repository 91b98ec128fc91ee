"""Edges of single rules: what decides at a limit, deep chains and wide roots, rates that are none."""

import math

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk

from . import compare
from .cases import Draw, Shape, chain_tree, near

INF, NAN = math.inf, math.nan
EACH = pytest.mark.op(*compare.LOSSY)


def star(tokens, root=0):
    """A root and its children."""
    made, count = Shape([-1] + [0] * len(tokens)), len(tokens) + 1
    columns = (torch.tensor(column, dtype=torch.int32) for column in (made.parents, made.depths, made.ends))
    cu_nodes = torch.tensor([0, count], dtype=torch.int32)
    return sk.TokenTree(cu_nodes, torch.tensor([root, *tokens]), *columns, max_nodes=count, max_depth=1)


def law(*probabilities):
    """A row of logits with that law."""
    return torch.tensor(probabilities).log()


def decide(backend, function, tree, rows, seed=0, temperature=1.0, **options):
    """One request under a lossy rule, held against the oracle: tokens, path and divergence."""
    settings = {}
    if function != "relaxed":
        settings = {"sampling": sk.Sampling.of(1, temperature=temperature, seed=seed)}
        settings["context_lens"] = torch.zeros(1, dtype=torch.int64)
    arguments = {"tree": tree, "logits": torch.stack(rows), **settings, **options}
    compare.verify(backend, f"verify_{function}", arguments, compare.Tally(f"{function} by hand, {backend}"))
    divergence = torch.full((1, tree.max_depth + 1), NAN, device=compare.device_of(backend))
    result = compare.run(backend, f"verify_{function}", arguments | {"divergence": divergence})
    count = int(result.num_tokens[0])
    assert divergence[0, count:].eq(0).all()
    return result.tokens[0, :count].tolist(), result.path[0, :count].tolist(), divergence[0, :count].cpu()


# ---- lossy rules ------------------------------------------------------------------------------------------------------

HALF = law(0.5, 0.3, 0.15, 0.05)
NOTHING = law(0.0, 0.0, 0.0, 1.0)


@EACH
def test_a_threshold_of_one_draft_accepts_it_whatever_the_coin(backend):
    for seed in range(8):
        tokens, path, divergence = decide(
            backend, "threshold", star([2, 1]), [HALF, NOTHING, NOTHING], seed, single=0.25
        )
        assert tokens[0] in (1, 2) and path == [0, 1 if tokens[0] == 2 else 2]
        assert divergence[0] == pytest.approx(0.85 - 0.3, abs=1e-6)  # the other draft has what is left
        tokens, path, divergence = decide(
            backend, "threshold", star([2, 1]), [HALF, NOTHING, NOTHING], seed, single=0.0
        )
        assert tokens == [2, 3] and divergence.tolist() == pytest.approx([0.85, 0.0], abs=1e-6)


@EACH
def test_a_draft_without_probability_is_never_followed_under_thresholds(backend):
    row = law(0.0, 1.0, 0.0)
    for options in ({"single": 0.0}, {"accumulated": 1e-30}):
        tokens, path, _ = decide(backend, "threshold", star([0, 2]), [row] * 3, **options)
        assert (tokens, path) == ([1], [0])


@EACH
def test_thresholds_do_not_count_a_draft_twice(backend):
    for seed in range(8):
        twice = decide(backend, "threshold", star([2, 2, 2, 1]), [HALF] + [NOTHING] * 4, seed, accumulated=0.9)
        once = decide(backend, "threshold", star([2, -1, -1, 1]), [HALF] + [NOTHING] * 4, seed, accumulated=0.9)
        assert twice[:2] == once[:2] and torch.equal(twice[2], once[2])
        assert twice[2][0] == pytest.approx(0.45 / 0.9 - 0.45, abs=1e-6)


@EACH
def test_thresholds_with_all_ids_among_the_drafts_leave_nothing_to_draw(backend):
    for seed in range(8):
        tokens, _, divergence = decide(backend, "threshold", star([0, 1, 2, 3]), [HALF] + [NOTHING] * 4, seed)
        assert len(tokens) == 2 and divergence[0] < 1e-6


@EACH
def test_the_deepest_typical_path_is_taken_and_the_first_of_equals(backend):
    parents = [-1, 0, 1, 0, 3, 3, 0]
    made = Shape(parents)
    columns = (torch.tensor(column, dtype=torch.int32) for column in (made.parents, made.depths, made.ends))
    tokens = torch.tensor([0, 0, 3, 1, 0, 1, 2])
    tree = sk.TokenTree(torch.tensor([0, 7], dtype=torch.int32), tokens, *columns, max_nodes=7, max_depth=2)
    options = {"epsilon": 0.2, "delta": 1.0}  # 0 and 1 pass, 2 and 3 do not
    tokens, path, divergence = decide(backend, "typical", tree, [HALF] * 4 + [NOTHING] * 3, **options)
    assert (tokens, path) == ([1, 0, 3], [0, 3, 4])
    assert divergence.tolist() == pytest.approx([0.7, 0.5, 0.0], abs=1e-6)


@EACH
def test_a_typical_draft_must_be_more_likely_than_the_threshold(backend):
    flat = torch.zeros(4)  # of entropy log 4: the threshold is delta / 4
    for delta, count in ((0.99, 2), (1.01, 1)):
        tokens, _, _ = decide(backend, "typical", star([2]), [flat, NOTHING], epsilon=1.0, delta=delta)
        assert len(tokens) == count
    assert len(decide(backend, "typical", star([2]), [flat, NOTHING], epsilon=0.2499, delta=9.0)[0]) == 2
    assert decide(backend, "typical", star([0]), [NOTHING, NOTHING], epsilon=0.0)[:2] == ([3], [0])


@EACH
def test_relaxed_counts_equal_logits_by_id(backend):
    row = torch.tensor([1.0, 1.0, 1.0, 0.0])
    for top_k, followed in ((1, None), (2, 1), (3, 2)):
        for draft in (1, 2):
            tokens, path, divergence = decide(backend, "relaxed", star([draft]), [row, NOTHING], top_k=top_k)
            good = followed is not None and draft <= followed
            assert tokens == ([draft, 3] if good else [0]) and divergence[0] == float(good)
    assert decide(backend, "relaxed", star([3]), [row, NOTHING], top_k=4)[0] == [0]
    assert decide(backend, "relaxed", star([3]), [row, NOTHING], top_k=4, delta=1.0)[0] == [3, 3]


@EACH
def test_relaxed_follows_no_id_that_is_not_allowed(backend):
    row = torch.tensor([1.0, 0.9, -INF, 0.8])
    mask = {"allowed": torch.tensor([[0b1101]], dtype=torch.int32), "allowed_rows": torch.tensor([0, -1, -1])}
    for draft in (1, 2):
        tokens, path, _ = decide(backend, "relaxed", star([draft, 3]), [row] * 3, top_k=9, delta=1.0, **mask)
        assert tokens[0] == 3 and path == [0, 2]


@EACH
def test_only_those_that_ask_for_it_are_relaxed(backend):
    tree = chain_tree([[0, 1], [0, 1]])
    logits = torch.tensor([[1.0, 0.9, 0.0]] * 4)
    arguments = {"tree": tree, "logits": logits, "delta": 1.0, "relax": torch.tensor([True, False])}
    result = compare.verify(backend, "verify_relaxed", arguments, compare.Tally(f"relaxed, some, {backend}"))
    assert result.tokens.tolist() == [[1, 0], [0, -1]]


@EACH
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rates_that_are_none_count_as_never_or_always(backend, temperature):
    for rate, followed in ((0.0, 0), (-0.5, 0), (NAN, 0), (-INF, 0), (1.0, 1), (7.0, 1), (INF, 1)):
        options = {"rates": torch.tensor([rate, 0.5]), "temperature": temperature}
        for seed in range(4):
            tokens, path, divergence = decide(backend, "synthetic", star([2, 0]), [HALF] * 3, seed, **options)
            assert path == [0, 1][: 1 + followed] and (tokens[0] == 2 or not followed)
            likely = 0.15 if temperature else 0.0
            assert divergence[0] == pytest.approx(followed * (1 - likely), abs=1e-6)


# ---- rules that look ahead, and one coin for many ----------------------------------------------------------------------


def drawn(tree_of, logits, drafter, depths, settings, num=1, **options):
    """Drafts of the oracle for every row, as children of the nodes of these depths."""
    count = logits.shape[0]
    nodes = torch.arange(count)
    places = {"requests": torch.zeros(count, dtype=torch.int64), "depths": depths, "nodes": nodes}
    tokens = oracle.sample.draft(drafter, settings, depths + 6, num, **options, **places)
    arguments = {"tree": tree_of(tokens), "logits": logits, "draft_logits": drafter, "sampling": settings}
    return arguments | {"draft_sampling": settings, "context_lens": torch.tensor([5])}


DEEP = 200


@pytest.mark.op("verify_rejection")
@pytest.mark.parametrize("rule", ["token", "traversal", "greedy_plus_one"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_deep_chains(backend, rule, noise):
    """200 drafts, of laws that are the target's or nearly."""
    draw, tally = Draw(3), compare.Tally(f"{rule}, {DEEP} drafts, noise {noise}, {backend}")
    logits = draw.normal(DEEP + 1, 7)
    accepted = 0
    for seed in range(2):
        settings, depths = sk.Sampling.of(1, seed=seed), torch.arange(DEEP + 1)
        given = drawn(
            lambda tokens: chain_tree([[0, *tokens[:-1, 0].tolist()]]),
            logits,
            near(draw, logits, noise),
            depths,
            settings,
        )
        result = compare.verify(backend, "verify_rejection", given | {"rule": rule, "logprobs": "raw"}, tally)
        accepted += int(result.num_tokens[0]) - 1
    assert accepted == 2 * DEEP if noise == 0.0 else accepted > 3
    tally.close(near=0.0 if noise == 0.0 else 0.4, different=0.0)


WIDE = 256


@pytest.mark.op("verify_rejection")
@pytest.mark.parametrize(
    ("rule", "replacement"),
    [("token", False), ("token", True), ("traversal", False), ("traversal", True), ("greedy_plus_one", False)],
)
def test_wide_roots(backend, rule, replacement):
    """As many children as a node can draw; the target likes other ids better than theirs, so that many come to nothing."""
    draw, tally = Draw(4), compare.Tally(f"{rule}, {WIDE} children, {backend}")
    late = 0
    for seed in range(4):
        settings = sk.Sampling.of(1, seed=seed, top_k=[0, 290][seed % 2])
        logits, drafter = draw.normal(1, 300), draw.normal(1, 300) / 4
        logits[0, 280:] += 10.0
        drafter[0, 280:] = -INF
        options = {"replacement": replacement, "top": WIDE - 1 if rule == "greedy_plus_one" else 0}
        given = drawn(
            lambda tokens: star(tokens[0].tolist()), logits, drafter, torch.zeros(1).long(), settings, WIDE, **options
        )
        given |= {"rows": torch.zeros(WIDE + 1).long(), "draft_rows": torch.zeros(WIDE + 1).long()}
        given |= {"rule": rule, "replacement": replacement, "logprobs": "processed"}
        result = compare.verify(backend, "verify_rejection", given, tally)
        late += int(result.path[0, 1] != 1)
    assert late > 0
    tally.close(near=1.0, different=0.0)  # the bound of the margin doubles with each child; what is decided is the same


@pytest.mark.op("verify_rejection")
def test_a_branch_that_comes_to_nothing_is_left_for_the_next(backend):
    """The first child is possible, and all below it is not: only a rule that looks ahead takes another branch."""
    made = Shape([-1, 0, 1, 0])
    columns = (torch.tensor(column, dtype=torch.int32) for column in (made.parents, made.depths, made.ends))
    tree = sk.TokenTree(
        torch.tensor([0, 4], dtype=torch.int32), torch.tensor([0, 0, 2, 1]), *columns, max_nodes=4, max_depth=2
    )
    logits = torch.stack((law(0.5, 0.5, 0.0), law(0.5, 0.5, 0.0), law(1.0, 0.0, 0.0), law(1.0, 0.0, 0.0)))
    ends = set()
    for seed in range(16):
        arguments = {"tree": tree, "logits": logits, "sampling": sk.Sampling.of(1, seed=seed), "draft_logits": None}
        arguments |= {"draft_sampling": None, "context_lens": torch.tensor([5]), "rule": "traversal"}
        result = compare.verify(backend, "verify_rejection", arguments, compare.Tally(f"branches, {backend}"))
        ends.add(int(result.path[0, int(result.num_tokens[0]) - 1]))
    assert ends == {1, 3}  # two ids of one half each: one of the two drafts is always accepted


@pytest.mark.op("verify_rejection")
def test_the_bottom_up_rules_decide_first_and_are_cut_then(backend):
    draw = Draw(9)
    logits = draw.normal(6, 5)
    for seed in range(6):
        settings = sk.Sampling.of(1, seed=seed)
        given = drawn(
            lambda tokens: chain_tree([[0, *tokens[:-1, 0].tolist()]]), logits, logits, torch.arange(6), settings
        ) | {"rule": "block"}
        tally = compare.Tally(f"block, cut, {backend}")
        whole = compare.verify(backend, "verify_rejection", given, tally)
        assert int(whole.num_tokens[0]) == 6
        for most in range(-1, 8):
            given["max_tokens"] = torch.tensor([most])
            count = min(max(most, 0), 6)
            part = compare.verify(backend, "verify_rejection", given, tally)
            assert int(part.num_tokens[0]) == count
            assert part.tokens[0, :count].tolist() == whole.tokens[0, :count].tolist()
