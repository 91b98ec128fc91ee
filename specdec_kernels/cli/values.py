"""Values of options: several in one, and bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from .errors import UserError

_T = TypeVar("_T")

#: Value of ``--num-draft`` for the number that is the fastest here and now.
AUTO = "auto"


def several(given: Sequence[str] | None, default: str, read: Callable[[str], _T]) -> list[_T]:
    """The values of an option that may be repeated and hold commas, each of them once."""
    return list(dict.fromkeys(read(part.strip()) for value in given or [default] for part in value.split(",")))


def at_least(option: str, value: int, least: int) -> int:
    """``value``, if it is not below ``least``.

    Raises:
        UserError: if it is.
    """
    if value < least:
        raise UserError(f"{option} must be at least {least}, got {value}")
    return value


def integers(option: str, least: int, most: int) -> Callable[[str], int]:
    """Reads the integers of an option.

    Returns:
        A function that raises :class:`UserError` for what is no integer, or out of the range.
    """

    def read(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= 9 and least <= int(text) <= most:
            return int(text)
        raise UserError(f"{option} must be integers from {least} to {most} with commas, got {text!r}")

    return read


def floats(option: str, least: float) -> Callable[[str], float]:
    """Reads the numbers of an option.

    Returns:
        A function that raises :class:`UserError` for what is no number, or below ``least``.
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value < float("inf"):
            raise UserError(f"{option} must be numbers from {least:g} with commas, got {text!r}")
        return value

    return read


def num_draft(text: str) -> int | None:
    """The value of ``--num-draft``; None for :data:`AUTO`.

    Raises:
        UserError: if it is neither that nor an integer from 0 on.
    """
    if text == AUTO:
        return None
    if text.isascii() and text.isdigit():
        return int(text[:32])
    raise UserError(f"--num-draft must be an integer from 0 on, or {AUTO}, got {text!r}")
