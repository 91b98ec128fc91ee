"""kv.inject and draft.block on the fused backends against the oracle, bit by bit, whole memories compared."""

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk
from python_ref.models.rotary import rotate

from . import compare, inject_cases
from .inject_cases import usual
from .kv_cases import check, outcome, twins

INJECT = pytest.mark.op("kv_inject")
BLOCK = pytest.mark.op("draft_block")
SEEDS = 80


# ---- kv.inject --------------------------------------------------------------------------------------------------------


@INJECT
@pytest.mark.parametrize("spoil", [False, True], ids=["usual", "spoilt"])
def test_inject(backend, spoil):
    wrote = 0
    for seed in range(SEEDS):
        wrote += check("kv.inject", inject_cases.inject(seed, spoil=spoil), backend, f"seed {seed}")
    assert wrote > SEEDS // 4


@INJECT
def test_large_heads(backend):
    wrote = 0
    for seed in range(24):
        arguments = inject_cases.inject(seed, spoil=False, dims=inject_cases.LARGE_DIMS)
        wrote += check("kv.inject", arguments, backend, f"seed {seed}")
    assert wrote > 5


@INJECT
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "pairs"])
def test_inject_by_the_textbook(backend, interleaved):
    """RMSNorm and rotation of the model code in float64, position by position; pairs are a permutation of halves."""
    call = usual(dim=32)
    order = torch.arange(32).view(2, 16).t().flatten() if interleaved else torch.arange(32)
    ours = twins(call, compare.device_of(backend))
    ours["projected"], ours["key_norm"] = ours["projected"][..., order], ours["key_norm"][:, order]
    ours["cos_sin"] = ours["cos_sin"][..., order]
    sk.kv.inject(**ours, interleaved=interleaved, eps=1e-5, backend=backend)
    for b in range(2):
        for j in range(4):
            at = int(call["context_lens"][b]) + j
            cell = int(call["block_table"][b, at // 4]), at % 4
            for layer in range(2):
                key, value = call["projected"][b, j, layer].double()
                key = torch.nn.functional.rms_norm(key, (32,), call["key_norm"][layer].double(), 1e-5)
                key = rotate(key, *call["cos_sin"][at].double().unsqueeze(1))
                if j >= int(call["num_tokens"][b]):
                    key, value = torch.ones(2, 32), torch.ones(2, 32)
                stored = ours["key_caches"][layer][cell].cpu()
                assert torch.allclose(stored.double(), key[:, order].double(), atol=2e-6, rtol=2e-6)
                assert torch.equal(ours["value_caches"][layer][cell].cpu(), value[:, order].float())


@INJECT
def test_a_row_is_the_same_in_any_company(backend):
    call = usual(heads=3, dim=80, dtype=torch.bfloat16)
    device = compare.device_of(backend)
    together = outcome(sk.kv.inject, call, device, backend=backend)
    alone = twins(call, device)
    for b in range(2):
        for j in range(int(call["num_tokens"][b])):
            names = ("block_table", "context_lens")
            part = {name: alone[name][b : b + 1] for name in names}
            part["projected"] = alone["projected"][b : b + 1, j : j + 1]
            part["context_lens"] = part["context_lens"] + j
            part["num_tokens"] = alone["num_tokens"][:1] * 0 + 1
            sk.kv.inject(**(alone | part), backend=backend)
    for name, first in (("key_caches", 0), ("value_caches", 2)):
        for layer in range(2):
            made = alone[name][layer].cpu().contiguous().flatten().view(torch.uint8)
            assert torch.equal(made, together[first + layer])


@INJECT
def test_more_layers_than_a_launch_has(backend):
    call = usual(batch=1, width=1, layers=70, heads=1, dim=8)
    call["status"] = torch.tensor([77], dtype=torch.int32)
    assert check("kv.inject", call, backend, "70 layers")
    call["block_table"] = torch.full_like(call["block_table"], -1)
    assert not check("kv.inject", call, backend, "70 layers without pages")


@INJECT
def test_nothing_to_inject(backend):
    call = usual() | {"status": torch.full((2,), 77, dtype=torch.int32)}
    none = {"block_table": call["block_table"][:0], "context_lens": call["context_lens"][:0]}
    none |= {"projected": call["projected"][:0], "num_tokens": call["num_tokens"][:0], "status": call["status"][:0]}
    for changes in (
        none,
        {"num_tokens": torch.zeros(2, dtype=torch.int32)},
        {"active": torch.zeros(2, dtype=torch.bool)},
        {"projected": call["projected"][:, :0], "num_tokens": torch.zeros(2, dtype=torch.int32)},
        {name: [cache[:0] for cache in call[name]] for name in ("key_caches", "value_caches")},
    ):
        assert not check("kv.inject", call | changes, backend, "nothing")


@INJECT
def test_positions_beyond_the_angles(backend):
    """Rows without angles are written nowhere; the others are."""
    call = usual() | {"status": torch.full((2,), 77, dtype=torch.int32)}
    call["cos_sin"] = call["cos_sin"][:5]
    assert check("kv.inject", call, backend, "a short table")
    ours = twins(call, compare.device_of(backend))
    sk.kv.inject(**ours, backend=backend)
    assert ours["status"].tolist() == [16, 0]
    for caches in (ours["key_caches"], ours["value_caches"]):
        written = sum(int((cache.cpu() != 1).any(-1).any(-1).sum()) for cache in caches)
        assert written == 2 * (2 + 1)  # layers, rows


# ---- draft.block ------------------------------------------------------------------------------------------------------


@BLOCK
@pytest.mark.parametrize("spoil", [False, True], ids=["usual", "spoilt"])
def test_block(backend, spoil):
    device = compare.device_of(backend)
    for seed in range(2 * SEEDS):
        call = inject_cases.block(seed, spoil=spoil)
        ours, theirs = twins(call, device), twins(call)
        made = sk.draft.block(**ours, backend=backend)
        expected = oracle.draft.block(**theirs)
        assert type(made) is sk.Block
        for name, a, b in zip(made._fields, made, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert a.dtype == b.dtype and torch.equal(a.cpu(), b), f"seed {seed}: {name}"
        assert torch.equal(ours["status"].cpu(), theirs["status"]), f"seed {seed}"


@BLOCK
def test_block_by_hand(backend):
    device = compare.device_of(backend)
    call = {
        "tokens": torch.tensor([[7, 8, -1], [5, -1, -1], [-1, -1, -1], [9, -1, -1]]),
        "num_tokens": torch.tensor([2, 1, 0, 2], dtype=torch.int32),
        "context_lens": torch.tensor([100, 6, 9, 3]),
        "block_table": torch.tensor([[3] * 13, [4, 1] + [0] * 11, [9] * 13, [1] * 13]),
    }
    status = torch.full((4,), 77, dtype=torch.int32, device=device)
    call = twins(call, device)
    made = sk.draft.block(**call, mask_token=99, block_size=4, page_size=8, status=status, backend=backend)
    assert made.roots.tolist() == [8, 5, -1, -1]
    assert made.ids.tolist() == [[8, 99, 99, 99], [5, 99, 99, 99], [-1] * 4, [-1] * 4]
    assert made.positions.tolist() == [[102, 103, 104, 105], [7, 8, 9, 10], [0] * 4, [0] * 4]
    assert made.slots.tolist() == [[30, 31, -1, -1], [39, 8, 9, 10], [-1] * 4, [-1] * 4]
    assert made.context_lens.tolist() == [102, 7, 9, 5]  # a dead end is committed, and has no block
    assert status.tolist() == [16, 0, 0, 0]


@BLOCK
def test_block_in_place(backend):
    """A graph advances its lengths: what is read before is written."""
    device = compare.device_of(backend)
    tokens = torch.tensor([[7, 8], [5, 6], [3, -1]], device=device)
    counts = torch.tensor([2, 1, 0], dtype=torch.int32, device=device)
    lengths = torch.tensor([10, 20, 30], dtype=torch.int32, device=device)
    out = sk.draft.block(tokens, counts, lengths, 1, 40, backend=backend)._replace(context_lens=lengths)
    for step in (1, 2):
        made = sk.draft.block(tokens, counts, lengths, 1, 40, backend=backend, out=out)
        assert made is out
        assert lengths.tolist() == [10 + 2 * step, 20 + step, 30]
        assert made.positions[:2, 39].tolist() == [49 + 2 * step, 59 + step]


@pytest.mark.op("draft_block", "kv_inject", "verify_greedy")
def test_from_verification_to_the_next_block(backend):
    """The result of one op is the input of the next, nothing is read on the host."""
    device = compare.device_of(backend)
    tree = sk.tree.from_chains(torch.tensor([[1, 2, 3], [4, 5, 6]], device=device))
    logits = torch.eye(8, device=device)[torch.tensor([2, 7, 0, 5, 6, 7], device=device)]
    result = sk.verify.greedy(tree, logits, backend=backend)
    call = twins(usual(width=3), device) | {"num_tokens": result.num_tokens}
    sk.kv.inject(**call, backend=backend)
    made = sk.draft.block(result.tokens, result.num_tokens, call["context_lens"], 0, 3, backend=backend)
    assert made.ids.tolist() == [[7, 0, 0], [7, 0, 0]]
    assert made.context_lens.tolist() == [5, 7]
    written = [int((cache.cpu() != 1).any(-1).any(-1).sum()) for cache in call["key_caches"]]
    assert written == [5, 5]
