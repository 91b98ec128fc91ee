"""Millions of texts of tiny table models, decoded by the fused ops in batches, and their law (``specdec_kernels.certify``).

A table model has logits ``[V, V]`` after each last token. A text starts with token 0 at position 0; every trial has a seed of its
own, and goes on until its text has ``length`` tokens more, however many steps that takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from agreement.compare import device_of
from oracle.definition import law
from torch import Tensor

from specdec_kernels import certify
from specdec_kernels.certify import Case, fused, g_test
from specdec_kernels.certify.decoding import decode

BATCH = 20_000  # trials that are decoded together

#: What a law must not fall below, and what a planted bug must.
SOUND, FOUND = 1e-4, 1e-12

__all__ = [
    "BATCH",
    "FOUND",
    "SOUND",
    "Case",
    "Decoding",
    "check",
    "check_drafts",
    "drafts_of",
    "p_value",
    "table_law",
    "texts",
]


def table_law(table: Tensor, settings: dict[str, Any]) -> Tensor:
    """The processed law after each token, from the definition: ``[V, V]`` float64."""
    return torch.tensor([law(row, **settings)[0] for row in table.tolist()], dtype=torch.float64)


class Decoding(certify.Decoding):
    """The steps of a case by the fused ops. Bugs of drivers are planted by overriding a method."""

    def __init__(self, case: Case, backend: str = "cpu") -> None:
        super().__init__(case, fused(backend), backend, device_of(backend))


def texts(decoding: Decoding, seeds: Tensor) -> tuple[Tensor, int]:
    """The number of each trial's text, and the fewest steps that a trial took."""
    numbers, fewest, _, _ = decode(decoding, seeds)
    return numbers, fewest


def count(
    decoding: Decoding, trials: int, size: int, sample: Callable[[Tensor], tuple[Tensor, int]]
) -> tuple[Tensor, int]:
    """How often each of ``size`` outcomes came up, and the fewest steps of a trial."""
    found, fewest = torch.zeros(size, dtype=torch.int64), []
    for first in range(0, trials, BATCH):
        seeds = torch.arange(first, min(first + BATCH, trials), device=decoding.device) * 7 - 10**6
        numbers, steps = sample(seeds)
        found += torch.bincount(numbers, minlength=size)
        fewest.append(steps)
    assert int(found.sum()) == trials
    return found, min(fewest)


def p_value(found: Tensor, expected: Tensor) -> float:
    """Of the likelihood-ratio test; what cannot come up must not."""
    return g_test(found, expected).p_value


def check(decoding: Decoding, trials: int) -> tuple[float, int]:
    """The p-value of a case's texts, and the fewest steps of a trial."""
    expected = decoding.case.expected()
    found, fewest = count(decoding, trials, expected.numel(), lambda seeds: texts(decoding, seeds))
    return p_value(found, expected), fewest


def drafts_of(decoding: Decoding) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, int]]]:
    """The law of two draws at each of three consecutive positions, each position after the first draw before it; and what
    draws them for some seeds."""
    case, vocab = decoding.case, decoding.case.vocab
    q = table_law(case.drafter, case.draft_settings)
    pairs = q.unsqueeze(2) * q.unsqueeze(1)  # [last token, first draw, second draw]
    if not case.replacement:
        pairs = pairs * (1 - torch.eye(vocab)) / (1 - q).unsqueeze(2)
    expected = torch.einsum("ab,acd,cef->abcdef", pairs[0], pairs, pairs).flatten()

    def sample(seeds: Tensor) -> tuple[Tensor, int]:
        tokens, numbers = torch.zeros_like(seeds), torch.zeros_like(seeds)
        for step in range(3):
            drawn = decoding.draft(0, 2, tokens, torch.full_like(seeds, step + 1), seeds)
            numbers = (numbers * vocab + drawn[:, 0]) * vocab + drawn[:, 1]
            tokens = drawn[:, 0]
        return numbers.cpu(), 3

    return expected, sample


def check_drafts(decoding: Decoding, trials: int) -> float:
    """The p-value of such draws."""
    expected, sample = drafts_of(decoding)
    return p_value(count(decoding, trials, expected.numel(), sample)[0], expected)
