"""Reproduce the shipped models: ``python -m python_ref.training all``.

``train NAME --minutes 10`` is one slice of a training, to be called until it says that it is finished. ``all`` with
``--minutes`` gives each training a slice, and exports only what is finished.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import NoReturn

import torch

from ..models import load_model
from .data import Encoded, encode
from .export import ASSETS, evaluate, export
from .recipes import RECIPES, VOCAB_SIZE, Recipe
from .train import exported_step, is_finished, train

_PROGRAM = "python -m python_ref.training"


def _log(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def _refuse(text: str) -> NoReturn:
    raise SystemExit(f"{_PROGRAM}: {text}")


def _check_train(recipe: Recipe, options: argparse.Namespace) -> None:
    # What an unfinished teacher wrote would be kept, and learnt from to the end.
    if recipe.teacher and not is_finished(RECIPES[recipe.teacher], options.folder):
        _refuse(
            f"{recipe.name} learns from {recipe.teacher}, whose training must be finished in {options.folder} "
            f"({_PROGRAM} train {recipe.teacher})"
        )


def _check_export(recipe: Recipe, options: argparse.Namespace) -> None:
    step = exported_step(recipe, options.folder)
    if step is None:
        _refuse(f"{recipe.name} must be trained in {options.folder} first ({_PROGRAM} train {recipe.name})")
    if step != recipe.steps and not options.unfinished:
        _refuse(
            f"{recipe.name} has {step} of {recipe.steps} steps; `{_PROGRAM} train {recipe.name}` goes on, "
            "--unfinished exports it as it is"
        )


def _train(recipe: Recipe, data: Encoded, options: argparse.Namespace) -> None:
    teacher = None
    if recipe.teacher:
        weights = options.folder / recipe.teacher / "export"
        teacher = load_model(weights, dtype=torch.float32, device=options.device)
    done = train(
        recipe,
        options.folder,
        data,
        minutes=options.minutes,
        device=options.device,
        compiled=not options.eager,
        autocast=options.bfloat16,
        teacher=teacher,
        log=_log,
    )
    if done:
        _log(f"{recipe.name}: finished")
    else:
        step = exported_step(recipe, options.folder)
        _log(f"{recipe.name}: not finished, {step} of {recipe.steps} steps; the same command goes on")


def _export(recipe: Recipe, data: Encoded, options: argparse.Namespace) -> None:
    scores = export(recipe, options.folder, options.assets, data, options.device)
    _log(f"{recipe.name}: exported, {json.dumps(scores)}")


def _all(data: Encoded, options: argparse.Namespace) -> None:
    for recipe in RECIPES.values():
        _train(recipe, data, options)
        if not is_finished(recipe, options.folder):
            _log(f"{recipe.name}: not exported, what ships is as it was")
            return  # the next one may learn from this one
        _export(recipe, data, options)


def _evaluate(recipe: Recipe, data: Encoded, options: argparse.Namespace) -> None:
    scores = evaluate(recipe, data, options.assets, options.device)
    print(json.dumps({"model": recipe.name, **scores}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=__doc__)
    parser.add_argument("command", choices=("train", "export", "evaluate", "all"))
    parser.add_argument("model", nargs="?", choices=tuple(RECIPES), help="not for `all`")
    parser.add_argument("--folder", type=Path, default=Path("build/training"), help="state and logs")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where the models ship")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="length of this slice")
    parser.add_argument("--unfinished", action="store_true", help="export also a model whose training is not finished")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="multiply in bfloat16; slow on a processor without instructions for it",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Command line of the training; ``arguments`` default to those of the process."""
    parser = _parser()
    options = parser.parse_args(arguments)
    steps = {"train": _train, "export": _export, "evaluate": _evaluate}
    if options.command != "all" and options.model is None:
        parser.error(f"{options.command} needs a model: one of {', '.join(RECIPES)}")
    checks = {"train": _check_train, "export": _check_export}
    if options.command in checks:
        checks[options.command](RECIPES[options.model], options)
    data = encode(options.folder, VOCAB_SIZE, _log)
    if options.command == "all":
        _all(data, options)
    else:
        steps[options.command](RECIPES[options.model], data, options)


if __name__ == "__main__":
    main()
