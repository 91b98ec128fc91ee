"""Text from tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

# What a decoder puts in the place of bytes that are no character, or not yet.
_REPLACEMENT = "\ufffd"


class Tokenizer(Protocol):
    """What is needed of a tokenizer of the ``tokenizers`` library."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """The text of tokens."""
        ...


class TextStream:
    """The text of a growing run of tokens, piece by piece.

    A token may end within a character. What could still change is held back, so that the pieces together are the text of
    all tokens. Only a few tokens are decoded at a time, those of the last piece with them, because tokenizers treat the
    first token of a text in its own way.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._context = 0  # tokens of the window whose text has been given
        self._given = 0  # characters of the window's text that have been given

    def push(self, tokens: Sequence[int]) -> str:
        """Add tokens; the text that is certain now."""
        self._window += tokens
        text = self._decode()
        certain = text.rstrip(_REPLACEMENT)
        piece = certain[self._given :]
        self._given = max(self._given, len(certain))
        if certain == text and len(self._window) > self._context:
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._given = len(self._decode())
        return piece

    def finish(self) -> str:
        """What was held back, where the text ends within a character."""
        piece = self._decode()[self._given :]
        self._given += len(piece)
        return piece

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=True)
