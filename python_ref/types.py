"""The oracle's own records; the ops take anything with the same attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Bits of ``status``: a NaN was read; nothing could be emitted; the residual had no mass and the
#: target's law was sampled; a tree or an index was malformed.
NAN, DEAD_END, RESIDUAL_FALLBACK, MALFORMED = 1, 2, 4, 8

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
