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
_SPEAKERS = ("Request: ", "Decoder: ", "generate: ")


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
    except (ValueError, BackendUnavailableError) as error:
        raise UserError(sentence(error)) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(f"memory must suffice for the model and its cache, got: {sentence(error)}") from error


def sentence(error: Exception) -> str:
    """The message of an error on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    for speaker in _SPEAKERS:
        text = text.removeprefix(speaker)
    return text


def _of_file(error: OSError) -> str:
    if error.filename is None or error.strerror is None:
        return sentence(error)
    return f"{error.filename} must be a readable file, got: {error.strerror.lower()}"
