"""The command ``specdec`` and how it fails: with one sentence and exit code 2, never with a traceback."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
import typer.core

from .. import __version__
from . import bench, bench_drafts, bench_e2e, bench_serve, certify, demo, generate, info, trace
from .errors import UsageError, UserError, sentence, unwritable


class _Commands(typer.core.TyperGroup):
    """Commands whose errors are one line on standard error, and whose names may have two words, such as ``bench serve``."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run; with ``standalone_mode`` leave the process with the exit code."""
        alone = options.pop("standalone_mode", True)
        options["standalone_mode"] = False
        if not alone:
            return super().main(*args, **options)
        if sys.stderr is None:  # closed (2>&-); print would take standard output in its place
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if sys.stdout is None:
            _fail("specdec", "standard output must be open, got a closed one")
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets question marks
        try:
            result = super().main(*args, **options)
            sys.stdout.flush()  # at exit it would be too late for a sentence
        except UserError as error:
            _fail(f"specdec {error.command}".rstrip(), str(error))
        except BrokenPipeError:
            _leave_pipe()
        except OSError as error:
            _fail("specdec", str(unwritable(error)))
        except (KeyboardInterrupt, typer.Abort):
            print("\ninterrupted", file=sys.stderr)
            sys.exit(130)
        except UsageError as error:
            context = getattr(error, "ctx", None)
            command = getattr(error, "command", "")
            path = context.command_path if context is not None else f"specdec {command}".rstrip()
            text = sentence(Exception(error.format_message())).rstrip(".")  # type: ignore[attr-defined]
            _fail(path, f"{text[:1].lower()}{text[1:]} (see {path} --help)")
        sys.exit(result if isinstance(result, int) else 0)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first words, and the words behind it.

        ``bench`` takes a word of its own, a family: a command of two words goes before that.
        """
        name = " ".join(args[:2])
        command = self.commands.get(name) if len(args) > 1 else None
        return super().resolve_command(ctx, args) if command is None else (name, command, args[2:])

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and let its errors know its name."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _leave_pipe()
        except (UserError, UsageError) as error:
            error.command = ctx.invoked_subcommand or ""  # type: ignore[attr-defined]
            raise


def _fail(path: str, text: str) -> None:
    print(f"{path}: {text}", file=sys.stderr)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        sys.stdout = None  # what it does not take now it would not take at exit
    sys.exit(2)


def _leave_pipe() -> None:
    # Whoever reads the text has heard enough; nothing is left to be flushed at exit.
    sys.stdout = None
    sys.exit(141)


app = typer.Typer(
    cls=_Commands,
    name="specdec",
    help="Speculative decoding: generate text with drafters, see what it costs, measure the kernels, and test their laws.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("info")(info.info)
app.command("demo")(demo.demo)
app.command("generate")(generate.generate)
app.command("trace")(trace.trace)
app.command("certify")(certify.certify)
app.command("bench")(bench.bench)
app.command("bench drafts")(bench_drafts.bench_drafts)
app.command("bench e2e")(bench_e2e.bench_e2e)
app.command("bench serve")(bench_serve.bench_serve)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"specdec {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        help_text = context.get_help()
        if help_text:
            print(help_text)


def run() -> None:
    """Entry point of the command ``specdec``."""
    app(prog_name="specdec")
