"""The records that the ops take and give. All are named tuples of tensors: no behaviour, no copies."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

from ._schema import FILTER_ORDERS

__all__ = [
    "Block",
    "Expansion",
    "KvBuffers",
    "KvGroup",
    "Links",
    "Sampling",
    "Status",
    "TokenTree",
    "TreeShape",
    "VerifyResult",
]


class Status:
    """Bits of ``status``: what an op met in the data of a request. Several bits may be set."""

    NAN = 1  #: a NaN among the logits that were read; it counted as -inf
    DEAD_END = 2  #: no allowed token with a finite logit: the token is -1
    RESIDUAL_FALLBACK = 4  #: the residual law had no mass in floats: the target law was sampled
    MALFORMED = 8  #: a malformed tree or an index out of range; the request was its root alone
    PAGE_OUT_OF_RANGE = 16  #: a visible page id out of range; it was not read


class TokenTree(NamedTuple):
    """A batch of ragged draft trees: chains, trees and blocks alike.

    Request ``b`` owns rows ``cu_nodes[b]:cu_nodes[b+1]`` of every per-node tensor; its live nodes are
    the first ``ends[root]`` of them, in depth-first pre-order, siblings in draw order (sampled
    drafts) or best first. Node ``j`` is an ancestor of node ``i``, or ``i`` itself, iff
    ``j <= i < ends[j]``.

    Attributes:
        cu_nodes: ``[B+1]`` int32, row offsets.
        tokens: ``[T]`` int32 or int64, token of each node. The root is the newest token, already emitted,
            whose KV is not in the cache yet. A node with a token outside ``[0, V)`` is absent, and its
            subtree with it.
        parents: ``[T]`` int32, local index of the parent, -1 for the root.
        depths: ``[T]`` int32, 0 for the root.
        ends: ``[T]`` int32, local exclusive end of the node's subtree.
        max_nodes: host bound of the nodes of a request.
        max_depth: host bound of the depth of a node.
        slots: ``[T]`` int32, or None for ``slots[i] = i``: the KV of node ``i`` lies at ``context_lens[b] + slots[i]``.
        status: ``[B]`` int32, bits of :class:`Status` set by the builder, or None.
    """

    cu_nodes: Tensor
    tokens: Tensor
    parents: Tensor
    depths: Tensor
    ends: Tensor
    max_nodes: int
    max_depth: int
    slots: Tensor | None = None
    status: Tensor | None = None


class Links(NamedTuple):
    """Trees as lists of links, ``[B, N]`` each, int32 or int64: local nodes, -1 where there is none.

    Attributes:
        first_child: first child of each node.
        next_sibling: next sibling of each node.
        retrieve_index: global row of each live node (``cu_nodes[b] + i``), -1 for padding.
    """

    first_child: Tensor
    next_sibling: Tensor
    retrieve_index: Tensor


class Expansion(NamedTuple):
    """One level of a growing tree (:func:`specdec_kernels.draft.expand`).

    Attributes:
        tokens: ``[B, W*num]`` int64, children of beam ``w`` in columns ``w*num`` and following, best first; -1 where
            there is none.
        scores: ``[B, W*num]`` float32, log-probability of the path to each child; -inf where there is none.
        beams: ``[B, beams]`` int32, columns of the best children of each request, best first; -1 = none.
    """

    tokens: Tensor
    scores: Tensor
    beams: Tensor


class Block(NamedTuple):
    """The blocks that a block drafter works on next (:func:`specdec_kernels.draft.block`).

    Attributes:
        roots: ``[B]`` in the dtype of the tokens, the newest token of each request; -1 where there is no block.
        ids: ``[B, block_size]`` likewise: the root, then mask tokens; -1 where there is no block.
        positions: ``[B, block_size]`` int64, of each entry; 0 where there is no block.
        slots: ``[B, block_size]`` int64, flat slot of each entry in the cache, -1 where there is none; None without a
            block table.
        context_lens: ``[B]`` in the dtype of the lengths given: committed positions from now on.
    """

    roots: Tensor
    ids: Tensor
    positions: Tensor
    slots: Tensor | None
    context_lens: Tensor


class TreeShape(NamedTuple):
    """The shape of a tree as lists of Python numbers in depth-first pre-order, the root first.

    Attributes:
        parents: parent of each node, -1 for the root.
        ranks: which child of its parent each node is, counted from 0; 0 for the root.
        depths: depth of each node, 0 for the root.
        ends: exclusive end of each node's subtree.
        expected: expected tokens of a step, the bonus token included.
        rate: ``expected`` per unit of time.
    """

    parents: list[int]
    ranks: list[int]
    depths: list[int]
    ends: list[int]
    expected: float
    rate: float


def _per_request(value: float | Sequence[float], batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(value, Real):
        one = float(value) if dtype.is_floating_point else int(value)  # type: ignore[call-overload]
        return torch.full((batch,), one, dtype=dtype, device=device)
    return torch.tensor(list(value), dtype=dtype, device=device)  # type: ignore[arg-type]


def _signed64(seed: int) -> int:
    """The int64 with the same bits as ``seed`` modulo 2^64."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >> 63 else seed


class Sampling(NamedTuple):
    """How each request of a batch samples.

    The processed law of a row: allowed tokens, then temperature, then the filters, then
    renormalisation. Filters keep the best ids in the order (larger logit, then lower id); the best
    id always stays.

    Attributes:
        temperature: ``[B]`` float32. 0 (and anything that is not positive) is the argmax, without randomness.
        top_k: ``[B]`` int32, or None: the ``k`` best ids; 0 is off.
        top_p: ``[B]`` float32, or None: ``x`` stays iff the mass of the strictly better ids is
            ``< top_p``; ``>= 1`` is off.
        min_p: ``[B]`` float32, or None: ``x`` stays iff its probability is at least ``min_p`` times
            the largest; 0 is off.
        seed: ``[B]`` int64, its 64 bits are the key of the counter-based generator. None only where
            nothing is drawn.
        filter_order: ``"top_k_first"`` (top-k, then top-p over the renormalised rest, then min-p),
            ``"joint"`` (top-k and top-p both on the full law, then min-p) or ``"min_p_first"`` (min-p, top-k, top-p).
    """

    temperature: Tensor
    top_k: Tensor | None = None
    top_p: Tensor | None = None
    min_p: Tensor | None = None
    seed: Tensor | None = None
    filter_order: str = FILTER_ORDERS[0]

    @classmethod
    def of(
        cls,
        batch: int,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        min_p: float | Sequence[float] = 0.0,
        seed: int | Sequence[int] = 0,
        device: torch.device | str = "cpu",
        filter_order: str = FILTER_ORDERS[0],
    ) -> Sampling:
        """Settings for ``batch`` requests from Python numbers: one for all, or a list with one for each."""
        where = torch.device(device)
        seeds = [int(seed)] * batch if isinstance(seed, Integral) else [int(s) for s in seed]  # type: ignore[union-attr]
        return cls(
            temperature=_per_request(temperature, batch, torch.float32, where),
            top_k=_per_request(top_k, batch, torch.int32, where),
            top_p=_per_request(top_p, batch, torch.float32, where),
            min_p=_per_request(min_p, batch, torch.float32, where),
            seed=torch.tensor([_signed64(s) for s in seeds], dtype=torch.int64, device=where),
            filter_order=filter_order,
        )


class KvGroup(NamedTuple):
    """Tensors whose rows lie at the same places; a field that is None is that of the call.

    Attributes:
        tensors: ``[num_pages, page_size, ...]`` each, of any dtype, trailing dimensions and strides: keys, values, scales,
            latents, hidden states. No two of them may share memory that they both move.
        block_table: ``[B, max_pages]`` int32 or int64, or ``[rows, max_pages]`` with ``table_rows``.
        page_size: positions of a page, which the tensors must have; None: what they have.
        context_lens: ``[B]`` int32 or int64, committed positions.
        slots: ``[T]`` int32, slot of each node behind the context, as in ``TokenTree.slots``.
        table_rows: ``[B]`` int32 or int64, row of ``block_table`` of each request.
    """

    tensors: Sequence[Tensor]
    block_table: Tensor | None = None
    page_size: int | None = None
    context_lens: Tensor | None = None
    slots: Tensor | None = None
    table_rows: Tensor | None = None


class KvBuffers(NamedTuple):
    """Everything whose rows :func:`specdec_kernels.kv.commit` moves together: all layers, target and draft.

    Attributes:
        groups: tensors that all lie where the arguments of the call say, or a :class:`KvGroup` for each set of tensors
            with tables of its own.
    """

    groups: Sequence[Tensor] | Sequence[KvGroup]


class Expectation(NamedTuple):
    """What a step of verification must expect, in closed form; one value per request, float32 ``[B]``.

    Attributes:
        token: mean of ``num_tokens`` under the rule ``"token"``.
        traversal: under ``"traversal"`` and ``"block"``.
        greedy_plus_one: under ``"greedy_plus_one"``.
        bound: the probability that a draft of the root is accepted, which no rule exceeds on average over the drafts,
            where all of these were drawn (``top=0``), or all were chosen.
    """

    token: Tensor
    traversal: Tensor
    greedy_plus_one: Tensor
    bound: Tensor


class VerifyResult(NamedTuple):
    """What verification decided for each request.

    Attributes:
        tokens: ``[B, max_depth+1]``, dtype of ``tree.tokens``: the accepted drafts, one bonus
            token, then -1.
        num_tokens: ``[B]`` int32: accepted drafts + 1; 0 for a request that is inactive or has no
            nodes.
        path: ``[B, max_depth+1]`` int32: local indices of the nodes to commit, root first,
            ``num_tokens`` of them, then -1.
        status: ``[B]`` int32, bits of :class:`Status`.
        logprobs: ``[B, max_depth+1]`` float32 or None: log-probability of ``tokens[b, i]`` under
            the law of row ``path[b, i]``; 0 beyond ``num_tokens``.
        lse: ``[B, max_depth+1]`` float32 or None: the log-sum-exp that normalises that row.
    """

    tokens: Tensor
    num_tokens: Tensor
    path: Tensor
    status: Tensor
    logprobs: Tensor | None = None
    lse: Tensor | None = None
