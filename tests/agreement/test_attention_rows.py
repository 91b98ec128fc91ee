"""On the CPU the bits of a row depend on what it sees alone: not on other rows, nor on where its keys lie."""

from __future__ import annotations

import random

import pytest
import torch

import specdec_kernels as sk

from .attention_cases import CACHES, random_tree
from .compare import same

HEADS, KV_HEADS, DIM = 6, 2, 40


def path_of(tree, node):
    parents = tree.parents.tolist()
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


class Text:
    """Keys and values of a context and of the nodes of a tree, to be laid out in pages as a test wants."""

    def __init__(self, seed, context, nodes, cache, dtype=torch.float32):
        draw = torch.Generator().manual_seed(seed)
        self.context, self.dtype = context, dtype
        self.query = torch.randn((nodes, HEADS, DIM), generator=draw).to(dtype)
        self.keys, self.values = (
            torch.randn((context + nodes, KV_HEADS, DIM), generator=draw).to(cache) for _ in range(2)
        )

    def attend(self, rows, stored, context, tree, page, seed, **options):
        """Rows of the query over a cache that holds the rows ``stored`` at positions 0, 1, ..., pages in any order."""
        count = -(-len(stored) // page)
        order = torch.randperm(count + 2, generator=torch.Generator().manual_seed(seed))[:count]
        caches = []
        for source in (self.keys, self.values):
            cache = torch.full((count + 2, page, KV_HEADS, DIM), float("nan")).to(source.dtype)
            for t, row in enumerate(stored):
                cache[order[t // page], t % page] = source[row]
            caches.append(cache)
        return sk.attention.tree_attention(
            self.query[rows], *caches, order.view(1, -1), torch.tensor([context]), tree, backend="cpu", **options
        )


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


CONTEXTS = (0, 5, 30, 60, 63, 64, 100, 508, 512, 1020, 2100)


@pytest.mark.parametrize("options", [{}, {"window": 37}, {"softcap": 3.0}, {"window": 3}], ids=str)
@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_a_node_of_a_tree_has_the_bits_of_plain_decoding(cache, options):
    """Its ancestors in the context or in the tree, in slots of any order, with or without neighbours."""
    sinks = torch.randn(HEADS, generator=torch.Generator().manual_seed(1))
    contexts = CONTEXTS if cache == torch.float32 and not options else CONTEXTS[CACHES.index(cache) % 3 :: 3]
    for seed, context in enumerate(contexts):
        chosen = random.Random(seed)
        nodes = chosen.randint(1, 14)
        tree = random_tree(chosen, [nodes], slots=seed % 2 == 0)
        text = Text(seed, context, nodes, cache)
        given = options | ({"sinks": sinks} if seed % 3 == 0 else {})
        places = list(range(nodes)) if tree.slots is None else tree.slots.tolist()
        held = [0] * nodes
        for node, place in enumerate(places):
            held[place] = context + node
        out, lse = text.attend(list(range(nodes)), [*range(context), *held], context, tree, 4, seed, **given)
        for node in range(nodes):
            path = path_of(tree, node)
            stored = [*range(context), *(context + i for i in path)]
            root = sk.tree.from_chains(torch.zeros(1, 1, dtype=torch.int64), backend="cpu")
            page = chosen.choice((1, 2, 16, 64))
            plain = text.attend([node], stored, len(stored) - 1, root, page, seed + node, **given)
            assert same(plain[0][0], out[node]) and same(plain[1][0], lse[node]), (seed, node)
            chain = sk.tree.from_chains(torch.zeros(1, len(path), dtype=torch.int64), backend="cpu")
            together = text.attend(path, stored, context, chain, page, seed + node, **given)
            assert same(together[0][-1], out[node]) and same(together[1][-1], lse[node]), (seed, node)


def test_any_number_of_rows(threads):
    """1 to 40 rows, in chains of any split between context and draft."""
    text = Text(3, 90, 40, torch.bfloat16, torch.bfloat16)
    everything = list(range(130))
    chain = sk.tree.from_chains(torch.zeros(1, 40, dtype=torch.int64), backend="cpu")
    out, _ = text.attend(list(range(40)), everything, 90, chain, 16, 1)
    for first, count in ((0, 1), (0, 2), (0, 5), (3, 7), (10, 30), (39, 1), (20, 17)):
        part = sk.tree.from_chains(torch.zeros(1, count, dtype=torch.int64), backend="cpu")
        rows = list(range(first, first + count))
        some, _ = text.attend(rows, everything[: 90 + first + count], 90 + first, part, 2, count)
        assert same(some, out[first : first + count])


@pytest.mark.parametrize("batch", [1, 5])
def test_threads_share_splits_or_requests(batch):
    """One long request is cut into splits for the threads, many requests are not: the bits are the same."""
    heads, context, page = 4, 5000, 16
    torch.manual_seed(0)
    pages = -(-(context + 4) // page)
    keys, values = (torch.randn(pages, page, 1, 64) for _ in range(2))
    query = torch.randn(3, heads, 64)
    results = []
    for count, threads in ((1, 1), (1, 2), (batch, 1), (batch, 2)):
        torch.set_num_threads(threads)
        tree = sk.tree.from_chains(torch.zeros(count, 3, dtype=torch.int64), backend="cpu")
        table = torch.arange(pages).repeat(count, 1)
        lengths = torch.full((count,), context)
        out, lse = sk.attention.tree_attention(
            query.repeat(count, 1, 1), keys, values, table, lengths, tree, backend="cpu"
        )
        results += [(out[3 * b : 3 * b + 3], lse[3 * b : 3 * b + 3]) for b in range(count)]
    assert all(same(a, b) for result in results for a, b in zip(result, results[0], strict=True))
