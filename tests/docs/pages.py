"""README and docs as a reader takes them: blocks of code, tables, commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md")}
PAGES |= {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "docs").glob("*.md"))}

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line of the page that its text begins at."""

    language: str
    text: str
    line: int


def read(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    text = read(page)
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in _BLOCK.finditer(text)]


def prose(page: str) -> str:
    """The page without its blocks."""
    return _BLOCK.sub("", read(page))


def spans(page: str) -> list[str]:
    """Code within sentences."""
    return _SPAN.findall(prose(page))


def tables(page: str) -> list[list[dict[str, str]]]:
    """Every table as rows by the names of their columns, without the marks of code."""
    found: list[list[dict[str, str]]] = []
    header: list[str] | None = None
    for line in prose(page).splitlines():
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if header is None:
            header = cells
            found.append([])
        elif not all(set(cell) <= set("-:") for cell in cells):
            found[-1].append(dict(zip(header, cells, strict=True)))
    return found


def table(page: str, *columns: str) -> list[dict[str, str]]:
    """The one table with exactly these columns."""
    (rows,) = [rows for rows in tables(page) if tuple(rows[0]) == columns]
    return rows
