"""``specdec bench serve``: requests that come at their own times, served by the plain and by the overlapped loop."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import torch
import typer
from rich.console import Console

import specdec_kernels as ops
from python_ref.decoding import Request

from . import demo, engine
from .bench import check_package, check_results, print_report, write_results
from .engine import Loaded
from .errors import UserError, user_errors
from .generate import used_ops
from .options import BackendOption, CsvOption, DeviceOption, DtypeOption
from .output import JsonOption, check_file, progress, working
from .values import at_least, integers, several

if TYPE_CHECKING:
    from bench.serve import Guesser, Row


class _Load(NamedTuple):
    """What is measured unless somebody asks for something else."""

    drafters: str
    batches: str
    rates: str
    requests: int
    new_tokens: int
    repeats: int


_FULL = _Load("none,ngram", "1,4,16", "8,inf", 12, 24, 2)
_QUICK = _Load("none,ngram", "4", "8,inf", 6, 16, 2)


def _default(name: str) -> str:
    full, quick = getattr(_FULL, name), getattr(_QUICK, name)
    return f"default {full}" + (f", quick {quick}" if quick != full else "")


# Sampled trees have no form for the overlapped loop.
_DRAFTERS = tuple(name for name in engine.DRAFTERS if name != "independent-tree")


def bench_serve(
    model: Annotated[
        str, typer.Option(metavar="DIR|NAME", help="Folder in Hugging Face layout, or a shipped model.")
    ] = engine.TARGET,
    drafter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(_DRAFTERS),
            help="Who guesses, as for specdec generate; several with commas or by repeating the option; "
            f"{_default('drafters')}.",
        ),
    ] = None,
    max_batch: Annotated[
        list[str] | None,
        typer.Option(metavar="N,...", help=f"Most requests decoded together; {_default('batches')}."),
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="R,...",
            help=f"Requests that come in a second, at random times; inf: all at once; {_default('rates')}.",
        ),
    ] = None,
    requests: Annotated[
        int | None, typer.Option(metavar="N", help=f"How many requests there are; {_default('requests')}.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help=f"Tokens of each text; {_default('new_tokens')}.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0: always the best token.")] = 0.0,
    num_draft: Annotated[
        int | None, typer.Option(metavar="N", help="Most drafts in a row; none: as specdec demo has it.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(metavar="N", help=f"Runs of each loop, in turns; {_default('repeats')}.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One batch size, fewer and shorter texts.")] = False,
    backend: BackendOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the rows: a .png, .svg or .pdf; needs matplotlib.")
    ] = None,
) -> int:
    """Serve requests by the plain and by the overlapped loop, in turns: throughput, and percentiles of latency.

    Prompts are those of specdec demo. Both loops get the same requests at the same times, and their texts are held against
    plain decoding. Ends with exit code 1 if a text is wrong.
    """
    check_package()
    from bench import machine, serve, serve_report

    size = _QUICK if quick else _FULL
    check_results(json_file, csv_file)
    _check_plot(plot)
    drafters = several(drafter, size.drafters, str)
    kinds = {name: engine.find_drafter(name)[0] for name in drafters}
    for name, kind in kinds.items():
        if kind not in _DRAFTERS:
            raise UserError(f"--drafter must have a form for the overlapped loop, got {name!r}")
    batches = several(max_batch, size.batches, integers("--max-batch", 1, engine.MAX_BATCH))
    rates = several(rate, size.rates, _rate)
    count = at_least("--requests", size.requests if requests is None else requests, 1)
    turns = at_least("--repeats", size.repeats if repeats is None else repeats, 1)
    at_least("--num-draft", num_draft or 0, 0)
    engine.check_choice("--dtype", dtype, engine.DTYPES)
    where = engine.find_device(device)
    with user_errors():
        settings = Request([0], size.new_tokens if max_new_tokens is None else max_new_tokens, temperature)
    console = Console(highlight=False)
    rows: list[Row] = []
    used = dict.fromkeys(op for kind in kinds.values() for op in used_ops(kind, "match", where.type, traced=False))
    with engine.find_backend(backend, list(used), where.type) as served:
        target = engine.load(engine.find_model("--model", model), dtype, where)
        guessers = [_guesser(name, kind, num_draft, target, dtype) for name, kind in kinds.items()]
        columns = {"model": target.name, "dtype": dtype, "backend": ", ".join(served)}
        setting = serve.Setting(
            model=target.model,
            ops=ops,
            guessers=guessers,
            requests=_load(target, settings, count),
            batches=batches,
            rates=rates,
            repeats=turns,
            promised=where.type == "cpu",
            columns=columns | machine.describe(where.type),
        )
        console.print(_introduction(setting.requests, columns, where), soft_wrap=True)
        with user_errors(), progress("measuring, in runs", setting.runs) as told:
            for found in serve.measure(setting, told):
                rows += found
    print_report(console, serve_report.tables(rows), serve_report.conclusions(rows, where.type))
    write_results(serve.Row, rows, json_file, csv_file)
    if plot is not None:
        _draw(rows, plot)
    return 1 if any(row.wrong for row in rows) else 0


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UserError(f"--rate must be numbers above 0, or inf, with commas, got {text!r}")
    return value


def _check_plot(path: Path | None) -> None:
    """Refuse a picture that could not be drawn, before anything is measured."""
    from bench.serve_plots import SUFFIXES

    if path is None:
        return
    check_file("--plot", path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--plot must name a file that ends in {', '.join(SUFFIXES)}, got {path}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot must have matplotlib, got no such package (pip install matplotlib)")


def _draw(rows: Sequence[Row], path: Path) -> None:
    from bench.serve_plots import draw

    with working("drawing"):
        try:
            draw(rows, path)
        except OSError as error:
            reason = (error.strerror or "no reason").lower()
            raise UserError(f"--plot must name a file that can be written, got {path}: {reason}") from error


def _guesser(name: str, kind: str, num_draft: int | None, target: Loaded, dtype: str) -> Guesser:
    from bench.serve import Guesser

    made = engine.make_drafter(name, target, dtype)
    usual = {method.drafter: method.num_draft for method in demo.METHODS}[kind]
    return Guesser(name, made, usual if num_draft is None else num_draft)


def _load(target: Loaded, settings: Request, count: int) -> list[Request]:
    """The prompts of the demo, from the first one again when there are not enough. No token ends a text early."""
    prompts = [target.encode(source.text) for source in demo.read_prompts(engine.ASSETS)]
    with user_errors():
        return [
            Request(prompts[i % len(prompts)], settings.max_new_tokens, settings.temperature, seed=i, stop_tokens=())
            for i in range(count)
        ]


def _introduction(requests: Sequence[Request], columns: dict[str, str], where: torch.device) -> str:
    lengths = [len(request.prompt) for request in requests]
    threads = f", threads: {torch.get_num_threads()}" if where.type == "cpu" else ""
    return (
        f"{columns['model']} serves {len(requests)} requests with prompts of {min(lengths)} to {max(lengths)} tokens, "
        f"{requests[0].max_new_tokens} new ones each, temperature {requests[0].temperature:g}; {columns['dtype']} on "
        f"{where}{threads}; ops on {columns['backend']}."
    )
