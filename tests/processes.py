"""Python and compilers in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(command: list[str], environment: dict[str, str] | None = None, folder: Path | None = None, timeout: int = 300):
    """Run a command to its end; variables that start with ``SPECDEC_`` are those of ``environment`` alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPECDEC_")}
    return subprocess.run(
        command, env=kept | (environment or {}), cwd=folder, capture_output=True, text=True, timeout=timeout
    )


def python(program: str, **environment: str) -> str:
    """What a program prints; it must end well. It finds the packages as this process does, and the tests' helpers."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = run([sys.executable, "-c", program], environment | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    return done.stdout


def error_of(program: str, **environment: str) -> str:
    """The last line of the traceback of a program that must fail."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = run([sys.executable, "-c", program], environment | {"PYTHONPATH": paths})
    assert done.returncode != 0, done.stdout
    return done.stderr.strip().splitlines()[-1]
