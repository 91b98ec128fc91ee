"""Products of few rows with a packed weight; a row's result does not depend on the other rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks

DTYPES = (torch.float32, torch.bfloat16, torch.int8)


class PackedLinear(NamedTuple):
    """A packed weight.

    Attributes:
        data: ``[N, K]`` float32, bfloat16 or int8.
        scales: ``[N]`` float32 for int8, what one unit of each output stands for; else None.
        bias: ``[N]`` float32 or None.
        shape: ``(N, K)``.
    """

    data: Tensor
    scales: Tensor | None
    bias: Tensor | None
    shape: tuple[int, int]


def pack(weight: Tensor, dtype: torch.dtype = torch.float32, bias: Tensor | None = None) -> PackedLinear:
    """Pack a weight ``[N, K]`` and a bias ``[N]`` or None.

    int8 is symmetric with one scale per output: ``round(w / s)`` with ``s = max|w| / 127``, halves
    to even; a row of zeros has scale 0. NaN counts as 0 in int8.

    Raises:
        TypeError, ValueError: on a wrong dtype or shape.
    """
    op = "linear.pack"
    checks.tensor(op, "weight", weight, ("N", "K"), checks.FLOATS)
    checks.choice(op, "dtype", dtype, DTYPES)
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    checks.optional(op, "bias", bias, shape[0], checks.FLOATS)
    bias = None if bias is None else bias.float()
    if dtype != torch.int8:
        return PackedLinear(weight.to(dtype), None, bias, shape)
    wide = weight.float().nan_to_num(0.0, torch.inf, -torch.inf)
    scales = wide.abs().amax(1) / 127.0 if shape[1] else wide.new_zeros(shape[0])
    units = wide / torch.where(scales > 0, scales, 1.0).unsqueeze(1)
    data = units.round().nan_to_num(0.0).clamp(-127, 127).to(torch.int8)
    return PackedLinear(data, scales, bias, shape)


def skinny(x: Tensor, packed: PackedLinear) -> Tensor:
    """``y = x W^T + bias``, row by row, accumulated in float32.

    Args:
        x: ``[T, K]`` float32, bfloat16 or float16.
        packed: the weight. int8 is accumulated in units of its scale and scaled at the end.

    Returns:
        ``[T, N]`` in the dtype of ``x``. Each row is a product of its own, of the same shape and
        alignment whatever ``T`` is, so its bits do not depend on the other rows.

    Raises:
        TypeError, ValueError: on a wrong dtype or shape.
    """
    op = "linear.skinny"
    checks.tensor(op, "x", x, ("T", packed.shape[1]), checks.FLOATS)
    weight = packed.data.float().contiguous()
    out = x.new_empty((x.shape[0], packed.shape[0]))
    for t in range(x.shape[0]):
        row = x[t].float().clone(memory_format=torch.contiguous_format)  # alignment changes bits
        product = torch.mv(weight, row)
        if packed.scales is not None:
            product = product * packed.scales
        out[t] = product if packed.bias is None else product + packed.bias
    return out
