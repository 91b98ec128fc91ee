"""The outputs of the verify family: made, or given by the caller."""

from __future__ import annotations

import torch

from . import _validate
from .types import TokenTree, VerifyResult


def new_result(op: str, tree: TokenTree, logprobs: str | None) -> VerifyResult:
    """New outputs for a tree."""
    _validate.bounds(op, tree)
    cu_nodes, width = tree.cu_nodes, tree.max_depth + 1
    batch = cu_nodes.shape[0] - 1
    scores = [cu_nodes.new_empty((batch, width), dtype=torch.float32) for _ in range(2 * (logprobs is not None))]
    return VerifyResult(
        tree.tokens.new_empty(batch, width),
        cu_nodes.new_empty(batch),
        cu_nodes.new_empty(batch, width),
        cu_nodes.new_empty(batch),
        *scores,
    )


def given_result(op: str, tree: TokenTree, logprobs: str | None, out: VerifyResult) -> VerifyResult:
    """``out`` with the fields that this call writes; a launcher takes the bounds from its shape."""
    _validate.bounds(op, tree)
    shape = (tree.cu_nodes.shape[0] - 1, tree.max_depth + 1)
    _validate.tensor(op, "out.path", out.path, shape, _validate.INT32, tree.tokens.device)
    if out.tokens.dtype != tree.tokens.dtype:
        _validate.result(op, tree, logprobs, out)
    return out if logprobs is not None else VerifyResult(*out[:4])


def for_call(op: str, tree: TokenTree, logprobs: str | None, out: VerifyResult | None) -> VerifyResult:
    """What a call writes into."""
    return new_result(op, tree, logprobs) if out is None else given_result(op, tree, logprobs, out)
