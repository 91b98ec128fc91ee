"""Whether a result is right. What is wrong is not timed (:mod:`bench.runner`), and its row says what was wrong.

A gate is a function of the result of one variant: None if it is right, else the reason in one line. Ops must decide what the
oracle decides: the cases are such that no decision is close (:mod:`bench.cases`). Baselines must give what their noise was aimed
at (:mod:`bench.aims`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cases import Case

Check = Callable[[Any], "str | None"]


def _differs(name: str, actual: Any, expected: Tensor) -> str | None:
    """Why a tensor is not equal to another: kind, shape, dtype, or the first place at which they differ."""
    if not isinstance(actual, Tensor):
        return f"{name} must be a tensor, got {type(actual).__name__}"
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        wanted, got = (f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in (expected, actual))
        return f"{name} must be {wanted}, got {got}"
    different = (actual != expected).nonzero()
    if not len(different):
        return None
    place = tuple(different[0].tolist())
    count = f"{len(different)} of {expected.numel()} differ"
    return f"{name}{list(place)} must be {expected[place].item()}, got {actual[place].item()} ({count})"


def fields(expected: Any, names: tuple[str, ...]) -> Check:
    """Of what gives a record: these of its fields."""

    def check(result: Any) -> str | None:
        for name in names:
            reason = _differs(name, getattr(result, name, None), getattr(expected, name))
            if reason is not None:
                return reason
        return None

    return check


def decisions(expected: Any) -> Check:
    """Of a fused op of the verify family: the oracle's decisions, all of them."""
    return fields(expected, ("tokens", "num_tokens", "path", "status"))


#: Of a mean: sums in single precision, and the thresholds of a bound.
CLOSE = 1e-4


def means(expected: Any) -> Check:
    """Of ``verify.expect``: the oracle's means, but for rounding."""

    def check(result: Any) -> str | None:
        for name in expected._fields:
            ours, right = getattr(result, name, None), getattr(expected, name)
            if not isinstance(ours, Tensor) or ours.shape != right.shape or ours.dtype != right.dtype:
                return _differs(name, ours, right)
            error = (ours - right).abs() / right.abs().clamp(min=1.0)
            if not float(error.max()) <= CLOSE:  # NaN is close to nothing
                return f"{name} must be within {CLOSE:.0e}, got {float(error.max()):.1e} off"
        return None

    return check


def parts(*expected: Tensor) -> Check:
    """Of what gives a tuple of tensors."""

    def check(result: Any) -> str | None:
        if not isinstance(result, tuple) or len(result) != len(expected):
            return f"the result must be {len(expected)} tensors, got {type(result).__name__}"
        reasons = (_differs(f"part {i}", *pair) for i, pair in enumerate(zip(result, expected, strict=True)))
        return next((reason for reason in reasons if reason is not None), None)

    return check


def equal(name: str, expected: Tensor) -> Check:
    """Of what gives one tensor: the same values, shape and dtype."""
    return lambda result: _differs(name, result, expected)


def of_case(case: Case) -> Check:
    """Of a fused op: all that it decides or makes is the oracle's."""
    if case.op == "verify_expect":
        return means(case.expected)
    if case.op.startswith("verify"):
        return decisions(case.expected)
    if case.op.startswith("tree"):
        return fields(case.expected, ("cu_nodes", "tokens", "parents", "depths", "ends", "status"))
    if isinstance(case.expected, tuple):
        return parts(*case.expected)
    return equal("tokens" if case.op.startswith("sample") else "result", case.expected)


def maxima(*logits: Tensor) -> Check:
    """Of the unit: the largest value of each row, as the search that also gives its place finds it."""
    expected = [rows.max(dim=-1).values for rows in logits]

    def check(result: Any) -> str | None:
        if not isinstance(result, list) or len(result) != len(logits):
            return "the result must be one tensor of maxima for each tensor of logits"
        for actual, wanted in zip(result, expected, strict=True):
            reason = _differs("amax", actual, wanted)
            if reason is not None:
                return reason
        return None

    return check


def products(x: Tensor, weight: Tensor, *, chunk: int = 1024) -> Callable[[int, float, torch.dtype], Check]:
    """Of linear layers: ``x W^T`` within a rounding error that their accumulation explains.

    Args:
        x: ``[T, K]``, any number of rows.
        weight: ``[N, K]`` of any dtype that float64 holds: what is multiplied, quantised as it is.
        chunk: outputs that are computed at a time.

    Returns:
        ``make(rows, tolerance, dtype)``: the gate of the product of the first ``rows`` rows of ``x``, which must have ``dtype``
        and be off by no more than ``tolerance`` times the sum of the absolute products, and the rounding to ``dtype``.
    """
    exact, size = [], []
    for part in (weight[i : i + chunk] for i in range(0, len(weight), chunk)):
        exact.append(x.double() @ part.double().T)
        size.append(x.float().abs() @ part.float().abs().T)
    products, bounds = torch.cat(exact, 1), torch.cat(size, 1).double()

    def make(rows: int, tolerance: float, dtype: torch.dtype) -> Check:
        def check(result: Any) -> str | None:
            wanted = products[:rows]
            if not isinstance(result, Tensor) or result.shape != wanted.shape or result.dtype != dtype:
                got = (list(result.shape), result.dtype) if isinstance(result, Tensor) else type(result).__name__
                return f"the product must be {str(dtype).removeprefix('torch.')} {list(wanted.shape)}, got {got}"
            rounding = torch.finfo(dtype).eps * wanted.abs()
            error = ((result.double() - wanted).abs() - rounding) / bounds[:rows].clamp(min=1e-30)
            worst = float(error.max())  # NaN is within nothing
            if worst <= tolerance:
                return None
            return f"the error must be at most {tolerance:.1e} of the sum of absolute products, got {worst:.1e}"

        return check

    return make
