"""Caches whose pages lie further apart than a 32-bit number of elements, and contexts far beyond the block table."""

import pytest
import torch

import specdec_kernels as sk
from specdec_kernels import _backend

from .compare import device_of, run, same

OP = "attention_tree_attention"
STRIDE = 2**31 + 1000
PAGE, HEADS, DIM = 4, 2, 16

pytestmark = pytest.mark.op(OP)


def chain(nodes):
    return sk.tree.from_chains(torch.zeros(1, nodes, dtype=torch.int64), backend="reference")


@pytest.fixture(scope="module")
def far_pages():
    """Two pages of bfloat16; what lies between is never touched, so it costs nothing."""
    memory = torch.empty(STRIDE + PAGE * HEADS * DIM, dtype=torch.bfloat16)
    view = memory.as_strided((2, PAGE, HEADS, DIM), (STRIDE, HEADS * DIM, DIM, 1))
    view.copy_(torch.randn(view.shape, generator=torch.Generator().manual_seed(1)))
    return view


# A copy to another device would need the memory in between.
ON_THE_CPU = ("cpu", *(["emulated"] if _backend.why_not(OP, "emulated") is None else []))


@pytest.mark.parametrize("name", ON_THE_CPU)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_pages_far_apart(name, order, far_pages):
    arguments = {
        "query": torch.randn(2, 4, DIM),
        "key_cache": far_pages,
        "value_cache": far_pages,
        "block_table": torch.tensor([order]),
        "context_lens": torch.tensor([5]),
        "tree": chain(2),
    }
    ours = run(name, OP, arguments)
    dense = {cache: far_pages.contiguous() for cache in ("key_cache", "value_cache")}
    assert all(map(same, ours, run(name, OP, arguments | dense)))
    expected = sk.attention.tree_attention(**arguments | dense, backend="reference")
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-5, atol=1e-5)


def test_a_context_of_a_million_tokens():
    """Every value counts: of two query heads one weighs them all alike, and one sees a single key, near the end."""
    context, page = 10**6, 64
    draw = torch.Generator().manual_seed(3)
    rows = -(-(context + 2) // page)
    table = torch.randperm(rows, generator=draw).view(1, rows)
    keys, values = (torch.randn((rows, page, 1, 8), generator=draw) for _ in range(2))
    values[table[0, rows // 2 :]] += 1  # a half that is not read shows
    query = torch.randn((2, 2, 8), generator=draw)
    query[:, 0] *= 0.1
    single = context - 17
    keys[table[0, single // page], single % page, 0] = 30 * query[1, 1] / query[1, 1].norm()
    arguments = {"query": query, "key_cache": keys, "value_cache": values, "block_table": table, "tree": chain(2)}
    out, lse = run("cpu", OP, arguments | {"context_lens": torch.tensor([context])})
    k, v = (cache[table[0]].flatten(0, 2)[: context + 2].double() for cache in (keys, values))
    for node in range(2):
        scores = query[node].double() @ k[: context + 1 + node].T * 8**-0.5
        expected = scores.softmax(-1) @ v[: context + 1 + node]
        torch.testing.assert_close(out[node].double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse[node].double(), scores.logsumexp(-1), rtol=1e-6, atol=1e-6)
    where = table[0, single // page]
    torch.testing.assert_close(out[1, 1], values[where, single % page, 0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("context", [10**6, 2**40, 2**62, 2**63 - 1])
def test_contexts_beyond_the_table(backend, context):
    """What the table does not reach is nowhere, and is not looked for: the first pages remain."""
    draw = torch.Generator().manual_seed(2)
    cache = torch.randn((3, PAGE, HEADS, DIM), generator=draw)
    arguments = {
        "query": torch.randn((1, 4, DIM), generator=draw),
        "key_cache": cache,
        "value_cache": cache,
        "block_table": torch.tensor([[2, 0]], dtype=torch.int32),
        "context_lens": torch.tensor([context]),
        "tree": chain(1),
    }
    status = torch.full((1,), 77, dtype=torch.int32, device=device_of(backend))
    ours = run(backend, OP, arguments | {"status": status})
    assert status.tolist() == [16]
    without_node = arguments | {"context_lens": torch.tensor([7])}  # the root is the last slot of the second page
    expected = sk.attention.tree_attention(**without_node, backend="reference")
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], expected[1], rtol=1e-5, atol=1e-5)
