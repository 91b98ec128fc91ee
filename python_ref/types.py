"""The oracle's own records; the ops take anything with the same attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Bits of ``status``: a NaN was read; nothing could be emitted; the residual had no mass and the
#: target's law was sampled; a tree or an index was malformed.
NAN, DEAD_END, RESIDUAL_FALLBACK, MALFORMED, PAGE_OUT_OF_RANGE = 1, 2, 4, 8, 16

#: Orders of the filters; the first is the default.
FILTER_ORDERS = ("top_k_first", "joint", "min_p_first")


class TokenTree(NamedTuple):
    """Ragged draft trees, flat over the batch, each in depth-first pre-order.

    Attributes:
        cu_nodes: ``[B+1]`` int32, first row of each request, then the end of the last.
        tokens: ``[T]`` int32 or int64; row 0 of a request is the newest emitted token.
        parents: ``[T]`` int32, local index of the parent, -1 for the root.
        depths: ``[T]`` int32, distance from the root.
        ends: ``[T]`` int32, local index after the last node of the subtree; that of the root is the
            number of live nodes, and rows after it are padding.
        max_nodes: host bound of the nodes of a request.
        max_depth: host bound of ``depths``.
        slots: ``[T]`` int32, KV slot of a node after the context; None is its local index.
        status: ``[B]`` int32 status bits of the builder, or None.
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


class Sampling(NamedTuple):
    """Sampling settings, one value per request.

    Attributes:
        temperature: ``[B]`` float32; what is not positive is the argmax.
        top_k: ``[B]`` int32 or None; below 1 is off.
        top_p: ``[B]`` float32 or None; 1 and above is off.
        min_p: ``[B]`` float32 or None; what is not positive is off.
        seed: ``[B]`` int64, the 64 bits of the key; None only where nothing is drawn.
        filter_order: one of :data:`FILTER_ORDERS`.
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
        """Settings for ``batch`` requests from numbers: one for all, or a list with one each."""

        def column(value: float | Sequence[float], dtype: torch.dtype) -> Tensor:
            values = [value] * batch if isinstance(value, (int, float)) else list(value)
            if dtype == torch.int64:  # the bits of a seed, read as a signed number
                values = [(int(v) + 2**63) % 2**64 - 2**63 for v in values]
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            column(temperature, torch.float32),
            column(top_k, torch.int32),
            column(top_p, torch.float32),
            column(min_p, torch.float32),
            column(seed, torch.int64),
            filter_order,
        )


class Links(NamedTuple):
    """Trees as lists of links, ``[B, N]`` each: local nodes, -1 where there is none.

    Attributes:
        first_child: of each node.
        next_sibling: of each node.
        retrieve_index: global row of each live node.
    """

    first_child: Tensor
    next_sibling: Tensor
    retrieve_index: Tensor


class Expansion(NamedTuple):
    """One level of a growing tree.

    Attributes:
        tokens: ``[B, W*num]`` int64, children of all beams, best first within a beam; -1 = none.
        scores: ``[B, W*num]`` float32, their scores.
        beams: ``[B, beams]`` int32, columns of the best children, best first; -1 = none.
    """

    tokens: Tensor
    scores: Tensor
    beams: Tensor


class Block(NamedTuple):
    """The blocks that a block drafter works on next.

    Attributes:
        roots: ``[B]``, the newest token; -1 where there is no block.
        ids: ``[B, block_size]``, the root and mask tokens; -1 where there is no block.
        positions: ``[B, block_size]`` int64; 0 where there is no block.
        slots: ``[B, block_size]`` int64, flat slots, -1 where there is none; None without a table.
        context_lens: ``[B]``, committed positions from now on.
    """

    roots: Tensor
    ids: Tensor
    positions: Tensor
    slots: Tensor | None
    context_lens: Tensor


class TreeShape(NamedTuple):
    """The shape of a tree as lists in depth-first pre-order, the root first.

    Attributes:
        parents: of each node; the root has -1.
        ranks: which child of its parent each node is; the root has 0.
        depths: of each node.
        ends: exclusive ends of the subtrees.
        expected: expected tokens of a step.
        rate: expected tokens per unit of time.
    """

    parents: list[int]
    ranks: list[int]
    depths: list[int]
    ends: list[int]
    expected: float
    rate: float


class KvGroup(NamedTuple):
    """Tensors whose rows lie at the same places; a field that is None is that of the call.

    Attributes:
        tensors: ``[num_pages, page_size, ...]`` each.
        block_table: ``[B, max_pages]`` page ids, or ``[rows, max_pages]`` with ``table_rows``.
        page_size: positions of a page; None: that of the tensors.
        context_lens: ``[B]``, committed positions.
        slots: ``[T]`` int32, slot of each node behind the context.
        table_rows: ``[B]``, row of the block table of each request.
    """

    tensors: Sequence[Tensor]
    block_table: Tensor | None = None
    page_size: int | None = None
    context_lens: Tensor | None = None
    slots: Tensor | None = None
    table_rows: Tensor | None = None


class KvBuffers(NamedTuple):
    """Everything whose rows are moved together.

    Attributes:
        groups: tensors, or groups of them.
    """

    groups: Sequence[Tensor] | Sequence[KvGroup]


class Expectation(NamedTuple):
    """What a step of verification must expect, one value per request, float32 ``[B]``.

    Attributes:
        token: mean of ``num_tokens`` under the rule ``token``.
        traversal: under ``traversal`` and ``block``.
        greedy_plus_one: under ``greedy_plus_one``.
        bound: the probability that a draft of the root is accepted, which no rule exceeds on average over the drafts,
            where all of these were drawn (``top=0``), or all were chosen.
    """

    token: Tensor
    traversal: Tensor
    greedy_plus_one: Tensor
    bound: Tensor


class VerifyResult(NamedTuple):
    """What verification decided, one row per request.

    Attributes:
        tokens: ``[B, max_depth+1]`` in the dtype of ``tree.tokens``: accepted drafts, the bonus
            token, then -1.
        num_tokens: ``[B]`` int32, emitted tokens; 0 for a request that does nothing.
        path: ``[B, max_depth+1]`` int32, local indices of the nodes whose KV stays, then -1.
        status: ``[B]`` int32 status bits.
        logprobs: ``[B, max_depth+1]`` float32 or None, log-probabilities of the emitted tokens.
        lse: ``[B, max_depth+1]`` float32 or None, log-sum-exp of the visited rows.
    """

    tokens: Tensor
    num_tokens: Tensor
    path: Tensor
    status: Tensor
    logprobs: Tensor | None = None
    lse: Tensor | None = None
