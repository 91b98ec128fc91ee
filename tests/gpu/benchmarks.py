"""The GPU benchmarks, without what the command line needs: ``benchmarks.py FOLDER [--quick]``.

Rows are written after each case, as CSV and JSON; 1 where an op gave a wrong result.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])


def main(folder: str, *options: str) -> int:
    """Measure all families of the GPU."""
    from bench import gpu, machine, suite
    from bench.rows import Row, write_csv, write_json

    reason = gpu.missing()
    if reason is not None:
        print(f"error: {reason}")
        return 1
    setting = suite.prepare("--quick" in options, device="cuda")
    print(f"copy {setting.bandwidth.copy:.0f} GB/s, read {setting.bandwidth.read:.0f} GB/s", flush=True)
    bad: list[Row] = []
    for family in suite.families("cuda"):
        path = Path(folder) / machine.file_name(family, setting.machine, "cuda")
        wanted = suite.count(family, setting)

        def keep(rows: list[Row], path: Path = path, family: str = family, wanted: int = wanted) -> None:
            write_csv(Row, rows, path)
            write_json(rows, path.with_suffix(".json"))
            last = rows[-1]
            print(f"{family}: {last.op}, {last.case}, {last.shape} ({len(rows)} rows, {wanted} cases)", flush=True)

        rows = suite.run(family, setting, lambda done: None, keep)
        bad += suite.wrong(rows, setting)
    for row in bad:
        print(f"error: {row.op}, {row.case}, {row.shape}, {row.variant}: {row.note}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
