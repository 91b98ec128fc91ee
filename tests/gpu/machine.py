"""What this machine has to check with: a GPU, compilers, tools, Python packages. The standard library is all that is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: Packages whose versions are written down: what the library, its tests and its benchmarks import.
PACKAGES = (
    *("torch", "triton", "numpy", "pytest", "xdist", "hypothesis", "scipy", "rich", "typer", "safetensors"),
    *("tokenizers", "transformers", "matplotlib", "flashinfer", "setuptools"),
)
#: Without these the test suite cannot even be collected; without the others some of its files.
NEEDED_BY_TESTS = ("pytest", "hypothesis")
NEEDED_BY_COMMANDS = ("typer", "rich", "safetensors", "tokenizers")
WANTED_BY_TESTS = ("scipy", "rich", "typer", "safetensors", "tokenizers", "transformers")

#: What is built where there is no GPU to build for.
DEFAULT_ARCH = "90a"

_PROBE = """
import importlib.util, importlib.metadata, json, platform
found = {}
for name in %r:
    found[name] = None
    if importlib.util.find_spec(name) is not None:
        package = {"xdist": "pytest-xdist", "flashinfer": "flashinfer-python"}.get(name, name)
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown version"
gpu = None
if found["torch"]:
    import torch
    found["torch"] = torch.__version__
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        gpu = {"name": p.name, "capability": f"{p.major}.{p.minor}", "memory_mb": p.total_memory >> 20}
print(json.dumps({"python": platform.python_version(), "packages": found, "gpu": gpu}))
"""


@dataclass(frozen=True)
class Machine:
    """What there is; what is missing is None.

    Attributes:
        python: the interpreter that builds and tests.
        python_version: its version.
        packages: version of each of :data:`PACKAGES`.
        gpu: name of the GPU that torch can use.
        no_gpu: why there is none.
        capability: such as ``9.0``.
        memory_mb: of the GPU.
        driver: version.
        tools: path of ``nvcc``, ``cmake``, ``ninja``, ``compute-sanitizer`` and ``cuobjdump``.
        nvcc_release: such as ``13.0``.
        cores: that this process may use.
    """

    python: str
    python_version: str = ""
    packages: dict[str, str | None] = field(default_factory=dict)
    gpu: str | None = None
    no_gpu: str | None = None
    capability: str | None = None
    memory_mb: int | None = None
    driver: str | None = None
    tools: dict[str, str | None] = field(default_factory=dict)
    nvcc_release: str | None = None
    cores: int = 1

    @property
    def arch(self) -> str:
        """What nvcc is to build for, as in the Makefile: all that 9.0 and 10.0 can do needs the suffix."""
        chosen = os.environ.get("SPECDEC_CUDA_ARCHS")
        if chosen:
            return chosen
        if self.capability is None:
            return DEFAULT_ARCH
        number = self.capability.replace(".", "")
        return {"90": "90a", "100": "100a"}.get(number, number)

    def lacks(self, names: tuple[str, ...]) -> list[str]:
        """The packages among ``names`` that are not installed."""
        return [name for name in names if not self.packages.get(name)]

    def as_dict(self) -> dict[str, Any]:
        """For the file of results."""
        return asdict(self) | {"arch": self.arch}


def said(command: list[str], timeout: float = 60) -> str | None:
    """What a program prints, None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def tool(name: str, python: str) -> str | None:
    """A program on the PATH, of the toolkit, or of the interpreter's environment."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    places = (None, f"{home}/bin", f"{home}/compute-sanitizer", str(Path(python).parent))
    found = (shutil.which(name, path=place) for place in places)
    return next((path for path in found if path), None)


def _cuobjdump(python: str) -> str | None:
    """That of the toolkit, else Triton's."""
    found = tool("cuobjdump", python)
    if found is not None:
        return found
    place = said([python, "-c", "import importlib.util as u; print(u.find_spec('triton').origin)"])
    if place is None:
        return None
    return shutil.which("cuobjdump", path=str(Path(place.strip()).parent / "backends" / "nvidia" / "bin"))


def look(python: str) -> Machine:
    """Describe this machine. Nothing that is missing raises."""
    probed = said([python, "-c", _PROBE % (PACKAGES,)], timeout=120)
    try:
        found = json.loads((probed or "").strip().splitlines()[-1])
    except (ValueError, IndexError):
        found = {"python": "", "packages": {}, "gpu": None}
    smi = said(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], timeout=30)
    first = (smi or "").strip().splitlines()[:1]
    name, _, driver = first[0].partition(", ") if first and ", " in first[0] else ("", "", "")
    gpu = found["gpu"] or {}
    names = ("nvcc", "cmake", "ninja", "compute-sanitizer")
    tools = {each: tool(each, python) for each in names}
    if os.environ.get("CUDACXX"):
        tools["nvcc"] = shutil.which(os.environ["CUDACXX"]) or tools["nvcc"]
    tools["cuobjdump"] = _cuobjdump(python)
    release = said([tools["nvcc"], "--version"]) if tools["nvcc"] else None
    return Machine(
        python=python,
        python_version=found["python"],
        packages=found["packages"],
        gpu=gpu.get("name"),
        no_gpu=None if gpu else _why_not(found["packages"], name),
        capability=gpu.get("capability"),
        memory_mb=gpu.get("memory_mb"),
        driver=driver or None,
        tools=tools,
        nvcc_release=release.partition("release ")[2].partition(",")[0] or None if release else None,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )


def _why_not(packages: dict[str, str | None], name: str) -> str:
    if not packages.get("torch"):
        return "torch cannot be imported"
    return f"torch sees no CUDA device, nvidia-smi says {name}" if name else "there is no CUDA device"
