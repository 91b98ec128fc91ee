"""What the table of errors says of the attention family beyond the tensors of its arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch

OP = "attention_tree_attention"


def special(add: Callable[..., None]) -> None:
    """Add calls that are refused; ``add(op, error, text, *dropped arguments, **changed arguments)``."""
    unit = "must have unit stride in the last dimension, got 2"

    def spread(*shape: int) -> torch.Tensor:
        return torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]

    add(OP, ValueError, f"query {unit}", query=spread(5, 6, 8))
    add(OP, ValueError, f"key_cache {unit}", key_cache=spread(12, 4, 3, 8))
    add(OP, ValueError, f"value_cache {unit}", value_cache=spread(12, 4, 3, 16))
    add("attention_merge_states", ValueError, f"values {unit}", values=spread(2, 3, 2, 8))
    for size in (0, 3):
        text = f"key_cache must have a page size that is a power of two, got {size}"
        add(OP, ValueError, text, key_cache=torch.randn(12, size, 3, 8))
    head = "must have a head size that is a multiple of 8 up to"
    for dim in (4, 12, 584):
        wide = {"query": torch.randn(5, 6, dim), "key_cache": torch.randn(12, 4, 3, dim)}
        add(OP, ValueError, f"query {head} 576, got {dim}", **wide)
    for dim in (0, 12, 520):
        add(OP, ValueError, f"value_cache {head} 512, got {dim}", value_cache=torch.randn(12, 4, 3, dim))
    for heads in (5, 7):
        add(OP, ValueError, f"query must have a multiple of 3 heads, got {heads}", query=torch.randn(5, heads, 8))
    text = "block_table must have shape [2, max_pages], got [3, 6]"
    add(OP, ValueError, text, "table_rows", block_table=torch.zeros((3, 6), dtype=torch.int32))
    for name in ("query_nodes", "cu_queries"):
        add(OP, ValueError, f"{name} must be given together with the other, got None", name)
    add(OP, TypeError, "scale must be a float, got str", scale="0.5")
    add(OP, TypeError, "softcap must be a float, got str", softcap="0.5")
    for value in (-1.0, float("nan")):
        add(OP, ValueError, f"softcap must be at least 0, got {value}", softcap=value)
    add(OP, ValueError, "window must be at least 0, got -1", window=-1)
    add(OP, TypeError, "window must be an int, got float", window=1.0)
    add(OP, ValueError, "visibility must be one of 'tree', 'block', got 'all'", visibility="all")
    text = "tree.cu_nodes must have at least one element, got shape [0]"
    add(OP, ValueError, text, tree__cu_nodes=torch.zeros(0, dtype=torch.int32))
    for bound in ("max_nodes", "max_depth"):
        add(OP, TypeError, f"tree.{bound} must be an int, got str", **{f"tree__{bound}": "7"})
        add(OP, ValueError, f"tree.{bound} must be at least 0, got -1", **{f"tree__{bound}": -1})
    add(OP, ValueError, "status must be contiguous, got strides [2]", status=torch.zeros(4, dtype=torch.int32)[::2])
    gaps = (torch.zeros(5, 6, 17)[..., :16], torch.zeros(5, 6))
    add(OP, ValueError, "out[0] must be contiguous, got strides [102, 17, 1]", out=gaps)
