"""Random calls of every op that samples or verifies, in one form, and their results as plain lists of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import compare, sample_cases, verify_cases

LAW = ("sample_sample", "sample_draft", "verify_greedy", "verify_match", "verify_rejection", *compare.LOSSY)

#: Every rule of the verify family: its op, and the arguments that choose it among the rules of that op.
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("verify_greedy", {}),
    "match": ("verify_match", {}),
    "token": ("verify_rejection", {"rule": "token"}),
    "block": ("verify_rejection", {"rule": "block"}),
    "traversal": ("verify_rejection", {"rule": "traversal"}),
    "greedy_plus_one": ("verify_rejection", {"rule": "greedy_plus_one"}),
    "threshold": ("verify_threshold", {}),
    "typical": ("verify_typical", {}),
    "relaxed": ("verify_relaxed", {}),
    "synthetic": ("verify_synthetic", {}),
}


def call(op: str, seed: int, *, batch: int | None = None, **options: Any) -> dict[str, Any]:
    """The arguments of one random call with so many requests or rows."""
    if op.startswith("sample"):
        options = {name: value for name, value in options.items() if name not in ("depth", "nodes", "malformed")}
        return sample_cases.Case(op, seed, count=batch, **options).arguments
    return verify_cases.call(op, seed, batch=batch, **options)


def check(backend: str, op: str, arguments: dict[str, Any], tally: compare.Tally) -> None:
    """Compare a call with the oracle."""
    if op.startswith("sample"):
        compare.draws(backend, op, arguments, tally)
    else:
        compare.verify(backend, op, arguments, tally)


def outcome(backend: str, op: str, arguments: dict[str, Any]) -> list[Tensor]:
    """All that a call gives, its status and how far off a lossy rule is included."""
    if not op.startswith("sample"):
        batch, width = arguments["tree"].cu_nodes.numel() - 1, arguments["tree"].max_depth + 1
        divergence = torch.full((batch, width), torch.nan, device=compare.device_of(backend))
        asked = {"divergence": divergence} if op in compare.LOSSY else {}
        result = compare.run(backend, op, arguments | asked)
        return [field for field in (*result, *(value.cpu() for value in asked.values())) if field is not None]
    count = arguments["logits"].shape[0]
    status = torch.full((count,), 77, dtype=torch.int32, device=compare.device_of(backend))
    tokens = compare.run(backend, op, arguments | {"status": status})
    return [tokens, status.cpu()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    """Bit for bit."""
    return len(first) == len(second) and all(map(compare.same, first, second))


def poisoned(like: Tensor) -> Tensor:
    """A tensor of the same shape whose elements stand for "never written"."""
    return torch.full_like(like, torch.nan if like.dtype.is_floating_point else 77)
