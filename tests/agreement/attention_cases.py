"""Random calls of ``attention.tree_attention``, and what their results may differ by."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

import specdec_kernels as sk

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CACHES = (*DTYPES, torch.float8_e4m3fn, torch.float8_e5m2)
DIMS = ((64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256), (8, 24), (40, 16))


def random_tree(
    chosen: random.Random, sizes: list[int], rows: list[int] | None = None, slots: bool = False
) -> sk.TokenTree:
    """Trees of so many nodes in so many rows, any shape; ``slots``: the KV lies where another order put it."""
    rows = sizes if rows is None else rows
    offsets, parents = [0], []
    for room in rows:
        kind = chosen.choice(("chain", "star", "random", "random"))
        for i in range(room):
            above = {"chain": i - 1, "star": 0, "random": chosen.randrange(max(i, 1))}[kind]
            parents.append(-1 if i == 0 else above)
        offsets.append(offsets[-1] + room)
    made, _ = sk.tree.from_parents(
        torch.zeros(len(parents), dtype=torch.int64),
        torch.tensor(parents, dtype=torch.int32),
        torch.tensor(offsets, dtype=torch.int32),
        lengths=torch.tensor(sizes, dtype=torch.int64),
        max_nodes=max(rows, default=0),
        max_depth=max(rows, default=0),
        slots=slots,
        backend="reference",
    )
    return made


def call(seed: int, small: bool = False, **fixed: Any) -> dict[str, Any]:
    """Arguments of one call; ``fixed`` names choices (``dtype``, ``cache``, ``dims``, ``group``, ``page``, ...)."""
    chosen = random.Random(seed)
    draw = torch.Generator().manual_seed(seed)

    def pick(name: str, options: Any) -> Any:
        value = chosen.choice(options)
        return fixed.get(name, value)

    dtype, cache = pick("dtype", DTYPES), pick("cache", CACHES)
    key_dim, value_dim = pick("dims", DIMS[:1] + DIMS[-2:] if small else DIMS)
    group, kv_heads = pick("group", (1, 2, 4) if small else (1, 2, 3, 4, 7, 16)), pick("kv_heads", (1, 2))
    page = pick("page", (1, 2, 16) if small else (1, 2, 16, 64))
    batch = pick("batch", (1, 2) if small else (1, 2, 3, 4))
    sizes = [chosen.randint(0, 5 if small else 12) for _ in range(batch)]
    rows = [size + chosen.randint(0, 2) for size in sizes]
    tree = random_tree(chosen, sizes, rows, chosen.random() < 0.5)
    contexts = (0, 1, 15, 33) if small else (0, 1, 31, 32, 33, 100, 1023, 1024, 1500)
    lengths = [pick("context", contexts) for _ in sizes]
    pages = -(-(max(lengths, default=0) + max(rows, default=0) + 1) // page)
    count = batch * pages + 2
    permuted = torch.randperm(count, generator=draw)[: batch * pages].view(batch, pages)
    shuffled = chosen.random() < 0.5
    arguments: dict[str, Any] = {
        "query": torch.randn((sum(rows), group * kv_heads, key_dim), generator=draw).to(dtype),
        "key_cache": torch.randn((count, page, kv_heads, key_dim), generator=draw).to(cache),
        "value_cache": torch.randn((count, page, kv_heads, value_dim), generator=draw).to(cache),
        "block_table": permuted.flip(0).int() if shuffled else permuted,
        "context_lens": torch.tensor(lengths, dtype=torch.int64).to(chosen.choice((torch.int32, torch.int64))),
        "tree": tree,
        "scale": chosen.choice((None, 0.3)),
        "softcap": pick("softcap", (0.0, 0.0, 4.0)),
        "window": pick("window", (0, 0, 1, 5, 40)),
        "visibility": pick("visibility", ("tree", "tree", "block")),
    }
    if shuffled:
        arguments["table_rows"] = torch.arange(batch).flip(0)
    if chosen.random() < 0.3:
        arguments["sinks"] = torch.randn(group * kv_heads, generator=draw)
    if cache.itemsize == 1 or chosen.random() < 0.2:
        arguments["key_scale"] = torch.rand(chosen.choice((1, kv_heads)), generator=draw) + 0.5
        arguments["value_scale"] = torch.rand(chosen.choice((1, kv_heads)), generator=draw) + 0.5
    if chosen.random() < 0.3:
        asked = [[chosen.randint(-1, size) for _ in range(chosen.randint(0, 4))] for size in sizes]
        nodes = [node for one in asked for node in one]
        arguments["query_nodes"] = torch.tensor(nodes, dtype=torch.int64)
        arguments["cu_queries"] = torch.tensor([0, *map(len, asked)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        arguments["query"] = torch.randn((len(nodes), group * kv_heads, key_dim), generator=draw).to(dtype)
    return arguments


def exact(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The oracle's result before it is rounded to the dtype of the query: that of a float32 query of the same values."""
    result: tuple[Tensor, Tensor] = sk.attention.tree_attention(
        **arguments | {"query": arguments["query"].float()}, backend="reference"
    )
    return result


#: Of sums in float32, of the rounding of probabilities to the query's type, and of that of the result, per unit of
#: the largest value; a plain computation in that precision has these errors.
UNITS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def check(arguments: dict[str, Any], actual: tuple[Tensor, Tensor]) -> None:
    """Hold a result against float64: at most twice the error of the same computation done plainly in its precision."""
    out, lse = exact(arguments)
    assert actual[0].dtype == arguments["query"].dtype and actual[0].shape == out.shape
    assert actual[1].dtype == torch.float32 and actual[1].shape == lse.shape
    nothing = lse == -torch.inf
    assert torch.equal(actual[1] == -torch.inf, nothing)
    assert not bool(actual[0][nothing].any())
    assert bool(torch.isfinite(actual[0]).all())
    plain, plain_lse = plainly(arguments)
    error = (actual[0].double() - out.double()).abs().amax() if out.numel() else 0.0
    allowed = (plain.double() - out.double()).abs().amax() if out.numel() else 0.0
    unit = UNITS[arguments["query"].dtype] * float(out.abs().amax() if out.numel() else 0.0)
    assert float(error) <= 2 * max(float(allowed), unit), (float(error), float(allowed), unit)
    size = lse[~nothing].abs().amax().clamp(min=1) if bool((~nothing).any()) else 1.0
    error = (actual[1] - lse)[~nothing].abs().amax() if bool((~nothing).any()) else 0.0
    allowed = (plain_lse - lse)[~nothing].abs().amax() if bool((~nothing).any()) else 0.0
    assert float(error) <= 2 * max(float(allowed), 2e-6 * float(size)), (float(error), float(allowed))


def plainly(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The same softmax attention, row by row, by torch in the precision of the query (sums in float32)."""
    query = arguments["query"]
    dtype, keys, values = query.dtype, arguments["key_cache"], arguments["value_cache"]
    kv_heads, page = keys.shape[2], keys.shape[1]
    group = query.shape[1] // kv_heads
    out = torch.zeros((*query.shape[:2], values.shape[3]), dtype=dtype)
    lse = torch.full(query.shape[:2], -torch.inf)
    scale = arguments["scale"] if arguments.get("scale") is not None else query.shape[2] ** -0.5
    for row, seen in visible(arguments):
        request, positions = seen
        if not positions:
            continue
        where = int(arguments["table_rows"][request]) if "table_rows" in arguments else request
        pages = arguments["block_table"][where].long()[torch.tensor(positions) // page]
        slots = torch.tensor(positions) % page

        def read(cache: Tensor, name: str, pages: Tensor = pages, slots: Tensor = slots) -> Tensor:
            found = cache[pages, slots].float()
            factor = arguments.get(name)
            found = found if factor is None else found * factor.expand(kv_heads).unsqueeze(1)
            return found.to(dtype).repeat_interleave(group, 1).transpose(0, 1)

        scores = (query[row].unsqueeze(1) @ read(keys, "key_scale").transpose(1, 2)).squeeze(1).float() * scale
        if arguments["softcap"] > 0:
            scores = arguments["softcap"] * torch.tanh(scores / arguments["softcap"])
        total = scores.logsumexp(-1)
        if "sinks" in arguments:
            total = torch.logaddexp(total, arguments["sinks"])
        weights = (scores - total.unsqueeze(-1)).exp().to(dtype)
        out[row] = (weights.unsqueeze(1) @ read(values, "value_scale")).squeeze(1)
        lse[row] = total
    if "sinks" in arguments:
        for row, (_, positions) in visible(arguments):
            if not positions:
                lse[row] = arguments["sinks"]
    return out, lse


def visible(arguments: dict[str, Any]) -> list[tuple[int, tuple[int, list[int]]]]:
    """Row of the call -> its request and the positions in the cache that it sees, by the definition."""
    tree = arguments["tree"]
    first, ends, depths = tree.cu_nodes.tolist(), tree.ends.tolist(), tree.depths.tolist()
    found = []
    for b, begin in enumerate(first[:-1]):
        live = ends[begin] if begin < first[b + 1] else 0
        context = int(arguments["context_lens"][b])
        if "query_nodes" in arguments:
            cu = arguments["cu_queries"].tolist()
            asked = [(r, int(arguments["query_nodes"][r])) for r in range(cu[b], cu[b + 1])]
        else:
            asked = [(begin + i, i) for i in range(live)]
        slots = list(range(live)) if tree.slots is None else tree.slots[begin : begin + live].tolist()
        for row, node in asked:
            if not 0 <= node < live:
                continue
            here = context + depths[begin + node]
            keys = [(t, t) for t in range(context)]
            for j in range(live):
                if arguments["visibility"] == "block" or j <= node < ends[begin + j]:
                    keys.append((context + depths[begin + j], context + slots[j]))
            window = arguments["window"]
            found.append((row, (b, [at for rotary, at in keys if not window or here - rotary < window])))
    return found
