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


def test_trees_and_lookups_take_one_launch():
    traffic()
    sk.tree.from_chains(torch.arange(12).view(2, 6), backend="emulated")
    assert traffic()[1] == 1
    sk.draft.ngram_lookup(torch.arange(12).view(2, 6), torch.tensor([6, 6]), backend="emulated")
    assert traffic()[1] == 1
