"""The attention of the Triton backend against the oracle: what of it depends on how a context is cut, and more.

Run as ``suite.py`` is.
"""

import random

import pytest
import torch
from agreement.attention_cases import call, check, random_tree
from agreement.compare import run, same

import specdec_kernels as sk
from specdec_kernels._backend import device_of
from specdec_kernels.triton import attention

BACKEND = "triton"
OP = "attention_tree_attention"
CHOICES = ("query_nodes", "cu_queries", "table_rows", "sinks")


def attend(arguments):
    return run(BACKEND, OP, arguments)


def small(seed, **fixed):
    return call(seed, True, **{"kv_heads": 1, "batch": 1, "dims": (16, 16), **fixed})


def with_tree(seed, nodes, **fixed):
    """A call about one tree of so many nodes, all of them asked."""
    arguments = {name: value for name, value in small(seed, **fixed).items() if name not in CHOICES}
    page, context = arguments["key_cache"].shape[1], int(arguments["context_lens"][0])
    pages = -(-(context + nodes) // page)
    for name in ("key_cache", "value_cache"):
        shape = arguments[name].shape
        arguments[name] = torch.randn(pages, *shape[1:]).to(arguments[name].dtype)
    heads, dim = arguments["query"].shape[1:]
    return arguments | {
        "tree": random_tree(random.Random(seed), [nodes]),
        "query": torch.randn(nodes, heads, dim).to(arguments["query"].dtype),
        "block_table": torch.randperm(pages).view(1, -1),
    }


@pytest.mark.parametrize("seed", range(4))
def test_random_calls(seed):
    arguments = call(seed + 70, True, batch=2, dtype=(torch.bfloat16, torch.float32)[seed % 2])
    check(arguments, attend(arguments))


@pytest.mark.parametrize(
    "options",
    [{"window": 0}, {"window": 290, "softcap": 4.0}, {"window": 40, "cache": torch.float8_e4m3fn}],
    ids=str,
)
def test_contexts_of_several_splits(options, monkeypatch):
    """The same bits whatever is worked on together, in how many launches and by how many programs."""
    fixed = {"batch": 2, "dtype": torch.bfloat16, "cache": torch.bfloat16, "context": 530, "page": 16, "softcap": 0.0}
    arguments = small(5, **fixed | options)
    arguments["context_lens"] = torch.tensor([530, 3])
    expected = attend(arguments)
    check(arguments, expected)
    monkeypatch.setattr(attention, "MOST_STATES", 1)
    monkeypatch.setattr(attention, "SEARCH", 1)
    monkeypatch.setattr(attention, "INTERPRETED_PROGRAMS", 5)
    assert all(map(same, attend(arguments), expected))


def test_the_same_bits_alone_and_in_a_batch():
    """As long as trees have the same bound: the sizes of tiles and of splits hang on it."""
    arguments = with_tree(1, 8, context=300, window=0, page=16, dtype=torch.float16, cache=torch.float16)
    one = arguments["tree"]._replace(max_nodes=70)
    out, lse = attend(arguments | {"tree": one})
    batch = 9
    many = one._replace(
        cu_nodes=(8 * torch.arange(batch + 1)).int(),
        **{name: getattr(one, name).repeat(batch) for name in ("tokens", "parents", "depths", "ends")},
        slots=None,
    )
    lengths = torch.full((batch,), 40)
    lengths[3] = arguments["context_lens"][0]
    table = arguments["block_table"].expand(batch, -1)
    query = torch.randn_like(arguments["query"]).repeat(batch, 1, 1)
    query[24:32] = arguments["query"]
    given = {"tree": many, "context_lens": lengths, "block_table": table, "query": query}
    whole = attend(arguments | given)
    assert same(whole[0][24:32], out) and same(whole[1][24:32], lse)


def test_a_window_at_the_end_of_a_long_context():
    arguments = with_tree(2, 3, context=40, window=20, page=16, dtype=torch.float32, cache=torch.float32)
    context = 70_000
    pages = arguments["key_cache"].shape[0]
    arguments["block_table"] = (torch.arange(context // 16 + 1) % pages).int().view(1, -1)
    arguments["context_lens"] = torch.tensor([context])
    check(arguments, attend(arguments))


@pytest.mark.parametrize("visibility", ["tree", "block"])
def test_more_nodes_than_a_tile_has(visibility):
    arguments = with_tree(
        3, 70, group=2, visibility=visibility, window=9, context=15, page=16, dtype=torch.float16, cache=torch.float16
    )
    check(arguments, attend(arguments))


def test_scores_turned_round_and_off():
    for scale in (-0.5, 0.0):
        arguments = with_tree(4, 4, context=33, softcap=0.0, dtype=torch.float32, cache=torch.float32) | {
            "scale": scale
        }
        check(arguments, attend(arguments))


def test_a_latent_row_is_key_and_value():
    arguments = with_tree(6, 3, dims=(80, 64), group=4, context=65, dtype=torch.bfloat16, cache=torch.bfloat16)
    arguments["value_cache"] = arguments["key_cache"][..., :64]
    shared = attend(arguments)
    check(arguments, shared)
    apart = attend(arguments | {"value_cache": arguments["key_cache"][..., :64].clone()})
    assert all(map(same, shared, apart))


@pytest.mark.parametrize("cache", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_every_float8_is_exact(cache):
    codes = torch.arange(256, dtype=torch.uint8).view(cache)
    arguments = with_tree(7, 1, dims=(16, 256), group=1, context=0, page=1, dtype=torch.float32)
    arguments |= {"key_cache": torch.zeros(1, 1, 1, 16).to(cache), "value_cache": codes.view(1, 1, 1, 256)}
    arguments |= {"value_scale": torch.tensor([0.25])}
    out, _ = attend(arguments)
    assert torch.equal(out[0, 0].nan_to_num(1e9, 2e9, 3e9), (codes.float() * 0.25).nan_to_num(1e9, 2e9, 3e9))


def test_values_that_are_not_finite_reach_those_who_see_them():
    """In nodes, and at the edge of a window."""
    arguments = with_tree(8, 5, dims=(24, 24), context=40, window=30, visibility="tree", page=1, softcap=0.0)
    arguments |= {"tree": sk.tree.from_chains(torch.zeros(1, 5, dtype=torch.int64), backend="reference")}
    arguments |= {"query": arguments["query"].float(), "key_cache": arguments["key_cache"].float()}
    values = arguments["value_cache"].float()
    place = arguments["block_table"][0]
    for position, column, value in ((13, 0, torch.inf), (42, 0, -torch.inf), (43, 20, torch.nan), (12, 3, torch.inf)):
        values[place[position], 0, 0, column] = value
    arguments["value_cache"] = values
    out, lse = attend(arguments)
    expected, expected_lse = sk.attention.tree_attention(**arguments, backend="reference")
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-5)
    assert bool(out[2:3, :, 0].isnan().all()) and bool((out[3:, :, 0] == -torch.inf).all())


def test_offsets_in_disorder():
    """A request that can have no rows, and one that begins before an earlier one ends, are flagged; others go on."""
    arguments = with_tree(9, 2, context=5, window=0, dtype=torch.float32, cache=torch.float32)
    one = arguments["tree"]
    tree = one._replace(
        cu_nodes=torch.tensor([2, 4, 9, 4, 6, 5, 7], dtype=torch.int32),
        **{name: getattr(one, name).repeat(4) for name in ("tokens", "parents", "depths", "ends")},
    )
    batch, device = 6, device_of(BACKEND)
    status = torch.full((batch,), 77, dtype=torch.int32, device=device)
    given = arguments | {
        "tree": tree,
        "query": arguments["query"].repeat(4, 1, 1),
        "context_lens": torch.full((batch,), 5),
        "block_table": arguments["block_table"].expand(batch, -1),
        "status": status,
        "out": (torch.full((8, *arguments["query"].shape[1:]), 7.0), torch.full((8, arguments["query"].shape[1]), 7.0)),
    }
    out, lse = attend(given)
    expected = attend(arguments)
    for rows in (slice(2, 4), slice(4, 6)):
        torch.testing.assert_close(out[rows], expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(lse[rows], expected[1], rtol=1e-6, atol=1e-6)
    for row in (0, 1, 6, 7):
        assert not bool(out[row].any()) and bool((lse[row] == -torch.inf).all())
    assert status.tolist() == [0, 8, 8, 0, 8, 8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_merge_states(dtype):
    values, lses = torch.randn(3, 4, 2, 1030 if dtype == torch.float32 else 24).to(dtype), 5 * torch.randn(3, 4, 2)
    lses[0], lses[1, 2] = -torch.inf, -torch.inf
    values[lses == -torch.inf] = torch.nan
    out, lse = run(BACKEND, "attention_merge_states", {"values": values, "lses": lses})
    expected, expected_lse = sk.attention.merge_states(values.float(), lses, backend="reference")
    unit = 1e-6 if dtype == torch.float32 else 2.0**-8
    torch.testing.assert_close(out.float(), expected, rtol=unit, atol=unit)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-6, atol=1e-6)
