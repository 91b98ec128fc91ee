"""``specdec bench``: the ops against the limit of this machine and against the same thing in PyTorch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from .errors import UserError
from .options import CsvOption
from .output import JsonOption, check_file, check_json, progress, working, write_json

if TYPE_CHECKING:
    from bench.rows import MachineColumns, Row

ALL = "all"

# What the help says of the suite. The suite itself is imported when it is to run: its name is a common one, and another
# package of that name must not be run, nor stop the other commands.
FAMILIES = ("verify", "rules", "attention", "kv", "tree", "linear", "overhead")
DEVICES = ("cpu", "cuda")
REPEATS, QUICK_REPEATS = 30, 9

_PACKAGE = Path(__file__).resolve().parents[2] / "bench"


def bench(
    family: Annotated[str, typer.Argument(metavar="|".join((*FAMILIES, ALL)), help="What to measure.")] = ALL,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what the goals are set for, few samples, no torch.compile.")
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="|".join(DEVICES), help="Where; on cuda all families but rules and linear.")
    ] = "cpu",
    repeats: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"Samples of each variant, fewer of slow ones; default {REPEATS}, quick {QUICK_REPEATS}.",
        ),
    ] = None,
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write a CSV file per family to FOLDER as the rows come, named after machine and date.",
        ),
    ] = None,
) -> int:
    """Measure the kernels: in turns with their baselines, after each result was found right.

    Ends with exit code 1 if an op gave a wrong result, whatever its speed. Serving is measured by specdec bench serve.
    """
    check_package()
    from bench import gpu, machine, report, suite
    from bench.rows import Row

    if device not in DEVICES:
        raise UserError(f"--device must be one of {', '.join(DEVICES)}, got {device!r}")
    known = suite.families(device)
    if family not in (*known, ALL):
        where = f" with --device {device}" if family in suite.FAMILIES else ""
        raise UserError(f"the family must be one of {', '.join((*known, ALL))}{where}, got {family!r}")
    if repeats is not None and repeats < 1:
        raise UserError(f"--repeats must be at least 1, got {repeats}")
    check_results(json_file, csv_file)
    _check_folder(out)
    if device == "cuda" and (reason := gpu.missing()) is not None:
        raise UserError(f"--device cuda must have a CUDA device, got none: {reason}")
    families = list(known) if family == ALL else [family]
    with working("measuring the memory of this machine"):
        setting = suite.prepare(quick, repeats, device)
    console = Console(highlight=False)
    backends = setting.backends
    rows: list[Row] = []
    for name in families:
        file = None if out is None else out / machine.file_name(name, setting.machine, device)
        keep = None if file is None else partial(write_rows, "--out", Row, path=file)
        with progress(f"measuring {name}", suite.count(name, setting)) as told:
            found = suite.run(name, setting, told, keep)
        for part in report.tables(name, found, backends, device):
            console.print(part)
        console.print()
        rows += found
    for line in report.conclusions(rows, backends, device):
        console.print(Text(line))
    write_results(Row, rows, json_file, csv_file)
    return 1 if suite.wrong(rows, setting) else 0


def check_package() -> None:
    """Refuse to run another package of the name of the suite.

    Raises:
        UserError: if that is what Python would import.
    """
    try:
        spec = importlib.util.find_spec("bench")  # finds, and runs nothing
    except ValueError:  # a module of that name that does not say where it comes from
        spec = None
    found = "none" if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), "none")
    if Path(found).resolve() == _PACKAGE / "__init__.py":
        return
    raise UserError(
        f"the package bench must be the one in {_PACKAGE}, got {found} (PYTHONPATH, or another installation)"
    )


def _check_folder(path: Path | None) -> None:
    if path is not None and path.exists() and not path.is_dir():
        raise UserError(f"--out must name a folder, got the file {path}")


def print_report(console: Console, parts: Sequence[RenderableType], conclusions: Sequence[str]) -> None:
    """The tables of a benchmark, and what is to be said under them."""
    console.print()
    for part in parts:
        console.print(part)
    console.print()
    for line in conclusions:
        console.print(Text(line))


def check_results(json_file: Path | None, csv_file: Path | None) -> None:
    """:func:`check_file` of ``--json`` and ``--csv``."""
    check_json(json_file)
    check_file("--csv", csv_file)


def write_results(
    kind: type[MachineColumns], rows: Sequence[MachineColumns], json_file: Path | None, csv_file: Path | None
) -> None:
    """Write the rows of a benchmark, which are of one class, to the files of ``--json`` and ``--csv``, if they are asked for.

    Raises:
        UserError: if one cannot be written.
    """
    from bench.rows import as_dicts

    if csv_file is not None:
        write_rows("--csv", kind, rows, csv_file)
    write_json(json_file, as_dicts(rows))


def write_rows(option: str, kind: type[MachineColumns], rows: Sequence[MachineColumns], path: Path) -> None:
    """Write the rows of a benchmark as CSV to the file of an option.

    Raises:
        UserError: if it cannot be written.
    """
    from bench.rows import write_csv

    try:
        write_csv(kind, rows, path)
    except OSError as error:
        reason = (error.strerror or "no reason").lower()
        raise UserError(f"{option} must name a place that can be written, got {path}: {reason}") from error
