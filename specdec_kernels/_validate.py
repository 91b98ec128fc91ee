"""Checks of public arguments, in the one grammar ``<op>: <argument> must <requirement>, got
<actual>``.

They look at shapes, dtypes and devices only, never at values: no check reads the device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ._schema import FILTER_ORDERS, LOGPROBS
from .types import Sampling, Status, TokenTree, VerifyResult

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
CACHES = (*FLOATS, torch.float8_e4m3fn, torch.float8_e5m2)
INDICES = (torch.int32, torch.int64)
INT32 = (torch.int32,)
INT64 = (torch.int64,)
FLOAT32 = (torch.float32,)
BOOL = (torch.bool,)

#: Largest float32.
MOST = 3.4028234663852886e38

DEBUG = os.environ.get("SPECDEC_DEBUG", "0") not in ("", "0")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    names = [_name(dtype) for dtype in dtypes]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]


def tensor(
    op: str,
    name: str,
    value: Tensor,
    shape: tuple[int | str, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None = None,
) -> None:
    """Check one tensor. A string in ``shape`` stands for any size and is its name in the message."""
    if type(value) is Tensor and value.shape == shape and value.dtype in dtypes and device == value.device:
        return  # the usual case; what follows finds the words for all others
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{op}: {name} must have dtype {_names(dtypes)}, got {_name(value.dtype)}")
    actual = value.shape
    fits = len(actual) == len(shape)
    if fits:
        for have, want in zip(actual, shape):  # noqa: B905 (same length; strict costs time)
            if have != want and not isinstance(want, str):
                fits = False
    if not fits:
        wanted = ", ".join(str(size) for size in shape)
        raise ValueError(f"{op}: {name} must have shape [{wanted}], got {list(actual)}")
    if device is not None and value.device != device:
        raise ValueError(f"{op}: {name} must be on {device}, got {value.device}")


def output(
    op: str,
    name: str,
    value: Tensor | None,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
    strided: bool = False,
) -> None:
    """Check a tensor that is written in place, if it is given: contiguous, unless any stride will do."""
    if value is None:
        return
    tensor(op, name, value, shape, dtypes, device)
    if not strided and not value.is_contiguous():
        raise ValueError(f"{op}: {name} must be contiguous, got strides {list(value.stride())}")


def rows(op: str, name: str, value: Tensor, shape: tuple[int | str, ...], device: torch.device | None) -> None:
    """Check logits: float rows with unit stride in the last dimension and any row stride."""
    tensor(op, name, value, shape, FLOATS, device)
    if value.shape[1] > 1 and value.stride(1) != 1:
        raise ValueError(f"{op}: {name} must have unit stride in the last dimension, got {value.stride(1)}")
    if value.shape[1] < 1:
        raise ValueError(f"{op}: {name} must have at least one column, got shape {list(value.shape)}")


def integer(op: str, name: str, value: int, low: int, high: int | None = None) -> None:
    """Check a host integer against its inclusive bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{op}: {name} must be {bounds}, got {value}")


def number(op: str, name: str, value: float, low: float = -MOST, high: float = MOST, above: bool = False) -> None:
    """Check a host number: a finite float32 between its bounds; ``above``: the lower one is not allowed. A tensor is
    none: to read it would wait for a device."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a float, got {type(value).__name__}")
    if not low <= value <= high or (above and value == low):
        wanted = "a finite float32"
        if high < MOST:
            wanted = f"above {low:g} and at most {high:g}" if above else f"between {low:g} and {high:g}"
        elif low > -MOST and not value > high:
            wanted = f"at least {low:g}"
        raise ValueError(f"{op}: {name} must be {wanted}, got {value}")


def flag(op: str, name: str, value: bool) -> None:
    """Check a host flag."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a bool, got {type(value).__name__}")


def choice(op: str, name: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    """Check a host choice."""
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def bounds(op: str, tree: TokenTree) -> None:
    """Check the host bounds of a tree."""
    integer(op, "tree.max_nodes", tree.max_nodes, 0)
    integer(op, "tree.max_depth", tree.max_depth, 0)


def token_tree(op: str, tree: TokenTree) -> tuple[int, int, torch.device]:
    """Check a tree; its number of requests and of rows, and its device."""
    if not hasattr(tree, "cu_nodes"):
        raise TypeError(f"{op}: tree must be a TokenTree, got {type(tree).__name__}")
    tokens = tree.tokens
    tensor(op, "tree.tokens", tokens, ("T",), INDICES)
    count, device = tokens.shape[0], tokens.device
    tensor(op, "tree.cu_nodes", tree.cu_nodes, ("B+1",), INT32, device)
    if tree.cu_nodes.shape[0] < 1:
        raise ValueError(f"{op}: tree.cu_nodes must have at least one element, got shape [0]")
    tensor(op, "tree.parents", tree.parents, (count,), INT32, device)
    tensor(op, "tree.depths", tree.depths, (count,), INT32, device)
    tensor(op, "tree.ends", tree.ends, (count,), INT32, device)
    bounds(op, tree)
    return tree.cu_nodes.shape[0] - 1, count, device


def new_tree(
    op: str,
    out: TokenTree,
    batch: int,
    count: int,
    dtype: torch.dtype,
    device: torch.device,
    name: str = "out",
    offsets: bool = True,
) -> None:
    """Check a tree that is written in place, with or without its ``cu_nodes``."""
    if not hasattr(out, "cu_nodes"):
        raise TypeError(f"{op}: {name} must be a TokenTree, got {type(out).__name__}")
    if offsets:
        output(op, f"{name}.cu_nodes", out.cu_nodes, (batch + 1,), INT32, device)
    output(op, f"{name}.tokens", out.tokens, (count,), (dtype,), device)
    for field in ("parents", "depths", "ends"):
        output(op, f"{name}.{field}", getattr(out, field), (count,), INT32, device)
    if out.status is None:
        raise ValueError(f"{op}: {name}.status must be given, got None")
    output(op, f"{name}.status", out.status, (batch,), INT32, device)


def pair(op: str, name: str, value: object, kind: str = "a pair of tensors") -> None:
    """Check that something is a pair."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{op}: {name} must be {kind}, got {type(value).__name__}")


def distinct(op: str, named: Sequence[tuple[str, Tensor]]) -> None:
    """Check that no two tensors that are written begin at the same place."""
    seen: dict[int, str] = {}
    for name, value in named:
        if type(value) is not Tensor or torch.compiler.is_compiling() or value.numel() == 0:
            continue
        before = seen.setdefault(value.data_ptr(), name)
        if before != name:
            raise ValueError(f"{op}: {name} must not be in the memory of another, got that of {before}")


def apart(op: str, name: str, out: Tensor, others: Sequence[tuple[str, Tensor]]) -> None:
    """Check that a contiguous tensor that is written has no memory between the first and the last element of others."""
    if type(out) is not Tensor or torch.compiler.is_compiling():
        return
    begin, size = out.data_ptr(), out.numel() * out.element_size()
    for other_name, other in others:
        first = other.data_ptr()
        if first >= begin + size or other.numel() == 0 or size == 0:
            continue
        reach = sum((count - 1) * stride for count, stride in zip(other.shape, other.stride(), strict=True))
        if begin < first + (reach + 1) * other.element_size():
            raise ValueError(f"{op}: {name} must not overlap {other_name}, got memory of both")


def sampling(
    op: str, name: str, value: Sampling, batch: int | str, device: torch.device, needs_seed: bool = True
) -> None:
    """Check sampling settings, of any number of requests if ``batch`` is a name."""
    if not hasattr(value, "temperature"):
        raise TypeError(f"{op}: {name} must be a Sampling, got {type(value).__name__}")
    tensor(op, f"{name}.temperature", value.temperature, (batch,), FLOAT32, device)
    batch = value.temperature.shape[0]
    if value.top_k is not None:
        tensor(op, f"{name}.top_k", value.top_k, (batch,), INT32, device)
    if value.top_p is not None:
        tensor(op, f"{name}.top_p", value.top_p, (batch,), FLOAT32, device)
    if value.min_p is not None:
        tensor(op, f"{name}.min_p", value.min_p, (batch,), FLOAT32, device)
    if value.seed is not None:
        tensor(op, f"{name}.seed", value.seed, (batch,), INT64, device)
    elif needs_seed:
        raise ValueError(f"{op}: {name}.seed must be given, got None")
    choice(op, f"{name}.filter_order", value.filter_order, FILTER_ORDERS)


def law(
    op: str,
    allowed: Tensor | None,
    allowed_rows: Tensor | None,
    count: int,
    vocab: int | None,
    device: torch.device,
) -> None:
    """Check the bit mask of allowed tokens of ``count`` rows; ``vocab`` None: of any number of ids."""
    if allowed is None:
        if allowed_rows is not None:
            raise ValueError(f"{op}: allowed must be given with allowed_rows, got None")
        return
    words = "words" if vocab is None else (vocab + 31) // 32
    tensor(op, "allowed", allowed, ("rows", words), INT32, device)
    if allowed.shape[1] > 1 and allowed.stride(1) != 1:
        raise ValueError(f"{op}: allowed must have unit stride in the last dimension, got {allowed.stride(1)}")
    if allowed_rows is not None:
        tensor(op, "allowed_rows", allowed_rows, (count,), INDICES, device)
    elif allowed.shape[0] < count:
        raise ValueError(f"{op}: allowed must have at least {count} rows, got {allowed.shape[0]}")


def node_rows(op: str, name: str, value: Tensor | None, logits_name: str, logits: Tensor, count: int) -> None:
    """Check the map from nodes to rows of logits, or that there is a row for every node."""
    if value is not None:
        tensor(op, name, value, (count,), INDICES, logits.device)
    elif logits.shape[0] < count:
        raise ValueError(f"{op}: {logits_name} must have at least {count} rows, got {logits.shape[0]}")


def stops(op: str, confidence: Tensor | None, entropy: Tensor | None, batch: int, device: torch.device) -> None:
    """Check the bounds at which drafting ends."""
    for name, value in (("min_confidence", confidence), ("max_entropy", entropy)):
        if value is not None:
            tensor(op, name, value, (batch,), FLOAT32, device)


def batch_options(op: str, active: Tensor | None, max_tokens: Tensor | None, batch: int, device: torch.device) -> None:
    """Check the per-request switches."""
    if active is not None:
        tensor(op, "active", active, (batch,), BOOL, device)
    if max_tokens is not None:
        tensor(op, "max_tokens", max_tokens, (batch,), INDICES, device)


def result(op: str, tree: TokenTree, logprobs: str | None, out: VerifyResult | None) -> None:
    """Check the choice of log-probabilities, and the result to write into if there is one."""
    choice(op, "logprobs", logprobs, LOGPROBS)
    if out is None:
        return
    if not hasattr(out, "num_tokens"):
        raise TypeError(f"{op}: out must be a VerifyResult, got {type(out).__name__}")
    device = tree.tokens.device
    batch, width = tree.cu_nodes.shape[0] - 1, tree.max_depth + 1
    output(op, "out.tokens", out.tokens, (batch, width), (tree.tokens.dtype,), device)
    output(op, "out.num_tokens", out.num_tokens, (batch,), INT32, device)
    output(op, "out.path", out.path, (batch, width), INT32, device)
    output(op, "out.status", out.status, (batch,), INT32, device)
    if logprobs is None:
        return
    for name, value in (("out.logprobs", out.logprobs), ("out.lse", out.lse)):
        if value is None:
            raise ValueError(f"{op}: {name} must be given with logprobs, got None")
        output(op, name, value, (batch, width), FLOAT32, device)


def flags(status: Tensor | None, like: Tensor, batch: int) -> Tensor | None:
    """Where to write status bits: what the caller gave, or with ``SPECDEC_DEBUG=1`` a tensor to look at."""
    if status is None and DEBUG:
        return like.new_empty(batch, dtype=torch.int32)
    return status


def raise_on_bad_data(op: str, status: Tensor | None) -> None:
    """With ``SPECDEC_DEBUG=1``: read ``status`` on the host and raise what would otherwise only be flagged."""
    if not DEBUG or status is None or torch.compiler.is_compiling():
        return
    for bit, text in (
        (Status.NAN, "logits must not contain NaN"),
        (Status.MALFORMED, "tree and row indices must be well-formed"),
        (Status.PAGE_OUT_OF_RANGE, "block_table must hold page ids within range"),
    ):
        flagged = (status & bit).nonzero().flatten()
        if flagged.numel():
            raise ValueError(f"{op}: {text}, got status {bit} for requests {flagged.numpy(force=True)}")


def pages(
    op: str, block_table: Tensor, table_rows: Tensor | None, context_lens: Tensor, batch: int, device: torch.device
) -> None:
    """Check the arguments that say where positions of requests lie."""
    tensor(op, "block_table", block_table, (batch if table_rows is None else "rows", "max_pages"), INDICES, device)
    if table_rows is not None:
        tensor(op, "table_rows", table_rows, (batch,), INDICES, device)
    tensor(op, "context_lens", context_lens, (batch,), INDICES, device)


def cache(op: str, name: str, value: Tensor, shape: tuple[int | str, ...], device: torch.device) -> None:
    """Check a paged cache of keys or values: any strides but that of the last dimension, pages of 2^n slots."""
    tensor(op, name, value, shape, CACHES, device)
    if value.shape[3] > 1 and value.stride(3) != 1:
        raise ValueError(f"{op}: {name} must have unit stride in the last dimension, got {value.stride(3)}")
    size = value.shape[1]
    if size < 1 or size & (size - 1):
        raise ValueError(f"{op}: {name} must have a page size that is a power of two, got {size}")


def cache_scale(op: str, name: str, value: Tensor | None, heads: int, device: torch.device) -> None:
    """Check the factors of a quantised cache: one, or one per head."""
    if value is not None:
        one = isinstance(value, Tensor) and value.shape == (1,)
        tensor(op, name, value, (1 if one else heads,), FLOAT32, device)


def tree_nodes(
    op: str, tree: TokenTree, query_nodes: Tensor | None, cu_queries: Tensor | None
) -> tuple[int, int, torch.device]:
    """Check a tree with its slots, and which of its nodes a call is about; requests, rows of the call, device."""
    batch, count, device = token_tree(op, tree)
    if tree.slots is not None:
        tensor(op, "tree.slots", tree.slots, (count,), INT32, device)
    if query_nodes is None and cu_queries is None:
        return batch, count, device
    if query_nodes is None or cu_queries is None:
        missing = "query_nodes" if query_nodes is None else "cu_queries"
        raise ValueError(f"{op}: {missing} must be given together with the other, got None")
    tensor(op, "query_nodes", query_nodes, ("Tq",), INDICES, device)
    tensor(op, "cu_queries", cu_queries, (batch + 1,), INT32, device)
    return batch, query_nodes.shape[0], device


def options(op: str, active: Tensor | None, status: Tensor | None, batch: int, device: torch.device) -> None:
    """Check the switch and the flags of an op that takes both."""
    if active is not None:
        tensor(op, "active", active, (batch,), BOOL, device)
    if status is not None:
        output(op, "status", status, (batch,), INT32, device)
