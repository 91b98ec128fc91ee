"""What the compiler made of each kernel, as cuobjdump says it: ``resources.py CUOBJDUMP MODULE CSV``."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

COLUMNS = ("kernel", "arch", "registers", "stack", "shared", "local")

_FUNCTION = re.compile(r"^\s*Function\s+(\S+?):?\s*$")
_ARCH = re.compile(r"^\s*arch\s*=\s*(\S+)")
_USAGE = re.compile(r"\bREG:(\d+)\s+STACK:(\S+)\s+SHARED:(\d+)\s+LOCAL:(\d+)")


def parse(text: str) -> list[dict[str, str]]:
    """The kernels in the output of ``cuobjdump -res-usage``; names are mangled still."""
    found: list[dict[str, str]] = []
    arch = name = ""
    for line in text.splitlines():
        if match := _ARCH.match(line):
            arch = match[1]
        elif match := _FUNCTION.match(line):
            name = match[1]
        elif (match := _USAGE.search(line)) and name:
            found.append(dict(zip(COLUMNS, (name, arch, *match.groups()), strict=True)))
            name = ""
    return found


def readable(names: list[str]) -> list[str]:
    """Names without their mangling, where there is a tool for it, and without arguments and the project's namespaces."""
    filters = shutil.which("cu++filt") or shutil.which("c++filt")
    if filters and names:
        done = subprocess.run([filters], input="\n".join(names), capture_output=True, text=True, timeout=20)
        lines = done.stdout.splitlines()
        names = lines if done.returncode == 0 and len(lines) == len(names) else names
    return [short(name) for name in names]


def short(name: str) -> str:
    """A demangled name up to its list of arguments, which is not the first bracket: ``(anonymous namespace)`` may come."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:i]
            break
    return name.replace("specdec::cuda::", "").replace("specdec::", "")


def main(cuobjdump: str, module: str, file: str) -> int:
    """Write the table; 1 where there is no module."""
    if not Path(module).is_file():
        print(f"there is no {Path(module).name}")
        return 1
    done = subprocess.run([cuobjdump, "-res-usage", module], capture_output=True, text=True, timeout=25)
    rows = parse(done.stdout + done.stderr)
    if done.returncode != 0 or not rows:
        print(done.stdout + done.stderr, "no kernel was found", sep="\n")
        return 1
    for row, name in zip(rows, readable([row["kernel"] for row in rows]), strict=True):
        row["kernel"] = name
    with Path(file).open("w", newline="", encoding="utf-8") as target:
        writer = csv.DictWriter(target, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["kernel"], row["arch"])))
    print(f"{len(rows)} kernels")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
