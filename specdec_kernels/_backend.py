"""Which backend computes an op: argument, ``use_backend``, ``SPECDEC_BACKEND``, or automatic.
Nothing falls back silently."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from . import _library
from ._schema import BY_NAME, OPS

_T = TypeVar("_T")

BACKENDS = ("cuda", "triton", "cpu", "reference")
#: For tests: the CUDA kernels, run by the CPU.
DEVELOPMENT = ("emulated",)

_NO_DEVICE = "no CUDA device, or torch was built without CUDA"

_AUTOMATIC = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}


class BackendUnavailableError(RuntimeError):
    """An explicitly chosen backend cannot serve the call; the message says why."""


def _check_name(backend: str) -> str:
    if backend not in BACKENDS + DEVELOPMENT:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


# A wrong name is told by the first op that asks for it: `specdec info` must run to show it.
_environment: str | None = os.environ.get("SPECDEC_BACKEND") or None
_override: list[tuple[str, object]] = []


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Choose the backend of all ops called inside the ``with`` block, on every thread of the
    process.

    A ``backend=`` argument has precedence; ``SPECDEC_BACKEND``, read when the package is imported,
    has not. The blocks nest; where blocks of several threads overlap, the one that was entered last counts.

    Raises:
        ValueError: if there is no backend of that name.
    """
    entry = (_check_name(backend), object())  # unlike that of any other block
    _override.append(entry)
    try:
        yield
    finally:
        _override.remove(entry)


def has_op(op: str, backend: str) -> bool:
    """Whether a backend is meant to serve an op."""
    return ("cuda" if backend == "emulated" else backend) in BY_NAME[op].backends


def _why_not(op: str, backend: str) -> str | None:
    """None if this installation can serve the op on the backend, else the reason."""
    if not has_op(op, backend):
        return "the op exists on " + ", ".join(BY_NAME[op].backends) + " only"
    if backend == "reference":
        return None
    if backend == "triton":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    module, key = {"cpu": ("_C", "CPU"), "cuda": ("_C_cuda", "CUDA"), "emulated": ("_C_emulated", "CPU")}[backend]
    reason = _library.EMULATED if backend == "emulated" else _library.MODULES[module]
    if reason is not None:
        return f"module specdec_kernels.{module} is {reason}"
    if not _library.has_kernel(op, key, _library.NAMESPACES[backend]):
        return f"module {module} has no kernel for it"
    return None


# Nothing is asked of a device here: a process that imports the package may still fork.
_REASONS: dict[tuple[str, str], str | None] = {
    (op.name, backend): _why_not(op.name, backend) for op in OPS for backend in BACKENDS + DEVELOPMENT
}


def why_not(op: str, backend: str) -> str | None:
    """None if a backend can serve an op on this machine, else the reason why not."""
    reason = _REASONS[op, backend]
    on_gpu = backend == "cuda" or (backend == "triton" and not _library.triton_is_interpreted())
    if reason is None and on_gpu and not torch.cuda.is_available():
        return _NO_DEVICE
    return reason


def available_backends(op: str) -> dict[str, str | None]:
    """Each backend with None if it can serve the op here, else the reason why not.

    Args:
        op: name of the op, ``"<family>_<function>"``, such as ``"verify_match"``.

    Raises:
        ValueError: if there is no such op.
    """
    if op not in BY_NAME:
        raise ValueError(f"available_backends: op must be one of {', '.join(BY_NAME)}, got {op!r}")
    return {backend: why_not(op, backend) for backend in BACKENDS}


def _unavailable(op: str, backend: str, reason: str) -> BackendUnavailableError:
    public = op.replace("_", ".", 1)
    return BackendUnavailableError(f"{public}: backend must be available, got {backend!r}: {reason}")


def device_of(backend: str) -> str:
    """The type of the device whose tensors a backend with kernels takes."""
    if backend == "triton":
        return "cpu" if _library.triton_is_interpreted() else "cuda"
    return "cuda" if backend == "cuda" else "cpu"


def _choose(op: str, backend: str | None, device: str) -> str:
    chosen = backend if backend is not None else _override[-1][0] if _override else _environment
    if chosen is not None:
        if chosen == _environment and chosen not in BACKENDS + DEVELOPMENT:
            raise ValueError(f"SPECDEC_BACKEND must be one of {', '.join(BACKENDS)}, got {chosen!r}")
        reason = _REASONS[op, _check_name(chosen)]
        if reason is None and chosen != "reference" and device != device_of(chosen):
            no_gpu = (device_of(chosen), device) == ("cuda", "cpu") and not torch.cuda.is_available()
            reason = _NO_DEVICE if no_gpu else f"the tensors are on {device}"
        if reason is not None:
            raise _unavailable(op, chosen, reason)
        return chosen
    for candidate in _AUTOMATIC.get(device, ("reference",)):
        if _REASONS[op, candidate] is None:
            return candidate
    raise _unavailable(op, "automatic", f"no backend serves tensors on {device}")


def run(
    op: str, backend: str | None, anchor: object, check: Callable[[], None], launch: Callable[[Callable[..., None]], _T]
) -> _T:
    """Run an op on the chosen backend.

    A launcher of a native backend refuses whatever the checks in Python refuse, in less time and fewer words. So it is
    asked first, and ``check`` finds the words when it has refused. The other backends, and tracing, check first.

    Args:
        op: name of the op.
        backend: the caller's choice.
        anchor: the argument whose device decides.
        check: raises what is wrong with the arguments.
        launch: allocates the outputs, calls the kernel that it is given with the arguments of the schema, and returns
            the result.
    """
    plain = type(anchor) is Tensor and not torch.compiler.is_compiling()
    if not plain:
        check()
    chosen = _choose(op, backend, anchor.device.type)  # type: ignore[attr-defined]
    if chosen in ("reference", "triton"):
        if plain:
            check()
        return launch(reference(op) if chosen == "reference" else _library.overload(op, chosen))
    kernel = _library.overload(op, chosen)
    if not plain:
        return launch(kernel)
    try:
        return launch(kernel)
    except Exception as error:
        refused = error
    check()
    raise refused


def reference(op: str) -> Callable[..., None]:
    """The oracle's function behind the arguments of the op's schema."""
    from ._reference import adapt  # python_ref is imported when it is first needed

    return adapt(op)
