"""``specdec demo``: the shipped model continues held-out source code, by plain decoding and with each drafter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table

import specdec_kernels as ops
from python_ref.decoding import Decoder
from python_ref.decoding.calibration import NEW_TOKENS

from . import engine, rules, values
from .comparison import PLAIN, Method, Row, compare, decoders, request, with_nodes
from .engine import BLOCKS, DRAFT, HEAD, TARGET, Loaded
from .errors import UserError, check_text, user_errors
from .options import BackendOption, DeviceOption, DtypeOption
from .output import JsonOption, check_json, printable, progress, write_json
from .text import TextStream
from .values import AUTO

METHODS = (
    Method(PLAIN, 0.0),
    Method("ngram", 0.0),
    Method("independent", 0.0),
    Method("eagle3", 0.0),
    Method("eagle3-tree", 0.0),
    Method("dflash", 0.0, num_draft=7),
    Method("ddtree", 0.0, num_draft=7),
    Method(PLAIN, 0.8),
    Method("ngram", 0.8),
    Method("independent", 0.8),
    Method("independent", 0.8, rule="rejection"),
    Method("eagle3", 0.8),
    Method("eagle3-tree", 0.8),
    Method("dflash", 0.8, num_draft=7),
    Method("ddtree", 0.8, num_draft=7),
)

_PROMPTS = "prompts.json"
# The ops of which the methods consist; which backend serves them decides what the figures are about.
_OPS = (
    "tree_from_chains",
    "sample_sample",
    "sample_draft",
    "verify_match",
    "verify_rejection",
    "verify_expect",
    "draft_ngram_lookup",
    "draft_expand",
    "tree_from_parents",
    "tree_from_beams",
    "attention_tree_attention",
    "kv_write",
    "kv_commit",
    "kv_gather",
    "kv_inject",
    "tree_best_first",
    "linear_pack",
    "linear_skinny",
)
_SHOWN_LINES = 8
# Share of distinct 4-grams below which a text counts as repetitive.
_REPETITIVE = 0.5


class _Size(NamedTuple):
    """How much work a run is: prompts and tokens that are measured, and tokens that are shown."""

    prompts: int
    new_tokens: int
    shown_tokens: int


_FULL, _QUICK = _Size(20, 128, 64), _Size(4, 48, 32)


class Source(NamedTuple):
    """A prompt and where it stands in the standard library."""

    place: str
    text: str


def demo(
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"{_QUICK.prompts} prompts and {_QUICK.new_tokens} new tokens instead of {_FULL.prompts} and "
            f"{_FULL.new_tokens}: fast, and less exact.",
        ),
    ] = False,
    max_batch: Annotated[
        int, typer.Option(metavar="N", help="Most prompts decoded together; 1 is where drafts gain most.")
    ] = 4,
    backend: BackendOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    assets: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help=f"Folder with {TARGET}, {DRAFT}, {HEAD}, {BLOCKS} and {_PROMPTS}; none: what is shipped.",
        ),
    ] = None,
    num_draft: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Most drafts in a row of all drafters; auto: as many, and trees as wide, as are the fastest here, found out on "
            "prompts that are not measured. None: 7 of the block drafters, 4 of the others.",
        ),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Continue held-out source code with the shipped model and every drafter, and say what each gains and costs."""
    check_json(json_file)
    engine.check_max_batch(max_batch)
    engine.check_choice("--dtype", dtype, engine.DTYPES)
    where = engine.find_device(device)
    folder = engine.ASSETS if assets is None else assets
    size = _QUICK if quick else _FULL
    drafts = None if num_draft in (None, AUTO) else values.num_draft(str(num_draft))
    methods = [method if drafts is None else replace(method, num_draft=drafts) for method in METHODS]
    every = read_prompts(folder)
    sources = every[: size.prompts]
    place = _find_model(folder, TARGET, "decoder")
    specs = {method.drafter: _spec(folder, method.drafter) for method in METHODS}
    with engine.find_backend(backend, _used(where.type), where.type) as served:
        target = engine.load(place, dtype, where)
        drafters = {kind: engine.make_drafter(spec, target, dtype) for kind, spec in specs.items()}
        prompts = [target.encode(source.text) for source in sources]
        console = Console(highlight=False)
        _introduce(console, target, drafters["independent"].model, dtype, where, served)
        with user_errors():
            engines = decoders(target.model, ops, methods, drafters, min(max_batch, len(prompts)))
            methods = [with_nodes(method, decoder) for method, decoder in zip(methods, engines, strict=True)]
            # What is shown warms everything up, and is not measured: writing takes time, too.
            _show(console, target, methods, engines, sources, prompts, size.shown_tokens)
            if num_draft == AUTO:
                others = [target.encode(source.text) for source in every[size.prompts :] or sources]
                methods = [_fastest(method, decoder, others) for method, decoder in zip(methods, engines, strict=True)]
            total = len(methods) * len(prompts) * size.new_tokens
            with progress("measuring, in tokens", total) as report:
                rows = compare(methods, engines, prompts, size.new_tokens, report)
            with progress("the rules, in texts", len(rules.ENTRIES) * len(prompts)) as report:
                shared = (target.model, drafters["independent"].model, ops, prompts)
                ruled = rules.measure(*shared, size.new_tokens, min(max_batch, len(prompts)), report)
    console.print()
    console.print(_table(rows))
    console.print()
    console.print(f"{min(max_batch, len(prompts))} of {rows[0].prompts} prompts at a time; the prompts are not timed.")
    console.print(meaning(rows))
    console.print(
        f"\nSampled drafts at temperature {rules.TEMPERATURE:g} under the rules that keep the target's law:\n"
    )
    console.print(rules.table(ruled))
    console.print(
        "\nclosed form: what the rule had to expect of these steps, without the luck of its coins; by token, by traversal: "
        "what those rules would have had to expect of the same drafts. (Texts differ, so rows compare across with luck.)"
    )
    write_json(json_file, {"methods": [asdict(row) for row in rows], "rules": [asdict(row) for row in ruled]})


def _find(folder: Path, name: str) -> Path:
    if not (folder / name).exists():
        raise UserError(
            f"{folder} must hold the models {TARGET}, {DRAFT}, {HEAD} and {BLOCKS} and {_PROMPTS}, got no {name} "
            "(python -m python_ref.training all makes them)"
        )
    return folder / name


def _find_model(folder: Path, name: str, kind: str) -> Path:
    return engine.find_model("--assets", str(_find(folder, name)), kind)


def _spec(folder: Path, drafter: str) -> str:
    """A drafter of the demo as on the command line, with its model of the folder, which is there."""
    if drafter not in engine.MODELS:
        return drafter
    return f"{drafter}:{_find_model(folder, *engine.MODELS[drafter])}"


def read_prompts(folder: Path) -> list[Source]:
    """The held-out prompts, in the order in which their hashes chose them."""
    path = _find(folder, _PROMPTS)
    with user_errors():
        text = path.read_text(encoding="utf-8")
    try:
        sources = [Source(f"{item['file']}, line {item['line']}", str(item["prompt"])) for item in json.loads(text)]
    except (ValueError, TypeError, KeyError, RecursionError):
        sources = []
    if not sources or not all(source.text for source in sources):
        raise UserError(f"{path} must be a JSON list of objects with file, line and prompt, got something else")
    for source in sources:
        check_text(f"{path}: prompt of {printable(source.place)}", source.text)
    return sources


def _introduce(
    console: Console, target: Loaded, draft: Any, dtype: str, device: torch.device, served: dict[str, list[str]]
) -> None:
    weights = sum(parameter.numel() for parameter in draft.parameters())
    console.print(
        f"{TARGET} ({_millions(target.parameters)} weights) continues Python source that it has not been trained on; "
        f"{DRAFT} ({_millions(weights)} weights) drafts for it, and so do {HEAD} and {BLOCKS}, which read its hidden "
        "states, and its own text.",
        soft_wrap=True,
    )
    threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    console.print(f"{dtype} on {device}{threads}; {_served_by(served)}.", soft_wrap=True)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} million"


def _used(device: str) -> list[str]:
    return [op for op in _OPS if device == "cpu" or not op.startswith("linear_")]


def _served_by(served: dict[str, list[str]]) -> str:
    """Which backend computes the ops: with kernels that are missing the figures would say little."""
    (most, _), *others = served.items()
    text = f"ops on {most}"
    for backend, late in others:
        names = ", ".join(op.replace("_", ".", 1) for op in late)
        text += f", but {names} on {backend}" + (", which is slow" if backend == "reference" else "")
    return text


def _show(
    console: Console,
    target: Loaded,
    methods: Sequence[Method],
    engines: Sequence[Decoder],
    sources: Sequence[Source],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
) -> None:
    """Let every method continue a prompt before the reader's eyes: one prompt per temperature."""
    coloured = console.color_system is not None
    if coloured:
        console.print("Drafts that were accepted are green.", style="green")
    shown: float | None = None
    which = -1
    for method, decoder in zip(methods, engines, strict=True):
        if method.temperature != shown:
            shown, which = method.temperature, (which + 1) % len(prompts)
            _print_prompt(console, sources[which])
        console.print()
        console.rule(str(method), align="left", characters="-")
        text = TextStream(target.tokenizer)

        def write(tokens: list[int], text: TextStream = text) -> None:
            for style, part in (("green", tokens[:-1]), (None, tokens[-1:])):  # the last one is the target's own
                console.out(printable(text.push(part)), style=style, end="", highlight=False)

        decoder.generate([request(prompts[which], new_tokens, method.temperature, which, write)])
        console.out(printable(text.finish()), highlight=False)


def _fastest(method: Method, decoder: Decoder, prompts: Sequence[Sequence[int]]) -> Method:
    """The method with the number of drafts, and the nodes of trees, that decode other prompts the fastest."""
    if decoder.drafter is None:
        return method
    requests = [request(prompt, NEW_TOKENS, method.temperature, i, None) for i, prompt in enumerate(prompts)]
    best = engine.calibrated(decoder, requests)[0].candidate
    return replace(method, num_draft=best.num_draft, nodes=best.nodes)


def _print_prompt(console: Console, source: Source) -> None:
    lines = source.text.splitlines()
    console.print()
    console.rule(f"prompt: {source.place}", align="left", characters="=")
    if len(lines) > _SHOWN_LINES:
        console.out(f"... {len(lines) - _SHOWN_LINES} more lines", style="dim", highlight=False)
    console.out(printable("\n".join(lines[-_SHOWN_LINES:])), style="dim", highlight=False)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("drafter", no_wrap=True)
    table.add_column("rule", no_wrap=True)
    for name in ("drafts", "tokens/s", "speed-\nup", "tokens\nper step", "break-\neven", "distinct\n4-grams"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("same\ntext", no_wrap=True)
    before: float | None = None
    for row in rows:
        if row.temperature != before:
            if before is not None:
                table.add_row()
            table.add_row(f"T = {row.temperature:g}", style="bold")
            before = row.temperature
        same = {True: "yes", False: "NO", None: "its law"}[row.identical_to_baseline]
        table.add_row(
            row.drafter,
            "" if row.drafter == PLAIN else row.rule,
            _drafts(row),
            f"{row.tokens_per_second:.1f}",
            f"{row.speedup:.2f}",
            f"{row.mean_tokens_per_step:.2f}",
            f"{row.break_even_tokens_per_step:.2f}",
            f"{row.distinct_4gram_share:.2f}",
            same,
        )
    return table


def _drafts(row: Row) -> str:
    """Drafts in a row, and behind a stroke the nodes of a tree."""
    if row.drafter == PLAIN:
        return ""
    return f"{row.num_draft}/{row.nodes}" if row.nodes else str(row.num_draft)


def meaning(rows: Sequence[Row]) -> str:
    """One sentence: what drafts cost and gained, where they paid, and whether the text stayed what it was."""
    drafted = [row for row in rows if row.drafter != PLAIN]
    faster = sorted((row for row in drafted if row.speedup > 1), key=lambda row: -row.speedup)
    speeds = [row.speedup for row in drafted]
    if not faster:
        verdict = f"plain decoding is the fastest, the others reach {_span(speeds, 2)} of its speed"
    elif len(faster) == len(drafted):
        verdict = f"all of them are faster than plain decoding ({_span(speeds, 2)} times its speed)"
    else:
        names = ", ".join(f"{_name(row)} ({row.speedup:.2f} times its speed)" for row in faster)
        slower = [row.speedup for row in drafted if row not in faster]
        verdict = f"faster than plain decoding: {names}, and slower: the rest ({_span(slower, 2)})"
    costs = [row.break_even_tokens_per_step for row in drafted]
    gains = [row.mean_tokens_per_step for row in drafted]
    return (
        f"On this machine a step with drafts takes the time of {_span(costs, 1)} plain steps and gains {_span(gains, 1)} "
        f"tokens; {verdict}; {_repetition(rows)}{_proof(drafted)}."
    )


def _repetition(rows: Sequence[Row]) -> str:
    """What must be known of texts that turn in circles: their drafts are too easy."""
    shares = {row.temperature: row.distinct_4gram_share for row in rows if row.drafter == PLAIN}
    looping = [f"{share:.2f} at temperature {t:g}" for t, share in shares.items() if share < _REPETITIVE]
    if not looping:
        return ""
    return f"the text repeats itself (distinct 4-grams: {', '.join(looping)}), which flatters ngram above all; "


def _name(row: Row) -> str:
    return str(Method(row.drafter, row.temperature, row.rule))


def _span(values: Sequence[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _proof(drafted: Sequence[Row]) -> str:
    promised = [row for row in drafted if row.identical_to_baseline is not None]
    broken = [row for row in promised if not row.identical_to_baseline]
    if broken:
        names = ", ".join(map(_name, broken))
        return f"the text of plain decoding was promised, and NOT given by {names}"
    return "wherever the rule promises the text of plain decoding, it is that text, token for token"
