"""Fake kernels. Every op writes into tensors that it is given and returns nothing, so one function serves all."""

from __future__ import annotations

from typing import Any

import torch

from ._library import NAMESPACES
from ._schema import OPS


def _writes_only(*arguments: Any) -> None:
    """Nothing to compute; tensors on several devices are refused, as a launcher would."""
    every = [item for argument in arguments for item in (argument if isinstance(argument, list) else (argument,))]
    devices = {item.device for item in every if isinstance(item, torch.Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"all tensors must be on one device, got {', '.join(sorted(map(str, devices)))}")


for _space in dict.fromkeys(NAMESPACES.values()):
    for _op in OPS:
        torch.library.register_fake(f"{_space}::{_op.name}", _writes_only)
