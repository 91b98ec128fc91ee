"""What a user did wrong, as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import typer

from .._backend import BackendUnavailableError

#: What typer raises for a wrong command line. Its name for the class has moved between versions, its place has not.
UsageError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

# Who speaks is clear from the name of the command.
_SPEAKERS = ("Request: ", "Decoder: ", "generate: ", "load_model: ")
# On the CPU torch has no class of its own for this.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
# Longer messages hold a value of the user's that nobody wants to read to its end.
_LONGEST = 400


class UserError(Exception):
    """One sentence for the user; the command ends with exit code 2.

    Attributes:
        command: name of the command that failed.
    """

    command = ""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what the library says of wrong values, files and devices into a :class:`UserError`."""
    try:
        yield
    except BrokenPipeError:
        raise  # no file of the user's: the reader of the output is gone
    except OSError as error:
        raise UserError(_of_file(error)) from error
    except (ValueError, OverflowError, BackendUnavailableError) as error:
        raise UserError(sentence(error)) from error
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        raise UserError(f"memory must suffice for the model and its cache, got: {sentence(error)}") from error


def sentence(error: Exception) -> str:
    """The message of an error on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    for speaker in _SPEAKERS:
        text = text.removeprefix(speaker)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def utf8(place: str, data: bytes) -> str:
    """The text of bytes, with the line ends of Python.

    Raises:
        UserError: if they are not UTF-8.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place} must be UTF-8 text, got: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_text(place: str, text: str) -> str:
    """``text``, if it has characters only; Python also takes halves of them, from wrong bytes and from JSON.

    Raises:
        UserError: if it holds a lone surrogate.
    """
    for i, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise UserError(f"{place} must be UTF-8 text, got {character!r} as character {i + 1}")
    return text


def unwritable(error: OSError) -> UserError:
    """What to say when standard output does not take the text, or else the file that the error names."""
    if error.filename is not None:
        return UserError(_of_file(error))
    return UserError(f"standard output must be writable, got: {(error.strerror or sentence(error)).lower()}")


def _is_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in _NO_MEMORY)


def _of_file(error: OSError) -> str:
    if error.filename is None or error.strerror is None:
        return sentence(error)
    return f"{error.filename} must be a readable file, got: {error.strerror.lower()}"
