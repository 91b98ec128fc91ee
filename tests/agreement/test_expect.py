"""``verify.expect`` on random inputs, against the oracle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import python_ref.ops as oracle
import specdec_kernels as sk

from . import compare
from .cases import ROWS, USUAL_ROWS, examples
from .expect_cases import arguments_of, same


@pytest.mark.op("verify_expect")
@pytest.mark.parametrize("odd", [False, True], ids=["usual", "odd"])
def test_means_equal_the_oracle(backend, odd):
    wrong, seen = [], []

    @examples(100)
    @given(seed=st.integers(0, 2**32))
    def check(seed):
        arguments = arguments_of(seed, odd=odd, kinds=ROWS if odd else USUAL_ROWS)
        expected = oracle.verify.expect(**arguments)
        actual = compare.run(backend, "verify_expect", arguments)
        assert all(field.dtype == torch.float32 for field in actual)
        verdicts = same(actual, expected)
        seen.append(seed)
        if not all(verdicts):
            wrong.append((seed, verdicts, [x.tolist() for x in actual], [x.tolist() for x in expected]))

    check()
    # An id at the very edge of a filter may fall on either side.
    assert len(wrong) <= 0.02 * len(seen), wrong[:3]


@pytest.mark.op("verify_expect")
def test_means_of_a_large_vocabulary(backend):
    torch.manual_seed(3)
    vocab, nodes = 9_000, 7
    target = torch.randn(2 * nodes, vocab)
    target[:, ::700] += 8
    draft = target + 0.7 * torch.randn_like(target)
    parents = torch.tensor([-1, 0, 0, 1, 1, 2, 2] * 2, dtype=torch.int32)
    tree, order = sk.tree.from_parents(
        torch.randint(0, vocab, (2 * nodes,)) // 700 * 700,
        parents,
        torch.tensor([0, nodes, 2 * nodes], dtype=torch.int32),
        max_nodes=nodes,
        max_depth=2,
        backend="reference",
    )
    for settings in ({}, {"top_p": 0.9}, {"top_k": 20, "temperature": 0.7}):
        sampling = sk.Sampling.of(2, **settings)
        arguments = {
            "tree": tree,
            "logits": target[order],
            "draft_logits": draft[order],
            "sampling": sampling,
            "draft_sampling": sampling,
        }
        expected = oracle.verify.expect(**arguments)
        actual = compare.run(backend, "verify_expect", arguments)
        assert all(same(actual, expected)), (settings, actual, expected)
        assert float(expected.token.max()) > 1.01


@pytest.mark.op("verify_expect")
def test_idle_requests_expect_nothing(backend):
    arguments = arguments_of(5, odd=False, batch=3, vocab=9)
    arguments["active"] = torch.tensor([True, False, True])
    made = compare.run(backend, "verify_expect", arguments)
    assert all(float(field[1]) == 0 for field in made) and float(made.token[0]) >= 1


@pytest.mark.op("verify_expect")
def test_drafts_that_cannot_have_been_drawn(backend):
    """Of a law without ids: they are taken wherever the target has them, and so the bound is 1."""
    tree = sk.tree.from_chains(torch.tensor([[0, 2]]), backend="reference")
    logits, drafts = torch.tensor([[0.0, 1.0, 2.0]] * 2), torch.full((2, 3), -torch.inf)
    arguments = {"tree": tree, "logits": logits, "draft_logits": drafts, "sampling": sk.Sampling.of(1)}
    arguments["draft_sampling"] = sk.Sampling.of(1)
    expected = oracle.verify.expect(**arguments)
    assert [field.tolist() for field in expected] == [[2.0], [2.0], [2.0], [1.0]]
    assert all(same(compare.run(backend, "verify_expect", arguments), expected))


@pytest.mark.op("verify_expect")
def test_a_root_that_stands_alone(backend):
    """Of a malformed tree; what its end says does not matter."""
    for end in (-7, -1, 2, 1000, 2**31 - 1):
        arguments = arguments_of(7, odd=False, batch=2, vocab=9, nodes=5, depth=3)
        tree = arguments["tree"]
        ends = tree.ends.clone()
        ends[tree.cu_nodes[0]] = end
        arguments["tree"] = tree._replace(ends=ends)
        made = compare.run(backend, "verify_expect", arguments)
        assert all(same(made, oracle.verify.expect(**arguments)))
        assert [float(field[0]) for field in made] == [1.0, 1.0, 1.0, 0.0], end


@pytest.mark.op("verify_expect")
def test_the_bound_knows_no_limit_at_any_temperature(backend):
    tree = sk.tree.from_chains(torch.tensor([[0, 1]] * 3), backend="reference")
    logits = torch.tensor([[0.0, 40.0, 0.0]] * 6)
    sampling = sk.Sampling.of(3)._replace(temperature=torch.tensor([0.0, 0.5, 1.0]))
    for limit in (1, 2):
        arguments = {"tree": tree, "logits": logits, "draft_logits": None, "sampling": sampling, "draft_sampling": None}
        made = compare.run(backend, "verify_expect", arguments | {"max_tokens": torch.tensor([limit] * 3)})
        assert made.bound.tolist() == pytest.approx([1.0] * 3, abs=1e-6)
        assert made.token.tolist() == pytest.approx([float(limit)] * 3, abs=1e-6)


@pytest.mark.op("verify_expect", "sample_draft")
def test_the_bound_of_many_siblings_is_one(backend):
    """Drafts without replacement from an even law, and a target of one id: it is among them as often as not."""
    count, vocab, batch = 32, 40, 64
    q, p = torch.zeros(1, vocab), torch.full((1, vocab), -torch.inf)
    p[0, 7] = 0.0
    seeds = sk.Sampling.of(batch, seed=list(range(batch)))
    drafts = sk.sample.draft(q.expand(batch, -1), seeds, torch.ones(batch).long(), count, backend="cpu")
    nodes = count + 1
    tokens = torch.cat((torch.zeros(batch, 1, dtype=torch.int64), drafts), 1)
    parents = torch.tensor(([-1] + [0] * count) * batch, dtype=torch.int32)
    offsets = torch.arange(batch + 1, dtype=torch.int32) * nodes
    tree, _ = sk.tree.from_parents(
        tokens.flatten(), parents, offsets, max_nodes=nodes, max_depth=1, backend="reference"
    )
    rows = torch.zeros(batch * nodes, dtype=torch.int64)
    arguments = {"tree": tree, "logits": p, "draft_logits": q, "sampling": seeds, "draft_sampling": seeds}
    made = compare.run(backend, "verify_expect", arguments | {"rows": rows, "draft_rows": rows})
    among = (drafts == 7).any(1).float()
    assert torch.allclose(made.token - 1, among, atol=1e-5) and 0.5 < float(among.mean()) < 1
    assert float(made.bound[0]) >= count / vocab - 1e-6  # the mean over all drafts, which the rules reach here
