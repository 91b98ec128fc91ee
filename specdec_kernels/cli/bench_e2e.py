"""``specdec bench e2e``: what drafters gain on the shapes of published models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console

import specdec_kernels as ops
from python_ref.decoding import Request
from python_ref.drafters.dflash import MOST_NODES

from . import engine
from .bench import check_package, check_results, print_report, write_results
from .errors import UserError, user_errors
from .generate import used_ops
from .options import BackendOption, CsvOption, DeviceOption
from .output import JsonOption, progress, working
from .values import at_least, floats, integers, several

if TYPE_CHECKING:
    from bench.e2e import Row, Work

# What the help says of the suite, which is imported when it is to run.
SHAPES = ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "llama-3.2-1b", "llama-3.1-8b")
DRAFTERS = ("dflash", "ddtree", "eagle3", "ngram", "independent")
DTYPES = ("float32", "bfloat16", "int8")
_MOST_DRAFTS = 63


def bench_e2e(
    shape: Annotated[
        str, typer.Option(metavar="|".join(SHAPES), help="Whose shape the target has; its weights are random.")
    ] = SHAPES[0],
    drafter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(DRAFTERS),
            help="Who guesses; several with commas or by repeating the option; default dflash.",
        ),
    ] = None,
    acceptance: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAU,...",
            help="Mean tokens of a step, the target's own included: how many drafts are accepted is drawn, not found out; "
            "default 4.3.",
        ),
    ] = None,
    num_draft: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,...",
            help="Drafts in a row; a block of DFlash has one token more. Default: 7 of dflash, ddtree and ngram, else 4.",
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(metavar="N", help="Nodes of a tree of ddtree, its root included.")] = 16,
    dtype: Annotated[str, typer.Option(metavar="|".join(DTYPES), help="Of the weights.")] = "bfloat16",
    device: DeviceOption = "cpu",
    backend: BackendOption = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Texts decoded together.")] = 1,
    context: Annotated[int, typer.Option(metavar="N", help="Tokens of each prompt.")] = 128,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of each text in a run.")] = 64,
    temperature: Annotated[float, typer.Option(help="Of the target; 0: always the best token.")] = 0.0,
    repeats: Annotated[int, typer.Option(metavar="N", help="Runs of each kind, in turns.")] = 5,
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
) -> int:
    """Decode on the shape of a published model, without and with a drafter: predicted and measured speed-up.

    Weights are random, text and acceptance synthetic; kernels, cache and loop are real. Ends with exit code 1 if a text is
    not what the target was to say.
    """
    check_package()
    from bench import e2e, e2e_report, machine

    check_results(json_file, csv_file)
    engine.check_choice("--shape", shape, SHAPES)
    engine.check_choice("--dtype", dtype, DTYPES)
    names = [engine.check_choice("--drafter", name, DRAFTERS) for name in several(drafter, DRAFTERS[0], str)]
    taus = several(acceptance, "4.3", floats("--acceptance", 1))
    lengths = several(num_draft, "1", integers("--num-draft", 1, _MOST_DRAFTS)) if num_draft else None
    for option, value, least in (
        ("--nodes", nodes, 2),
        ("--batch", batch, 1),
        ("--context", context, 2),
        ("--max-new-tokens", max_new_tokens, 1),
        ("--repeats", repeats, 1),
    ):
        at_least(option, value, least)
    if nodes > MOST_NODES:
        raise UserError(f"--nodes must be at most {MOST_NODES}, got {nodes}")
    where = engine.find_device(device)
    if where.type != "cpu" and dtype == "int8":
        raise UserError(f"--dtype must be float32 or bfloat16 on {where.type}, got 'int8'")
    with user_errors():
        Request([0], max_new_tokens, temperature)  # refuses before anything is made
        work = e2e.Work(shape, dtype, device, batch, context, max_new_tokens, repeats, nodes, temperature)
        cases = [
            e2e.Case(name, length, tau) for name in names for length in lengths or [e2e.DRAFTERS[name]] for tau in taus
        ]
        for case in cases:
            e2e.check(work, case)
    console = Console(highlight=False)
    rows: list[Row] = []
    used = dict.fromkeys(op for name in names for op in used_ops(name, "match", where.type, traced=False))
    used |= dict.fromkeys(used_ops("none", "match", where.type, traced=False))  # plain decoding is beside all of them
    with engine.find_backend(backend, list(used), where.type), user_errors():
        with working(f"making {shape} of random weights"):
            made = e2e.Bench(work, cases, ops, machine.describe(where.type))
        console.print(_introduction(work, where), soft_wrap=True)
        with progress("measuring, in turns", len(cases) * repeats) as told:
            rows += made.rows(told)
    print_report(console, e2e_report.tables(rows), e2e_report.conclusions(rows, where.type))
    write_results(e2e.Row, rows, json_file, csv_file)
    return 0 if all(row.identical for row in rows) else 1


def _introduction(work: Work, where: torch.device) -> str:
    threads = f", threads: {torch.get_num_threads()}" if where.type == "cpu" else ""
    texts = "1 text" if work.batch == 1 else f"{work.batch} texts together"
    return (
        f"{work.shape} with random {work.dtype} weights on {where}{threads}: {texts}, a context of {work.context} tokens and "
        f"{work.new_tokens} new ones. The text, and how many drafts are accepted, are drawn (synthetic); all else is computed."
    )
