"""Calls of ``attention.tree_attention`` as hypothesis makes them: of numbers that shrink one by one."""

import torch
from hypothesis import strategies

import specdec_kernels as sk

from .attention_cases import CACHES, DIMS, DTYPES


def plans(small):
    """What a call is made of, in numbers that can shrink one by one; ``small``: for kernels run step by step."""
    whole, one = strategies.integers, strategies.sampled_from
    node = whole(0, 11)  # its parent, modulo the nodes before it: 0 hangs it on the root
    request = strategies.fixed_dictionaries(
        {
            "nodes": strategies.lists(node, max_size=5 if small else 12),
            "padding": whole(0, 2),
            "context": whole(0, 40) if small else whole(0, 200) | one((1023, 1024, 1500)),
            "asked": strategies.lists(whole(-1, 6 if small else 12), max_size=4),
        }
    )
    return strategies.fixed_dictionaries(
        {
            "seed": whole(0, 2**16),
            "dtype": one(DTYPES),
            "cache": one(CACHES),
            "dims": one(DIMS[-2:] + DIMS[:1] if small else DIMS[-2:] + DIMS[:-2]),
            "group": one((1, 2, 4) if small else (1, 2, 3, 4, 7, 16)),
            "kv_heads": whole(1, 2),
            "page": one((1, 2, 16) if small else (1, 2, 4, 16, 64)),
            "requests": strategies.lists(request, min_size=1, max_size=2 if small else 4),
            "scale": one((None, 0.3)),
            "softcap": one((0.0, 4.0)),
            "window": whole(0, 40),
            "visibility": one(("tree", "block")),
            "factors": one((None, 1, 2)),  # one of the keys and values, or one per head
            **dict.fromkeys(("sinks", "slots", "levels", "shuffled", "long"), strategies.booleans()),
        }
    )


def planned(plan):
    """The arguments of a plan."""
    draw, requests = torch.Generator().manual_seed(plan["seed"]), plan["requests"]
    sizes = [len(request["nodes"]) for request in requests]
    rows = [size + request["padding"] for size, request in zip(sizes, requests, strict=True)]
    parents = [
        -1 if i == 0 or i >= len(request["nodes"]) else request["nodes"][i] % i
        for request, room in zip(requests, rows, strict=True)
        for i in range(room)
    ]
    tree, _ = sk.tree.from_parents(
        torch.zeros(sum(rows), dtype=torch.int64),
        torch.tensor(parents, dtype=torch.int32),
        torch.tensor([0, *rows]).cumsum(0).int(),
        lengths=torch.tensor(sizes),
        max_nodes=max(rows),
        max_depth=max(rows),
        slots=plan["slots"],
        backend="reference",
    )
    assert not bool(tree.status.any())
    contexts, (key_dim, value_dim) = [request["context"] for request in requests], plan["dims"]
    batch, heads, kv_heads, page = len(requests), plan["group"] * plan["kv_heads"], plan["kv_heads"], plan["page"]
    pages = -(-(max(contexts) + max(rows) + 1) // page)
    table = torch.randperm(batch * pages + 2, generator=draw)[: batch * pages].view(batch, pages)
    arguments = {name: plan[name] for name in ("scale", "softcap", "window", "visibility")} | {
        "query": torch.randn((sum(rows), heads, key_dim), generator=draw).to(plan["dtype"]),
        "key_cache": torch.randn((batch * pages + 2, page, kv_heads, key_dim), generator=draw).to(plan["cache"]),
        "value_cache": torch.randn((batch * pages + 2, page, kv_heads, value_dim), generator=draw).to(plan["cache"]),
        "block_table": table if plan["long"] else table.int(),
        "context_lens": torch.tensor(contexts, dtype=torch.int64 if plan["long"] else torch.int32),
        "tree": tree,
    }
    if plan["shuffled"]:
        arguments |= {"block_table": arguments["block_table"].flip(0), "table_rows": torch.arange(batch).flip(0)}
    if plan["sinks"]:
        arguments["sinks"] = torch.randn(heads, generator=draw)
    if plan["factors"]:
        count = 1 if plan["factors"] == 1 else kv_heads
        for name in ("key_scale", "value_scale"):
            arguments[name] = torch.rand(count, generator=draw) + 0.5
    if plan["levels"]:
        asked = [request["asked"] for request in requests]
        arguments["query_nodes"] = torch.tensor([node for nodes in asked for node in nodes], dtype=torch.int64)
        arguments["cu_queries"] = torch.tensor([0, *map(len, asked)]).cumsum(0).int()
        arguments["query"] = torch.randn((sum(map(len, asked)), heads, key_dim), generator=draw).to(plan["dtype"])
    return arguments
