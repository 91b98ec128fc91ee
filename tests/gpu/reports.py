"""What the stages left: JUnit files or, after a kill, lines of a log; logs of the sanitizers; rows of benchmarks."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

#: Lines of a failure that the summary repeats, and how long they may be.
LINES, WIDTH = 15, 300


@dataclass
class Tests:
    """Counts of one test run, and its failures as ``test: first line``.

    Attributes:
        counts: by ``passed``, ``failed``, ``skipped``.
        failures: in the order of the run.
        partial: whether the run was stopped before it could write its report.
    """

    __test__ = False  # not one of pytest's

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    partial: bool = False

    def __str__(self) -> str:
        """Such as ``3 failed, 120 passed``."""
        order = ("failed", "passed", "skipped")
        text = ", ".join(f"{self.counts[name]} {name}" for name in order if self.counts[name]) or "no tests"
        return text + (", stopped before its end" if self.partial else "")


def _cut(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # an error without a word says nothing
    return line if len(line) <= WIDTH else line[:WIDTH] + " ..."


def _junit(path: Path) -> Tests | None:
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    found = Tests()
    for case in root.iter("testcase"):
        bad = [child for child in case if child.tag in ("failure", "error")]
        if bad:
            found.counts["failed"] += 1
            name = f"{case.get('classname', '')}::{case.get('name', '')}".removeprefix("tests.").removeprefix("::")
            found.failures.append(f"{name}: {_cut(bad[0].get('message') or bad[0].text or '')}")
        else:
            found.counts["skipped" if case.find("skipped") is not None else "passed"] += 1
    return found


_PYTEST = re.compile(
    r"^(?:\[gw\d+\] \[ *\d+%\] )?(PASSED|FAILED|ERROR|SKIPPED|XFAIL) (\S+)|^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b"
)
_WORDS = {"PASSED": "passed", "FAILED": "failed", "ERROR": "failed", "SKIPPED": "skipped", "XFAIL": "skipped"}


def _log(path: Path) -> Tests | None:
    """Results that a test run printed as they came, each test once."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    last: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for line in text.splitlines():
        match = _PYTEST.match(line)
        if match:
            test, word = (match[2], match[1]) if match[1] else (match[3], match[4])
            last[test] = _WORDS[word]
            said = line.partition(" - ")[2]
            reasons[test] = said or reasons.get(test, "")
    if not last:
        return None
    failures = [f"{test}: {_cut(reasons[test])}" for test, word in last.items() if word == "failed"]
    return Tests(Counter(last.values()), failures, partial=True)


def tests(out: Path, name: str) -> Tests | None:
    """Of a stage that ran tests; None if nothing is known."""
    found = _junit(out / f"{name}.xml")
    if found is not None:
        return found
    found = _log(out / f"{name}.txt")
    if found is not None and re.search(
        r"^\d+ passed, \d+ failed$", (out / f"{name}.txt").read_text(errors="replace"), re.M
    ):
        found.partial = False  # the program of tests/gpu that needs no pytest has come to its end
    return found


_HAZARD = re.compile(
    r"^========= (?!COMPUTE-SANITIZER|\s)(?=.*(?:Invalid|[Ee]rror|Uninit|[Hh]azard|[Rr]ace|Barrier|Leaked))"
)


def sanitizer(out: Path, tool: str) -> list[str]:
    """The summary of a sanitizer and the first lines of what it found."""
    try:
        text = (out / f"{tool}-log.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = [line.removeprefix("========= ").strip() for line in text.splitlines() if _HAZARD.match(line)]
    summary = [line for line in found if "SUMMARY" in line]
    return summary + [_cut(line) for line in found if "SUMMARY" not in line][:LINES]


def tail(out: Path, name: str, lines: int = 6) -> list[str]:
    """The last lines of a stage's output that say something."""
    try:
        text = (out / f"{name}.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    said = [line.rstrip() for line in text.splitlines()[1:] if line.strip()]
    errors = [line for line in said if re.search(r"(?i)\b(error|fatal)\b", line)]
    return [_cut(line) for line in (errors[:lines] or said[-lines:])]


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, none if there is none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def measured(out: Path) -> list[dict[str, str]]:
    """Rows of all benchmarks."""
    return [row for path in sorted(out.glob("*.csv")) if path.name != "resources.csv" for row in table(path)]


def backends(out: Path) -> dict[str, Any]:
    """What the import stage wrote."""
    try:
        found: dict[str, Any] = json.loads((out / "backends.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
