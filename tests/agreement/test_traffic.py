"""What the CUDA kernels read of global memory, as the emulator counts it, against what they cannot do without."""

import ctypes

import pytest
import torch

import specdec_kernels as sk
from specdec_kernels import _backend, _library

from .cases import chain_tree

VOCAB = 151_936
NODES = 4

pytestmark = pytest.mark.skipif(
    _backend.why_not("verify_match", "emulated") is not None, reason="the emulated kernels are not built"
)


def traffic():
    """Bytes read and launches since the last call."""
    library = ctypes.CDLL(_library.module_path("_C_emulated"))
    counts = [ctypes.c_int64() for _ in range(3)]
    library.specdec_emulator_report(*(ctypes.byref(count) for count in counts))
    return counts[0].value, counts[2].value


@pytest.fixture(autouse=True)
def _one_after_the_other(monkeypatch):
    """A small GPU: a walk has passed by a node before its team begins."""
    monkeypatch.setenv("SPECDEC_EMULATOR_SCHEDULE", "in_order")
    monkeypatch.setenv("SPECDEC_EMULATOR_DEVICE", "90")


def rows(dtype):
    logits = torch.randn(NODES, VOCAB, generator=torch.Generator().manual_seed(5)) * 3
    return logits.to(dtype)


SETTINGS = {
    "plain": {},
    "top-p": {"top_p": 0.9},
    "top-k, top-p, min-p": {"top_k": 50, "top_p": 0.9, "min_p": 0.02},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("law", list(SETTINGS))
def test_match_reads_the_rows_of_visited_nodes_once(law, dtype):
    logits = rows(dtype)
    sampling = sk.Sampling.of(1, temperature=0.8, seed=3, **SETTINGS[law])
    contexts = torch.tensor([7])
    positions = contexts + 1
    first = sk.sample.sample(logits[:1], sampling, positions, backend="cpu")
    tree = chain_tree([[0, int(first), 0, 0]])  # the first draft is accepted, the second is not
    traffic()
    result = sk.verify.match(tree, logits, sampling, contexts, backend="emulated")
    read, launches = traffic()
    visited = int(result.num_tokens)
    assert visited == 2 and launches == 2
    needed = visited * VOCAB * logits.element_size()
    assert needed <= read <= 1.05 * needed


@pytest.mark.parametrize("law", list(SETTINGS))
def test_rejection_reads_both_rows_of_visited_nodes_once(law):
    logits = rows(torch.bfloat16)
    drafter = logits.clone()
    drafter[:, 17] = 40.0  # sure of a draft that is improbable for the target
    sampling = sk.Sampling.of(1, temperature=0.8, seed=3, **SETTINGS[law])
    tree = chain_tree([[0, 17, 17, 17]])
    traffic()
    result = sk.verify.rejection(tree, logits, drafter, sampling, sampling, torch.tensor([7]), backend="emulated")
    read, _ = traffic()
    visited = int(result.num_tokens)
    assert visited == 1
    needed = 2 * visited * VOCAB * 2
    assert needed <= read <= 1.05 * needed


def block(tree, logits, drafter, sampling):
    """Rows of the target and of the drafter that one request of ``block`` reads, and the launches that it takes."""
    traffic()
    result = sk.verify.rejection(
        tree, logits, drafter, sampling, sampling, torch.tensor([7]), rule="block", backend="emulated"
    )
    read, launches = traffic()
    return int(result.num_tokens), read / (VOCAB * 2), launches


def test_block_reads_the_rows_of_inner_nodes_once_and_those_of_the_last_one_more():
    logits = rows(torch.bfloat16)
    sampling = sk.Sampling.of(1, temperature=0.8, seed=3)
    tree = chain_tree([[0, 17, 17, 17]])
    emitted, read, launches = block(tree, logits, logits, sampling)  # accepts a draft of the law itself
    assert emitted == 4 and launches == 2
    assert 2 * 3 + 1 <= read <= 1.05 * (2 * 3 + 1)  # of the leaf there is only the target's row
    drafter = logits.clone()
    drafter[:, 17] = 40.0
    emitted, read, launches = block(tree, logits, drafter, sampling)  # all come to nothing
    assert emitted == 1 and launches == 2
    assert 2 * 3 + 2 <= read <= 1.05 * (2 * 3 + 2)


def test_block_takes_one_launch_per_depth_of_a_tree_and_one_in_all_where_a_gpu_is_full(monkeypatch):
    logits = rows(torch.bfloat16)
    sampling = sk.Sampling.of(1, temperature=0.8, seed=3)
    cu_nodes, parents = torch.tensor([0, NODES], dtype=torch.int32), torch.tensor([-1, 0, 1, 0], dtype=torch.int32)
    tokens = torch.tensor([0, 17, 17, 18])
    tree, _ = sk.tree.from_parents(tokens, parents, cu_nodes, max_nodes=NODES, max_depth=2, backend="cpu")
    by_depth = block(tree, logits, logits, sampling)
    assert by_depth[0] == 3 and by_depth[2] == 4
    assert 2 * 2 + 1 <= by_depth[1] <= 1.05 * (2 * 2 + 1)  # once the first child's child is accepted, no other is read
    monkeypatch.setenv("SPECDEC_EMULATOR_DEVICE", "80")
    assert block(tree, logits, logits, sampling)[::2] == (3, 2)


def test_greedy_and_plain_sampling_read_a_row_once():
    logits = rows(torch.bfloat16)
    traffic()
    result = sk.verify.greedy(chain_tree([[0, 1, 2, 3]]), logits, backend="emulated")
    read, _ = traffic()
    needed = int(result.num_tokens) * VOCAB * 2
    assert needed <= read <= 1.05 * needed
    sk.sample.sample(logits[:1], sk.Sampling.of(1), torch.tensor([3]), backend="emulated")
    read, launches = traffic()
    assert VOCAB * 2 <= read <= 1.05 * VOCAB * 2 and launches == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_expand_reads_the_rows_of_beams_that_exist_once(dtype):
    logits = rows(dtype)
    scores = torch.tensor([[0.0, -1.0], [-torch.inf, -2.0]])
    traffic()
    made = sk.draft.expand(logits, scores, 10, 10, backend="emulated")
    read, launches = traffic()
    assert launches == 2 and made.tokens[1, :10].tolist() == [-1] * 10 and int(made.beams.min()) >= 0
    needed = 3 * VOCAB * logits.element_size()
    assert needed <= read <= 1.05 * needed


def test_trees_and_lookups_take_one_launch():
    tree = sk.tree.from_chains(torch.arange(12).view(2, 6), backend="emulated")
    law = (torch.tensor([1, 2]), -torch.arange(24.0).view(2, 3, 4), torch.arange(24).view(2, 3, 4))
    pool = (torch.tensor([1, 2]), *torch.tensor([[[3, 4], [5, 6]], [[-1, 0], [-1, -1]]]), -torch.ones(2, 2))
    calls = {
        1: [
            lambda **on: sk.tree.from_chains(torch.arange(12).view(2, 6), **on),
            lambda **on: sk.tree.from_parents(*tree[1:3], tree.cu_nodes, max_nodes=6, max_depth=5, **on),
            lambda **on: sk.tree.from_beams(*pool, 3, max_depth=2, **on),
            lambda **on: sk.tree.best_first(*law, 6, **on),
            lambda **on: sk.tree.to_dense_mask(tree, **on),
            lambda **on: sk.tree.to_packed_mask(tree, "query", **on),
            lambda **on: sk.tree.to_packed_mask(tree, "words", **on),
            lambda **on: sk.tree.to_links(tree, **on),
            lambda **on: sk.tree.to_paths(tree, **on),
        ],
        2: [
            lambda **on: sk.tree.best_first(*law, 6, total_budget=9, **on),
            lambda **on: sk.tree.to_packed_mask(tree, context_lens=torch.tensor([3, 4]), max_context=4, **on),
        ],
    }
    for count, group in calls.items():
        for call in group:
            traffic()
            call(backend="emulated")
            assert traffic()[1] == count
    sk.draft.ngram_lookup(torch.arange(12).view(2, 6), torch.tensor([6, 6]), backend="emulated")
    assert traffic()[1] == 1
    for width, count in ((64, 1), (65, 4)):  # as many candidates as one block sorts, and more
        sk.draft.budget(torch.zeros(64, width), torch.ones(9), backend="emulated")
        assert traffic()[1] == count


@pytest.mark.parametrize(("dtype", "nodes"), [(torch.bfloat16, 2), (torch.bfloat16, 16), (torch.float8_e4m3fn, 3)])
@pytest.mark.parametrize("window", [0, 200])
def test_attention_reads_what_is_visible_once_for_all_nodes_and_heads(dtype, nodes, window, monkeypatch):
    monkeypatch.setenv("SPECDEC_EMULATOR_DEVICE", "80")  # few blocks: queries are read once as well
    heads, kv_heads, dim, page, context = 8, 2, 64, 16, 800
    pages = (context + nodes) // page + 1
    generator = torch.Generator().manual_seed(9)
    key, value = (torch.randn((pages, page, kv_heads, dim), generator=generator).to(dtype) for _ in range(2))
    query = torch.randn((nodes, heads, dim), generator=generator).bfloat16()
    tree = chain_tree([[0] * nodes])
    table, contexts = torch.arange(pages).unsqueeze(0), torch.tensor([context])
    traffic()
    sk.attention.tree_attention(query, key, value, table, contexts, tree, window=window, backend="emulated")
    read, launches = traffic()
    assert launches == 3
    keys = min(context, window - 1 if window else context) + nodes
    needed = keys * kv_heads * 2 * dim * key.element_size() + query.nbytes
    assert needed <= read <= 1.05 * needed
