"""One whole step of speculative decoding as an engine would make it: build the trees, attend, verify, commit."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import specdec_kernels as sk

BATCH, NODES, DEPTH, RANKS, VOCAB = 3, 6, 3, 4, 8
HEADS, KV_HEADS, DIM, PAGE, PAGES = 4, 2, 16, 4, 24
OPS = (
    "tree_best_first",
    "kv_write",
    "attention_tree_attention",
    "verify_match",
    "kv_commit",
    "kv_gather",
)


class Inputs(NamedTuple):
    """What a step reads, and the caches, which it also writes."""

    root_tokens: Tensor
    log_probs: Tensor
    token_ids: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    context_lens: Tensor
    head: Tensor
    sampling: sk.Sampling


def inputs(number: int, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Inputs:
    """Data of the same shapes for every number: other contexts, pages, logits, and in some an idle request."""
    draw = torch.Generator().manual_seed(number)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    rows = BATCH * NODES
    roots = torch.randint(VOCAB, (BATCH,), generator=draw)
    if number % 2:
        roots[number % BATCH] = -1
    log_probs = torch.randn((BATCH, DEPTH, VOCAB), generator=draw).log_softmax(-1)
    best, ids = log_probs.topk(RANKS)
    made = Inputs(
        roots,
        best,
        ids,
        normal(rows, HEADS, DIM),
        normal(rows, KV_HEADS, DIM),
        normal(rows, KV_HEADS, DIM),
        normal(PAGES, PAGE, KV_HEADS, DIM),
        normal(PAGES, PAGE, KV_HEADS, DIM),
        torch.randperm(PAGES, generator=draw).view(BATCH, -1).int(),
        torch.randint(PAGES // BATCH * PAGE - NODES, (BATCH,), generator=draw).int(),
        2 * normal(HEADS * DIM, VOCAB),
        sk.Sampling.of(BATCH, temperature=[0.0, 0.7, 1.0], seed=[number, 1, 2]),
    )

    def there(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    return made._replace(
        sampling=sk.Sampling(*map(there, made.sampling)),
        **{name: there(getattr(made, name)) for name in made._fields[:-1]},
    )


def step(given: Inputs, backend: str | None) -> tuple[sk.VerifyResult, Tensor, Tensor]:
    """The decisions, the hidden states of the accepted rows, and the new lengths; caches hold the accepted rows."""
    tree = sk.tree.best_first(given.root_tokens, given.log_probs, given.token_ids, NODES, backend=backend)
    pages = (given.block_table, given.context_lens)
    caches = (given.key_cache, given.value_cache)
    sk.kv.write(given.key, given.value, *caches, *pages, tree, backend=backend)
    out, _ = sk.attention.tree_attention(given.query, *caches, *pages, tree, backend=backend)
    logits = (out.flatten(1).unsqueeze(-1) * given.head).sum(1)  # not a library's product: the same bits in a graph
    result = sk.verify.match(tree, logits, given.sampling, given.context_lens, backend=backend)
    sk.kv.commit(sk.KvBuffers(list(caches)), *pages, result.path, result.num_tokens, backend=backend)
    hidden = sk.kv.gather(out, tree.cu_nodes, result.path, result.num_tokens, backend=backend)
    return result, hidden, given.context_lens + result.num_tokens
