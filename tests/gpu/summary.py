"""``summary.md``: what was checked on which machine, how it ended, and what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from . import reports
from .machine import NEEDED_BY_TESTS, WANTED_BY_TESTS, Machine
from .run import FAILED, NOT_RUN, PASSED, SKIPPED, TIMEOUT, Result

_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_FUSED = ("cuda", "triton")


def verdict(machine: Machine, results: Sequence[Result]) -> str:
    """One line."""
    states = [result.state for result in results]
    parts = [f"{states.count(PASSED)} of {len(states)} stages passed"]
    for state in (FAILED, TIMEOUT, NOT_RUN, SKIPPED, None):
        names = [result.name for result in results if result.state == state]
        if names:
            parts.append(f"{state or 'still to come'}: {', '.join(names)}")
    return ("" if machine.gpu else "no GPU: ") + "; ".join(parts)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(map(_cell, row)) + " |" for row in rows] + [""]


def write(out: Path, machine: Machine, results: Sequence[Result], seconds: float) -> str:
    """The whole page, from the files that there are so far."""
    title = machine.gpu or "no GPU"
    lines = [f"# gpu-check: {title}", "", f"{verdict(machine, results)}. {seconds:.0f} s.", ""]
    lines += _machine(machine)
    lines += _stages(out, results)
    lines += _failures(out, results)
    lines += _benchmarks(out)
    lines += _resources(out)
    lines += _backends(out)
    return "\n".join(lines).rstrip() + "\n"


def _machine(machine: Machine) -> list[str]:
    memory = f"{machine.memory_mb / 1024:.0f} GiB" if machine.memory_mb else "-"
    rows: list[tuple[str, object]] = [
        ("GPU", machine.gpu or f"none: {machine.no_gpu}"),
        ("compute capability, built for", f"{machine.capability or '-'}, {machine.arch}"),
        ("memory", memory),
        ("driver", machine.driver or "-"),
        ("nvcc", machine.nvcc_release or "-"),
        ("Python, cores", f"{machine.python_version or '-'}, {machine.cores}"),
        *((name, version) for name, version in machine.packages.items() if version),
    ]
    lines = ["## Machine", "", *_table(("", ""), rows)]
    tools = [name for name, path in machine.tools.items() if not path]
    lacking = {
        "Without them no test runs": machine.lacks(NEEDED_BY_TESTS),
        "Tests that import them fail": machine.lacks(WANTED_BY_TESTS),
        "Missing tools": tools,
    }
    found = [f"- {what}: {', '.join(names)} (not installed)." for what, names in lacking.items() if names]
    return [*lines, *found, ""] if found else lines


def _said(out: Path, result: Result) -> str:
    """What there is to say of a stage beside its result."""
    parts = [result.note] if result.note else []
    counted = reports.tests(out, result.name) if result.state in (PASSED, FAILED, TIMEOUT) else None
    if counted is not None:
        parts.insert(0, str(counted))
    elif result.name in _TOOLS and result.state is not None:
        parts += reports.sanitizer(out, result.name)[:1]
    return "; ".join(parts)


def _stages(out: Path, results: Sequence[Result]) -> list[str]:
    rows = [
        (result.name, result.what, result.state or "to come", f"{result.seconds:.0f}", _said(out, result))
        for result in results
    ]
    return ["## Stages", "", *_table(("stage", "what", "result", "s", "notes"), rows)]


def _failures(out: Path, results: Sequence[Result]) -> list[str]:
    lines: list[str] = []
    for result in results:
        if result.state not in (FAILED, TIMEOUT):
            continue
        counted = reports.tests(out, result.name)
        found = counted.failures if counted is not None else []
        if result.name in _TOOLS:
            found = reports.sanitizer(out, result.name) + found
        found = found or reports.tail(out, result.name)
        shown = found[: reports.LINES]
        more = [f"... and {len(found) - len(shown)} more"] if len(found) > len(shown) else []
        lines += [f"### {result.name}", "", "```", *(line.replace("```", "'''") for line in shown + more), "```", ""]
    return ["## Failures: their first lines", "", *lines] if lines else []


def _number(text: str, digits: int = 3) -> str:
    try:
        value = float(text)
    except ValueError:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.{digits}g}"


def _percent(text: str) -> str:
    return f"{100 * float(text):.0f} %" if text else "-"


def _times(text: str) -> str:
    return f"{_number(text)}x" if text else "-"


def _benchmarks(out: Path) -> list[str]:
    rows = reports.measured(out)
    if not rows:
        return []
    ours = [row for row in rows if row["variant"].partition(",")[0] in _FUSED]
    judged = [row for row in ours if row["met"]]
    met = sum(row["met"] == "True" for row in judged)
    copy = next((row["copy_gb_per_s"] for row in rows if row["copy_gb_per_s"]), "")
    lines = ["## Benchmarks", ""]
    lines += [f"Copy bandwidth {_number(copy)} GB/s. {met} of {len(judged)} rows with goals meet them.", ""]
    lines += _table(
        (
            "op",
            "case",
            "drafts",
            "shape",
            "variant",
            "us",
            "GB/s",
            "of copy",
            "eager",
            "compile",
            "flashinfer",
            "goal",
            "met",
        ),
        (
            (
                *(row["op"].replace("_", ".", 1), row["case"], row["accepted"] or "-", row["shape"], row["variant"]),
                *(_number(row["time_us"]), _number(row["gb_per_s"]), _percent(row["share_of_copy"])),
                *(_times(row[f"speedup_over_{name}"]) for name in ("eager", "compile", "flashinfer")),
                *(row["goal"] or "-", {"True": "yes", "False": "no"}.get(row["met"], "-")),
            )
            for row in ours
            if row["time_us"]
        ),
    )
    notes: dict[str, int] = {}
    for row in rows:
        if row["note"]:
            text = f"{row['variant']}: {row['note']}"
            notes[text] = notes.get(text, 0) + 1
    lines += [f"- {count} rows, {text}" for text, count in notes.items()]
    return [*lines, ""] if notes else lines


def _resources(out: Path) -> list[str]:
    rows = reports.table(out / "resources.csv")
    if not rows:
        return []
    header = ("kernel", "arch", "registers", "stack", "shared", "local")
    shown = ([f"`{row['kernel']}`", *(row[name] for name in header[1:])] for row in rows)
    return ["## Resources of the kernels", "", *_table(header, shown)]


def _backends(out: Path) -> list[str]:
    found = reports.backends(out)
    if not found:
        return []
    names = ("cuda", "triton", "cpu", "reference")
    rows = [(op, *(reasons.get(name) or "yes" for name in names)) for op, reasons in found["ops"].items()]
    return ["## Ops and backends", "", *_table(("op", *names), rows)]
