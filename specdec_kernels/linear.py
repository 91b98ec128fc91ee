"""Matrix products of few rows on the CPU: the linear layer of decoding and of verification alike."""

from __future__ import annotations

from collections.abc import Callable
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

    def check() -> None:
        _validate.tensor(op, "weight", weight, ("N", "K"), _validate.FLOATS)
        if dtype not in _WEIGHTS:
            raise TypeError(f"{op}: dtype must be float32, bfloat16 or int8, got {str(dtype).removeprefix('torch.')}")
        if bias is not None:
            _validate.tensor(op, "bias", bias, (weight.shape[0],), _validate.FLOAT32, weight.device)

    check()  # a weight is packed once: nothing is gained by asking the launcher first

    def launch(kernel: Callable[..., None]) -> PackedLinear:
        outputs, inputs = weight.shape
        data = weight.new_empty(_panels(outputs), inputs, PANEL, dtype=dtype)
        scales = weight.new_empty(outputs, dtype=torch.float32) if dtype == torch.int8 else None
        kernel(weight.contiguous(), data, scales)
        return PackedLinear(data, scales, bias, (outputs, inputs))

    return _backend.run("linear_pack", backend, weight, check, launch)


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
        out: ``[T, N]`` in the dtype of ``x``, written in place; not the memory of ``x``.

    Returns:
        ``[T, N]`` in the dtype of ``x``.

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Deterministic. CPU only.
    """
    op = "linear.skinny"

    def check() -> None:
        if not isinstance(packed, tuple) or not hasattr(packed, "data"):
            raise TypeError(f"{op}: packed must be a PackedLinear, got {type(packed).__name__}")
        outputs, inputs = packed.shape
        _validate.tensor(op, "x", x, ("T", inputs), _validate.FLOATS)
        device = x.device
        _validate.tensor(op, "packed.data", packed.data, (_panels(outputs), inputs, PANEL), _WEIGHTS, device)
        if (packed.scales is None) == (packed.data.dtype == torch.int8):
            wanted, got = ("given for", "None") if packed.scales is None else ("None unless there are", "a tensor")
            raise ValueError(f"{op}: packed.scales must be {wanted} int8 weights, got {got}")
        for name, value in (("packed.scales", packed.scales), ("packed.bias", packed.bias)):
            if value is not None:
                _validate.tensor(op, name, value, (outputs,), _validate.FLOAT32, device)
        _validate.output(op, "out", out, (x.shape[0], outputs), (x.dtype,), device)
        if out is not None:
            _validate.apart(op, "out", out, (("x", x),))

    def launch(kernel: Callable[..., None]) -> Tensor:
        outputs, inputs = packed.shape
        product = x.new_empty(x.shape[0], outputs) if out is None else out
        _validate.tensor(op, "packed.data", packed.data, (_panels(outputs), inputs, PANEL), _WEIGHTS, x.device)
        kernel(x if x.is_contiguous() else x.contiguous(), packed.data, packed.scales, packed.bias, product)
        return product

    return _backend.run("linear_skinny", backend, x, check, launch)


def _panels(outputs: int) -> int:
    return (outputs + PANEL - 1) // PANEL
