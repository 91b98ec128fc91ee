"""Files of prompts, one JSON value per line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UserError, user_errors

# Settings that a line may have of its own, and the Python types of their values.
_SETTINGS: dict[str, tuple[type, ...]] = {
    "max_new_tokens": (int,),
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
    "min_p": (int, float),
    "seed": (int,),
}


@dataclass(frozen=True)
class Prompt:
    """A text to continue.

    Attributes:
        text: the prompt.
        place: where it came from, for messages.
        settings: what differs from the settings of all, by name.
    """

    text: str
    place: str = "the prompt"
    settings: dict[str, Any] = field(default_factory=dict)


def read_batch(path: Path) -> list[Prompt]:
    """The prompts of a file; empty lines are skipped.

    Raises:
        UserError: if the file cannot be read, holds no prompt, or a line is not as it must be.
    """
    with user_errors():
        lines = path.read_text(encoding="utf-8").splitlines()
    prompts = [_parse(f"--batch-file line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UserError(f"--batch-file must hold at least one line, got none in {path}")
    return prompts


def _parse(place: str, line: str) -> Prompt:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} must be JSON, got: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise UserError(f"{place} must be an object with a text as its prompt, got {line.strip()[:80]}")
    settings = {name: setting for name, setting in value.items() if name != "prompt"}
    for name, setting in settings.items():
        types = _SETTINGS.get(name)
        if types is None:
            raise UserError(f"{place} must have no fields but prompt, {', '.join(_SETTINGS)}, got {name!r}")
        if not isinstance(setting, types) or isinstance(setting, bool):
            what = "an integer" if types == (int,) else "a number"
            raise UserError(f"{place}: {name} must be {what}, got {json.dumps(setting)}")
    return Prompt(value["prompt"], place, settings)
