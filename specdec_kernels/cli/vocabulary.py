"""What the tokens of a vocabulary stand for, byte by byte."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

# SentencePiece's mark of a space, and its tokens of single bytes.
_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any) -> Callable[[int], bytes]:
    """How to get from a token to its bytes, which need not be whole characters.

    Args:
        tokenizer: of ``tokenizers``; of the byte-level kind (GPT-2, Qwen, Llama 3) or of that of SentencePiece (Llama 2).

    Returns:
        A function; what is no token is empty.
    """
    literal = {i: added.content for i, added in tokenizer.get_added_tokens_decoder().items()}
    letters = _byte_letters() if '"ByteLevel"' in _decoder(tokenizer) else None

    def read(token: int) -> bytes:
        if token in literal:
            return str(literal[token]).encode()
        piece = tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if letters is not None and all(letter in letters for letter in piece):
            return bytes(letters[letter] for letter in piece)
        byte = _BYTE.fullmatch(piece)
        if byte is not None:
            return bytes.fromhex(byte[1])
        return str(piece).replace(_SPACE, " ").encode()

    return read


def _decoder(tokenizer: Any) -> str:
    return json.dumps(json.loads(tokenizer.to_str()).get("decoder"))


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with: printable ones as they are, the others from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
