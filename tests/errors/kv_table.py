"""What the table of errors says of the kv family beyond the tensors of its arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch

import specdec_kernels as sk

WRITE, COMMIT, GATHER = "kv_write", "kv_commit", "kv_gather"


def special(add: Callable[..., None]) -> None:
    """Add calls that are refused; ``add(op, error, text, *dropped arguments, **changed arguments)``."""
    _write(add)
    _commit(add)
    add(GATHER, ValueError, "values must have shape [T, ...], got []", values=torch.tensor(1.0))
    add(GATHER, ValueError, "out must have shape [2, 3, 5], got [2, 3, 4]", values=torch.zeros(7, 5))


def _write(add: Callable[..., None]) -> None:
    unit = "must have unit stride in the last dimension, got 2"

    def spread(*shape: int) -> torch.Tensor:
        return torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]

    add(WRITE, ValueError, f"key {unit}", key=spread(5, 3, 8))
    add(WRITE, ValueError, f"value {unit}", value=spread(5, 3, 16))
    add(WRITE, ValueError, f"key_cache {unit}", key_cache=spread(12, 4, 3, 8))
    for size in (0, 3):
        text = f"key_cache must have a page size that is a power of two, got {size}"
        add(WRITE, ValueError, text, key_cache=torch.randn(12, size, 3, 8))
    for name, other in (("value", "value_cache"), ("value_cache", "value")):
        add(WRITE, ValueError, f"{name} must be given together with the other, got None", **{name: None})
        text = f"{name} must be given together with the other, got None"
        add(WRITE, ValueError, text, plain=True, **{name: None, other: torch.randn(7, 3, 16)})
    add(WRITE, ValueError, "value_scale must be None without values, got a tensor", value=None, value_cache=None)
    text = "block_table must have shape [2, max_pages], got [3, 6]"
    add(WRITE, ValueError, text, "table_rows", block_table=torch.zeros((3, 6), dtype=torch.int32))
    for name in ("query_nodes", "cu_queries"):
        add(WRITE, ValueError, f"{name} must be given together with the other, got None", name)
    text = "tree.cu_nodes must have at least one element, got shape [0]"
    add(WRITE, ValueError, text, tree__cu_nodes=torch.zeros(0, dtype=torch.int32))
    for bound in ("max_nodes", "max_depth"):
        add(WRITE, TypeError, f"tree.{bound} must be an int, got str", **{f"tree__{bound}": "7"})
        add(WRITE, ValueError, f"tree.{bound} must be at least 0, got -1", **{f"tree__{bound}": -1})
    gaps = torch.zeros(4, dtype=torch.int32)[::2]
    for op in (WRITE, COMMIT):
        add(op, ValueError, "status must be contiguous, got strides [2]", status=gaps)


def _commit(add: Callable[..., None]) -> None:
    one, two = torch.randn(12, 4, 3), torch.randn(12, 4)

    def groups(*given: object) -> dict[str, sk.KvBuffers]:
        return {"buffers": sk.KvBuffers(given)}  # type: ignore[arg-type]

    add(COMMIT, TypeError, "buffers must be a KvBuffers, got list", buffers=[one])
    start = "buffers.groups must be a sequence of tensors or of KvGroup, got"
    add(COMMIT, TypeError, f"{start} Tensor", buffers=sk.KvBuffers(one))
    add(COMMIT, TypeError, f"{start} KvGroup", buffers=sk.KvBuffers(sk.KvGroup((one,))))
    add(COMMIT, TypeError, "buffers.groups[1] must be a KvGroup, got Tensor", **groups(sk.KvGroup((one,)), two))
    add(COMMIT, TypeError, "buffers.groups[0] must be a KvGroup, got int", **groups(3))
    add(COMMIT, TypeError, "buffers.groups[1] must be a tensor, got KvGroup", **groups(one, sk.KvGroup((two,))))
    text = "buffers.groups[1].tensors must be a sequence of tensors, got Tensor"
    add(COMMIT, TypeError, text, **groups(sk.KvGroup((one,)), sk.KvGroup(two)))
    text = "buffers.groups[0].tensors[1] must be a tensor, got str"
    add(COMMIT, TypeError, text, **groups(sk.KvGroup((one, "keys"))))
    text = "buffers[1] must have shape [num_pages, page_size, ...], got [5]"
    add(COMMIT, ValueError, text, **groups(one, torch.zeros(5)))
    text = "buffers[1] must have the page size of its group, 4, got 8"
    add(COMMIT, ValueError, text, **groups(one, torch.zeros(6, 8)))
    for size in (0, 3):
        text = f"buffers[0] must have a page size that is a power of two, got {size}"
        add(COMMIT, ValueError, text, **groups(torch.zeros(6, size)))
    text = "buffers.groups[1].page_size must be that of its tensors, 4, got 8"
    add(COMMIT, ValueError, text, **groups(sk.KvGroup((one,)), sk.KvGroup((two,), page_size=8)))
    add(COMMIT, ValueError, "buffers[1] must be on cpu, got meta", **groups(one, two.to("meta")))
    text = "buffers[2] must not be in the memory of another, got that of buffers[0]"
    add(COMMIT, ValueError, text, **groups(one, two, one[..., :2]))
    add(COMMIT, ValueError, "block_table must be given where a group has none, got None", block_table=None)
    add(COMMIT, ValueError, "context_lens must be given where a group has none, got None", context_lens=None)
    add(COMMIT, ValueError, "cu_nodes must be given with slots, got None", cu_nodes=None)
    text = "block_table must have shape [2, max_pages], got [3, 6]"
    wrong = torch.zeros((3, 6), dtype=torch.int32)
    add(COMMIT, ValueError, text, "table_rows", "slots", block_table=wrong, **groups(one))
    for field, value in (("block_table", wrong), ("context_lens", wrong[:, 0]), ("table_rows", wrong[:, 0])):
        shape = "[2, max_pages]" if field == "block_table" else "[2]"
        text = f"buffers.groups[0].{field} must have shape {shape}, got {list(value.shape)}"
        add(COMMIT, ValueError, text, "table_rows", "slots", **groups(sk.KvGroup((one,), **{field: value})))
    text = "buffers.groups[0].slots must have dtype int32, got int64"
    add(COMMIT, TypeError, text, **groups(sk.KvGroup((one,), slots=torch.zeros(3, dtype=torch.int64))))
