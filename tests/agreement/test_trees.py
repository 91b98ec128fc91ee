"""The tree family and ``draft.expand`` on the fused backends against the oracle, with the edges of the contract."""

import math

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk

from . import compare
from .calls import equal, poisoned
from .cases import Draw, rows
from .compare import move
from .test_memory import STRIDE, fields, rewritten
from .tree_cases import ALL, BUILDERS, EXACT, EXPORTS, call, check_expansion, expected, flat, outcome, spread

INF, NAN = math.inf, math.nan
EVERY = pytest.mark.op(*ALL)


@pytest.mark.op(*EXACT)
@pytest.mark.parametrize("op", EXACT)
def test_agreement(backend, op):
    for seed in range(120):
        arguments = call(op, seed)
        assert equal(outcome(backend, op, arguments), expected(op, arguments)), f"seed {seed}: {arguments}"


@pytest.mark.op("draft_expand")
@pytest.mark.parametrize(("vocab", "batch", "count"), [(None, None, 120), (4096, 1, 8), (4100, 2, 8), (20000, 3, 8)])
def test_expand(backend, vocab, batch, count):
    tally = compare.Tally(f"draft_expand, V={vocab}, {backend}")
    for seed in range(count):
        check_expansion(backend, call("draft_expand", seed, batch=batch, vocab=vocab), tally)
    tally.close(near=0.1, different=0.1)


@pytest.mark.op(*EXACT)
@pytest.mark.parametrize(("op", "most"), [(op, 64) for op in EXACT] + [(op, 300) for op in EXPORTS])
def test_larger_trees(backend, op, most):
    for seed in range(4):
        arguments = call(op, seed, batch=3, odd=seed % 2 == 1, most=most)
        assert equal(outcome(backend, op, arguments), expected(op, arguments)), f"seed {seed}"


@pytest.mark.op(*BUILDERS)
def test_as_many_nodes_as_there_may_be(backend):
    draw = Draw(4)
    chain, wide = torch.arange(-1, 1023), torch.zeros(1024).long()
    wide[0] = -1
    tokens, offsets = torch.arange(2048), torch.tensor([0, 1024, 2048], dtype=torch.int32)
    arguments = {"tokens": tokens, "parents": torch.cat((chain, wide)), "cu_nodes": offsets}
    arguments |= {"max_nodes": 1024, "max_depth": 1023}
    made = outcome(backend, "tree_from_parents", arguments)
    assert equal(made, expected("tree_from_parents", arguments)) and made[4][1023] == 1024
    one_more = torch.cat((chain, torch.tensor([1023])))
    arguments |= {"tokens": tokens[:1025], "parents": one_more, "cu_nodes": torch.tensor([0, 1025], dtype=torch.int32)}
    arguments["max_depth"] = 2000
    tree, _ = compare.run(backend, "tree_from_parents", arguments)
    assert tree.status.tolist() == [8] and tree.ends.tolist() == [1] + [0] * 1024
    slow = backend in ("emulated", "triton")  # thread by thread, step by step
    batch, most = (1, 300) if slow else (2, 1023)
    root = torch.arange(batch)
    pool = {
        "root_tokens": root,
        "tokens": draw.whole_tensor(0, 40, (batch, 4096)),
        "parents": (torch.arange(4096) - 1 - draw.whole_tensor(0, 60, (batch, 4096))).clamp(min=-1),
        "scores": -draw.normal(batch, 4096).abs().cumsum(1),
    }
    deep = pool | {"parents": torch.arange(-1, 4095).expand(batch, -1), "scores": torch.zeros(batch, 4096)}
    for arguments in (pool, deep):
        arguments = arguments | {"budget": 1024, "max_depth": 4096}
        made = outcome(backend, "tree_from_beams", arguments)
        assert equal(made, expected("tree_from_beams", arguments)) and int(made[4][0]) == 1024
    for depth, ranks in ((2, 1100), (40, 2), (1, 1023), (most, 1), (11, 40)):
        laws = scores_of(draw, batch, depth, ranks)
        ids = draw.whole_tensor(0, 99, (batch, depth, ranks))
        arguments = {"root_tokens": root, "log_probs": laws, "token_ids": ids, "budget": 1024}
        made = outcome(backend, "tree_best_first", arguments)
        assert equal(made, expected("tree_best_first", arguments)), (depth, ranks)
        assert int(made[4][0]) == min(1024, 1 + depth if ranks == 1 else 1024)


def scores_of(draw, batch, depth, ranks):
    """Laws that go far down and far along: some of the first ranks are certain, the others nearly alike."""
    laws = -draw.whole_tensor(0, 3, (batch, depth, ranks), torch.float32) / 64
    return laws.sort(-1, descending=True).values


@pytest.mark.op("tree_best_first")
def test_a_node_and_its_twin_in_another_level(backend):
    """Ties across levels, parents, ranks and requests, all at once."""
    zero = {"log_probs": torch.zeros(3, 4, 3), "token_ids": torch.arange(36).view(3, 4, 3)}
    arguments = {"root_tokens": torch.tensor([1, 2, 3]), "budget": 6, **zero}
    tree = compare.run(backend, "tree_best_first", arguments)
    # The three ranks of the first level, then the first two children of the best of them.
    assert tree.tokens.tolist()[:6] == [1, 0, 3, 4, 1, 2]
    assert tree.parents.tolist()[:6] == [-1, 0, 1, 1, 0, 0]
    tree = compare.run(backend, "tree_best_first", arguments | {"total_budget": 3 + 4})
    assert tree.ends.tolist() == [4, 2, 3, 4, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]


@EVERY
@pytest.mark.parametrize("op", ALL)
def test_no_requests(backend, op):
    for seed in range(6):
        arguments = call(op, seed, batch=0)
        assert equal(outcome(backend, op, arguments), expected(op, arguments))


@pytest.mark.op(*BUILDERS)
def test_idle_requests_and_roots_alone(backend):
    nothing = {"tokens": torch.zeros(3, 0).long(), "parents": torch.zeros(3, 0).long(), "scores": torch.zeros(3, 0)}
    arguments = {"root_tokens": torch.tensor([5, -1, 6]), "budget": torch.tensor([4, 4, 0]), "max_depth": 0, **nothing}
    tree, order = compare.run(backend, "tree_from_beams", arguments | {"max_nodes": 2})
    assert tree.tokens.tolist() == [5, -1, -1, -1, -1, -1] and tree.ends.tolist() == [1, 0, 0, 0, 0, 0]
    assert order.tolist() == [-1] * 6 and tree.status.tolist() == [0, 0, 0]
    laws = {"log_probs": torch.zeros(3, 2, 0), "token_ids": torch.zeros(3, 2, 0).long()}
    arguments = {"root_tokens": torch.tensor([5, -1, 6]), "budget": torch.tensor([4, 4, 0]), **laws}
    tree = compare.run(backend, "tree_best_first", arguments)
    assert tree.max_nodes == 1 and tree.tokens.tolist() == [5, -1, -1] and tree.ends.tolist() == [1, 0, 0]
    offsets = torch.tensor([0, 1, 1, 3], dtype=torch.int32)
    arguments = {"tokens": torch.tensor([5, 6, 7]), "parents": torch.tensor([-1, -1, 0]), "cu_nodes": offsets}
    arguments |= {"max_nodes": 2, "max_depth": 1, "lengths": torch.tensor([1, 0, 0])}
    tree, order = compare.run(backend, "tree_from_parents", arguments)
    assert tree.tokens.tolist() == [5, -1, -1] and tree.status.tolist() == [0, 0, 0] and order.tolist() == [0, 1, 2]


BAD = ([-1, 2, 1, 0], [-1, 1, 0, 0], [-1, 0, 3, 0], [-1, 0, -1, 0], [0, 0, 0, 0], [-1, 0, 1, 2], [-1, 0, 0, 9])


@pytest.mark.op("tree_from_parents")
@pytest.mark.parametrize("parents", BAD)
def test_what_is_no_tree_is_its_root_alone(backend, parents):
    """A cycle, a node above itself, a parent behind, two roots, none, too deep, out of range; the others stay."""
    good = [-1, 0, 0, 1]
    offsets = torch.tensor([0, 4, 8, 12], dtype=torch.int32)
    arguments = {"tokens": torch.arange(12), "parents": torch.tensor(good + parents + good), "cu_nodes": offsets}
    tree, order = compare.run(backend, "tree_from_parents", arguments | {"max_nodes": 4, "max_depth": 2})
    assert tree.status.tolist() == [0, 8, 0]
    assert tree.ends.tolist() == [4, 3, 3, 4, 1, 0, 0, 0, 4, 3, 3, 4]
    assert order.tolist() == [0, 1, 3, 2, 4, 5, 6, 7, 8, 9, 11, 10]


@pytest.mark.op("draft_expand")
def test_children_that_do_not_exist(backend):
    logits = torch.tensor([[1.0, 3.0, 3.0, -INF], [NAN, 2.0, -INF, INF], [5.0, 5.0, 5.0, 5.0], [NAN] * 4])
    arguments = {"logits": logits, "scores": torch.tensor([[0.0, -1.0], [-INF, 0.0]]), "num": 4, "beams": 3}
    made = compare.run(backend, "draft_expand", arguments)
    assert made.tokens.tolist() == [[1, 2, 0, -1, 3, 1, -1, -1], [-1] * 8]
    assert made.beams.tolist() == [[0, 1, 4], [-1] * 3]
    assert made.scores[1].tolist() == [-INF] * 8 and float(made.scores[0, 5]) == pytest.approx(-3.4028235e38)
    there = {"draft_to_target": torch.tensor([70, 40, -1, 90]), "scores": torch.tensor([[0.0, NAN], [0.0, 0.0]])}
    made = compare.run(backend, "draft_expand", arguments | there)
    assert made.tokens.tolist() == [[40, -1, 70, -1, -1, -1, -1, -1], [70, 40, -1, 90, -1, -1, -1, -1]]
    assert made.beams.tolist() == [[0, 2, -1], [0, 1, 3]]
    first = compare.run(backend, "draft_expand", arguments | {"scores": None})
    assert first.tokens.shape == (4, 4) and first.beams.tolist()[2:] == [[0, 1, 2], [-1] * 3]


# ---- memory -------------------------------------------------------------------------------------------------------------


def public(op, backend):
    """The public function; of ``from_parents`` all but the offsets, which are those that it is given."""
    family, name = op.split("_", 1)
    function = getattr(getattr(sk, family), name)
    if op != "tree_from_parents":
        return lambda **arguments: function(**arguments, backend=backend)

    def built(out=None, **arguments):
        if out is not None:
            tree = sk.TokenTree(arguments["cu_nodes"], *out[:4], max_nodes=0, max_depth=0, slots=out[4], status=out[5])
            out = tree, out[6]
        tree, order = function(**arguments, out=out, backend=backend)
        assert tree.cu_nodes is arguments["cu_nodes"]
        return *tree[1:5], tree.slots, tree.status, order

    return built


@EVERY
@pytest.mark.parametrize("op", ALL)
def test_every_element_is_written_and_no_other(backend, op):
    device = compare.device_of(backend)
    for seed in range(25):
        arguments = {name: move(value, device) for name, value in call(op, seed).items()}
        assert equal(*rewritten(public(op, backend), arguments)), f"seed {seed}"


@pytest.mark.op("tree_best_first")
def test_scores_are_written_to_their_end_and_no_further(backend):
    device = compare.device_of(backend)
    for seed in range(10):
        arguments = {name: move(value, device) for name, value in call("tree_best_first", seed).items()}
        rows = sk.tree.best_first(**arguments, backend=backend).ends.numel()
        buffer = poisoned(torch.empty(rows + 64, device=device))
        sk.tree.best_first(**arguments, scores=buffer[32 : 32 + rows], backend=backend)
        around = torch.cat((buffer[:32], buffer[32 + rows :]))
        assert compare.same(around, poisoned(around)) and not bool(buffer[32 : 32 + rows].isnan().any())


@EVERY
@pytest.mark.parametrize("op", ALL)
def test_inputs_are_left_as_they_were(backend, op):
    for seed in range(10):
        arguments = {name: move(value, compare.device_of(backend)) for name, value in call(op, seed).items()}
        before = [field.clone() for value in arguments.values() for field in fields(value)]
        public(op, backend)(**arguments)
        assert equal(before, [field for value in arguments.values() for field in fields(value)])


@EVERY
@pytest.mark.parametrize("op", ALL)
def test_strides_do_not_matter(backend, op):
    for seed in range(25):
        arguments = call(op, seed)
        assert equal(outcome(backend, op, arguments), outcome(backend, op, spread(Draw(seed), op, arguments)))


@EVERY
@pytest.mark.parametrize("op", ALL)
def test_both_widths_of_indices_give_the_same_results(backend, op):
    def widened(arguments, dtype):
        changed = {}
        for name, value in arguments.items():
            if name == "tree":
                changed[name] = value._replace(tokens=value.tokens.to(dtype))
            elif isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int64) and name != "cu_nodes":
                changed[name] = value.to(dtype)
        return arguments | changed

    for seed in range(20):
        arguments = call(op, seed)
        wide = outcome(backend, op, widened(arguments, torch.int64))
        narrow = outcome(backend, op, widened(arguments, torch.int32))
        assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(wide, narrow, strict=True)), f"seed {seed}"
        if op in BUILDERS:
            assert (wide[1].dtype, narrow[1].dtype) == (torch.int64, torch.int32)


@pytest.mark.op("draft_expand")
def test_rows_of_logits_far_apart():
    """On the CPU: a copy to another device would need the memory in between, which is never touched here."""
    memory = torch.empty(STRIDE + 300, dtype=torch.bfloat16)
    view = memory.as_strided((2, 300), (STRIDE, 1))
    view.copy_(rows(Draw(8), 2, 300, torch.bfloat16, ("normal",)))
    arguments = {"logits": view, "scores": torch.tensor([[-1.0, -2.0]]), "num": 9, "beams": 5}
    check_expansion("cpu", arguments, compare.Tally("draft_expand, rows far apart, cpu"))


@pytest.mark.op("tree_from_beams", "tree_best_first")
def test_candidates_and_laws_far_apart():
    pool = torch.empty(STRIDE + 4, dtype=torch.int32).as_strided((2, 4), (STRIDE, 1))
    pool.copy_(torch.tensor([[4, 5, 6, 7], [8, 9, 1, 2]]))
    others = {"parents": torch.tensor([[-1, 0, 0, 1]] * 2), "scores": -torch.arange(8.0).view(2, 4)}
    arguments = {"root_tokens": torch.tensor([1, 2]), "tokens": pool, "budget": 4, "max_depth": 3, **others}
    assert equal(outcome("cpu", "tree_from_beams", arguments), expected("tree_from_beams", arguments))
    ids = pool.unsqueeze(0).expand(2, 2, 4)
    arguments = {"root_tokens": torch.tensor([1, 2]), "token_ids": ids, "log_probs": -torch.rand(2, 2, 4), "budget": 7}
    assert equal(outcome("cpu", "tree_best_first", arguments), expected("tree_best_first", arguments))


# ---- what results may not depend on -------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("op", ALL)
def test_threads(backend, op):
    before = torch.get_num_threads()
    batch = 33 if backend == "cpu" else 5
    arguments = [call(op, seed, batch=batch, most=20, vocab=9000 if seed else None) for seed in range(3)]
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append([outcome(backend, op, one) for one in arguments])
    torch.set_num_threads(before)
    assert all(equal(first, other) for result in results[1:] for first, other in zip(results[0], result, strict=True))


def alone(op, arguments, b):
    """The call of one request out of a batch."""
    one = slice(b, b + 1)
    made = {name: value[one] if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    if op == "draft_expand":
        width = 1 if arguments["scores"] is None else arguments["scores"].shape[1]
        made["logits"] = arguments["logits"][b * width : (b + 1) * width]
        if "draft_to_target" in arguments:
            made["draft_to_target"] = arguments["draft_to_target"]
    return made


@pytest.mark.op("tree_from_beams", "tree_best_first", "draft_expand")
@pytest.mark.parametrize("op", ["tree_from_beams", "tree_best_first", "draft_expand"])
def test_a_request_alone_is_the_same_request_in_a_batch(backend, op):
    for seed in range(20):
        arguments = call(op, seed, batch=4)
        if arguments.pop("total_budget", None) is not None and "max_nodes" not in arguments:
            continue
        together = flat(compare.run(backend, op, arguments))
        for b in range(4):
            for ours, theirs in zip(together, flat(compare.run(backend, op, alone(op, arguments, b))), strict=True):
                if isinstance(ours, torch.Tensor) and ours.shape[0] != 5:
                    assert compare.same(ours.unflatten(0, (4, -1))[b].reshape(theirs.shape), theirs), f"seed {seed}"


@EVERY
@pytest.mark.parametrize("op", ALL)
def test_the_same_call_twice(backend, op):
    for seed in range(5):
        arguments = call(op, seed, batch=3)
        assert equal(outcome(backend, op, arguments), outcome(backend, op, arguments))


# ---- one after the other -------------------------------------------------------------------------------------------------


@pytest.mark.op("draft_expand", "tree_from_beams", "verify_greedy", "tree_to_links", "tree_from_parents")
def test_a_tree_grown_level_by_level_is_reranked_verified_and_exported(backend):
    """EAGLE-2 with a bigram model as drafter and target: three levels of two beams, seven nodes of a pool of ten."""
    device = compare.device_of(backend)
    table = (torch.randn(9, 9, generator=torch.Generator().manual_seed(5)) * 3).to(device)
    root = torch.tensor([4, 7], device=device)
    level = sk.draft.expand(table[root], None, 2, 2, backend=backend)
    tokens, parents, scores = [level.tokens], [torch.full_like(level.tokens, -1)], [level.scores]
    first = 0
    for _ in range(2):
        kept = level.beams.long()
        above = level.tokens.gather(1, kept)
        level = sk.draft.expand(table[above.flatten()], level.scores.gather(1, kept), 2, 2, backend=backend)
        tokens.append(level.tokens)
        parents.append((first + kept).repeat_interleave(2, 1))
        scores.append(level.scores)
        first += tokens[-2].shape[1]
    pool = [torch.cat(column, 1) for column in (tokens, parents, scores)]
    tree, order = sk.tree.from_beams(root, *pool, 7, max_depth=3, backend=backend)
    assert tree.status.tolist() == [0, 0] and tree.ends.view(2, 7)[:, 0].tolist() == [7, 7]
    result = sk.verify.greedy(tree, table[tree.tokens], backend=backend)
    for b in range(2):
        text = [int(root[b])]
        for _ in range(4):
            text.append(int(table[text[-1]].argmax()))
        count = int(result.num_tokens[b])
        assert count > 1 and result.tokens[b, :count].tolist() == text[1 : count + 1]
    links = sk.tree.to_links(tree, backend=backend)
    assert links.first_child[:, 0].tolist() == [1, 1]
    # The same trees from their nodes in the order of the pool.
    rows = order.view(2, 7).long()
    place = rows.argsort(1)
    back = place.argsort(1)
    above = tree.parents.view(2, 7).long().gather(1, place)
    above = torch.where(above < 0, -1, back.gather(1, above.clamp(min=0))).flatten()
    given = tree.tokens.view(2, 7).gather(1, place).flatten()
    again, source = sk.tree.from_parents(given, above, tree.cu_nodes, max_nodes=7, max_depth=3, backend=backend)
    moved = [field.cpu() for field in again[1:5]]
    shape = oracle.tree.from_parents(given.cpu(), above.cpu(), tree.cu_nodes.cpu(), max_nodes=7, max_depth=3)[0]
    assert equal(moved, list(shape[1:5]))
    assert sorted(source.tolist()) == list(range(14))
    assert sorted(again.tokens.tolist()) == sorted(tree.tokens.tolist())
