"""``specdec bench drafts``: the choice of ``--num-draft auto`` beside an exhaustive search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import specdec_kernels as ops
from python_ref.decoding import Decoder, Request

from . import demo, engine
from .bench import check_package, check_results, write_results
from .errors import UserError, user_errors
from .options import CsvOption, DeviceOption, DtypeOption
from .output import JsonOption, progress
from .values import at_least, several

if TYPE_CHECKING:
    from bench.drafts import Contest, Row

_NAMES = engine.DRAFTERS[1:]
_SHOWN = 5


def bench_drafts(
    drafter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="|".join(_NAMES),
            help="Who guesses; several with commas or by repeating the option; default dflash, ddtree.",
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0: always the best token.")] = 0.0,
    max_batch: Annotated[int, typer.Option(metavar="N", help="Texts decoded together.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of each text of the search.")] = 96,
    repeats: Annotated[int, typer.Option(metavar="N", help="Generations of each setting, in turns.")] = 5,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
) -> None:
    """Choose the number of drafts as --num-draft auto does, and measure every other number beside it.

    The shipped model continues held-out prompts; the choice is made on other prompts than those that are measured.
    """
    check_package()
    from bench import drafts, machine
    from bench.rows import busy

    check_results(json_file, csv_file)
    engine.check_choice("--dtype", dtype, engine.DTYPES)
    engine.check_max_batch(max_batch)
    at_least("--max-new-tokens", max_new_tokens, 1)
    at_least("--repeats", repeats, 1)
    names = several(drafter, "dflash,ddtree", str)
    for name in names:
        if engine.find_drafter(name)[0] == "none":
            raise UserError(f"--drafter must be one of {', '.join(_NAMES)}, got {name!r}")
    where = engine.find_device(device)
    with user_errors():
        settings = Request([0], max_new_tokens, temperature, stop_tokens=())
    target = engine.load(engine.find_model("--model", engine.TARGET), dtype, where)
    prompts = [target.encode(source.text) for source in demo.read_prompts(engine.ASSETS)]
    requests = [Request(p, max_new_tokens, settings.temperature, seed=i, stop_tokens=()) for i, p in enumerate(prompts)]
    contests = [_contest(name, target, dtype, max_batch, requests) for name in names]
    total = sum(repeats * drafts.most_candidates(contest.decoder.drafter) for contest in contests)
    console = Console(highlight=False)
    rows: list[Row] = []
    with user_errors(), progress("measuring, in generations", total) as told:
        setting = drafts.Setting(machine.describe(where.type), max_new_tokens, repeats, told)
        for found in drafts.measure_all(contests, setting):
            rows += found
    for name in names:
        _print(console, [row for row in rows if row.drafter == name])
    for line in busy(rows, where.type):
        console.print(Text(line))
    write_results(drafts.Row, rows, json_file, csv_file)


def _contest(name: str, target: engine.Loaded, dtype: str, max_batch: int, requests: Sequence[Request]) -> Contest:
    from bench.drafts import Contest

    batch = min(max_batch, max(len(requests) // 2, 1))
    decoder = Decoder(target.model, ops=ops, drafter=engine.make_drafter(name, target, dtype), max_batch=batch)
    return Contest(name, decoder, requests[-batch:], requests[:batch])


def _print(console: Console, rows: Sequence[Row]) -> None:
    """The best settings of a drafter, the chosen one among them, and what was lost by the choice."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("drafts", "nodes", "tokens/step", "ms/step", "tokens/s of a text", "of the best", ""):
        table.add_column(name, justify="right", no_wrap=True)
    (chosen,) = (row for row in rows if row.chosen)
    for row in rows[:_SHOWN] if chosen in rows[:_SHOWN] else [*rows[:_SHOWN], chosen]:
        table.add_row(
            str(row.num_draft),
            str(row.nodes or ""),
            f"{row.tokens_per_step:.2f}",
            f"{row.step_ms:.2f}",
            f"{row.tokens_per_s:.1f}",
            f"{row.share_of_best:.2f}",
            "auto" if row.chosen else "",
        )
    console.print(Text(f"{chosen.drafter}, the fastest of {len(rows)} settings", style="bold"))
    console.print(table)
    console.print(
        Text(f"auto reaches {100 * chosen.share_of_best:.1f} % of the best of all settings, chosen on other prompts.\n")
    )
