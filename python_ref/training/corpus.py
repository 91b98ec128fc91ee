"""The corpus: the Python standard library's source, split by a hash of each file's name."""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Tests and generated tables are data rather than Python written by people; site-packages is other people's;
# what `config-*` and `_sysconfigdata*` say is about one machine.
_SKIPPED = frozenset(
    "test tests idlelib lib2to3 site-packages dist-packages pydoc_data encodings turtledemo ensurepip".split()
)
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "__pycache__")
_HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class SourceFile:
    """One file: its path relative to the standard library, with slashes, and its text."""

    name: str
    text: str


def is_held_out(name: str) -> bool:
    """Whether a file is held out: 5 % of all names, by the first 32 bits of the SHA-256 of the name."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") < _HELD_OUT_SHARE * 2**32


def read(root: Path | None = None) -> tuple[list[SourceFile], list[SourceFile]]:
    """Training files and held-out files, each sorted by name.

    Files that are empty or not UTF-8 are left out.

    Args:
        root: the folder of the standard library; None: that of the running interpreter.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        parts = name.split("/")
        if _SKIPPED & set(parts) or any(part.startswith(_SKIPPED_PREFIXES) for part in parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            files.append(SourceFile(name, text))
    files.sort(key=lambda file: file.name)
    return [f for f in files if not is_held_out(f.name)], [f for f in files if is_held_out(f.name)]


def fingerprint(files: list[SourceFile]) -> str:
    """The SHA-256 of all names and texts, 16 hexadecimal digits: two corpora of the same mark are the same."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.text}\0".encode())
    return digest.hexdigest()[:16]


def prompts(
    held_out: list[SourceFile], count: int = 64, characters: int = 500, per_file: int = 8
) -> list[dict[str, str | int]]:
    """``count`` prompts, chosen by hash: whole lines from a definition on, until ``characters`` are reached.

    The candidates are the lines of held-out files that begin a function, method or class, in the order of the SHA-256
    of file name and line number. A file gives at most ``per_file`` of them, and none that overlaps another.

    Returns:
        A list of ``{"file": name, "line": first line from 1, "prompt": text}``.
    """
    candidates = []
    for file in held_out:
        lines = file.text.splitlines(keepends=True)
        for first, line in enumerate(lines):
            if line.lstrip().startswith(("def ", "class ", "async def ")):
                key = hashlib.sha256(f"{file.name}:{first + 1}".encode()).digest()
                candidates.append((key, file.name, first, lines))
    chosen: list[dict[str, str | int]] = []
    taken: dict[str, list[range]] = {}
    for _, name, first, lines in sorted(candidates, key=lambda candidate: candidate[0]):
        last, size = first, 0
        while last < len(lines) and size < characters:
            size += len(lines[last])
            last += 1
        spans = taken.setdefault(name, [])
        overlaps = any(first < span.stop and span.start < last for span in spans)
        if size < characters or overlaps or len(spans) == per_file or len(chosen) == count:
            continue
        spans.append(range(first, last))
        chosen.append({"file": name, "line": first + 1, "prompt": "".join(lines[first:last])})
    return chosen
