"""exp in double precision with the same bits on every machine, as the fused ops compute it: by sums and products."""

from __future__ import annotations

import torch
from torch import Tensor

_LN2_HIGH = 6.93147180369123816490e-01  # 32 bits: products with an exponent are exact
_LN2_LOW = 1.90821492927058770002e-10
_LOG2_E = 1.44269504088896340736
_FACTORIALS = (
    6227020800.0, 479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0,
)  # fmt: skip


def exp(x: Tensor) -> Tensor:
    """``exp(x)`` of float64 in ``[-700, 0]``; error below 1 unit in the last place.

    Taylor's series at the rest that a power of two leaves. Every operation is rounded once, in a fixed order.
    """
    n = (x * _LOG2_E - 0.5).trunc()
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = torch.full_like(x, 1.0 / _FACTORIALS[0])
    for factorial in _FACTORIALS[1:]:
        p = p * r + 1.0 / factorial
    p = p * r * r + r + 1.0
    return p * ((n.long() + 1023) << 52).view(torch.float64)
