"""What there is to know about the machine: processor, compilers, graphics processors."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from .._library import module_path

_CPUINFO = Path("/proc/cpuinfo")
# Features that decide which kernels run, or that later kernels would like to have.
_FEATURES = (
    "avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_bf16 avx512_vnni amx_bf16 amx_int8 "
    "asimd asimdhp bf16 i8mm sve"
).split()


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor."""
    if not _CPUINFO.is_file():
        return {}
    first = _CPUINFO.read_text(errors="replace").split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def cpu() -> dict[str, Any]:
    """Model, features, instruction set of our kernels, cores and threads."""
    fields = _cpuinfo()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "features": [name for name in _FEATURES if name in flags],
        "instruction_set": instruction_set(flags),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def instruction_set(flags: set[str]) -> str:
    """The instruction set that the CPU kernels run with: as the module says, else by its rule from the features."""
    path = module_path("_C")
    if path is not None:
        name = getattr(ctypes.CDLL(path), "specdec_cpu_isa", None)
        if name is not None:
            name.restype = ctypes.c_char_p
            return str(name().decode())
    order = ("baseline", "avx2", "avx512")
    best = 0
    if {"avx2", "fma", "f16c"} <= flags:
        best = 2 if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags else 1
    wanted = os.environ.get("SPECDEC_CPU_ISA", "")
    return order[min(best, order.index(wanted))] if wanted in order else order[best]


def gpus() -> list[dict[str, Any]]:
    """Name, compute capability and memory in bytes of each CUDA device that torch can use."""
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory": properties.total_memory,
            }
        )
    return found


def no_gpu() -> str:
    """Why there is no CUDA device."""
    if torch.version.cuda is None:
        return "torch was built without CUDA"
    return "torch sees no CUDA device"


def nvcc() -> str | None:
    """Release and path of the CUDA compiler that a build would find."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    for candidate in (os.environ.get("CUDACXX"), "nvcc", f"{home}/bin/nvcc"):
        path = shutil.which(candidate) if candidate else None
        if path is None:
            continue
        try:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        release = re.search(r"release ([\d.]+)", said.stdout)
        return f"{release.group(1) if release else 'unknown release'} ({path})"
    return None


def version_of(package: str) -> str | None:
    """Version of an installed package, None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
