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
    for name in ("scale", "softcap"):
        for wrong in ("0.5", True, torch.tensor(0.5)):
            add(OP, TypeError, f"{name} must be a float, got {type(wrong).__name__}", **{name: wrong})
        for value in (float("inf"), 1e39):
            add(OP, ValueError, f"{name} must be a finite float32, got {value}", **{name: value})
    add(OP, ValueError, "scale must be a finite float32, got nan", scale=float("nan"))
    for value in (-1.0, float("nan")):
        add(OP, ValueError, f"softcap must be at least 0, got {value}", softcap=value)
    for value in (-1, 2**63):
        add(OP, ValueError, f"window must be between 0 and {2**63 - 1}, got {value}", window=value)
    for wrong in (1.0, True, torch.tensor(1)):
        add(OP, TypeError, f"window must be an int, got {type(wrong).__name__}", window=wrong)
    add(OP, ValueError, "visibility must be one of 'tree', 'block', got 'all'", visibility="all")
    text = "tree.cu_nodes must have at least one element, got shape [0]"
    add(OP, ValueError, text, tree__cu_nodes=torch.zeros(0, dtype=torch.int32))
    for bound in ("max_nodes", "max_depth"):
        add(OP, TypeError, f"tree.{bound} must be an int, got str", **{f"tree__{bound}": "7"})
        add(OP, ValueError, f"tree.{bound} must be at least 0, got -1", **{f"tree__{bound}": -1})
    add(OP, ValueError, "status must be contiguous, got strides [2]", status=torch.zeros(4, dtype=torch.int32)[::2])
    gaps = (torch.zeros(5, 6, 17)[..., :16], torch.zeros(5, 6))
    add(OP, ValueError, "out[0] must be contiguous, got strides [102, 17, 1]", out=gaps)
    _out(add)


def _out(add: Callable[..., None]) -> None:
    """Outputs that are no pair, and those in the memory of something else."""
    for op in (OP, "attention_merge_states"):
        three = (torch.zeros(5, 6, 16), torch.zeros(5, 6), torch.zeros(5, 6))
        for wrong in (5, torch.zeros(2, 5, 6, 16), three):
            add(op, TypeError, f"out must be a pair of tensors, got {type(wrong).__name__}", out=wrong)
    memory = torch.zeros(12 * 4 * 3 * 16)
    both = {"query": memory[80:320].view(5, 6, 8), "out": (memory[:480].view(5, 6, 16), torch.zeros(5, 6))}
    add(OP, ValueError, "out[0] must not overlap query, got memory of both", **both)
    both = {"value_cache": memory.view(12, 4, 3, 16), "out": (torch.zeros(5, 6, 16), memory[-30:].view(5, 6))}
    add(OP, ValueError, "out[1] must not overlap value_cache, got memory of both", **both)
    both = {"out": (memory[:480].view(5, 6, 16), memory[450:480].view(5, 6))}
    add(OP, ValueError, "out[1] must not overlap out[0], got memory of both", **both)
