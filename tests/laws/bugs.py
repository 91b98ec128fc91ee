"""Known bugs of verification: who had them, how large the bias is on a small case, and how many texts find it.

``PYTHONPATH=tests python -m laws.bugs`` measures all of them and prints the table of docs/certify.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from specdec_kernels.certify import g_test

from . import test_bottom_up, test_mutations
from .texts import count, drafts_of, texts

#: Bugs that were seen in public: name in the tests -> where.
SEEN = {
    "residual and draft share noise": "vLLM #47386, #54282",
    "coin and draft share noise": "vLLM #54282",
    "raw instead of processed draft law": "transformers #47932",
    "duplicates are skipped": "SpecHub, branch `RRS`",
    "repeated drafts are removed": "SpecHub, branch `RRS`",
    "a threshold accepts": "SGLang, thresholds below 1",
    "the budget over what is left of q": "a public port of traversal verification",
    "tokens are judged, blocks are resampled": "vllm-ascend #7807",
    "the first failure ends the path": "vllm-ascend #7807, as it was to be fixed",
}

#: A bug counts as found by a run of ``specdec certify`` at this p-value; texts are enough if that happens with probability
#: ``POWER``, of which ``RUNS`` are tried. The law of a bug is that of ``TRIALS`` texts.
FALSE_ALARM, POWER, RUNS, TRIALS = 1e-6 / 60, 0.99, 300, 400_000


class Size(NamedTuple):
    """How wrong a law is, and how many texts find it with the power of a certificate."""

    distance: float
    trials: int


def size_of(found: Tensor, expected: Tensor) -> Size:
    """Measured: the total-variation distance of the joint law, less what chance alone would show; and the texts."""
    law = found.double() / int(found.sum())
    chance = (2 * expected * (1 - expected) / (math.pi * int(found.sum()))).sqrt().sum()
    distance = 0.5 * float((law - expected).abs().sum() - chance)
    generator = np.random.default_rng(0)

    def is_found(trials: int) -> bool:
        samples = generator.multinomial(trials, (law / law.sum()).numpy(), size=RUNS)
        missed = sum(g_test(torch.from_numpy(one), expected).p_value > FALSE_ALARM for one in samples)
        return missed <= (1 - POWER) * RUNS

    high = 10
    while not is_found(high):
        high *= 2
    low = high // 2
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if is_found(middle) else (middle, high)
    return Size(distance, high)


def rows() -> Iterator[tuple[str, str, str, Size]]:
    """Name, rule, where it was seen, and size of every bug."""
    for bugs in (test_mutations.BUGS, test_bottom_up.BUGS):
        for name, (implementation, case) in bugs.items():
            decoding, expected = implementation(case), case.expected()
            found, _ = count(decoding, TRIALS, expected.numel(), partial(texts, decoding))
            yield name, case.rule, SEEN.get(name, ""), size_of(found, expected)
    for name, (implementation, case) in test_mutations.DRAFT_BUGS.items():
        decoding = implementation(case)
        expected, sample = drafts_of(decoding)
        yield (
            name,
            "the draws",
            SEEN.get(name, ""),
            size_of(count(decoding, TRIALS, expected.numel(), sample)[0], expected),
        )


def main() -> None:
    """Print the table."""
    print("| bug | rule | seen in public | bias | texts |")
    print("|---|---|---|---|---|")
    made = []
    for row in rows():
        print(row[0], file=sys.stderr, flush=True)
        made.append(row)
    for name, rule, seen, size in sorted(made, key=lambda row: (not row[2], -row[3].distance)):
        print(f"| {name} | {rule} | {seen} | {size.distance:.3f} | {size.trials:,} |")


if __name__ == "__main__":
    main()
