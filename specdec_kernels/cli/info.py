"""``specdec info``: what is installed, what each op can run on, and why not where it cannot."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import specdec_kernels as ops

from .. import _library
from .._schema import OPS
from . import machine
from .output import JsonOption, check_json, write_json


def collect() -> dict[str, Any]:
    """Everything that the command prints, ready for JSON.

    Returns:
        ``versions``, ``modules`` (file or null with the reason), ``cpu``, ``gpus``, ``environment`` (our variables that are
        set) and ``ops``: per op and backend null, or the reason why the backend cannot serve it.
    """
    import python_ref

    modules = {
        name: {"file": _library.module_path(name), "reason": reason} for name, reason in _library.MODULES.items()
    }
    return {
        "versions": {
            "specdec_kernels": ops.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": machine.version_of("triton"),
            "nvcc": machine.nvcc(),
        },
        "packages": {
            "specdec_kernels": str(Path(ops.__file__).parent),
            "python_ref": str(Path(python_ref.__file__).parent),
        },
        "modules": modules,
        "cpu": machine.cpu(),
        "gpus": machine.gpus(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("SPECDEC_")},
        "ops": {op.name: ops.available_backends(op.name) for op in OPS},
    }


def info(json_file: JsonOption = None) -> None:
    """Show versions, the ops and their backends, the processor and the graphics processors."""
    check_json(json_file)
    facts = collect()
    console = Console(highlight=False)
    console.print(_list(_facts(facts)))
    matrix, reasons = _matrix(facts["ops"])
    console.print()
    console.print(matrix)
    if reasons:
        console.print(_list([(str(number), reason) for number, reason in enumerate(reasons, 1)]))
    write_json(json_file, facts)


def _list(entries: list[tuple[str, str]]) -> Table:
    """Names and what is to be said of them, whose lines stay in their column however narrow the terminal is."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in entries:
        grid.add_row(Text(name), Text(value))
    return grid


def _facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, gpus = facts["cpu"], facts["gpus"]
    entries = [(name, version or "not found") for name, version in facts["versions"].items()]
    entries += [(name, module["file"] or module["reason"]) for name, module in facts["modules"].items()]
    entries += [
        ("cpu", cpu["model"]),
        ("features", " ".join(cpu["features"]) or "none of those that matter"),
        (
            "kernels use",
            f"{cpu['instruction_set']}, {_count(cpu['threads'], 'thread')} on {_count(cpu['cores'], 'core')}",
        ),
    ]
    for gpu in gpus:
        memory = f"{gpu['memory'] / 2**30:.0f} GiB"
        entries.append(("gpu", f"{gpu['name']}, compute capability {gpu['compute_capability']}, {memory}"))
    if not gpus:
        entries.append(("gpu", f"none: {machine.no_gpu()}"))
    return entries + list(facts["environment"].items())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _matrix(table: dict[str, dict[str, str | None]]) -> tuple[Table, list[str]]:
    """Ops by backends: ``yes``, or the number of the reason in the list."""
    reasons: list[str] = []
    matrix = Table(box=None, padding=(0, 2), pad_edge=False)
    matrix.add_column("op", no_wrap=True)
    for backend in ops.BACKENDS:
        matrix.add_column(backend, justify="center", no_wrap=True)
    for op, backends in table.items():
        cells = []
        for backend in ops.BACKENDS:
            reason = backends[backend]
            if reason is None:
                cells.append(Text("yes", style="green"))
                continue
            if reason not in reasons:
                reasons.append(reason)
            cells.append(Text(str(reasons.index(reason) + 1), style="yellow"))
        matrix.add_row(op.replace("_", ".", 1), *cells)
    return matrix, reasons
