"""tree.from_chains and draft.ngram_lookup on the fused backends against the oracle, exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import python_ref.ops as oracle

from .cases import examples
from .compare import run


@pytest.mark.op("tree_from_chains")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1), (4, 5), (7, 9)])
def test_from_chains(backend, dtype, shape):
    tokens = torch.randint(0, 100, shape, dtype=dtype)
    batch, width = shape
    for lengths in (None, torch.randint(-1, width + 2, (batch,))):
        ours = run(backend, "tree_from_chains", {"tokens": tokens, "lengths": lengths})
        expected = oracle.tree.from_chains(tokens, lengths)
        for name in ("cu_nodes", "tokens", "parents", "depths", "ends", "status"):
            assert torch.equal(getattr(ours, name), getattr(expected, name)), name


@pytest.mark.op("draft_ngram_lookup")
@examples(200)
@given(data=st.data())
def test_ngram_lookup(backend, data):
    width = data.draw(st.integers(0, 24))
    alphabet = data.draw(st.integers(1, 4))
    batch = data.draw(st.integers(0, 3))
    rows = data.draw(
        st.lists(st.lists(st.integers(0, alphabet), min_size=width, max_size=width), min_size=batch, max_size=batch)
    )
    dtype = data.draw(st.sampled_from([torch.int32, torch.int64]))
    history = torch.tensor(rows, dtype=dtype).reshape(batch, width)
    lengths = torch.tensor(data.draw(st.lists(st.integers(-2, width + 2), min_size=batch, max_size=batch))).long()
    active = torch.tensor(data.draw(st.lists(st.booleans(), min_size=batch, max_size=batch))).bool()
    low = data.draw(st.integers(1, 4))
    high = data.draw(st.integers(low, 6))
    num = data.draw(st.integers(1, 5))
    arguments = {"history": history, "lengths": lengths, "min_n": low, "max_n": high, "num": num, "active": active}
    ours = run(backend, "draft_ngram_lookup", arguments)
    expected = oracle.draft.ngram_lookup(history, lengths, low, high, num, active=active)
    assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])
