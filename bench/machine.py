"""What this machine is, and how fast it reads and copies memory."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

import specdec_kernels

_ROOT = Path(__file__).resolve().parent.parent


def processor() -> str:
    """Name of the processor, with the family and model number that tell its generation."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = {}
    for key in ("model name", "cpu family", "model"):
        match = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
        if match:
            found[key] = match.group(1).strip()
    name = found.get("model name", platform.machine())
    if "cpu family" in found:
        name += f" (family {found['cpu family']} model {found.get('model', '?')})"
    return name


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(_ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def commit() -> str:
    """Short hash of the checkout that this file lies in, ``+`` if it was changed; ``unknown`` without one."""
    if not (_ROOT / ".git").exists():
        return "unknown"
    name = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return "unknown" if name is None else name + ("+" if changed else "")


def describe(device: str = "cpu") -> dict[str, Any]:
    """The columns of a row that tell where and when it was measured; ``device`` is ``cpu`` or ``cuda``."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "version": specdec_kernels.__version__,
        "commit": commit(),
        "date": date.today().isoformat(),
    }


def file_name(family: str, machine: Mapping[str, Any], device: str = "cpu") -> str:
    """Name of a result file: family, processor with its threads or GPU, and date, without anything else about the machine."""
    name = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    threads = "" if device == "cuda" else f"-{machine['threads']}t"
    return f"{family}-{name}{threads}-{machine['date']}.csv"


@cache
def _memchr() -> Callable[[int, int, int], int | None] | None:
    """The C library's search for a byte: one vectorised read of a range, outside the interpreter's lock."""
    try:
        function = ctypes.CDLL(None).memchr
    except (OSError, AttributeError, TypeError):
        return None
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    return function


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


class Reader(NamedTuple):
    """A way to read a buffer once."""

    name: str
    call: Callable[[], object]


def readers(buffer: torch.Tensor) -> list[Reader]:
    """Ways to read a contiguous float32 buffer of zeros once. Which is the fastest depends on machine and size."""
    found = [Reader("torch.sum", buffer.sum), Reader("torch.amax", buffer.amax)]
    search = _memchr()
    if search is not None:
        address, size = buffer.data_ptr(), buffer.numel() * 4

        def alone() -> None:
            assert search(address, 1, size) is None

        def together(threads: int = torch.get_num_threads()) -> None:
            edges = [size * i // threads for i in range(threads + 1)]
            spans = [(address + a, b - a) for a, b in zip(edges, edges[1:], strict=False)]
            for part in [_pool(threads).submit(search, start, 1, length) for start, length in spans]:
                assert part.result() is None

        found.append(Reader("memchr, one thread", alone))
        if torch.get_num_threads() > 1:
            found.append(Reader("memchr, all threads", together))
    return found


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def best_reader(buffer: torch.Tensor, repeats: int = 7) -> Reader:
    """The fastest of :func:`readers`: by its median time, in turns."""
    candidates = readers(buffer)
    times: list[list[float]] = [[] for _ in candidates]
    for reader in candidates:
        reader.call()
    for _ in range(repeats):
        for reader, taken in zip(candidates, times, strict=True):
            taken.append(_seconds(reader.call))
    medians = [sorted(taken)[repeats // 2] for taken in times]
    return candidates[medians.index(min(medians))]


class Bandwidth(NamedTuple):
    """Measured bandwidth in 1e9 bytes per second.

    Attributes:
        read: one read of a buffer.
        copy: a copy, with the bytes read and the bytes written.
        reader: what read it.
    """

    read: float
    copy: float
    reader: str


def bandwidth(size: int = 256 << 20, repeats: int = 9) -> Bandwidth:
    """Median read and copy bandwidth over a buffer of ``size`` bytes.

    A buffer well beyond the last cache measures memory; one that fits measures the cache.
    """
    source = torch.zeros(size // 4)
    target = torch.empty_like(source)
    reader = best_reader(source, repeats)
    target.copy_(source)
    reads, copies = [], []
    for _ in range(repeats):
        reader.call()  # each starts from what its own buffers left in the cache
        reads.append(_seconds(reader.call))
        target.copy_(source)
        copies.append(_seconds(lambda: target.copy_(source)))
    middle = repeats // 2
    return Bandwidth(
        read=size / sorted(reads)[middle] / 1e9, copy=2 * size / sorted(copies)[middle] / 1e9, reader=reader.name
    )
