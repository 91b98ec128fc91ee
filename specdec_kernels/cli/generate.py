"""``specdec generate``: continue one prompt, or a file of them, with any model, drafter and rule."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import specdec_kernels as ops
from python_ref.decoding import Candidate, Decoder, Output, Point, Request, Statistics
from python_ref.decoding.request import check_rule
from python_ref.decoding.trace import Recorder
from python_ref.drafters import RATIO_RULES

from . import engine, values
from .batch import Prompt, read_batch
from .engine import Loaded
from .errors import UserError, check_text, user_errors, utf8
from .options import BackendOption, DeviceOption, DtypeOption
from .output import JsonOption, check_file, check_json, progress, working, write_json, write_text
from .text import TextStream
from .trace_file import write_trace
from .vocabulary import token_bytes

RULES = ("match", "greedy", *RATIO_RULES)


def generate(
    model: Annotated[
        str, typer.Option(metavar="DIR|NAME", help="Folder in Hugging Face layout, or a shipped model.")
    ] = engine.TARGET,
    drafter: Annotated[
        str,
        typer.Option(
            metavar="none|ngram|independent|independent-tree|eagle3|eagle3-tree|dflash|ddtree",
            help="Who guesses; behind all but the first two also :DIR or :NAME, the model of the drafter.",
        ),
    ] = "none",
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Text to continue.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the text to continue; - or none: standard input.")
    ] = None,
    batch_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Lines of JSON: {"prompt": TEXT}, with max_new_tokens, temperature, top_k, top_p, min_p and seed where a '
            "line differs from the options. The results are lines of JSON on standard output.",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Most tokens to add.")] = 128,
    temperature: Annotated[float, typer.Option(help="0: always the best token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the K best tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the best tokens up to this mass; 1: all.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Keep tokens of at least this share of the best one's mass; 0: all.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
    num_draft: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Most drafts in a row; how wide a tree is, its drafter knows. auto: as many, and trees as wide, as are the "
            "fastest here: measured on the first tokens of the prompts, before anything is written. Each setting reads the "
            "prompts anew, up to 50 times for chains and 80 for trees: with long prompts and short texts give a number.",
        ),
    ] = "4",
    rule: Annotated[
        str,
        typer.Option(
            metavar="|".join(RULES),
            help="match: the text of plain decoding; greedy: the same at temperature 0; the others keep its law: rejection "
            "judges a draft at a time, block and traversal whole paths, greedy_plus_one chosen children and a drawn one.",
        ),
    ] = "match",
    min_confidence: Annotated[
        float,
        typer.Option(
            metavar="P", help="--drafter independent stops where its best token is less probable; 0: nowhere."
        ),
    ] = 0.0,
    max_entropy: Annotated[
        float | None,
        typer.Option(metavar="H", help="The same where the entropy of its law is larger, in nats; default: nowhere."),
    ] = None,
    replacement: Annotated[
        bool, typer.Option("--replacement", help="Siblings of --drafter independent-tree may repeat each other.")
    ] = False,
    backend: BackendOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    max_batch: Annotated[int, typer.Option(metavar="N", help="Most prompts of --batch-file decoded together.")] = 8,
    stats: Annotated[bool, typer.Option("--stats", help="Say on standard error what it cost.")] = False,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every step to FILE, for specdec trace; takes time.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Continue a prompt, and stream the text to standard output."""
    check_json(json_file)
    check_file("--trace", trace)
    recorder = None if trace is None else Recorder()
    engine.check_choice("--rule", rule, RULES)
    engine.check_choice("--dtype", dtype, engine.DTYPES)
    engine.check_max_batch(max_batch)
    kind, _ = engine.find_drafter(drafter)
    where = engine.find_device(device)
    drafts = values.num_draft(num_draft)
    if drafts is None and kind == "none":
        raise UserError("--num-draft auto must have a drafter, got --drafter none")
    with user_errors():
        settings = Request([0], max_new_tokens, temperature, top_k, top_p, min_p, seed)
    if (min_confidence or max_entropy is not None) and kind != "independent":
        raise UserError(f"--min-confidence and --max-entropy must be for --drafter independent, got {kind}")
    if not 0 <= min_confidence <= 1:
        raise UserError(f"--min-confidence must be from 0 to 1, got {min_confidence}")
    if max_entropy is not None and not max_entropy >= 0:
        raise UserError(f"--max-entropy must be at least 0, got {max_entropy}")
    prompts = _read_prompts(prompt, prompt_file, batch_file)
    asked = [_settings(settings, rule, item) for item in prompts]
    used = used_ops(kind, rule, where.type, trace is not None)
    with engine.find_backend(backend, used, where.type) as served:
        target = engine.load(engine.find_model("--model", model), dtype, where)
        requests = [_request(target, mine, item) for mine, item in zip(asked, prompts, strict=True)]
        with user_errors():
            decoder = Decoder(
                target.model,
                ops=ops,
                drafter=engine.make_drafter(
                    *(drafter, target, dtype, replacement, min_confidence),
                    math.inf if max_entropy is None else max_entropy,
                ),
                rule=rule,
                num_draft=drafts or 0,
                max_batch=min(max_batch, len(requests)),
                trace=recorder,
            )
        for item, request in zip(prompts, requests, strict=True):
            with _place(item):
                decoder.check(request)
        points = engine.calibrated(decoder, requests) if drafts is None else []
        with user_errors():
            run = _stream if batch_file is None else _run_batch
            outputs = run(decoder, target, requests)
    results = [_result(target, item, output) for item, output in zip(prompts, outputs, strict=True)]
    if batch_file is not None:
        for result in results:
            print(json.dumps(result, ensure_ascii=False))
    if stats:
        _print_statistics(decoder.statistics, points)
    named: dict[str, Any] = {
        "model": str(target.directory),
        "drafter": drafter,
        "rule": decoder.rule,
        "num_draft": decoder.num_draft,
    }
    if points:
        named |= {"nodes": points[0].candidate.nodes, "calibration": [asdict(point) for point in points]}
    named |= {"backend": ", ".join(served), "device": device, "dtype": dtype}
    if trace is not None and recorder is not None:
        write_trace(trace, recorder.to_dict(token_bytes(target.tokenizer), named | {"model": target.name}))
    write_json(json_file, named | {"outputs": results, "statistics": decoder.statistics.to_dict()})


def _setting(candidate: Candidate) -> str:
    drafts = f"{candidate.num_draft} drafts"
    return f"{drafts} in {candidate.nodes} nodes" if candidate.nodes else drafts


def _read_prompts(prompt: str | None, prompt_file: Path | None, batch_file: Path | None) -> list[Prompt]:
    given = [
        name
        for name, value in (("--prompt", prompt), ("--prompt-file", prompt_file), ("--batch-file", batch_file))
        if value is not None
    ]
    if len(given) > 1:
        raise UserError(f"one of {', '.join(given)} must be given, got {len(given)}")
    if batch_file is not None:
        return read_batch(batch_file)
    if prompt is None and prompt_file is not None and str(prompt_file) != "-":
        with user_errors():
            data = prompt_file.read_bytes()
        prompt = utf8(f"--prompt-file {prompt_file}", data)
    if prompt is None:
        prompt = _read_standard_input()
    return [Prompt(check_text("--prompt", prompt))]


def _read_standard_input() -> str:
    with user_errors():
        if sys.stdin is None or sys.stdin.isatty():  # None: closed
            raise UserError(
                "--prompt, --prompt-file or --batch-file must be given, or text on standard input, got none"
            )
        # As text, Python may let wrong bytes through as halves of characters.
        data = sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
    return utf8("standard input", data)


@contextmanager
def _place(item: Prompt) -> Iterator[None]:
    """Errors of the settings say which line they are of, where there are lines."""
    try:
        with user_errors():
            yield
    except UserError as error:
        if not item.is_line:
            raise
        raise UserError(f"{item.place}: {error}") from error


def used_ops(kind: str, rule: str, device: str, traced: bool) -> list[str]:
    """The ops of a run with a kind of drafter; a run that is traced verifies even where nothing is drafted."""
    drafts = {
        "none": [],
        "ngram": ["draft_ngram_lookup"],
        "independent": ["sample_draft"],
        "independent-tree": ["sample_draft", "kv_commit"],
        "eagle3": ["sample_draft", "kv_gather"],
        "eagle3-tree": ["draft_expand", "tree_from_parents", "tree_from_beams", "kv_gather", "kv_commit"],
        "dflash": ["sample_draft", "kv_inject", "kv_gather"],
        "ddtree": ["sample_draft", "kv_inject", "tree_best_first", "kv_gather", "kv_commit"],
    }[kind]
    if kind == "none":
        used = ["tree_from_chains", "verify_match"] if traced else ["sample_sample"]
    else:
        verified = "verify_rejection" if rule in RATIO_RULES else f"verify_{rule}"
        used = [*drafts, "tree_from_chains", verified]
    used += ["kv_write", "attention_tree_attention"]
    return used + (["linear_pack", "linear_skinny"] if device == "cpu" else [])


def _settings(settings: Request, rule: str, item: Prompt) -> Request:
    """The settings of all with those of a line; the tokens come when there is a tokenizer."""
    with _place(item):
        mine = replace(settings, **item.settings)
        check_rule("generate", rule, mine)
    return mine


def _request(target: Loaded, settings: Request, item: Prompt) -> Request:
    tokens = target.encode(item.text)
    if not tokens:
        raise UserError(f"{item.place} must have at least one token, got {item.text!r}")
    return replace(settings, prompt=tokens)


def _stream(decoder: Decoder, target: Loaded, requests: list[Request]) -> list[Output]:
    text = TextStream(target.tokenizer)
    with ExitStack() as stack:
        waiting: list[AbstractContextManager[None]] = [working("reading the prompt")]
        stack.enter_context(waiting[0])

        def show(tokens: list[int]) -> None:
            stack.close()  # the first token is there
            write_text(text.push(tokens))

        outputs = decoder.generate([replace(request, on_tokens=show) for request in requests])
    write_text(text.finish())
    if sys.stdout.isatty():
        print()
    return outputs


def _run_batch(decoder: Decoder, target: Loaded, requests: list[Request]) -> list[Output]:
    done = 0
    most = [min(request.max_new_tokens, decoder.max_positions - len(request.prompt)) for request in requests]
    with progress("tokens", sum(most)) as report:

        def count(tokens: list[int]) -> None:
            nonlocal done
            done += len(tokens)
            report(done)

        counted: Callable[[list[int]], None] = count
        return decoder.generate([replace(request, on_tokens=counted) for request in requests])


def _result(target: Loaded, item: Prompt, output: Output) -> dict[str, Any]:
    return {
        "prompt": item.text,
        "text": target.decode(output.tokens),
        "tokens": output.tokens,
        "finish_reason": output.finish_reason,
        "steps": output.steps,
    }


def _print_statistics(statistics: Statistics, points: list[Point]) -> None:
    console = Console(stderr=True, highlight=False)
    if points:
        others = ", ".join(f"{_setting(point.candidate)}: {point.rate:.3g}" for point in points[1:])
        best = points[0]
        rates = f"{best.rate:.3g} tokens/s of a text; {others}"
        gained = any(point.tokens_per_step > 1 for point in points if point.candidate.num_draft)
        why = "" if gained else "; no drafts gained a token"
        console.print(f"chosen on the first tokens: {_setting(best.candidate)} ({rates}){why}")
    rate = f"{statistics.tokens_per_second:.1f} tokens/s without the prompts"
    per_step = f"{statistics.mean_tokens_per_step:.2f} tokens per step"
    console.print(f"{statistics.new_tokens} tokens in {statistics.steps} steps: {per_step}, {rate}")
    if statistics.drafted:
        shares = " ".join(f"{share:.2f}" for share in statistics.acceptance)
        console.print(f"accepted drafts by position: {shares}")
    parts = {
        "prompts": statistics.prefill_seconds,
        "drafter": statistics.draft_seconds,
        "target": statistics.target_seconds,
        "verification": statistics.verify_seconds,
        "all": statistics.total_seconds,
    }
    console.print("seconds: " + ", ".join(f"{name} {value:.3f}" for name, value in parts.items()))
