"""Projected keys and values of all layers of a block drafter into their paged caches; :mod:`.kv` has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import _backend, _validate

#: Largest head size.
MAX_DIM = 1024


def inject(
    projected: Tensor,
    key_norm: Tensor | None,
    cos_sin: Tensor | None,
    key_caches: Sequence[Tensor],
    value_caches: Sequence[Tensor],
    block_table: Tensor,
    context_lens: Tensor,
    num_tokens: Tensor,
    *,
    positions: Tensor | None = None,
    eps: float = 1e-6,
    interleaved: bool = False,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    table_rows: Tensor | None = None,
    active: Tensor | None = None,
    status: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Finish and store the keys and values of newly committed tokens for all layers of a drafter, in one launch.

    A block drafter attends to keys and values that are made of the target's features alone, so one matrix product
    gives those of all its layers. What is left is this op: for ``j < num_tokens[b]`` and each layer the key of row ``j``
    is normalised (``x / sqrt(mean(x^2) + eps) * key_norm``), turned by the angles of its position, divided by
    ``key_scale`` and stored at position ``context_lens[b] + j`` of that layer's key cache; the value is divided by
    ``value_scale`` and stored beside it. Other rows write nothing, and nothing else in the caches is touched.

    The arithmetic is float32 in one order; the squares of a head are added in halves: padded with zeros to a power of
    two ``n``, elements ``i`` and ``i + n/2``, then ``n/4``, down to 1. Stored is the result rounded to nearest even;
    float8 takes its largest finite value for what is larger.

    Args:
        projected: ``[B, W, L, 2, Hkv, D]`` float32, bfloat16 or float16, unit stride in the last dimension and any
            others: row ``j`` of request ``b``, layer ``l``, first the key and then the value. A view of the product
            ``[B*W, L*2*Hkv*D]``. ``D`` is at most 1024, and even where ``cos_sin`` is given.
        key_norm: ``[L, D]`` float32, bfloat16 or float16, weights of the RMSNorm of the keys of each layer. None: no
            norm.
        cos_sin: ``[max_positions, 2, D]`` float32, bfloat16 or float16: cosines, then sines that carry the sign, of
            every element: it becomes ``x * cosine + partner * sine``. None: no rotation.
        key_caches: ``L`` tensors ``[P, S, Hkv, D]`` float32, bfloat16, float16, float8_e4m3fn or float8_e5m2, all of
            one shape, dtype and strides, of which the last is 1; ``S``, the tokens of a page, is a power of two.
        value_caches: ``L`` tensors ``[P, S, Hkv, D]``, likewise; their dtype and strides may be others than the keys'. No
            two caches may have memory in common; those that begin at the same address are refused.
        block_table: ``[B, max_pages]`` int32 or int64: position ``t`` of request ``b`` lies in page
            ``block_table[b, t // S]``, slot ``t % S``. With ``table_rows`` ``[rows, max_pages]``.
        context_lens: ``[B]`` int32 or int64, position of row 0 of each request. Below 0 counts as 0, status 8.
        num_tokens: ``[B]`` int32, valid rows of each request, as ``VerifyResult.num_tokens``; outside ``[0, W]`` it is
            clamped, status 8.
        positions: ``[B, W]`` int32 or int64, row of ``cos_sin`` for each row, given with ``cos_sin``. None: the
            position where the row is stored.
        eps: is added to the mean of the squares, at least 0.
        interleaved: which element is the partner: False: ``i + D/2`` of element ``i`` of the first half, and the other
            way round; the sines of the first half are negative ("neox"). True: ``2i + 1`` of element ``2i``, and the
            other way round; the sines of even elements are negative ("GPT-J").
        key_scale: ``[1]``, ``[Hkv]``, ``[L, 1]`` or ``[L, Hkv]`` float32, what stored keys are to be multiplied by.
        value_scale: the same for values.
        table_rows: ``[B]`` int32 or int64, row of ``block_table`` of each request.
        active: ``[B]`` bool; other requests are no-ops.
        status: ``[B]`` int32, is overwritten with bits of :class:`~specdec_kernels.types.Status`: 8, and 16 where a
            page id or a row of ``cos_sin`` is out of range (the row is not written in any layer).
        backend: see :func:`specdec_kernels.use_backend`.

    Raises:
        ValueError, TypeError: on a wrong shape, dtype, stride or device.

    Deterministic; the same bits on every backend, but for those of a NaN, which stays some NaN, and for a row in any
    company. CUDA-graph safe: lengths are read on the device.
    Complexity: one read of the valid rows, one write. One launch up to 64 layers; on ``triton`` one for each eight.
    Source: DFlash, Chen et al. 2026, arXiv 2602.06036 (KV injection).
    """
    op = "kv.inject"

    def check() -> None:
        _validate.tensor(op, "projected", projected, ("B", "W", "L", 2, "Hkv", "D"), _validate.FLOATS)
        batch, width, layers, _, heads, dim = projected.shape
        device = projected.device
        if layers < 1:
            raise ValueError(f"{op}: projected must have at least one layer, got shape {list(projected.shape)}")
        if not 1 <= dim <= MAX_DIM:
            raise ValueError(
                f"{op}: projected must have between 1 and {MAX_DIM} elements in its last dimension, got {dim}"
            )
        _unit_stride(op, "projected", projected)
        if key_norm is not None:
            _validate.tensor(op, "key_norm", key_norm, (layers, dim), _validate.FLOATS, device)
            _unit_stride(op, "key_norm", key_norm)
        if cos_sin is not None:
            _validate.tensor(op, "cos_sin", cos_sin, ("max_positions", 2, dim), _validate.FLOATS, device)
            _unit_stride(op, "cos_sin", cos_sin)
            if dim % 2:
                raise ValueError(f"{op}: projected must have an even last dimension to be turned, got {dim}")
        if positions is not None:
            if cos_sin is None:
                raise ValueError(f"{op}: cos_sin must be given with positions, got None")
            _validate.tensor(op, "positions", positions, (batch, width), _validate.INDICES, device)
        check_host()
        for name, caches in (("key_caches", key_caches), ("value_caches", value_caches)):
            _check_caches(op, name, caches, layers, ("P", "S", heads, dim), device)
        if value_caches[0].shape[:2] != key_caches[0].shape[:2]:
            shape = list(value_caches[0].shape)
            raise ValueError(f"{op}: value_caches[0] must have the pages of key_caches[0], got {shape}")
        sides = (("key_caches", key_caches), ("value_caches", value_caches))
        _validate.distinct(op, [(f"{name}[{i}]", cache) for name, caches in sides for i, cache in enumerate(caches)])
        for name, scale in (("key_scale", key_scale), ("value_scale", value_scale)):
            _check_scale(op, name, scale, layers, heads, device)
        _validate.pages(op, block_table, table_rows, context_lens, batch, device)
        _validate.tensor(op, "num_tokens", num_tokens, (batch,), _validate.INT32, device)
        _validate.options(op, active, status, batch, device)

    def check_host() -> None:
        if not isinstance(eps, (int, float)) or isinstance(eps, bool):
            raise TypeError(f"{op}: eps must be a number, got {type(eps).__name__}")
        if not eps >= 0:
            raise ValueError(f"{op}: eps must be at least 0, got {eps}")
        _validate.flag(op, "interleaved", interleaved)
        for name, caches in (("key_caches", key_caches), ("value_caches", value_caches)):
            if not isinstance(caches, (list, tuple)):
                raise TypeError(f"{op}: {name} must be a sequence of tensors, got {type(caches).__name__}")

    def launch(kernel: Callable[..., None]) -> None:
        check_host()
        flags = _validate.flags(status, projected, projected.shape[0])
        kernel(
            *(projected, key_norm, cos_sin, positions, block_table, table_rows, context_lens, num_tokens),
            *(eps, interleaved, key_scale, value_scale, active, list(key_caches), list(value_caches), flags),
        )
        _validate.raise_on_bad_data(op, flags)

    _backend.run("kv_inject", backend, projected, check, launch)


def _unit_stride(op: str, name: str, value: Tensor) -> None:
    if value.shape[-1] > 1 and value.stride(-1) != 1:
        raise ValueError(f"{op}: {name} must have unit stride in the last dimension, got {value.stride(-1)}")


def _check_caches(
    op: str, name: str, caches: Sequence[Tensor], layers: int, shape: tuple[int | str, ...], device: torch.device
) -> None:
    """Check the caches of all layers: one for each, all of one layout."""
    if len(caches) != layers:
        raise ValueError(f"{op}: {name} must have {layers} elements, one for each layer, got {len(caches)}")
    for i, cache in enumerate(caches):
        _validate.cache(op, f"{name}[{i}]", cache, shape, device)
        first = caches[0]
        if (cache.shape, cache.stride(), cache.dtype) != (first.shape, first.stride(), first.dtype):
            raise ValueError(
                f"{op}: {name}[{i}] must have the shape, strides and dtype of the first, got shape {list(cache.shape)}"
            )


def _check_scale(op: str, name: str, value: Tensor | None, layers: int, heads: int, device: torch.device) -> None:
    """Check factors of quantised caches: one, one per head, or those of each layer."""
    if isinstance(value, Tensor) and value.dim() != 1:
        one = value.dim() == 2 and value.shape[1] == 1
        _validate.tensor(op, name, value, (layers, 1 if one else heads), _validate.FLOAT32, device)
    else:
        _validate.cache_scale(op, name, value, heads, device)
