"""The families of benchmarks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import specdec_kernels as sk
from specdec_kernels._schema import OPS

from . import attention, gpu, kv, linear, machine, overhead, rules, tree, verify, verify_gpu
from .measured import Setting
from .rows import Row

FAMILIES = {
    "verify": verify,
    "rules": rules,
    "attention": attention,
    "kv": kv,
    "tree": tree,
    "linear": linear,
    "overhead": overhead,
}

#: Those that are measured on a GPU, and the backends there.
ON_GPU = {"verify": verify_gpu, "attention": attention, "kv": kv, "tree": tree, "overhead": overhead}
GPU_BACKENDS = ("cuda", "triton")

#: Samples of each variant.
REPEATS, QUICK_REPEATS = 30, 9

# Seconds for all samples of one variant.
_BUDGET, _QUICK_BUDGET = 3.0, 0.5


def families(device: str) -> dict[str, Any]:
    """The modules of the families that are measured on a device, by name."""
    return ON_GPU if device == "cuda" else FAMILIES


def prepare(quick: bool = False, repeats: int | None = None, device: str = "cpu") -> Setting:
    """Describe this machine, and measure how fast its memory is: a few seconds."""
    if repeats is None:
        repeats = QUICK_REPEATS if quick else REPEATS
    budget = _QUICK_BUDGET if quick else _BUDGET
    if device == "cuda":
        stopwatch = gpu.EventStopwatch()
        return Setting(
            machine.describe(device),
            gpu.bandwidth(stopwatch),
            quick=quick,
            repeats=repeats,
            budget_s=budget,
            backends=_served(),
            device=device,
            stopwatch=stopwatch,
        )
    return Setting(machine.describe(), machine.bandwidth(), quick=quick, repeats=repeats, budget_s=budget)


def _served() -> tuple[str, ...]:
    """Backends of a GPU that serve any op here: one that is not there at all need not be said again in every case."""
    reasons = [sk.available_backends(op.name) for op in OPS]
    found = tuple(name for name in GPU_BACKENDS if any(each[name] is None for each in reasons))
    return found or GPU_BACKENDS


def count(family: str, setting: Setting) -> int:
    """How many times ``run`` reports that a group of rows is done."""
    number: int = families(setting.device)[family].count(setting)
    return number


def run(
    family: str, setting: Setting, report: Callable[[int], None], keep: Callable[[list[Row]], object] | None = None
) -> list[Row]:
    """Measure one family.

    Args:
        family: a key of :data:`FAMILIES`.
        setting: how and where.
        report: told how many groups are done, again and again.
        keep: given all rows so far after each group, so that they outlive what comes later.
    """
    rows: list[Row] = []
    done = 0
    told = replace(setting, tick=lambda: report(done))
    for group in families(setting.device)[family].groups(told):
        rows += group
        if keep is not None:
            keep(rows)
        done += 1
        report(done)
    return rows


def wrong(rows: Sequence[Row], setting: Setting) -> list[Row]:
    """The rows of backends that gave a wrong result or none."""
    return [row for row in rows if row.variant in setting.backends and (row.note or "").startswith(("wrong", "failed"))]
