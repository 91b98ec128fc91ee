"""What the table of errors says of ``kv.inject``, ``draft.block`` and ``draft.budget`` beyond the tensors of their arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from dispatch.samples import sample

INJECT, BLOCK, BUDGET = "kv_inject", "draft_block", "draft_budget"
SIDES = ("key_caches", "value_caches")


def special(add: Callable[..., None]) -> None:
    """Add calls that are refused; ``add(op, error, text, *dropped arguments, **changed arguments)``."""
    _inject(add)
    _caches(add)
    _block(add)
    _budget(add)


def _inject(add: Callable[..., None]) -> None:
    unit = "must have unit stride in the last dimension, got 2"
    add(INJECT, ValueError, f"projected {unit}", projected=torch.randn(2, 3, 2, 2, 3, 16)[..., ::2])
    add(INJECT, ValueError, f"key_norm {unit}", key_norm=torch.randn(2, 16)[:, ::2])
    add(INJECT, ValueError, f"cos_sin {unit}", cos_sin=torch.randn(20, 2, 16)[..., ::2])
    text = "projected must have at least one layer, got shape [2, 3, 0, 2, 3, 8]"
    add(INJECT, ValueError, text, projected=torch.randn(2, 3, 0, 2, 3, 8))
    for dim in (0, 1025):
        text = f"projected must have between 1 and 1024 elements in its last dimension, got {dim}"
        add(INJECT, ValueError, text, projected=torch.randn(2, 3, 2, 2, 3, dim))
    odd = {"projected": torch.randn(2, 3, 2, 2, 3, 7), "cos_sin": torch.randn(20, 2, 7)}
    add(INJECT, ValueError, "projected must have an even last dimension to be turned, got 7", **odd, key_norm=None)
    text = "projected must have shape [B, W, L, 2, Hkv, D], got [2, 3, 2, 3, 3, 8]"
    add(INJECT, ValueError, text, projected=torch.randn(2, 3, 2, 3, 3, 8))
    add(INJECT, ValueError, "cos_sin must be given with positions, got None", cos_sin=None)
    for wrong, error, text in (
        ("small", TypeError, "a number, got str"),
        (True, TypeError, "a number, got bool"),
        (-1.0, ValueError, "at least 0, got -1.0"),
        (float("nan"), ValueError, "at least 0, got nan"),
    ):
        add(INJECT, error, f"eps must be {text}", eps=wrong)
    add(INJECT, TypeError, "interleaved must be a bool, got int", interleaved=1)
    for name in ("key_scale", "value_scale"):
        add(INJECT, ValueError, f"{name} must have shape [3], got [2]", **{name: torch.ones(2)})
        add(INJECT, ValueError, f"{name} must have shape [2, 1], got [3, 1]", **{name: torch.ones(3, 1)})
    text = "block_table must have shape [2, max_pages], got [3, 6]"
    add(INJECT, ValueError, text, "table_rows", block_table=torch.zeros((3, 6), dtype=torch.int32))
    for op in (INJECT, BLOCK):
        gaps = torch.zeros(4, dtype=torch.int32)[::2]
        add(op, ValueError, "status must be contiguous, got strides [2]", status=gaps)


def _caches(add: Callable[..., None]) -> None:
    for name in SIDES:
        first, second = sample(INJECT, full=True)[name]
        add(INJECT, TypeError, f"{name} must be a sequence of tensors, got Tensor", **{name: first})
        for wrong in ([first], [first, second, first]):
            text = f"{name} must have 2 elements, one for each layer, got {len(wrong)}"
            add(INJECT, ValueError, text, **{name: wrong})
        for other, error, text in (
            ("text", TypeError, "be a tensor, got str"),
            (second.int(), TypeError, "have dtype float32, bfloat16, float16, float8_e4m3fn or float8_e5m2, got int32"),
            (second[0], ValueError, "have shape [P, S, 3, 8], got [4, 3, 8]"),
            (second[:, :, :2], ValueError, "have shape [P, S, 3, 8], got [12, 4, 2, 8]"),
            (second.to("meta"), ValueError, "be on cpu, got meta"),
            (torch.zeros(12, 4, 3, 16)[..., ::2], ValueError, "have unit stride in the last dimension, got 2"),
            (second[:, :3], ValueError, "have a page size that is a power of two, got 3"),
            (second[:11], ValueError, "have the shape, strides and dtype of the first, got shape [11, 4, 3, 8]"),
            (second.bfloat16(), ValueError, "have the shape, strides and dtype of the first, got shape [12, 4, 3, 8]"),
            (
                second.transpose(1, 2).contiguous().transpose(1, 2),
                ValueError,
                "have the shape, strides and dtype of the first, got shape [12, 4, 3, 8]",
            ),
        ):
            add(INJECT, error, f"{name}[1] must {text}", **{name: [first, other]})
    (first, second), values = (sample(INJECT, full=True)[name] for name in SIDES)
    text = "key_caches[1] must not be in the memory of another, got that of key_caches[0]"
    add(INJECT, ValueError, text, key_caches=[first, first])
    text = "value_caches[0] must not be in the memory of another, got that of key_caches[1]"
    add(INJECT, ValueError, text, key_caches=[first, second], value_caches=[second, values[0]])
    fewer = [cache[:11] for cache in sample(INJECT, full=True)["value_caches"]]
    text = "value_caches[0] must have the pages of key_caches[0], got [11, 4, 3, 8]"
    add(INJECT, ValueError, text, value_caches=fewer)


def _block(add: Callable[..., None]) -> None:
    for name, low, text in (
        ("mask_token", -1, "between 0 and 2147483647, got -1"),
        ("block_size", 0, "at least 1, got 0"),
    ):
        add(BLOCK, ValueError, f"{name} must be {text}", **{name: low})
        for wrong in (2.0, True):
            add(BLOCK, TypeError, f"{name} must be an int, got {type(wrong).__name__}", **{name: wrong})
    add(BLOCK, ValueError, "mask_token must be between 0 and 2147483647, got 2147483648", mask_token=2**31)
    add(BLOCK, ValueError, "out.ids must have shape [2, 5], got [2, 4]", block_size=5)
    add(BLOCK, ValueError, "page_size must be given with block_table, got None", page_size=None)
    add(BLOCK, ValueError, "page_size must be at least 1, got 0", page_size=0)
    add(BLOCK, ValueError, "page_size must be a power of two, got 3", page_size=3)
    add(BLOCK, TypeError, "page_size must be an int, got float", page_size=4.0)
    for name, dropped in (("page_size", "table_rows"), ("table_rows", "page_size")):
        add(BLOCK, ValueError, f"block_table must be given with {name}, got None", "block_table", dropped)
    text = "block_table must have shape [2, max_pages], got [3, 6]"
    add(BLOCK, ValueError, text, "table_rows", block_table=torch.zeros((3, 6), dtype=torch.int32))
    add(BLOCK, TypeError, "out must be a Block, got int", out=3)
    add(BLOCK, ValueError, "out.slots must be given with block_table, got None", out__slots=None)
    text = "out.slots must be None without block_table, got a tensor"
    add(BLOCK, ValueError, text, "block_table", "table_rows", "page_size")


def _budget(add: Callable[..., None]) -> None:
    one = torch.zeros(1)
    text = "scores must have at most 4194304 rows, got 4194305"
    add(BUDGET, ValueError, text, scores=one.expand(2**22 + 1, 1))
    text = "scores must have at most 2147483647 elements, got shape [2, 1073741824]"
    add(BUDGET, ValueError, text, scores=one.expand(2, 2**30))
    for size in (0, 2**22 + 1):
        text = f"costs must have between 1 and 4194304 elements, got {size}"
        add(BUDGET, ValueError, text, costs=one.expand(size) if size else one[:0])
    for wrong in (1, None, "yes"):
        add(BUDGET, TypeError, f"sampled must be a bool, got {type(wrong).__name__}", sampled=wrong)
