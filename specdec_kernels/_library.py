"""Defines ``torch.ops.specdec.*`` from the schema table and loads the native modules that serve it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.library import Library

from ._schema import OPS

_MINIMUM_TORCH = (2, 11)


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


if _torch_version() < _MINIMUM_TORCH:
    raise ImportError(f"specdec_kernels: torch must be at least 2.11, got {torch.__version__}")

# The object owns the definitions: it lives as long as the module.
_definitions: Any = Library("specdec", "DEF")  # type: ignore[no-untyped-call]
for _op in OPS:
    _definitions.define(_op.schema, tags=(torch.Tag.pt2_compliant_tag,))

OVERLOADS: dict[str, Callable[..., None]] = {op.name: getattr(torch.ops.specdec, op.name).default for op in OPS}


def _load(module: str) -> str | None:
    """Import a native module; the reason if it cannot be."""
    name = f"{__package__}.{module}"
    if importlib.util.find_spec(name) is None:
        return "not built"
    try:
        importlib.import_module(name)
    except ImportError as error:
        return f"not loadable: {error}"
    return None


#: Native module -> None if it is loaded, else the reason why not. `_C` comes first.
MODULES: dict[str, str | None] = {module: _load(module) for module in ("_C", "_C_cuda")}


def module_path(module: str) -> str | None:
    """File of a loaded native module."""
    loaded: Any = sys.modules.get(f"{__package__}.{module}")
    return None if loaded is None else str(loaded.__file__)


def has_kernel(op: str, dispatch_key: str) -> bool:
    """Whether a kernel is registered for the op under a dispatch key such as ``"CPU"`` or
    ``"CUDA"``."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"specdec::{op}", dispatch_key))
