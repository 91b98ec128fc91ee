"""Defines the ops of every namespace from the schema table, and loads what serves them.

``torch.ops.specdec.*`` has the native kernels of CPU and CUDA, ``specdec_triton.*`` the Triton kernels, and
``specdec_emulated.*`` the CUDA kernels run by the CPU, for development."""

from __future__ import annotations

import importlib
import importlib.util
import os
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

#: Backend -> namespace of its ops.
NAMESPACES = {"cpu": "specdec", "cuda": "specdec", "triton": "specdec_triton", "emulated": "specdec_emulated"}

# These objects own the definitions: they live as long as the module.
_definitions: dict[str, Any] = {}
for _space in dict.fromkeys(NAMESPACES.values()):
    _definitions[_space] = Library(_space, "DEF")  # type: ignore[no-untyped-call]
    for _op in OPS:
        _definitions[_space].define(_op.schema, tags=(torch.Tag.pt2_compliant_tag,))


def _overloads(space: str) -> dict[str, Callable[..., None]]:
    return {op.name: getattr(getattr(torch.ops, space), op.name).default for op in OPS}


OVERLOADS = _overloads("specdec")
#: The same of the backends that have a namespace of their own.
OTHER_OVERLOADS = {backend: _overloads(space) for backend, space in NAMESPACES.items() if space != "specdec"}


def overload(op: str, backend: str) -> Callable[..., None]:
    """The op of a backend that has kernels."""
    return OTHER_OVERLOADS[backend][op] if backend in OTHER_OVERLOADS else OVERLOADS[op]


def _triton(op: str) -> Callable[..., None]:
    def launch(*arguments: Any) -> None:
        from .triton import KERNELS  # triton is imported when it is first needed

        KERNELS[op](*arguments)

    return launch


for _op in OPS:
    if "triton" in _op.backends:
        for _key in ("CUDA", "CPU"):
            _definitions["specdec_triton"].impl(_op.name, _triton(_op.name), _key)


def triton_is_interpreted() -> bool:
    """Whether Triton kernels run on the CPU, step by step."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


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


#: The same of the module for development.
EMULATED: str | None = _load("_C_emulated")


def module_path(module: str) -> str | None:
    """File of a loaded native module."""
    loaded: Any = sys.modules.get(f"{__package__}.{module}")
    return None if loaded is None else str(loaded.__file__)


def has_kernel(op: str, dispatch_key: str, space: str = "specdec") -> bool:
    """Whether a kernel is registered for the op of a namespace under a dispatch key such as ``"CPU"`` or
    ``"CUDA"``."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"{space}::{op}", dispatch_key))
