"""Random calls of ``verify.expect``, and when two results are the same."""

from __future__ import annotations

from typing import Any

import specdec_kernels as sk

from .verify_cases import Case

#: Of a mean: sums in single precision, and the thresholds of the bound.
CLOSE = 1e-4


def arguments_of(seed: int, **options: Any) -> dict[str, Any]:
    """Those of one random call of ``verify.rejection`` that it shares."""
    case = Case("verify_rejection", seed, **options)
    return {name: value for name, value in case.arguments.items() if name not in ("context_lens", "rule", "logprobs")}


def same(actual: sk.Expectation, expected: sk.Expectation) -> list[bool]:
    """Whether each field is, as far as single precision goes."""
    return [
        bool((ours - theirs).abs().max() <= CLOSE * theirs.abs().clamp(min=1).max()) if ours.numel() else True
        for ours, theirs in zip(actual, expected, strict=True)
    ]
