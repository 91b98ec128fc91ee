"""Reproduce the shipped models: ``python -m python_ref.training all``.

``train NAME --minutes 10`` is one slice of a training, to be called until it says that it is finished.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from ..models import load_model
from .data import Encoded, encode
from .export import ASSETS, evaluate, export
from .recipes import RECIPES, VOCAB_SIZE, Recipe
from .train import train


def _log(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


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
    _log(f"{recipe.name}: {'finished' if done else 'call again to go on'}")


def _export(recipe: Recipe, data: Encoded, options: argparse.Namespace) -> None:
    scores = export(recipe, options.folder, options.assets, data, options.device)
    _log(f"{recipe.name}: exported, {json.dumps(scores)}")


def _evaluate(recipe: Recipe, data: Encoded, options: argparse.Namespace) -> None:
    scores = evaluate(recipe, data, options.assets, options.device)
    print(json.dumps({"model": recipe.name, **scores}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m python_ref.training", description=__doc__)
    parser.add_argument("command", choices=("train", "export", "evaluate", "all"))
    parser.add_argument("model", nargs="?", choices=tuple(RECIPES), help="not for `all`")
    parser.add_argument("--folder", type=Path, default=Path("build/training"), help="state and logs")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where the models ship")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="length of this slice")
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
    data = encode(options.folder, VOCAB_SIZE, _log)
    if options.command == "all":
        for recipe in RECIPES.values():
            _train(recipe, data, options)
            _export(recipe, data, options)
    else:
        steps[options.command](RECIPES[options.model], data, options)


if __name__ == "__main__":
    main()
