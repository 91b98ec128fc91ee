"""Fake kernels. Every op writes into tensors that it is given and returns nothing, so one function serves all."""

from __future__ import annotations

from typing import Any

import torch

from . import _library  # noqa: F401  (defines the ops)
from ._schema import OPS


def _writes_only(*_: Any) -> None:
    return None


for _op in OPS:
    torch.library.register_fake(f"specdec::{_op.name}", _writes_only)
