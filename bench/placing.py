"""From a small batch on the CPU, whose outcome is known, to a large one on a device.

The oracle takes milliseconds for a row, so the outcome of a batch of hundreds of requests cannot be asked for. A large batch
is the small one again and again, in memory of its own: requests decide independently of each other, each from its own seed and
positions, so what the small batch decides is what the large one must decide, and the bytes that must move are those of
different requests.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import specdec_kernels as sk

from .cases import Case, row_reads


class Placed:
    """Brings values from a batch of ``base`` requests on the CPU to one of ``requests`` on a device.

    A tensor that has come once is not copied again: baselines and ops share the logits.
    """

    def __init__(self, base: int, requests: int, device: str) -> None:
        self.base, self.requests, self.device = base, requests, device
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, value: Any) -> Any:
        """Tensors have the requests, or rows of each of them, in the first dimension; records and lists of them likewise.

        Raises:
            ValueError: if a tensor does not have as many rows for each request.
        """
        if isinstance(value, Tensor):
            if id(value) not in self._known:
                self._known[id(value)] = (value, self._spread(value))  # with the source, so that its id stays its own
            return self._known[id(value)][1]
        if isinstance(value, sk.TokenTree):
            return self._tree(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self, value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(self, value))
        return value

    def case(self, case: Case) -> Case:
        """The call with its arguments and its result in their new places."""
        accepted = self.each(case.accepted)
        reads = self.requests * case.row_reads // self.base
        if case.accepted:
            reads = row_reads(case.op, accepted, case.arguments["tree"].max_nodes)
        arguments = {name: self(value) for name, value in case.arguments.items()}
        return replace(case, arguments=arguments, expected=self(case.expected), accepted=accepted, row_reads=reads)

    def each(self, values: list[int]) -> list[int]:
        """One value for each request."""
        return [values[b % self.base] for b in range(self.requests)] if values else []

    def _spread(self, value: Tensor) -> Tensor:
        if value.ndim == 0 or value.shape[0] % self.base:
            raise ValueError(f"Placed: a tensor must have rows for {self.base} requests, got {list(value.shape)}")
        rows = value.shape[0] // self.base
        part = value[: rows * min(self.base, self.requests)].to(self.device)
        copies = -(-self.requests // self.base)
        return part.repeat(copies, *(1 for _ in value.shape[1:]))[: rows * self.requests].contiguous()

    def _tree(self, tree: sk.TokenTree) -> sk.TokenTree:
        rows = tree.tokens.shape[0] // self.base
        offsets = rows * torch.arange(self.requests + 1, dtype=torch.int32, device=self.device)
        return sk.TokenTree(offsets, *map(self, tree[1:]))
