"""Small valid calls of the verify family, and what the samples of other families share with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from agreement.cases import Shape
from torch import Tensor

import specdec_kernels as sk

VOCAB, DRAFT_VOCAB, WORDS = 40, 24, 2


def tree(batch: int) -> sk.TokenTree:
    """Chains of three nodes and branching trees of four, in turn."""
    shapes = [Shape([-1, 0, 1, 0] if b % 2 else [-1, 0, 1]) for b in range(batch)]
    offsets = [0]
    for shape in shapes:
        offsets.append(offsets[-1] + len(shape.parents))

    def column(name: str) -> Tensor:
        return torch.tensor([value for shape in shapes for value in getattr(shape, name)], dtype=torch.int32)

    tokens = torch.arange(offsets[-1]) % VOCAB
    return sk.TokenTree(
        torch.tensor(offsets, dtype=torch.int32),
        tokens,
        *(column(name) for name in ("parents", "depths", "ends")),
        max_nodes=4,
        max_depth=2,
    )


def settings(batch: int, full: bool) -> sk.Sampling:
    """Sampling settings, with all filters or with none."""
    made = sk.Sampling.of(batch, temperature=0.8, top_k=9, top_p=0.9, min_p=0.01, seed=list(range(batch)))
    return made if full else made._replace(top_k=None, top_p=None, min_p=None)


def mask(rows: int) -> dict[str, Tensor]:
    return {
        "allowed": torch.full((2, WORDS), -2, dtype=torch.int32),
        "allowed_rows": torch.arange(rows) % 3 - 1,
    }


def _result(batch: int, depth: int) -> sk.VerifyResult:
    def whole(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.full(shape, 77, dtype=dtype)

    wide = (batch, depth + 1)
    return sk.VerifyResult(
        whole(*wide, dtype=torch.int64),
        whole(batch),
        whole(*wide),
        whole(batch),
        torch.full(wide, torch.nan),
        torch.full(wide, torch.nan),
    )


def _verify(batch: int, full: bool) -> dict[str, Any]:
    made = tree(batch)
    nodes = made.tokens.numel()
    arguments: dict[str, Any] = {"tree": made, "logits": torch.randn(nodes, VOCAB)}
    if full:
        arguments |= mask(nodes) | {
            "rows": torch.arange(nodes).flip(0),
            "active": torch.ones(batch, dtype=torch.bool),
            "max_tokens": torch.full((batch,), 2),
            "logprobs": "processed",
            "out": _result(batch, made.max_depth),
        }
    return arguments


def _match(batch: int, full: bool) -> dict[str, Any]:
    return _verify(batch, full) | {"sampling": settings(batch, full), "context_lens": torch.arange(batch)}


def _rejection(batch: int, full: bool) -> dict[str, Any]:
    arguments = _match(batch, full) | {"draft_logits": None, "draft_sampling": None}
    if full:
        nodes = arguments["tree"].tokens.numel()
        back = torch.full((VOCAB,), -1)
        back[:DRAFT_VOCAB] = torch.arange(DRAFT_VOCAB)
        arguments |= {
            "draft_logits": torch.randn(nodes, DRAFT_VOCAB),
            "draft_sampling": settings(batch, full),
            "rule": "token",
            "replacement": True,
            "draft_rows": torch.arange(nodes),
            "draft_allowed_rows": torch.arange(nodes) % 3 - 1,
            "draft_to_target": torch.arange(DRAFT_VOCAB),
            "target_to_draft": back,
        }
    return arguments


def _expect(batch: int, full: bool) -> dict[str, Any]:
    arguments = _rejection(batch, full)
    arguments = {k: v for k, v in arguments.items() if k not in ("context_lens", "rule", "logprobs", "out")}
    if full:
        arguments["out"] = sk.Expectation(*(torch.full((batch,), torch.nan) for _ in sk.Expectation._fields))
    return arguments


def _lossy(batch: int, full: bool, drawn: bool = True) -> dict[str, Any]:
    """What the lossy rules take; all but ``relaxed`` draw."""
    arguments = _match(batch, full) if drawn else _verify(batch, full)
    if full:
        arguments["divergence"] = torch.full((batch, arguments["tree"].max_depth + 1), torch.nan)
    return arguments


def _threshold(batch: int, full: bool) -> dict[str, Any]:
    return _lossy(batch, full) | ({"single": 0.5, "accumulated": 0.8} if full else {})


def _typical(batch: int, full: bool) -> dict[str, Any]:
    return _lossy(batch, full) | ({"epsilon": 0.05, "delta": 0.2} if full else {})


def _relaxed(batch: int, full: bool) -> dict[str, Any]:
    more = {"top_k": 5, "delta": 0.2, "relax": torch.arange(batch) % 2 == 0}
    return _lossy(batch, full, drawn=False) | (more if full else {})


def _synthetic(batch: int, full: bool) -> dict[str, Any]:
    return _lossy(batch, full) | {"rates": torch.tensor([0.75, 0.25, 0.5][: 2 + full])}


MAKERS: dict[str, Callable[[int, bool], dict[str, Any]]] = {
    "verify_greedy": _verify,
    "verify_match": _match,
    "verify_rejection": _rejection,
    "verify_expect": _expect,
    "verify_threshold": _threshold,
    "verify_typical": _typical,
    "verify_relaxed": _relaxed,
    "verify_synthetic": _synthetic,
}
