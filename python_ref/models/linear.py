"""Linear layers and per-head norms, joined and packed for decoding."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
    """``y = x W^T + b`` with ``W [out, in]`` and an optional bias, named as in a checkpoint."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """``[T, in]`` to ``[T, out]``."""
        return F.linear(x, self.weight, self.bias)


class Product:
    """Linear layers of the same input as one product, whose results lie side by side.

    Until :meth:`pack` it multiplies layer by layer with torch. After it the weights lie in the
    layout of ``ops.linear``, whose result for a row does not depend on the other rows of the call.

    Attributes:
        layers: the linear layers.
    """

    def __init__(self, *layers: Linear) -> None:
        self.layers = layers
        self._linear: Any = None
        self._packed: Any = None

    def pack(self, linear: Any, dtype: torch.dtype) -> None:
        """Pack the weights with ``linear = ops.linear``: float32, bfloat16 or int8."""
        weight = torch.cat([layer.weight.detach() for layer in self.layers])
        bias = None
        if any(layer.bias is not None for layer in self.layers):
            bias = torch.cat(
                [
                    layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
                    for layer in self.layers
                ]
            ).float()
        self._packed = linear.pack(weight, dtype, bias=bias)
        self._linear = linear

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, in]`` to ``[T, sum of out]``."""
        if self._packed is not None:
            joined: Tensor = self._linear.skinny(x, self._packed)
            return joined
        parts = [layer(x) for layer in self.layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension; the division in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size]`` to the same shape and dtype."""
        return self.weight * unit(x, self.eps)


def unit(x: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps)`` over the last dimension, in float32, rounded to ``x.dtype``."""
    return F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype)


class HeadNorms:
    """RMSNorm of every query and key head in one call, with the weight of its own kind."""

    def __init__(self, query: RMSNorm, key: RMSNorm, num_heads: int, num_kv_heads: int) -> None:
        self._norms, self._counts = (query, key), (num_heads, num_kv_heads)
        self._weight: Tensor | None = None

    def pack(self) -> None:
        """Lay the weights of all heads side by side, once."""
        self._weight = self._weights().detach()

    def _weights(self) -> Tensor:
        rows = [n.weight.expand(c, -1) for n, c in zip(self._norms, self._counts, strict=True)]
        return torch.cat(rows)

    def __call__(self, heads: Tensor) -> Tensor:
        """``[T, Hq + Hkv, D]``, queries first, to the same shape."""
        weight = self._weights() if self._weight is None else self._weight
        return weight * unit(heads, self._norms[0].eps)


def pack_products(model: nn.Module, linear: Any, dtype: torch.dtype) -> None:
    """Compute all products of a model by ``linear = ops.linear`` from here on, with weights packed in ``dtype``.

    What has been packed is given back as it goes: memory holds the weights once, and of no use but this are they then.
    """
    parts = [part for module in model.modules() for part in vars(module).values()]
    products = [part for part in parts if isinstance(part, Product)]
    uses = Counter(layer for product in products for layer in product.layers)
    for part in parts:
        if isinstance(part, HeadNorms):
            part.pack()
    for product in products:
        product.pack(linear, dtype)
        for layer in product.layers:
            uses[layer] -= 1
            if uses[layer] == 0:
                layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
