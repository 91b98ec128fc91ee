"""One stage: a command with a time limit, whose output goes to a file. Whatever it does, the next one has its turn."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

PASSED, FAILED, TIMEOUT, NOT_RUN, SKIPPED = "passed", "failed", "timeout", "not run", "skipped"

#: After its time limit a stage is asked to end, so that it writes what it has, and stopped after so many seconds more.
GRACE = 8.0

#: With less than so many seconds left a stage is not begun.
LEAST = 1.0


@dataclass(frozen=True)
class Stage:
    """What is to be run.

    Attributes:
        name: short; its output goes to ``<name>.txt``.
        what: one line for the summary.
        command: of its own process group.
        limit: seconds.
        environment: in addition to that of this process.
        missing: why it cannot be run here; it then has not passed.
        optional: a stage that cannot be run is no failure.
        reserve: seconds that earlier stages leave for it.
    """

    name: str
    what: str
    command: tuple[str, ...] = ()
    limit: float = 60.0
    environment: dict[str, str] = field(default_factory=dict)
    missing: str | None = None
    optional: bool = False
    reserve: float = 0.0


@dataclass
class Result:
    """How a stage ended.

    Attributes:
        name: of the stage.
        what: of the stage.
        state: one of the five above, or None: its turn has not come.
        seconds: it took.
        code: exit code, negative for a signal.
        note: what else there is to say.
        optional: of the stage.
    """

    name: str
    what: str
    state: str | None = None
    seconds: float = 0.0
    code: int | None = None
    note: str = ""
    optional: bool = False

    @property
    def good(self) -> bool:
        """Whether it stands in the way of exit code 0."""
        return self.state == PASSED or (self.state == SKIPPED and self.optional)


def run(stage: Stage, out: Path, root: Path, seconds: float) -> Result:
    """Run a stage.

    Args:
        stage: to be run.
        out: folder of the results.
        root: of the checkout, where it runs.
        seconds: that are left for it; its own limit may be shorter.
    """
    result = Result(stage.name, stage.what, optional=stage.optional)
    if stage.missing is not None:
        result.state, result.note = SKIPPED if stage.optional else NOT_RUN, stage.missing
        return result
    limit = min(stage.limit, seconds)
    if limit < min(LEAST, stage.limit):
        result.state, result.note = NOT_RUN, "no time was left"
        return result
    start = time.monotonic()
    with (out / f"{stage.name}.txt").open("w", encoding="utf-8") as log:
        log.write("$ " + " ".join(stage.command) + "\n")
        log.flush()
        try:
            process = subprocess.Popen(
                stage.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=root,
                env={**os.environ, **stage.environment},
                start_new_session=True,
                # A shell ignores it for what it starts in the background, and that is inherited.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        except OSError as error:
            result.state, result.note = NOT_RUN, f"{stage.command[0]}: {error.strerror}"
            return result
        try:
            result.code = process.wait(timeout=limit)
            result.state = PASSED if result.code == 0 else FAILED
        except subprocess.TimeoutExpired:
            result.state, result.note = TIMEOUT, f"stopped after {limit:.0f} s"
            result.code = _end(process)
        finally:
            _stop_group(process)
            result.seconds = time.monotonic() - start
    if result.state == FAILED:
        result.note = (
            f"exit code {result.code}" if (result.code or 0) >= 0 else f"killed by signal {-(result.code or 0)}"
        )
    return result


def _end(process: subprocess.Popen[bytes]) -> int | None:
    """Ask the first process alone: pytest then writes its report, while its workers are still there to be closed."""
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(timeout=GRACE)
    except subprocess.TimeoutExpired:
        return None


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """Stop what is left of the processes that a stage has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()
