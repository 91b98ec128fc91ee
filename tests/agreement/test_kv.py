"""kv.write, kv.commit and kv.gather on the fused backends against the oracle, byte by byte, whole memories compared."""

import ctypes

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk
from specdec_kernels import _backend, _library

from . import compare
from .cases import Draw
from .kv_cases import CACHES, DTYPES, LAYOUTS, Commit, Write, bytes_of, check, outcome, storage, tensor, twins, written

KV = pytest.mark.op("kv_write", "kv_commit", "kv_gather")
SEEDS = 60


# ---- commit -----------------------------------------------------------------------------------------------------------


@KV
@pytest.mark.parametrize("spoil", [False, True], ids=["usual", "spoilt"])
def test_commit(backend, spoil):
    moved = 0
    for seed in range(SEEDS):
        moved += check("kv.commit", Commit(seed, spoil=spoil).arguments, backend, f"seed {seed}")
    assert moved > SEEDS // 4


def selected(case):
    """The caches after ``index_select`` of all sources and ``index_copy_`` of all targets, by one flat row number."""
    call = twins(case.arguments)
    buffers = call["buffers"].groups
    if buffers and isinstance(buffers[0], torch.Tensor):
        buffers = (sk.KvGroup(buffers),)
    for group in buffers:
        own = {field: getattr(group, field) for field in ("block_table", "context_lens", "slots", "table_rows")}
        table, lengths, slots, rows = (call.get(f) if value is None else value for f, value in own.items())
        sources, targets = [], []
        for b in range(case.batch):
            if call.get("active") is not None and not call["active"][b]:
                continue
            count = int(call["num_tokens"][b])
            nodes = call["path"][b, :count].long()
            behind = nodes if slots is None else slots[call["cu_nodes"][b] + nodes].long()
            pages = table[b if rows is None else int(rows[b])].long()
            size = group.tensors[0].shape[1]
            for places, found in ((behind, sources), (torch.arange(count), targets)):
                at = lengths[b].long() + places
                found.append(pages[at // size] * size + at % size)
        for buffer in group.tensors:
            if sources:
                flat = buffer.reshape(-1, *buffer.shape[2:]).contiguous()
                bits = (
                    flat.view(flat.shape[0], -1).view(torch.uint8)
                    if flat.dim() > 1
                    else flat.view(-1, 1).view(torch.uint8)
                )
                bits = bits.index_copy(0, torch.cat(targets), bits.index_select(0, torch.cat(sources)))
                buffer.copy_(bits.view(flat.dtype).view(buffer.shape))
    return written(call)


@KV
def test_commit_is_a_selection_of_rows(backend):
    """The other definition, in plain indexing: no loop over rows, and the oracle has no part in it."""
    for seed in range(200, 200 + SEEDS // 2):
        case = Commit(seed, spoil=False)
        ours = outcome(sk.kv.commit, case.arguments, compare.device_of(backend), backend=backend)
        for a, b in zip(ours[:-1], selected(case)[:-1], strict=True):
            assert torch.equal(a, b), f"seed {seed}"


def simple(path, num_tokens, **options):
    """One request with a context of 3, rows that hold their own position, and pages of 4 in descending order."""
    buffer = torch.zeros(8, 4, 2, dtype=torch.int64)
    table = torch.arange(7, -1, -1).view(1, 8)
    positions = torch.arange(32)
    buffer[table[0, positions // 4], positions % 4] = positions.unsqueeze(1).expand(32, 2)
    return {
        "buffers": sk.KvBuffers((buffer,)),
        "block_table": table,
        "context_lens": torch.tensor([3]),
        "path": torch.tensor([path], dtype=torch.int32),
        "num_tokens": torch.tensor([num_tokens], dtype=torch.int32),
    } | options


def positions_held(arguments):
    """What the first nine positions hold."""
    positions = torch.arange(9)
    return arguments["buffers"].groups[0].cpu()[7 - positions // 4, positions % 4, 0].tolist()


@KV
@pytest.mark.parametrize(
    ("path", "num_tokens", "rows"),
    [
        ([0, 1, 2, 3], 4, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ([0, 2, 5, -1], 3, [0, 1, 2, 3, 5, 8, 6, 7, 8]),
        ([0, 2, 3, 4], 4, [0, 1, 2, 3, 5, 6, 7, 7, 8]),
        ([0, 2, 5, -1], 2, [0, 1, 2, 3, 5, 5, 6, 7, 8]),
        ([0, 2, 5, -1], 1, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ([0, 2, 5, -1], 0, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_commit_by_hand(backend, path, num_tokens, rows):
    ours = twins(simple(path, num_tokens), compare.device_of(backend))
    sk.kv.commit(**ours, backend=backend)
    theirs = simple(path, num_tokens)
    oracle.kv.commit(**theirs)
    assert positions_held(ours) == positions_held(theirs) == rows


@KV
def test_rows_in_place_are_not_looked_at(backend):
    """Their pages may be anything; nothing is flagged."""
    arguments = simple([0, 1, 2, 3], 4, status=torch.tensor([77], dtype=torch.int32))
    arguments["block_table"] = torch.full((1, 8), -5)
    before = written(arguments)
    ours = outcome(sk.kv.commit, arguments, compare.device_of(backend), backend=backend)
    assert torch.equal(ours[0], before[0]) and int(ours[1].view(torch.int32)) == 0


@KV
def test_nothing_to_move(backend):
    empty = {"path": torch.zeros((0, 4), dtype=torch.int32), "num_tokens": torch.zeros(0, dtype=torch.int32)}
    arguments = simple([0, 2, 5, -1], 3)
    for changes in (
        empty
        | {"block_table": torch.zeros((0, 3), dtype=torch.int32), "context_lens": torch.zeros(0, dtype=torch.int32)},
        {"buffers": sk.KvBuffers(())},
        {"buffers": sk.KvBuffers([sk.KvGroup([])])},
        {"path": torch.zeros((1, 0), dtype=torch.int32), "num_tokens": torch.zeros(1, dtype=torch.int32)},
        {"active": torch.tensor([False])},
        {"buffers": sk.KvBuffers((torch.zeros(8, 4, 0),))},
        {"buffers": sk.KvBuffers((torch.zeros(0, 4, 2),)), "active": torch.tensor([False])},
    ):
        call = arguments | changes
        batch = call["path"].shape[0]
        call["status"] = torch.full((batch,), 77, dtype=torch.int32)
        before = written(call)
        ours = outcome(sk.kv.commit, call, compare.device_of(backend), backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(ours[:-1], before[:-1], strict=True))
        assert not ours[-1].any()


@KV
def test_pages_of_two_requests_stay_within_the_tensor(backend):
    """Tables that name a page twice are a mistake of the caller: what is in these pages is anybody's guess, and no byte
    elsewhere is touched."""
    for seed in range(20):
        draw = Draw(seed)
        buffer = tensor(draw, draw.one(LAYOUTS), (6, 4), draw.one(DTYPES))
        table = draw.whole_tensor(0, 2, (3, 5))
        path = draw.whole_tensor(0, 12, (3, 5), torch.int32).sort(1).values
        arguments = {"buffers": sk.KvBuffers((buffer,)), "block_table": table, "path": path}
        arguments |= {"context_lens": torch.tensor([0, 1, 5]), "num_tokens": torch.tensor([5, 4, 3], dtype=torch.int32)}
        clean = twins(arguments)
        marks = twins(clean)["buffers"].groups[0]
        bytes_before = bytes_of(clean["buffers"].groups[0])
        marks.untyped_storage().copy_(torch.zeros(bytes_before.numel(), dtype=torch.uint8).untyped_storage())
        for page in range(3):
            ones = storage(draw, marks[page].numel(), marks.dtype).view(torch.uint8).fill_(0xFF).view(marks.dtype)
            marks[page].copy_(ones.view(marks[page].shape))
        [ours] = outcome(sk.kv.commit, arguments, compare.device_of(backend), backend=backend)
        outside = bytes_of(marks) == 0
        assert torch.equal(ours[outside], bytes_before[outside]), f"seed {seed}"


@KV
def test_many_buffers(backend):
    """More than one launch of the CUDA kernels takes, in groups of all sizes."""
    draw = Draw(5)
    groups = []
    for count in (1, 340, 2, *[1] * 40):
        size = 2 ** draw.whole(0, 3)
        made = tuple(tensor(draw, "scales", (12, size), torch.int8) for _ in range(count))
        table = draw.permutation(12).view(1, 12)
        groups.append(sk.KvGroup(made, table, None, torch.tensor([draw.whole(0, 3)])))
    arguments = {"buffers": sk.KvBuffers(tuple(groups)), "block_table": None, "context_lens": None}
    arguments |= {
        "path": torch.tensor([[0, 2, 5]], dtype=torch.int32),
        "num_tokens": torch.tensor([3], dtype=torch.int32),
    }
    arguments["status"] = torch.tensor([77], dtype=torch.int32)
    groups[1].block_table[0, 0] = -1
    assert check("kv.commit", arguments, backend, "many buffers")


@KV
def test_pages_and_rows_far_apart():
    """No 32-bit number holds the distance of the two pages, nor that of the two rows. What lies between is never
    touched, so it costs nothing; a copy to another device would need it."""
    step = 2**31 + 1000
    memory = torch.empty(step + 32, dtype=torch.bfloat16)
    cache = memory.as_strided((2, 4, 1, 8), (step, 8, 8, 1))
    cache.copy_(torch.arange(8.0).view(2, 4, 1, 1).expand(2, 4, 1, 8))
    tree = oracle.tree.from_chains(torch.zeros((1, 4), dtype=torch.int64))
    key = torch.full((4, 1, 8), 20.0) + torch.arange(4).view(4, 1, 1)
    place = {"block_table": torch.tensor([[0, 1]]), "context_lens": torch.tensor([2])}
    path, counts = torch.tensor([[0, 2, 3]], dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    for backend in ("cpu", *(["emulated"] if _backend.why_not("kv_commit", "emulated") is None else [])):
        sk.kv.write(key, None, cache, None, tree=tree, backend=backend, **place)
        assert cache[:, :, 0, 7].flatten().tolist() == [0, 1, 20, 21, 22, 23, 6, 7]
        sk.kv.commit(sk.KvBuffers((cache,)), path=path, num_tokens=counts, backend=backend, **place)
        assert cache[:, :, 0, 7].flatten().tolist() == [0, 1, 20, 22, 23, 23, 6, 7]
        rows = sk.kv.gather(
            cache[:, 2, 0], torch.tensor([0, 2]).int(), torch.tensor([[1, 0]]).int(), counts, backend=backend
        )
        assert rows[0, :, 3].tolist() == [6, 20]


# ---- write ------------------------------------------------------------------------------------------------------------


@KV
@pytest.mark.parametrize("spoil", [False, True], ids=["usual", "spoilt"])
def test_write(backend, spoil):
    wrote = 0
    for seed in range(2 * SEEDS):
        wrote += check("kv.write", Write(seed, spoil=spoil).arguments, backend, f"seed {seed}")
    assert wrote > SEEDS


HARD = (
    0.0,
    -0.0,
    1e-45,
    -1e-38,
    2.0**-24,
    3 * 2.0**-25,
    448.0,
    464.0,
    465.0,
    57344.0,
    61440.0,
    65504.0,
    65519.0,
    65520.0,
)
HARD += (
    1e30,
    3.4e38,
    float("inf"),
    float("-inf"),
    1.0 + 2.0**-8,
    1.0 + 2.0**-11,
    1.0625,
    1.1875,
    2.0**-10,
    3 * 2.0**-17,
)


@KV
@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding(backend, cache, kind):
    """To nearest, ties to even; what is too large for float8 takes its largest value; NaN stays NaN."""
    values = torch.tensor(HARD + (float("nan"),) * 8).to(kind).view(1, 1, -1)
    tree = oracle.tree.from_chains(torch.zeros((1, 1), dtype=torch.int64))
    device = compare.device_of(backend)
    for scale in (None, torch.tensor([0.75])):
        arguments = {"key": values, "value": None, "value_cache": None, "tree": tree, "key_scale": scale}
        arguments |= {"key_cache": torch.zeros(1, 1, 1, values.shape[2]).to(cache)}
        arguments |= {"block_table": torch.zeros((1, 1), dtype=torch.int32), "context_lens": torch.tensor([0])}
        ours, theirs = twins(arguments, device), twins(arguments)
        sk.kv.write(**ours, backend=backend)
        oracle.kv.write(**theirs)
        a, b = (call["key_cache"].cpu().flatten() for call in (ours, theirs))
        assert torch.equal(bytes_of(a[:-8].clone()), bytes_of(b[:-8].clone()))
        assert bool(a[-8:].float().isnan().all()) and bool(b[-8:].float().isnan().all())
    top = torch.finfo(cache).max if cache.itemsize == 1 else float("inf")
    assert float(oracle.kv._stored(torch.tensor([[float("inf")]]), None, cache)) == top


# ---- gather -----------------------------------------------------------------------------------------------------------


@KV
def test_gather(backend):
    device = compare.device_of(backend)
    for seed in range(SEEDS):
        draw = Draw(seed)
        total, batch, width = draw.whole(0, 12), draw.whole(0, 3), draw.whole(0, 5)
        values = tensor(draw, draw.one(LAYOUTS), (total, 1), draw.one(DTYPES))
        values = values[:, 0] if draw.chance(0.7) else values
        values = values if draw.chance(0.9) else values[..., None].expand(*values.shape, 3)
        offsets = draw.whole_tensor(-1 if draw.chance(0.2) else 0, total + 1, (batch + 1,), torch.int32)
        arguments = {
            "values": values,
            "cu_nodes": offsets.sort().values if draw.chance(0.8) else offsets,
            "path": draw.whole_tensor(-1, 6, (batch, width), torch.int32),
            "num_tokens": draw.whole_tensor(-1, width + 2, (batch,), torch.int32),
        }
        expected = oracle.kv.gather(**arguments)
        ours = sk.kv.gather(**twins(arguments, device), backend=backend).cpu()
        assert ours.shape == expected.shape and ours.dtype == expected.dtype
        assert torch.equal(bytes_of(ours), bytes_of(expected)), f"seed {seed}"
        out = torch.full_like(ours, 1).to(device)
        assert sk.kv.gather(**twins(arguments, device), backend=backend, out=out) is out
        assert torch.equal(bytes_of(out), bytes_of(expected))


@KV
def test_what_was_written_and_committed_is_what_was_gathered(backend):
    """Rows of the accepted nodes lie behind the context in order, as ``gather`` gives them."""
    device = compare.device_of(backend)
    tree = oracle.tree.from_chains(torch.zeros((2, 7), dtype=torch.int64))
    hidden = torch.randn(14, 2, 8)
    path = torch.tensor([[0, 2, 3, 6], [0, 1, 5, -1]], dtype=torch.int32)
    counts = torch.tensor([4, 3], dtype=torch.int32)
    cache, lengths = torch.zeros(12, 2, 2, 8), torch.tensor([1, 4])
    table = torch.randperm(12).view(2, 6)
    tree, hidden, path, counts, cache, lengths, table = twins(
        (tree, hidden, path, counts, cache, lengths, table), device
    )
    sk.kv.write(hidden, None, cache, None, table, lengths, tree, backend=backend)
    sk.kv.commit(sk.KvBuffers([cache]), table, lengths, path, counts, backend=backend)
    rows = sk.kv.gather(hidden, tree.cu_nodes, path, counts, backend=backend)
    for b, count in enumerate(counts.tolist()):
        at = lengths[b] + torch.arange(count, device=device)
        assert torch.equal(cache[table[b, at // 2], at % 2], rows[b, :count])
        assert not rows[b, count:].any()


# ---- traffic ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(_backend.why_not("kv_commit", "emulated") is not None, reason="the emulated kernels are not built")
def test_one_launch_writes_the_rows_that_move_and_no_other():
    library = ctypes.CDLL(_library.module_path("_C_emulated"))

    def report():
        counts = [ctypes.c_int64() for _ in range(3)]
        library.specdec_emulator_report(*(ctypes.byref(count) for count in counts))
        return [count.value for count in counts]

    buffers = [torch.zeros(32, 4, 2, 16, dtype=torch.bfloat16) for _ in range(6)]
    table = torch.arange(32).view(2, 16)
    for path, moved in (([[0, 1, 2], [0, 1, 2]], 0), ([[0, 2, 3], [0, 1, 4]], 3)):
        report()
        arguments = (table, torch.tensor([5, 9]), torch.tensor(path, dtype=torch.int32), torch.full((2,), 3).int())
        sk.kv.commit(sk.KvBuffers(buffers), *arguments, backend="emulated")
        assert report() == [0, moved * 6 * 64, 1]
