"""``attention.tree_attention`` and ``merge_states`` against float64, and what must not change their bits."""

from __future__ import annotations

import random

import hypothesis
import pytest
import torch

import specdec_kernels as sk

from .attention_cases import CACHES, DTYPES, call, check, random_tree, visible
from .attention_plans import planned, plans
from .cases import examples
from .compare import device_of, move, run, same

OP = "attention_tree_attention"
SLOW = ("emulated", "triton")

pytestmark = pytest.mark.op(OP)


def attend(backend, arguments):
    return run(backend, OP, arguments)


def seeds_of(backend, many, few):
    return range(few if backend in SLOW else many)


# ---- against float64 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_calls(backend, dtype, cache):
    for seed in seeds_of(backend, 12, 1):
        arguments = call(
            1000 * DTYPES.index(dtype) + 100 * CACHES.index(cache) + seed, backend in SLOW, dtype=dtype, cache=cache
        )
        check(arguments, attend(backend, arguments))


@pytest.mark.parametrize(
    "dims", [(64, 64), (80, 80), (96, 96), (128, 128), (192, 192), (256, 256), (576, 512)], ids=str
)
def test_head_sizes(backend, dims):
    dtypes = DTYPES[1:2] if backend in SLOW else DTYPES
    for dtype in dtypes:
        few = {"kv_heads": 1, "batch": 1, "group": 2, "context": 17} if backend in SLOW else {}
        arguments = call(dims[0], dims=dims, dtype=dtype, cache=dtype, **few)
        check(arguments, attend(backend, arguments))


@pytest.mark.parametrize("group", [1, 2, 3, 5, 8, 16])
def test_groups(backend, group):
    arguments = call(group, backend in SLOW, group=group, kv_heads=1, dtype=torch.float32, cache=torch.float32)
    check(arguments, attend(backend, arguments))


def test_values_that_are_a_part_of_the_keys(backend):
    """One latent row per token serves as key and as value (MLA)."""
    for heads in (2,) if backend in SLOW else (2, 16, 128):
        arguments = call(
            3, backend in SLOW, dims=(40, 16), group=heads, kv_heads=1, dtype=torch.bfloat16, cache=torch.bfloat16
        )
        arguments["value_cache"] = arguments["key_cache"][..., :16]
        check(arguments, attend(backend, arguments))


def test_any_call(backend):
    @examples(10 if backend in SLOW else 150)
    @hypothesis.given(plan=plans(small=backend in SLOW))
    def check_one(plan):
        arguments = planned(plan)
        check(arguments, attend(backend, arguments))

    check_one()


# ---- layouts and edges -------------------------------------------------------------------------------------------------


def strided(cache, layout):
    """The same cache with other strides."""
    if layout == "heads first":
        return cache.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "interleaved":
        return torch.stack((cache, cache), dim=2)[:, :, 1]
    return torch.cat((cache, cache), dim=-1)[..., : cache.shape[-1]]


@pytest.mark.parametrize("layout", ["heads first", "interleaved", "gaps"])
def test_strides_change_nothing(backend, layout):
    arguments = call(21, backend in SLOW, dtype=torch.float32, cache=torch.bfloat16)
    expected = attend(backend, arguments)
    caches = {name: strided(arguments[name], layout) for name in ("key_cache", "value_cache")}
    query = torch.cat((arguments["query"],) * 2, dim=1)[:, : arguments["query"].shape[1]]
    actual = attend(backend, arguments | caches | {"query": query})
    assert all(map(same, actual, expected))


def test_what_is_not_visible_is_not_read(backend):
    """NaN in every slot that no row sees, and in pages that are nobody's, leaves no trace."""
    for seed in seeds_of(backend, 20, 2):
        arguments = call(400 + seed, backend in SLOW, cache=torch.float32)
        expected = attend(backend, arguments)
        table, page = arguments["block_table"], arguments["key_cache"].shape[1]
        seen = torch.zeros(arguments["key_cache"].shape[:2], dtype=torch.bool)
        for _, (b, positions) in visible(arguments):
            row = int(arguments["table_rows"][b]) if "table_rows" in arguments else b
            for t in positions:
                seen[int(table[row, t // page]), t % page] = True
        poisoned = {}
        for name in ("key_cache", "value_cache"):
            poisoned[name] = arguments[name].clone()
            poisoned[name][~seen] = torch.nan
        assert all(map(same, attend(backend, arguments | poisoned), expected))


def test_what_another_row_sees_does_not_reach_a_row_that_does_not(backend):
    """NaN in the KV of one node: its descendants are NaN, all other rows are as before."""
    arguments = call(
        31, backend in SLOW, cache=torch.float32, dtype=torch.float32, batch=1, visibility="tree", window=0
    )
    tree = random_tree(random.Random(5), [6])
    arguments = {k: v for k, v in arguments.items() if k not in ("query_nodes", "cu_queries", "table_rows", "sinks")}
    arguments |= {"tree": tree, "query": torch.randn(6, *arguments["query"].shape[1:])}
    context, page = int(arguments["context_lens"][0]), arguments["key_cache"].shape[1]
    rows = -(-(context + 6) // page)
    arguments["block_table"] = torch.arange(rows).view(1, rows)
    for name in ("key_cache", "value_cache"):
        arguments[name] = torch.randn(rows, *arguments[name].shape[1:])
    expected = attend(backend, arguments)
    for name in ("key_cache", "value_cache"):
        cache = arguments[name].clone()
        cache[(context + 3) // page, (context + 3) % page] = torch.nan
        out, _ = attend(backend, arguments | {name: cache})
        for i in range(6):
            if 3 <= i < int(tree.ends[3]):
                assert bool(out[i].isnan().any())
            else:
                assert same(out[i], expected[0][i])


def test_pages_out_of_range_are_not_read(backend):
    """Their keys count as not visible, and the request is flagged; others are not touched by it."""
    arguments = call(
        41, backend in SLOW, cache=torch.float32, dtype=torch.float32, batch=2, page=2, context=33, window=0
    )
    arguments = {k: v for k, v in arguments.items() if k not in ("query_nodes", "cu_queries", "table_rows")}
    arguments["tree"] = random_tree(random.Random(1), [3, 4])
    arguments["query"] = torch.randn(7, *arguments["query"].shape[1:])
    expected = attend(backend, arguments)
    for bad in (-1, 10**6, -(2**31)):
        table = arguments["block_table"].int().clone()
        table[0, 3] = bad
        status = torch.full((2,), 77, dtype=torch.int32)
        moved = arguments | {"block_table": table, "status": status}
        out, lse = attend(backend, moved)
        assert all(map(same, (out[3:], lse[3:]), (expected[0][3:], expected[1][3:])))
        oracle = sk.attention.tree_attention(**arguments | {"block_table": table}, backend="reference")
        torch.testing.assert_close(out[:3], oracle[0][:3], rtol=1e-4, atol=1e-5)
        assert bool(torch.isfinite(lse[:3]).all())
        assert status.tolist() == [16, 0]


def test_status(backend):
    device = device_of(backend)
    arguments = call(
        43, backend in SLOW, cache=torch.float32, dtype=torch.float32, batch=1, page=2, context=33, window=0
    )
    arguments = {k: v for k, v in arguments.items() if k not in ("query_nodes", "cu_queries", "table_rows")}
    arguments |= {"tree": random_tree(random.Random(1), [3]), "query": torch.randn(3, *arguments["query"].shape[1:])}

    def status_of(**changes):
        held = torch.full((1,), 77, dtype=torch.int32, device=device)
        call = {name: move(value, device) for name, value in (arguments | changes).items()}
        sk.attention.tree_attention(**call, status=held, backend=backend)
        return int(held)

    assert status_of() == 0
    table = arguments["block_table"].int().clone()
    table[0, 3] = -1
    assert status_of(block_table=table) == 16
    assert status_of(context_lens=torch.tensor([10**6])) == 16
    assert status_of(context_lens=torch.tensor([-3])) == 8
    tree = arguments["tree"]
    assert status_of(tree=tree._replace(parents=tree.parents + 1)) == 8
    assert status_of(active=torch.tensor([False]), block_table=table) == 0


def test_a_malformed_tree_is_its_root(backend):
    arguments = call(44, backend in SLOW, cache=torch.float32, dtype=torch.float32, batch=1, context=15, window=0)
    arguments = {k: v for k, v in arguments.items() if k not in ("query_nodes", "cu_queries", "table_rows")}
    tree = random_tree(random.Random(1), [4])
    arguments |= {"tree": tree, "query": torch.randn(4, *arguments["query"].shape[1:])}
    expected = attend(backend, arguments | {"tree": tree._replace(ends=torch.tensor([1, 0, 0, 0], dtype=torch.int32))})
    for wrong in (tree._replace(parents=tree.parents.flip(0)), tree._replace(ends=tree.ends + 1)):
        assert all(map(same, attend(backend, arguments | {"tree": wrong}), expected))
    assert not bool(expected[0][1:].any()) and bool((expected[1][1:] == -torch.inf).all())


def test_padding_idle_requests_and_nothing_at_all(backend):
    arguments = call(45, backend in SLOW, cache=torch.float32, dtype=torch.float32, batch=2, context=15, window=0)
    arguments = {k: v for k, v in arguments.items() if k not in ("query_nodes", "cu_queries", "table_rows")}
    arguments["tree"] = random_tree(random.Random(2), [3, 2], [5, 4])
    heads, dim = arguments["query"].shape[1:]
    arguments["query"] = torch.full((9, heads, dim), torch.nan)
    arguments["query"][[0, 1, 2, 5, 6]] = torch.randn(5, heads, dim)
    poison = (torch.full((9, heads, arguments["value_cache"].shape[3]), torch.nan), torch.full((9, heads), torch.nan))
    out, lse = attend(backend, arguments | {"out": poison})
    for row in (3, 4, 7, 8):
        assert not bool(out[row].any()) and bool((lse[row] == -torch.inf).all())
    assert bool(torch.isfinite(out).all()) and bool(torch.isfinite(lse[[0, 1, 2, 5, 6]]).all())
    idle = attend(backend, arguments | {"active": torch.tensor([False, True])})
    assert not bool(idle[0][:5].any()) and same(idle[0][5:], out[5:]) and bool((idle[1][:5] == -torch.inf).all())
    empty = random_tree(random.Random(2), [])
    none = {"tree": empty, "query": torch.empty(0, heads, dim), "context_lens": torch.empty(0, dtype=torch.int64)}
    out, lse = attend(backend, arguments | none | {"block_table": torch.empty(0, 1, dtype=torch.int32)})
    assert out.shape == (0, heads, arguments["value_cache"].shape[3]) and lse.shape == (0, heads)


def test_outputs_end_where_they_end(backend):
    """Sentinels on both sides of the outputs stay."""
    arguments = call(46, backend in SLOW, dtype=torch.float32)
    out, lse = attend(backend, arguments)
    room = [torch.full((tensor.numel() + 64,), 7.0) for tensor in (out, lse)]
    given = tuple(flat[32:-32].view(tensor.shape) for flat, tensor in zip(room, (out, lse), strict=True))
    written = attend(backend, arguments | {"out": given})
    assert all(map(same, written, (out, lse)))
    if backend in ("cpu", "emulated"):
        assert all(bool((flat[:32] == 7).all()) and bool((flat[-32:] == 7).all()) for flat in room)


# ---- invariance --------------------------------------------------------------------------------------------------------


def alone(arguments, b):
    """The call with one of its requests."""
    tree = arguments["tree"]
    begin, end = tree.cu_nodes[b : b + 2].tolist()
    one = tree._replace(
        cu_nodes=torch.tensor([0, end - begin], dtype=torch.int32),
        **{name: getattr(tree, name)[begin:end] for name in ("tokens", "parents", "depths", "ends")},
        slots=None if tree.slots is None else tree.slots[begin:end],
        status=None,
    )
    made = arguments | {"tree": one, "context_lens": arguments["context_lens"][b : b + 1]}
    if "table_rows" in arguments:
        made["table_rows"] = arguments["table_rows"][b : b + 1]
    else:
        made["block_table"] = arguments["block_table"][b : b + 1]
    if "query_nodes" in arguments:
        begin, end = arguments["cu_queries"][b : b + 2].tolist()
        made["query_nodes"] = arguments["query_nodes"][begin:end]
        made["cu_queries"] = torch.tensor([0, end - begin], dtype=torch.int32)
    made["query"] = arguments["query"][begin:end]
    return made, slice(begin, end)


def test_a_request_has_the_same_bits_alone_and_in_any_batch(backend):
    for seed in seeds_of(backend, 20, 3):
        arguments = call(600 + seed, backend in SLOW, batch=2 if backend in SLOW else 4)
        whole = attend(backend, arguments)
        for b in range(arguments["context_lens"].numel()):
            one, rows = alone(arguments, b)
            assert all(map(same, attend(backend, one), (whole[0][rows], whole[1][rows]))), (seed, b)


def test_merged_parts_are_the_whole(backend):
    """Context and tree apart, merged by their log-sum-exps, give attention over both."""
    arguments = call(51, backend in SLOW, dtype=torch.float32, cache=torch.float32, batch=1, context=33, window=0)
    arguments = {k: v for k, v in arguments.items() if k not in ("query_nodes", "cu_queries", "table_rows", "sinks")}
    chain = sk.tree.from_chains(torch.zeros(1, 1, dtype=torch.int64), backend="reference")
    arguments |= {"tree": chain, "query": torch.randn(1, *arguments["query"].shape[1:])}
    out, lse = attend(backend, arguments)
    parts = []
    page = arguments["key_cache"].shape[1]
    pages = arguments["block_table"][0].long()
    for positions in (list(range(20)), list(range(20, 34))):
        where = torch.tensor(positions)
        caches = {
            name: arguments[name][pages[where // page], where % page].unsqueeze(1)
            for name in ("key_cache", "value_cache")
        }
        table = torch.arange(len(positions)).view(1, -1)
        given = {"block_table": table, "context_lens": torch.tensor([len(positions) - 1])}
        parts.append(attend(backend, arguments | caches | given))
    values, lses = (torch.stack(columns, dim=1) for columns in zip(*parts, strict=True))
    merged = sk.attention.merge_states(values, lses, backend="cpu")
    torch.testing.assert_close(merged[0], out, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged[1], lse, rtol=1e-6, atol=1e-6)


@pytest.mark.op("attention_merge_states")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 2, 40), (1, 1, 1, 8), (5, 3, 2, 7), (2, 0, 2, 8), (0, 2, 1, 8)], ids=str)
def test_merge_states(backend, dtype, shape):
    torch.manual_seed(sum(shape))
    values, lses = torch.randn(shape).to(dtype), 5 * torch.randn(shape[:3])
    lses[torch.rand(shape[:3]) < 0.3] = -torch.inf
    values[lses == -torch.inf] = torch.nan
    given = {"values": values, "lses": lses}
    actual = run(backend, "attention_merge_states", given)
    expected = sk.attention.merge_states(values.float(), lses, backend="reference")
    unit = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    torch.testing.assert_close(actual[0].float(), expected[0], rtol=unit, atol=unit)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-6, atol=1e-6)
    gaps = {
        "values": torch.stack((values, values), dim=2)[:, :, 0],
        "lses": lses.transpose(0, 2).contiguous().transpose(0, 2),
    }
    assert all(map(same, run(backend, "attention_merge_states", gaps), actual))
