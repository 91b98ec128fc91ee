"""Files of prompts, one JSON value per line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UserError, check_text, user_errors

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
        is_line: whether it is one of several, so that its errors must say which.
    """

    text: str
    place: str = "the prompt"
    settings: dict[str, Any] = field(default_factory=dict)
    is_line: bool = False


def read_batch(path: Path) -> list[Prompt]:
    """The prompts of a file; empty lines are skipped.

    Raises:
        UserError: if the file cannot be read, holds no prompt, or a line is not as it must be.
    """
    with user_errors():
        data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--batch-file must be UTF-8 text, got {path}: {error}") from error
    # Not splitlines: it also splits at characters that may stand within a text of JSON. Of "\r\n" JSON skips the rest.
    lines = text.split("\n")
    prompts = [_parse(f"--batch-file line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UserError(f"--batch-file must hold at least one line, got none in {path}")
    return prompts


def _parse(place: str, line: str) -> Prompt:
    try:
        value = json.loads(line)
    except RecursionError:
        raise UserError(
            f"{place} must be an object with a text as its prompt, got brackets nested too deeply"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{place} must be JSON, got: {error}") from None
    except ValueError:  # the only other one
        raise UserError(f"{place} must be JSON that can be read, got a number of too many digits") from None
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise UserError(f"{place} must be an object with a text as its prompt, got {line.strip()[:80]}")
    settings = {name: setting for name, setting in value.items() if name != "prompt"}
    for name, setting in settings.items():
        types = _SETTINGS.get(name)
        if types is None:
            raise UserError(f"{place} must have no fields but prompt, {', '.join(_SETTINGS)}, got {name[:80]!r}")
        if not isinstance(setting, types) or isinstance(setting, bool):
            what = "an integer" if types == (int,) else "a number"
            raise UserError(f"{place}: {name} must be {what}, got {_brief(setting)}")
    return Prompt(check_text(f"{place}: prompt", value["prompt"]), place, settings, is_line=True)


def _brief(value: Any) -> str:
    try:
        return json.dumps(value)[:80]
    except RecursionError:
        return "brackets nested too deeply"
