"""Small valid calls of every public function, and through them the arguments of every op.

An op gets two samples: ``plain`` has the required arguments alone, ``full`` has all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import specdec_kernels as sk
from specdec_kernels import _backend
from specdec_kernels._schema import BY_NAME, OPS

from . import verify_samples
from .verify_samples import DRAFT_VOCAB, VOCAB, mask, settings, tree

FUSED = ("cuda", "triton", "cpu", "emulated")

Sample = Callable[[int], dict[str, Any]]


def served(names: Any = tuple(op.name for op in OPS)) -> list[tuple[str, str]]:
    """Pairs of an op and a fused backend: all that work here, and ``cpu`` in any case."""
    return [
        (name, backend)
        for name in names
        for backend in FUSED
        if _backend.has_op(name, backend) and (backend == "cpu" or _backend.why_not(name, backend) is None)
    ]


def function(op: str) -> Callable[..., Any]:
    """The public function of an op."""
    return getattr(getattr(sk, BY_NAME[op].family), BY_NAME[op].function)  # type: ignore[no-any-return]


def _sample(batch: int, full: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "logits": torch.randn(batch, VOCAB),
        "sampling": settings(batch, full),
        "positions": torch.arange(batch),
    }
    if full:
        arguments |= mask(batch) | {
            "active": torch.ones(batch, dtype=torch.bool),
            "status": torch.zeros(batch, dtype=torch.int32),
            "out": torch.zeros(batch, dtype=torch.int64),
        }
    return arguments


def _draft(batch: int, full: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "logits": torch.randn(batch, DRAFT_VOCAB),
        "sampling": settings(batch, full),
        "positions": torch.arange(batch),
        "num": 3,
    }
    if full:
        arguments |= mask(batch) | {
            "replacement": True,
            "top": 1,
            "coupled": True,
            "requests": torch.arange(batch).flip(0),
            "depths": torch.arange(batch),
            "nodes": torch.arange(batch),
            "draft_to_target": torch.arange(DRAFT_VOCAB),
            "min_confidence": torch.full((batch,), 0.01),
            "max_entropy": torch.full((batch,), 5.0),
            "status": torch.zeros(batch, dtype=torch.int32),
            "certainty": torch.zeros(batch, 2),
            "out": torch.zeros((batch, 3), dtype=torch.int64),
        }
    return arguments


def _from_chains(batch: int, full: bool) -> dict[str, Any]:
    tokens = torch.arange(4 * batch).view(batch, 4)
    if not full:
        return {"tokens": tokens}
    out = sk.TokenTree(
        torch.zeros(batch + 1, dtype=torch.int32),
        torch.zeros(4 * batch, dtype=torch.int64),
        *(torch.zeros(4 * batch, dtype=torch.int32) for _ in range(3)),
        max_nodes=4,
        max_depth=3,
        status=torch.zeros(batch, dtype=torch.int32),
    )
    return {"tokens": tokens, "lengths": torch.arange(batch) + 1, "out": out}


def _new_tree(batch: int, nodes: int, depth: int, slots: bool = False) -> sk.TokenTree:
    count = batch * nodes
    columns = [torch.zeros(count, dtype=torch.int32) for _ in range(4)]
    return sk.TokenTree(
        torch.zeros(batch + 1, dtype=torch.int32),
        torch.zeros(count, dtype=torch.int64),
        *columns[:3],
        max_nodes=nodes,
        max_depth=depth,
        slots=columns[3] if slots else None,
        status=torch.zeros(batch, dtype=torch.int32),
    )


def _from_parents(batch: int, full: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "tokens": torch.arange(4 * batch),
        "parents": torch.tensor([-1, 0, 0, 1]).repeat(batch),
        "cu_nodes": torch.arange(batch + 1, dtype=torch.int32) * 4,
        "max_nodes": 4,
        "max_depth": 2,
    }
    if full:
        out = _new_tree(batch, 4, 2, slots=True), torch.zeros(4 * batch, dtype=torch.int64)
        arguments |= {"lengths": torch.arange(batch) % 2 + 3, "slots": True, "out": out}
    return arguments


def _from_beams(batch: int, full: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "root_tokens": torch.arange(batch),
        "tokens": torch.arange(5 * batch).view(batch, 5),
        "parents": torch.tensor([-1, 0, -1, 1, 2]).repeat(batch, 1),
        "scores": -torch.rand(batch, 5),
        "budget": 4,
        "max_depth": 2,
    }
    if full:
        out = _new_tree(batch, 4, 2), torch.zeros(4 * batch, dtype=torch.int32)
        arguments |= {"budget": torch.full((batch,), 3), "lengths": torch.full((batch,), 4), "max_nodes": 4, "out": out}
    return arguments


def _best_first(batch: int, full: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "root_tokens": torch.arange(batch),
        "log_probs": -torch.rand(batch, 2, 3),
        "token_ids": torch.arange(6 * batch).view(batch, 2, 3),
        "budget": 4,
    }
    if full:
        arguments |= {"budget": torch.full((batch,), 3), "total_budget": 5, "max_nodes": 4}
        arguments |= {"scores": torch.zeros(4 * batch), "out": _new_tree(batch, 4, 2)}
    return arguments


def _to_dense_mask(batch: int, full: bool) -> dict[str, Any]:
    return {"tree": tree(batch)} | ({"out": torch.zeros((batch, 4, 4), dtype=torch.bool)} if full else {})


def _to_packed_mask(batch: int, full: bool) -> dict[str, Any]:
    if not full:
        return {"tree": tree(batch), "layout": "query"}
    out = torch.zeros(batch * 6, dtype=torch.uint8), torch.zeros(batch + 1, dtype=torch.int32)
    lengths = torch.arange(batch) + 3
    return {"tree": tree(batch), "layout": "full", "context_lens": lengths, "max_context": 7, "out": out}


def _to_links(batch: int, full: bool) -> dict[str, Any]:
    out = sk.Links(*(torch.zeros((batch, 4), dtype=torch.int32) for _ in range(3)))
    return {"tree": tree(batch)} | ({"dtype": torch.int32, "out": out} if full else {})


def _to_paths(batch: int, full: bool) -> dict[str, Any]:
    out = torch.zeros((batch, 4, 3), dtype=torch.int32), torch.zeros(batch, dtype=torch.int32)
    return {"tree": tree(batch)} | ({"out": out} if full else {})


def _expand(batch: int, full: bool) -> dict[str, Any]:
    if not full:
        return {"logits": torch.randn(batch, DRAFT_VOCAB), "scores": None, "num": 3, "beams": 2}
    out = sk.Expansion(
        torch.zeros((batch, 6), dtype=torch.int64), torch.zeros(batch, 6), torch.zeros((batch, 4), dtype=torch.int32)
    )
    return {
        "logits": torch.randn(2 * batch, DRAFT_VOCAB),
        "scores": -torch.rand(batch, 2),
        "num": 3,
        "beams": 4,
        "draft_to_target": torch.arange(DRAFT_VOCAB) + 5,
        "min_confidence": torch.full((batch,), 0.01),
        "max_entropy": torch.full((batch,), 5.0),
        "out": out,
    }


def _ngram_lookup(batch: int, full: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "history": torch.arange(9 * batch).view(batch, 9) % 4,
        "lengths": torch.full((batch,), 8),
    }
    if full:
        arguments |= {
            "min_n": 2,
            "max_n": 3,
            "num": 2,
            "active": torch.ones(batch, dtype=torch.bool),
            "out": (torch.zeros((batch, 2), dtype=torch.int64), torch.zeros(batch, dtype=torch.int32)),
        }
    return arguments


def _tree_attention(batch: int, full: bool) -> dict[str, Any]:
    made = tree(batch)
    nodes, heads, kv_heads = made.tokens.numel(), 6, 3
    arguments: dict[str, Any] = {
        "query": torch.randn(nodes, heads, 8),
        "key_cache": torch.randn(6 * batch, 4, kv_heads, 8),
        "value_cache": torch.randn(6 * batch, 4, kv_heads, 16),
        "block_table": torch.arange(6 * batch).view(batch, 6),
        "context_lens": torch.arange(batch) + 5,
        "tree": made,
    }
    if full:
        slots = torch.tensor([i for b in range(batch) for i in range(4 if b % 2 else 3)], dtype=torch.int32)
        arguments |= {
            "tree": made._replace(slots=slots + 1),
            "query": torch.randn(2 * batch + 1, heads, 8),
            "query_nodes": torch.arange(2 * batch + 1) % 2 + 1,
            "cu_queries": torch.arange(batch + 1, dtype=torch.int32) * 2,
            "table_rows": torch.arange(batch).flip(0),
            "scale": 0.5,
            "softcap": 20.0,
            "window": 6,
            "sinks": torch.randn(heads),
            "visibility": "tree",
            "key_scale": torch.rand(kv_heads) + 0.5,
            "value_scale": torch.rand(kv_heads) + 0.5,
            "active": torch.ones(batch, dtype=torch.bool),
            "status": torch.zeros(batch, dtype=torch.int32),
            "out": (torch.zeros(2 * batch + 1, heads, 16), torch.zeros(2 * batch + 1, heads)),
        }
    return arguments


def _merge_states(batch: int, full: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"values": torch.randn(batch, 3, 2, 8), "lses": torch.randn(batch, 3, 2)}
    return arguments | ({"out": (torch.zeros(batch, 2, 8), torch.zeros(batch, 2))} if full else {})


def _pages(batch: int) -> dict[str, Any]:
    return {"block_table": torch.arange(6 * batch).view(batch, 6), "context_lens": torch.arange(batch) + 5}


def _kv_write(batch: int, full: bool) -> dict[str, Any]:
    made = tree(batch)
    nodes = made.tokens.numel()
    arguments: dict[str, Any] = _pages(batch) | {
        "key": torch.randn(nodes, 3, 8),
        "value": None,
        "key_cache": torch.zeros(6 * batch, 4, 3, 8),
        "value_cache": None,
        "tree": made,
    }
    if full:
        rows = 2 * batch + 1
        arguments |= {
            "tree": made._replace(slots=torch.arange(nodes, dtype=torch.int32) % 5),
            "key": torch.randn(rows, 3, 8),
            "value": torch.randn(rows, 3, 16),
            "value_cache": torch.zeros(6 * batch, 4, 3, 16),
            "query_nodes": torch.arange(rows) % 2 + 1,
            "cu_queries": torch.arange(batch + 1, dtype=torch.int32) * 2,
            "table_rows": torch.arange(batch).flip(0),
            "key_scale": torch.rand(3) + 0.5,
            "value_scale": torch.rand(3) + 0.5,
            "active": torch.ones(batch, dtype=torch.bool),
            "status": torch.zeros(batch, dtype=torch.int32),
        }
    return arguments


def _kv_commit(batch: int, full: bool) -> dict[str, Any]:
    def buffer(*trailing: int) -> Tensor:
        return torch.randn(6 * batch, 4, *trailing)

    arguments: dict[str, Any] = _pages(batch) | {
        "buffers": sk.KvBuffers((buffer(3, 8), buffer())),
        "path": torch.tensor([[0, 2, 3]] * batch, dtype=torch.int32),
        "num_tokens": torch.full((batch,), 3, dtype=torch.int32),
    }
    if full:
        rows, slots = torch.arange(batch).flip(0), torch.tensor([0, 3, 1, 2] * batch, dtype=torch.int32)
        own = sk.KvGroup((buffer(2),), torch.arange(6 * batch).view(batch, 6), 4, torch.arange(batch), slots + 1, rows)
        arguments |= {
            "buffers": sk.KvBuffers((sk.KvGroup((buffer(3, 8), buffer())), own)),
            "cu_nodes": torch.arange(batch + 1, dtype=torch.int32) * 4,
            "slots": slots,
            "table_rows": torch.arange(batch),
            "active": torch.ones(batch, dtype=torch.bool),
            "status": torch.zeros(batch, dtype=torch.int32),
        }
    return arguments


def _kv_gather(batch: int, full: bool) -> dict[str, Any]:
    made = tree(batch)
    arguments: dict[str, Any] = {
        "values": torch.randn(made.tokens.numel(), 4),
        "cu_nodes": made.cu_nodes,
        "path": torch.tensor([[0, 2, -1]] * batch, dtype=torch.int32),
        "num_tokens": torch.full((batch,), 2, dtype=torch.int32),
    }
    return arguments | ({"out": torch.zeros(batch, 3, 4)} if full else {})


def _kv_inject(batch: int, full: bool) -> dict[str, Any]:
    def caches() -> list[Tensor]:
        return [torch.zeros(6 * batch, 4, 3, 8) for _ in range(2)]

    arguments: dict[str, Any] = _pages(batch) | {
        "projected": torch.randn(batch, 3, 2, 2, 3, 8),
        "key_norm": None,
        "cos_sin": None,
        "key_caches": caches(),
        "value_caches": caches(),
        "num_tokens": torch.arange(batch, dtype=torch.int32) % 3 + 1,
    }
    if full:
        arguments |= {
            "key_norm": torch.rand(2, 8),
            "cos_sin": torch.randn(20, 2, 8),
            "positions": torch.arange(3 * batch).view(batch, 3) % 20,
            "eps": 1e-5,
            "interleaved": True,
            "key_scale": torch.rand(2, 3) + 0.5,
            "value_scale": torch.rand(2, 3) + 0.5,
            "table_rows": torch.arange(batch).flip(0),
            "active": torch.ones(batch, dtype=torch.bool),
            "status": torch.zeros(batch, dtype=torch.int32),
        }
    return arguments


def _block(batch: int, full: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "tokens": torch.arange(3 * batch).view(batch, 3),
        "num_tokens": torch.arange(batch, dtype=torch.int32) % 3 + 1,
        "context_lens": torch.arange(batch) + 5,
        "mask_token": 99,
        "block_size": 4,
    }
    if full:
        wide = torch.zeros((batch, 4), dtype=torch.int64)
        arguments |= {
            "block_table": torch.arange(6 * batch).view(batch, 6),
            "page_size": 4,
            "table_rows": torch.arange(batch).flip(0),
            "active": torch.ones(batch, dtype=torch.bool),
            "status": torch.zeros(batch, dtype=torch.int32),
            "out": sk.Block(wide[:, 0].clone(), wide, wide.clone(), wide.clone(), wide[:, 0].clone()),
        }
    return arguments


def _budget(batch: int, full: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"scores": -torch.rand(batch, 3).cumsum(1), "costs": 1 + 0.1 * torch.arange(6.0)}
    if full:
        arguments |= {
            "active": torch.ones(batch, dtype=torch.bool),
            "sampled": True,
            "out": torch.zeros(batch, dtype=torch.int32),
        }
    return arguments


def _pack(batch: int, full: bool) -> dict[str, Any]:
    weight = torch.randn(35 + batch, 7)
    return {"weight": weight, "dtype": torch.int8, "bias": torch.randn(35 + batch)} if full else {"weight": weight}


def _skinny(batch: int, full: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"x": torch.randn(batch, 7), "packed": sk.linear.pack(**_pack(batch, full))}
    if full:
        arguments["out"] = torch.zeros(batch, 35 + batch)
    return arguments


MAKERS: dict[str, Callable[[int, bool], dict[str, Any]]] = {
    "tree_from_chains": _from_chains,
    "tree_from_parents": _from_parents,
    "tree_from_beams": _from_beams,
    "tree_best_first": _best_first,
    "tree_to_dense_mask": _to_dense_mask,
    "tree_to_packed_mask": _to_packed_mask,
    "tree_to_links": _to_links,
    "tree_to_paths": _to_paths,
    "sample_sample": _sample,
    "sample_draft": _draft,
    **verify_samples.MAKERS,
    "draft_ngram_lookup": _ngram_lookup,
    "draft_expand": _expand,
    "draft_block": _block,
    "draft_budget": _budget,
    "attention_tree_attention": _tree_attention,
    "attention_merge_states": _merge_states,
    "kv_write": _kv_write,
    "kv_commit": _kv_commit,
    "kv_gather": _kv_gather,
    "kv_inject": _kv_inject,
    "linear_pack": _pack,
    "linear_skinny": _skinny,
}


def sample(op: str, full: bool, batch: int = 2) -> dict[str, Any]:
    """Keyword arguments of the public function of an op, on the CPU, for so many requests or rows."""
    return MAKERS[op](batch, full)


def arguments_of(op: str, call: dict[str, Any]) -> tuple[Any, ...]:
    """What the public function passes to the op."""
    taken: list[tuple[Any, ...]] = []

    def run(name: str, backend: Any, anchor: Any, check: Callable[[], None], launch: Callable[..., Any]) -> Any:
        check()
        return launch(lambda *arguments: taken.append(arguments))

    with mock.patch.object(_backend, "run", run):
        function(op)(**call)
    return taken[0]
