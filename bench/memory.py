"""How much memory a call needs beyond its inputs, measured in a fresh process.

The peak of the resident memory during the first calls of an op, minus what was resident before them. So results, scratch that a
thread keeps for good and everything that the allocator takes count; code and data that are read from files do not. Only the
kernel knows the peak, so this needs Linux. ``python -m bench.memory FILE`` is the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import gates
from .cases import Case

#: Of this much, written to by a control before the measurement, at least three quarters and at most twice must be seen.
CONTROL = 1 << 20

# In a single call one thread may have done all the work, and the scratch of the others would not be seen.
_CALLS = 5

_UNKNOWN = "extra memory unknown: "
_PR_SET_THP_DISABLE = 41
_ROOT = Path(__file__).resolve().parent.parent


class UnknownMemoryError(Exception):
    """The extra memory of a call could not be found out; the message says why."""


def extra_bytes(case: Case, backend: str) -> int:
    """Peak growth of a fresh process during the first calls of a case.

    Raises:
        UnknownMemoryError: where it cannot be measured, and where the call gives a wrong result.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "case.pt"
        torch.save({"case": case, "backend": backend, "threads": torch.get_num_threads()}, file)
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "bench.memory", str(file)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = lines[-1].rpartition(f"{UnknownMemoryError.__name__}: ")[2].removeprefix(_UNKNOWN)
        raise UnknownMemoryError(_UNKNOWN + reason[:200])
    return int(json.loads(done.stdout)["extra_bytes"])


def _resident() -> dict[str, int]:
    """Bytes of this process: resident, of these from files, and the peak since the last reset."""
    found = {}
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssFile", "VmHWM"):
            found[name] = int(value.split()[0]) * 1024
    return found


def _trim() -> None:
    """Give memory that was freed back to the system, so that a call that takes it again is seen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_growth(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes by which the resident memory grew at most while ``call`` ran, without files; and its result.

    Raises:
        UnknownMemoryError: if the system does not tell.
    """
    try:
        _trim()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
        before = _resident()
        result = call()
        after = _resident()
        grown = after["VmHWM"] - before["VmRSS"] - (after["RssFile"] - before["RssFile"])
    except (OSError, KeyError) as error:
        raise UnknownMemoryError(f"{_UNKNOWN}the system does not tell ({type(error).__name__})") from None
    return max(0, grown), result


def controlled(call: Callable[[], Any]) -> tuple[int, Any]:
    """:func:`peak_growth` of a call, after a control has shown that it sees what is there.

    Raises:
        UnknownMemoryError: if the control fails.
    """

    def control() -> None:
        torch.ones(CONTROL, dtype=torch.int8)

    control()
    seen, _ = peak_growth(control)
    if not 3 * CONTROL // 4 <= seen <= 2 * CONTROL:
        raise UnknownMemoryError(f"{_UNKNOWN}of {CONTROL} bytes in a control {seen} were seen")
    return peak_growth(call)


def _last(call: Callable[[], Any]) -> Any:
    """The result of the last of several calls; the others are not kept."""
    for _ in range(_CALLS - 1):
        call()
    return call()


def of_case(case: Case, backend: str) -> int:
    """Peak growth of this process during the first calls of a case.

    Raises:
        UnknownMemoryError: where it cannot be measured, and where a call gives a wrong result.
    """
    call = case.call(backend)
    grown, result = controlled(lambda: _last(call))
    reason = gates.of_case(case)(result)
    if reason is not None:
        raise UnknownMemoryError(f"{_UNKNOWN}wrong result: {reason}")
    return grown


def _main(file: str) -> None:
    # A huge page for one small object would count as two megabytes.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    given = torch.load(file, weights_only=False)
    torch.set_num_threads(given["threads"])
    torch.zeros(1 << 22).amax()  # the threads are the process's, not the call's
    print(json.dumps({"extra_bytes": of_case(given["case"], given["backend"])}))


if __name__ == "__main__":
    _main(sys.argv[1])
