"""Small calls of every op on a GPU, by the samples of ``tests/dispatch``: plain, replayed from a graph, without waiting.

The tests and the sanitizers use them. ``calls.py once|replay|without_sync...`` is a program that needs no pytest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    try:
        import hypothesis  # noqa: F401
    except ImportError:  # the samples need what lies beside its examples, and none of them
        sys.modules["hypothesis"] = mock.MagicMock()

import torch
from agreement.compare import move, same
from dispatch import steps
from dispatch.samples import function, sample, tree
from torch.utils import _pytree as pytree

import specdec_kernels as sk
from specdec_kernels._schema import OPS

BACKENDS = ("cuda", "triton")
BATCH = 2
DEVICE = "cuda"

#: Every op that could be served on a GPU: ``(op, backend)``.
PAIRS = [(op.name, backend) for op in OPS for backend in BACKENDS if backend in op.backends]

#: Calls of ``verify.rejection`` by other rules than that of its samples: ``(op, backend, rule)``.
RULES = [
    (op, backend, rule) for op, backend in PAIRS if op == "verify_rejection" for rule in ("block", "greedy_plus_one")
]


def why_not(op: str, backend: str) -> str | None:
    """None if the backend serves the op here, else the reason."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return sk.available_backends(op)[backend]


def on_device(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with their tensors on the device."""
    return dict(move(tuple(arguments.items()), DEVICE))


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors within a value, in a fixed order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def copied(value: Any) -> Any:
    """The same with tensors of its own."""
    return pytree.tree_map_only(torch.Tensor, torch.clone, value)


def _swapped(step: int) -> sk.TokenTree:
    """A tree of as many rows as that of the samples: the requests change places, or the second has no rows."""
    if step % 2:
        larger = tree(BATCH + 1)
        first = int(larger.cu_nodes[1])
        columns = (getattr(larger, name)[first:] for name in ("tokens", "parents", "depths", "ends"))
        return sk.TokenTree(
            larger.cu_nodes[1:] - first, *columns, max_nodes=larger.max_nodes, max_depth=larger.max_depth
        )
    made = tree(BATCH)
    return made._replace(cu_nodes=made.cu_nodes.clamp(max=int(made.cu_nodes[1])))


_CHANGES: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "lengths": lambda value, step: (value - step).clamp(min=0),
    "max_tokens": lambda value, step: (value - step).clamp(min=0),
    "context_lens": lambda value, step: value + 5 * step,
    "positions": lambda value, step: value + 5 * step,
    "tokens": lambda value, step: value + step,
    "root_tokens": lambda value, step: value + step,
    "history": lambda value, step: value.roll(step, 1),
    "active": lambda value, step: torch.arange(len(value)) % 2 != step % 2,
}


def changed(op: str, full: bool, step: int, **options: Any) -> dict[str, Any]:
    """On the CPU: arguments of the same shapes with other logits, other lengths on the device and another tree."""
    torch.manual_seed(step)
    arguments = sample(op, full, BATCH) | options
    if step == 0:
        return arguments
    for name, change in _CHANGES.items():
        if isinstance(arguments.get(name), torch.Tensor):
            arguments[name] = change(arguments[name], step)
    if "tree" in arguments:
        arguments["tree"] = _swapped(step)._replace(slots=arguments["tree"].slots)
    return arguments


def overwrite(held: Any, values: Any) -> None:
    """Put other values into the tensors that a graph reads."""
    for ours, theirs in zip(tensors(held), tensors(values), strict=True):
        ours.copy_(theirs)


#: Arguments that some ops write beside what they return.
ALSO_WRITTEN = (
    "status",
    "scores",
    "divergence",
    "certainty",
    "key_cache",
    "value_cache",
    "key_caches",
    "value_caches",
    "buffers",
)


def written(result: Any, arguments: dict[str, Any]) -> list[torch.Tensor]:
    """Everything that a call has written."""
    also = [arguments.get(name) for name in ALSO_WRITTEN]
    return [tensor.clone() for tensor in tensors(result) + tensors(also)]


def _compare(op: str, label: str, ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert same(a.cpu(), b.cpu()), f"{op}, {label}: tensor {i} must be {b.tolist()}, got {a.tolist()}"


def once(op: str, backend: str, full: bool, **options: Any) -> None:
    """One call, and another with the second request idle. That it decides right is checked elsewhere."""
    for step in (0, 2):
        arguments = on_device(changed(op, full, step, **options))
        function(op)(**arguments, backend=backend)
        torch.cuda.synchronize()


def replay(op: str, backend: str, full: bool, **options: Any) -> None:
    """A graph, captured once, gives what a call gives after the tensors that it reads have changed, lengths included."""
    held = on_device(changed(op, full, 0, **options))
    call = partial(function(op), backend=backend)
    graph, result = _captured(partial(call, **held))
    for step in (0, 1, 2, 3, 0):
        values = on_device(changed(op, full, step, **options))
        overwrite(held, values)
        graph.replay()
        torch.cuda.synchronize()
        expected = call(**values)
        torch.cuda.synchronize()
        _compare(op, f"step {step}", written(result, held), written(expected, values))


def without_sync(op: str, backend: str, full: bool, **options: Any) -> None:
    """A call neither waits for the device nor reads from it."""
    call = partial(function(op), **on_device(changed(op, full, 0, **options)), backend=backend)
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


def _captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of a call, and what the call gave; kernels are compiled and loaded outside of the capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


def once_step(backend: str) -> None:
    """Two whole steps."""
    for number in (0, 1):
        steps.step(steps.inputs(number, DEVICE), backend)
        torch.cuda.synchronize()


def replay_step(backend: str) -> None:
    """A whole step (build, write, attend, verify, commit, gather) as one graph, with other lengths at each replay."""
    for dtype in (torch.float32, torch.bfloat16):
        held = steps.inputs(0, DEVICE, dtype)
        graph, result = _captured(partial(steps.step, held, backend))
        for number in (0, 1, 2, 3, 0):
            values = steps.inputs(number, DEVICE, dtype)
            overwrite(held, values)
            graph.replay()
            torch.cuda.synchronize()
            expected = steps.step(values, backend)
            torch.cuda.synchronize()
            _compare("step", f"data {number}", tensors((result, held)), tensors((expected, values)))


def step_without_sync(backend: str) -> None:
    """A whole step neither waits for the device nor reads from it."""
    given = steps.inputs(0, DEVICE)
    steps.step(given, backend)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps.step(given, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


CHECKS: dict[str, Callable[..., None]] = {
    "once": once,
    "replay": replay,
    "without_sync": without_sync,
}


#: The same of a whole step.
STEP_CHECKS: dict[str, Callable[[str], None]] = {
    "once": once_step,
    "replay": replay_step,
    "without_sync": step_without_sync,
}


def _counted(label: str, check: Callable[[], Any], good: int, bad: int) -> tuple[int, int]:
    """Run a check, say how it went, and count it; whatever it does, the next one has its turn."""
    try:
        check()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        print(f"FAILED {label} - {type(error).__name__}: {lines[0]}", flush=True)
        return good, bad + 1
    print(f"PASSED {label}", flush=True)
    return good + 1, bad


def main(arguments: list[str] | None = None) -> int:
    """Run checks over all ops and print a line for each; 1 if one fails, or none could be run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="+", choices=CHECKS)
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    given = parser.parse_args(arguments)
    good = bad = 0
    plain: list[tuple[str, str, str | None]] = [(op, backend, None) for op, backend in PAIRS]
    for op, backend, rule in plain + RULES:
        options = {} if rule is None else {"rule": rule}
        if given.backend and backend not in given.backend:
            continue
        reason = why_not(op, backend)
        if reason is not None:
            print(f"deselected: {op} on {backend}: {reason}")
            continue
        for name in given.checks:
            for full in (False, True):
                label = f"{name}[{'-'.join([op, *options.values(), backend, 'full' if full else 'plain'])}]"
                good, bad = _counted(label, partial(CHECKS[name], op, backend, full, **options), good, bad)
    for backend in given.backend or BACKENDS:
        reasons = [reason for op in steps.OPS if (reason := why_not(op, backend)) is not None]
        for name in STEP_CHECKS:
            if name not in given.checks or reasons:
                continue
            good, bad = _counted(f"{name}[step-{backend}]", partial(STEP_CHECKS[name], backend), good, bad)
    print(f"{good} passed, {bad} failed")
    return 0 if good and not bad else 1


if __name__ == "__main__":
    sys.exit(main())
