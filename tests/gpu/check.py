"""``make gpu-check``: everything that only a machine with an NVIDIA GPU can check, in one command and under nine minutes.

It needs a Python with torch >= 2.11 and what is built with (nvcc, cmake, ninja); it downloads and installs nothing. The modules
are built in place for the GPU of the machine. Then it runs the tests on ``cuda`` and ``triton``, CUDA graphs, the
sanitizers and the benchmarks, each with a time limit of its own; what fails or hangs does not stop the next. All results
lie in one folder, written as they come; ``summary.md`` says what they are.

Exit codes: 0 every stage passed; 1 a stage failed, ran out of time or could not be run; 2 there is no GPU, and what can be
checked without one was; 3 wrong options, or a folder that cannot be written.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from datetime import date
from pathlib import Path

# As a script this file finds its own folder first, where names are short; the package is what is meant.
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpu import machine as machines
from gpu import stages, summary
from gpu.run import NOT_RUN, Result, Stage, run

ALL_GOOD, NOT_GOOD, NO_GPU, WRONG_CALL = 0, 1, 2, 3


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(WRONG_CALL, f"gpu-check: {message}\n")


def options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = _Parser(prog="gpu-check", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the results; bench/results/<gpu>-<date>")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that builds and tests")
    parser.add_argument("--only", action="append", metavar="STAGE", help="run this stage (repeatable)")
    parser.add_argument(
        "--skip", action="append", metavar="STAGE", default=[], help="do not run this stage (repeatable)"
    )
    parser.add_argument("--bench", choices=("quick", "full"), default="quick", help="how much is measured")
    parser.add_argument("--jobs", type=int, help="processes of a test run, where pytest-xdist is installed")
    parser.add_argument("--limit", type=float, default=stages.LIMIT, help="seconds for everything")
    return parser.parse_args(arguments)


def folder_for(machine: machines.Machine, out: Path | None) -> Path:
    """Where the results go."""
    if out is not None:
        return out.resolve()
    name = re.sub(r"[^a-z0-9]+", "-", (machine.gpu or "no-gpu").lower()).strip("-")
    return stages.ROOT / "bench" / "results" / f"{name}-{date.today().isoformat()}"


def chosen(plan: list[Stage], only: list[str] | None, skip: list[str]) -> list[Stage]:
    """The stages that were asked for.

    Raises:
        ValueError: if there is no stage of a name.
    """
    names = [stage.name for stage in plan]
    for name in (*(only or ()), *skip):
        if name not in names:
            raise ValueError(f"a stage must be one of {', '.join(names)}, got {name!r}")
    return [stage for stage in plan if stage.name not in skip and (only is None or stage.name in only)]


def code_of(machine: machines.Machine, results: list[Result]) -> int:
    """The exit code."""
    if machine.gpu is None:
        return NO_GPU
    return ALL_GOOD if all(result.good for result in results) else NOT_GOOD


def _write(out: Path, machine: machines.Machine, results: list[Result], seconds: float) -> None:
    state = {"machine": machine.as_dict(), "seconds": round(seconds, 1), "stages": [vars(r) for r in results]}
    (out / "stages.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    (out / "summary.md").write_text(summary.write(out, machine, results, seconds), encoding="utf-8")


def _interrupted(number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the stages one after the other; the exit code."""
    given = options(arguments)
    signal.signal(signal.SIGTERM, _interrupted)
    start = time.monotonic()
    print("gpu-check: looking at the machine", flush=True)
    machine = machines.look(given.python)
    out = folder_for(machine, given.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        plan = chosen(stages.plan(machine, out, bench=given.bench, jobs=given.jobs), given.only, given.skip)
    except (OSError, ValueError) as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return WRONG_CALL
    print(f"gpu-check: {machine.gpu or f'no GPU: {machine.no_gpu}'}; results in {out}", flush=True)
    results = [Result(stage.name, stage.what, optional=stage.optional) for stage in plan]
    _write(out, machine, results, 0.0)
    try:
        for i, stage in enumerate(plan):
            print(f"  {stage.name:<13} ", end="", flush=True)
            kept = sum(later.reserve for later in plan[i + 1 :])
            results[i] = run(stage, out, stages.ROOT, given.limit - kept - (time.monotonic() - start))
            print(f"{results[i].state} in {results[i].seconds:.0f} s {results[i].note}".rstrip(), flush=True)
            _write(out, machine, results, time.monotonic() - start)
    except KeyboardInterrupt:
        for result in results:
            if result.state is None:
                result.state, result.note = NOT_RUN, "interrupted"
        print("interrupted", flush=True)
    _write(out, machine, results, time.monotonic() - start)
    code = code_of(machine, results)
    print(f"gpu-check: {summary.verdict(machine, results)}; {out / 'summary.md'}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
