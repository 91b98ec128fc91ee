"""Known bugs of verification: who had them, how large the bias is on a small case, and how many texts find it.

``PYTHONPATH=tests python -m laws.bugs`` measures all of them and prints the table of docs/certify.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from specdec_kernels.certify import detectable, g_test, quantile

from . import test_bottom_up, test_mutations
from .texts import count, texts

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

#: As in a run of ``specdec certify``.
FALSE_ALARM, POWER, TRIALS = 1e-6 / 60, 0.99, 200_000


class Size(NamedTuple):
    """How wrong a law is, and how many texts find it with the power of a certificate."""

    distance: float
    trials: float


def size_of(decoding) -> Size:
    """Measured: the total-variation distance of the joint law, less what chance alone would show."""
    expected = decoding.case.expected()
    found, _ = count(decoding, TRIALS, expected.numel(), lambda seeds: texts(decoding, seeds))
    test = g_test(found, expected)
    chance = (2 * expected * (1 - expected) / (math.pi * TRIALS)).sqrt().sum()
    distance = 0.5 * float((found.double() / TRIALS - expected).abs().sum() - chance)
    if math.isinf(test.statistic):
        return Size(distance, 0)
    each = max(test.statistic - test.degrees, 1e-9) / TRIALS  # noncentrality per text
    needed = (2 * detectable(10**9, test.degrees, quantile(FALSE_ALARM, test.degrees), POWER)) ** 2 * 10**9
    return Size(distance, needed / each)


def rows() -> list[tuple[str, str, str, Size]]:
    """Name, rule, where it was seen, and size of every bug."""
    made = []
    for bugs in (test_mutations.BUGS, test_bottom_up.BUGS):
        for name, (implementation, case) in bugs.items():
            made.append((name, case.rule, SEEN.get(name, ""), size_of(implementation(case))))
    return made


def main() -> None:
    """Print the table."""
    print("| bug | rule | seen in public | bias | texts |")
    print("|---|---|---|---|---|")
    for name, rule, seen, size in rows():
        texts_needed = "any" if size.trials == 0 else f"{math.ceil(size.trials / 10) * 10:,}"
        print(f"| {name} | {rule} | {seen} | {size.distance:.3f} | {texts_needed} |")


if __name__ == "__main__":
    main()
