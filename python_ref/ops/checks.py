"""Argument checks: ``<op>: <argument> must <requirement>, got <actual>``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..types import FILTER_ORDERS

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INDICES = (torch.int32, torch.int64)
LOGPROBS = (None, "processed", "raw")


def tensor(
    op: str,
    name: str,
    value: Any,
    shape: tuple[int | str, ...],
    dtypes: tuple[torch.dtype, ...] = INDICES,
) -> None:
    """Check type, dtype and shape; a string in ``shape`` is the name of a free size.

    Raises:
        TypeError: if it is no tensor, or of another dtype.
        ValueError: if the shape is another.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        names = [str(dtype).removeprefix("torch.") for dtype in (*dtypes, value.dtype)]
        wanted = ", ".join(names[:-2]) + " or " * (len(names) > 2) + names[-2]
        raise TypeError(f"{op}: {name} must have dtype {wanted}, got {names[-1]}")
    fits = len(value.shape) == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, value.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{op}: {name} must have shape [{wanted}], got {list(value.shape)}")


def optional(op: str, name: str, value: Any, size: int, dtypes: Any = INDICES) -> None:
    """Check a one-dimensional tensor that may be None."""
    if value is not None:
        tensor(op, name, value, (size,), dtypes)


def logits(op: str, name: str, value: Any, columns: int | str = "V") -> None:
    """Check rows of logits: two dimensions, a float dtype, at least one column."""
    tensor(op, name, value, ("rows", columns), FLOATS)
    if value.shape[1] < 1:
        raise ValueError(f"{op}: {name} must have at least one column, got {list(value.shape)}")


def sampling(op: str, name: str, value: Any, batch: int | str, needs_seed: bool = True) -> int:
    """Check sampling settings; returns the number of requests."""
    tensor(op, f"{name}.temperature", value.temperature, (batch,), (torch.float32,))
    count = int(value.temperature.shape[0])
    optional(op, f"{name}.top_k", value.top_k, count, (torch.int32,))
    optional(op, f"{name}.top_p", value.top_p, count, (torch.float32,))
    optional(op, f"{name}.min_p", value.min_p, count, (torch.float32,))
    optional(op, f"{name}.seed", value.seed, count, (torch.int64,))
    if needs_seed and value.seed is None:
        raise ValueError(f"{op}: {name}.seed must be given, got None")
    choice(op, f"{name}.filter_order", value.filter_order, FILTER_ORDERS)
    return count


def law(op: str, allowed: Any, allowed_rows: Any, count: int, vocab: int | None) -> None:
    """Check the mask of allowed ids for ``count`` rows; ``vocab`` None: any number of words."""
    if allowed is None:
        if allowed_rows is not None:
            raise ValueError(f"{op}: allowed must be given with allowed_rows, got None")
        return
    words = "words" if vocab is None else (vocab + 31) // 32
    tensor(op, "allowed", allowed, ("rows", words), (torch.int32,))
    optional(op, "allowed_rows", allowed_rows, count)
    if allowed_rows is None and allowed.shape[0] < count:
        raise ValueError(f"{op}: allowed must have at least {count} rows, got {allowed.shape[0]}")


def tree(op: str, value: Any) -> tuple[int, int]:
    """Check a tree; returns the numbers of requests and of rows."""
    tensor(op, "tree.tokens", value.tokens, ("T",))
    count = int(value.tokens.shape[0])
    tensor(op, "tree.cu_nodes", value.cu_nodes, ("B+1",), (torch.int32,))
    if value.cu_nodes.shape[0] < 1:
        raise ValueError(f"{op}: tree.cu_nodes must have at least one element, got shape [0]")
    for name in ("parents", "depths", "ends"):
        tensor(op, f"tree.{name}", getattr(value, name), (count,), (torch.int32,))
    return int(value.cu_nodes.shape[0]) - 1, count


def rows(op: str, name: str, value: Any, logits_name: str, available: int, count: int) -> None:
    """Check a map from nodes to rows of logits, or that each node has a row of its own."""
    if value is not None:
        tensor(op, name, value, (count,))
    elif available < count:
        raise ValueError(f"{op}: {logits_name} must have at least {count} rows, got {available}")


def integer(op: str, name: str, value: Any, low: int, high: int | None = None) -> None:
    """Check a host integer against inclusive bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{op}: {name} must be {bounds}, got {value}")


def choice(op: str, name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Check one of several values."""
    if value not in choices:
        wanted = ", ".join(map(repr, choices))
        raise ValueError(f"{op}: {name} must be one of {wanted}, got {value!r}")


def number(op: str, name: str, value: Any, low: float, high: float = math.inf, above: bool = False) -> None:
    """Check a finite host number against its bounds; ``above``: the lower one is not allowed."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a float, got {type(value).__name__}")
    if not low <= value <= high or (above and value == low) or value == math.inf:
        raise ValueError(f"{op}: {name} must be {between(low, high, above)}, got {value}")


def between(low: float, high: float, above: bool) -> str:
    """Bounds in words."""
    if high == math.inf:
        return f"{'above' if above else 'at least'} {low:g}"
    return f"above {low:g} and at most {high:g}" if above else f"between {low:g} and {high:g}"


def at_least(op: str, name: str, value: Any, count: int) -> None:
    """Check that a vector has enough elements."""
    if value.shape[0] < count:
        raise ValueError(f"{op}: {name} must have at least {count} elements, got {value.shape[0]}")
