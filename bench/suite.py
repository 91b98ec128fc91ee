"""The families of benchmarks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from . import linear, machine, overhead, verify
from .measured import Setting
from .rows import Row

FAMILIES = {"verify": verify, "linear": linear, "overhead": overhead}

#: Samples of each variant.
REPEATS, QUICK_REPEATS = 30, 9

# Seconds for all samples of one variant.
_BUDGET, _QUICK_BUDGET = 3.0, 0.5


def prepare(quick: bool = False, repeats: int | None = None) -> Setting:
    """Describe this machine, and measure how fast its memory is: a few seconds."""
    if repeats is None:
        repeats = QUICK_REPEATS if quick else REPEATS
    budget = _QUICK_BUDGET if quick else _BUDGET
    return Setting(machine.describe(), machine.bandwidth(), quick=quick, repeats=repeats, budget_s=budget)


def count(family: str, setting: Setting) -> int:
    """How many times ``run`` reports that a group of rows is done."""
    number: int = FAMILIES[family].count(setting)
    return number


def run(family: str, setting: Setting, report: Callable[[int], None]) -> list[Row]:
    """Measure one family.

    Args:
        family: a key of :data:`FAMILIES`.
        setting: how and where.
        report: told how many groups are done, again and again.
    """
    rows: list[Row] = []
    done = 0
    told = replace(setting, tick=lambda: report(done))
    for group in FAMILIES[family].groups(told):
        rows += group
        done += 1
        report(done)
    return rows


def wrong(rows: Sequence[Row], setting: Setting) -> list[Row]:
    """The rows of backends that gave a wrong result or none."""
    return [row for row in rows if row.variant in setting.backends and (row.note or "").startswith(("wrong", "failed"))]
