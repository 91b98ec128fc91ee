"""Which backend serves which op, as the installation says it: ``backends.py JSON MODULE...``; the modules must be loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(file: str, *needed: str) -> int:
    """Write the table; 1 where a module is not there."""
    import specdec_kernels as sk
    from specdec_kernels import _library
    from specdec_kernels._schema import OPS

    found = {"modules": _library.MODULES, "ops": {op.name: sk.available_backends(op.name) for op in OPS}}
    Path(file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lost = [f"module {name} is {_library.MODULES[name]}" for name in needed if _library.MODULES[name] is not None]
    print(*lost, sep="\n")
    for op, reasons in found["ops"].items():
        served = [backend for backend, reason in reasons.items() if reason is None]
        print(f"{op}: {', '.join(served)}")
    return 1 if lost else 0


if __name__ == "__main__":
    # The folder of this file holds modules of short names.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    sys.exit(main(*sys.argv[1:]))
