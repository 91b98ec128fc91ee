"""What the commands print: text to standard output, progress to standard error, figures to JSON files."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .errors import UserError, unwritable, user_errors

JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to FILE as JSON, too.")
]

# A reader of a log needs a sign of life, not a line for every step.
_SECONDS_BETWEEN_LINES = 5.0
_PATIENCE = 2.0


def check_json(path: Path | None) -> None:
    """:func:`check_file` of ``--json``."""
    check_file("--json", path)


def check_file(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written before the work is done rather than after it.

    Raises:
        UserError: if the folder does not exist, the path is one, or writing is not allowed.
    """
    if path is None:
        return
    with user_errors():  # a name that no file can have
        if path.is_dir():
            raise UserError(f"{option} must name a file, got the folder {path}")
        if not path.parent.is_dir():
            raise UserError(f"{option} must name a file in an existing folder, got {path}")
        if not os.access(*((path, os.W_OK) if path.exists() else (path.parent, os.W_OK | os.X_OK))):
            raise UserError(f"{option} must name a file that can be written, got {path}: permission denied")


def write_json(path: Path | None, content: Any) -> None:
    """Write ``content`` as indented JSON, if there is a path.

    Raises:
        UserError: if the file cannot be written.
    """
    if path is not None:
        write_file("--json", path, json.dumps(content, indent=2) + "\n")


def write_file(option: str, path: Path, text: str) -> None:
    """Write a file that an option names.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or "no reason").lower()
        raise UserError(f"{option} must name a file that can be written, got {path}: {reason}") from error


def printable(text: str) -> str:
    """``text`` without the control characters that would steer a terminal."""
    return "".join(c for c in text if c in "\n\t" or not _is_control(c))


def _is_control(character: str) -> bool:
    return ord(character) < 32 or 127 <= ord(character) < 160


def write_text(text: str) -> None:
    """Bring generated text to standard output at once; to a terminal without control characters."""
    if text:
        try:
            sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:  # else it would be taken for one of the model's files
            raise unwritable(error) from error


@contextmanager
def working(what: str) -> Iterator[None]:
    """Tell on standard error what is going on, for as long as it takes; in a log only if it takes long."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(f"{what} ..."):
            yield
        return
    timer = threading.Timer(_PATIENCE, lambda: print(f"{what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, in a log a line from time to time; the value takes how much is done by now."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    last = time.monotonic() + _PATIENCE - _SECONDS_BETWEEN_LINES

    def report(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES and done < total:
            last = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    yield report
