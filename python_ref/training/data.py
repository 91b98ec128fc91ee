"""Tokens: the encoded corpus, text written by a teacher, and the batches of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..models.transformer import Transformer
from . import corpus
from .generate import continuations
from .tokenizer import END_OF_TEXT, train_tokenizer

# Seeds of the windows and of the prompts of generated text.
_WINDOWS, _PROMPTS = 0, 1 << 20


@dataclass(frozen=True)
class Encoded:
    """The corpus in tokens.

    ``stream``: int64 ``[N]``, the training files, each after an end-of-text. ``held_out``: per file its tokens between
    two end-of-texts, and its length in bytes.
    """

    stream: Tensor
    held_out: list[tuple[Tensor, int]]
    tokenizer: Tokenizer


def encode(folder: Path, vocab_size: int, log: Callable[[str], None]) -> Encoded:
    """Read and encode the corpus; the tokenizer is trained once and kept in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = corpus.read()
    path = folder / "tokenizer.json"
    if not path.exists():
        log(f"tokenizer: {vocab_size} tokens from {len(train)} files")
        train_tokenizer(train, vocab_size).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    end = tokenizer.token_to_id(END_OF_TEXT)
    stream: list[int] = []
    for encoding in tokenizer.encode_batch([file.text for file in train]):
        stream += [end, *encoding.ids]
    tests = []
    for file in held_out:
        ids = [end, *tokenizer.encode(file.text).ids, end]
        tests.append((torch.tensor(ids), len(file.text.encode())))
    return Encoded(torch.tensor(stream), tests, tokenizer)


def generated_text(teacher: Transformer, stream: Tensor, tokens: int, path: Path, log: Callable[[str], None]) -> Tensor:
    """About ``tokens`` tokens that the teacher wrote, int64 ``[N]``; kept in ``path``, where more may be added later.

    The prompts are 64 tokens from places of the training stream, the continuations have 448, half of them by the best
    token each, half sampled at temperature 0.8. An interruption loses the pieces since the last ten.
    """
    prompt, new, rows = 64, 448, 64
    size = rows * (prompt + new)
    wanted = max(1, tokens // size)
    pieces: list[Tensor] = []
    if path.exists():
        kept: Tensor = torch.load(path, weights_only=True)
        pieces = list(kept[: wanted * size].split(size))
    for number in range(len(pieces), wanted):
        generator = torch.Generator().manual_seed(_PROMPTS + number)
        starts = torch.randint(len(stream) - prompt, (rows,), generator=generator)
        prompts = torch.stack([stream[start : start + prompt] for start in starts.tolist()])
        temperature = 0.8 if number % 2 else 0.0
        pieces.append(continuations(teacher, prompts, new, temperature, seed=number).flatten())
        log(f"generated {len(pieces) * size} of about {tokens} tokens")
        if len(pieces) % 10 == 0 or len(pieces) == wanted:
            fresh = path.with_suffix(".new")
            torch.save(torch.cat(pieces), fresh)
            fresh.replace(path)
    return torch.cat(pieces)


def batch(stream: Tensor, window: int, count: int, step: int) -> Tensor:
    """``[count, window + 1]`` int64 of step ``step``: a pure function of its arguments.

    Every epoch goes through all windows of a grid once, in an order and from an offset of its own.
    """
    cells = (len(stream) - 1) // window - 1
    rows = []
    for index in range(step * count, (step + 1) * count):
        epoch, within = divmod(index, cells)
        offset, order = _epoch(window, cells, epoch)
        start = offset + int(order[within]) * window
        rows.append(stream[start : start + window + 1])
    return torch.stack(rows)


@lru_cache(maxsize=4)
def _epoch(window: int, cells: int, epoch: int) -> tuple[int, Tensor]:
    generator = torch.Generator().manual_seed(_WINDOWS + epoch)
    offset = int(torch.randint(window, (1,), generator=generator))
    return offset, torch.randperm(cells, generator=generator)
