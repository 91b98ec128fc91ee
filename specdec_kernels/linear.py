"""Matrix products of few rows on the CPU: the linear layer of decoding and of verification alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _backend, _validate

__all__ = ["PackedLinear", "pack", "skinny"]

#: Outputs of one panel of packed weights.
PANEL = 32

_WEIGHTS = (torch.float32, torch.bfloat16, torch.int8)


class PackedLinear(NamedTuple):
    """Weights in the layout that :func:`skinny` reads.

    Attributes:
        data: ``[ceil(N/32), K, 32]`` float32, bfloat16 or int8: panels of 32 outputs, zero beyond ``N``.
        scales: ``[N]`` float32 for int8 weights (output ``n`` is the integer product times ``scales[n]``), else None.
        bias: ``[N]`` float32 or None.
        shape: ``(N, K)``.
    """

    data: Tensor
    scales: Tensor | None
    bias: Tensor | None
    shape: tuple[int, int]


def pack(
    weight: Tensor,
    dtype: torch.dtype = torch.float32,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> PackedLinear:
    """Pack the weights of a linear layer once, for many products.

    Args:
        weight: ``[N, K]`` float32, bfloat16 or float16, as ``torch.nn.Linear`` holds it.
        dtype: of the packed weights: float32, bfloat16, or int8 (symmetric, one scale per output, ``max|w| / 127``).
        bias: ``[N]`` float32, added to the product.
        backend: see :func:`specdec_kernels.use_backend`.

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Deterministic.
    """
    op = "linear.pack"
    _validate.tensor(op, "weight", weight, ("N", "K"), _validate.FLOATS)
    if dtype not in _WEIGHTS:
        raise TypeError(f"{op}: dtype must be float32, bfloat16 or int8, got {str(dtype).removeprefix('torch.')}")
    outputs, inputs = weight.shape
    device = weight.device
    if bias is not None:
        _validate.tensor(op, "bias", bias, (outputs,), _validate.FLOAT32, device)
    panels = (outputs + PANEL - 1) // PANEL
    data = torch.empty((panels, inputs, PANEL), dtype=dtype, device=device)
    scales = None
    if dtype == torch.int8:
        scales = torch.empty((outputs,), dtype=torch.float32, device=device)
    _backend.call("linear_pack", backend, device, (weight.contiguous(), data, scales))
    return PackedLinear(data, scales, bias, (outputs, inputs))


def skinny(
    x: Tensor,
    packed: PackedLinear,
    *,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``x W^T + b`` for few rows: the weights are read once for up to 64 rows.

    The bits of a row of the result depend on that row of ``x`` alone, never on the number of rows
    or of threads.

    Args:
        x: ``[T, K]`` float32, bfloat16 or float16; products are accumulated in float32.
        packed: weights from :func:`pack`.
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``[T, N]`` in the dtype of ``x``, written in place.

    Returns:
        ``[T, N]`` in the dtype of ``x``.

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Deterministic. CPU only.
    """
    op = "linear.skinny"
    outputs, inputs = packed.shape
    _validate.tensor(op, "x", x, ("T", inputs), _validate.FLOATS)
    device = x.device
    panels = (outputs + PANEL - 1) // PANEL
    _validate.tensor(op, "packed.data", packed.data, (panels, inputs, PANEL), _WEIGHTS, device)
    if out is None:
        out = torch.empty((x.shape[0], outputs), dtype=x.dtype, device=device)
    else:
        _validate.tensor(op, "out", out, (x.shape[0], outputs), (x.dtype,), device)
    if not x.is_contiguous():
        x = x.contiguous()
    _backend.call("linear_skinny", backend, device, (x, packed.data, packed.scales, packed.bias, out))
    return out
