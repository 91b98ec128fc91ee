"""Data on the device that no one should give to attention and to the kv family: what every backend makes of it.

Each check takes the name of a backend; the fused backends and the interpreted kernels share them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import specdec_kernels as sk
from specdec_kernels._backend import device_of

from .compare import move, run

PAGE, DIM = 4, 16


def _int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def _chains(cu_nodes: list[int], total: int, slots: Tensor | None = None) -> sk.TokenTree:
    """Chains at these offsets, where they are any; rows of no request are idle."""
    columns = torch.zeros(3, total, dtype=torch.int32)
    for begin, end in zip(cu_nodes, cu_nodes[1:], strict=False):
        if 0 <= begin < end <= total:
            count = torch.arange(end - begin, dtype=torch.int32)
            columns[:, begin:end] = torch.stack((count - 1, count, torch.full_like(count, end - begin)))
    return sk.TokenTree(_int32(*cu_nodes), torch.zeros(total, dtype=torch.int64), *columns, 8, 7, slots)


def _attention(tree: sk.TokenTree, contexts: list[int], **changes: Any) -> dict[str, Any]:
    """A call over pages of four slots, four for each request."""
    torch.manual_seed(3)
    batch, rows = len(contexts), changes.pop("rows", tree.tokens.shape[0])
    return {
        "query": torch.randn(rows, 2, DIM),
        "key_cache": torch.randn(4 * batch, PAGE, 1, DIM),
        "value_cache": torch.randn(4 * batch, PAGE, 1, DIM),
        "block_table": torch.arange(4 * batch).view(batch, 4),
        "context_lens": torch.tensor(contexts),
        "tree": tree,
    } | changes


def _attend(backend: str, arguments: dict[str, Any]) -> tuple[Tensor, Tensor, list[int]]:
    """Results over poisoned memory, and the status."""
    rows, heads, _ = arguments["query"].shape
    made = []
    for name in (backend, "reference"):
        device = device_of(name)
        status = torch.full((arguments["context_lens"].numel(),), 77, dtype=torch.int32, device=device)
        poison = (torch.full((rows, heads, DIM), 7.0), torch.full((rows, heads), 7.0))
        call = {key: move(value, device) for key, value in (arguments | {"out": poison}).items()}
        out, lse = sk.attention.tree_attention(**call, status=status, backend=name)
        made.append((out.cpu(), lse.cpu(), status.tolist()))
    (out, lse, status), expected = made
    torch.testing.assert_close(out, expected[0], rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(lse, expected[1], rtol=1e-5, atol=1e-5, equal_nan=True)
    assert status == expected[2]
    return out, lse, status


def _is_nothing(out: Tensor, lse: Tensor) -> bool:
    return not bool(out.any()) and bool((lse == -torch.inf).all())


def offsets_that_do_not_ascend(backend: str) -> None:
    """A row belongs to the first request that has it; requests that begin before an earlier one ends have none."""
    for cu_nodes, flagged, idle in (
        ([4, 8, 0, 4], [0, 8, 8], [0, 1, 2, 3]),
        ([0, 4, 2, 6], [8, 8, 8], list(range(1, 8))),
        ([2, 4, 9, 4, 6], [0, 8, 8, 0], [0, 1, 6, 7]),
        ([9, 4, 6, 6, 8], [8, 0, 0, 0], [0, 1, 2, 3]),
        ([0, 4, 8, 2], [0, 0, 8], []),
    ):
        out, lse, status = _attend(backend, _attention(_chains(cu_nodes, 8), [3] * (len(cu_nodes) - 1)))
        assert status == flagged
        if flagged[0] == 0:
            assert _is_nothing(out[idle], lse[idle])
    out, lse, status = _attend(
        backend, _attention(_chains([0, 4, 2, 6], 8), [3] * 3, active=torch.tensor([True, False, True]))
    )
    assert status == [8, 0, 8]


def queries_that_do_not_ascend(backend: str) -> None:
    """The same of offsets of queries; ``kv.write`` flags those that are no range, and writes the others."""
    tree, nodes = _chains([0, 4, 8], 8), torch.tensor([0, 1, 2, 3, 0, 1])
    for cu_queries, attended, written in (
        ((0, 6, 2), [0, 8], [0, 8]),
        ((4, 6, 0), [0, 8], [0, 8]),
        ((2, 4, 9), [0, 8], [0, 8]),
        ((-1, 4, 6), [8, 0], [8, 0]),
        ((0, 4, 6), [0, 0], [0, 0]),
    ):
        chosen = {"query_nodes": nodes, "cu_queries": _int32(*cu_queries)}
        assert _attend(backend, _attention(tree, [3, 3], rows=6, **chosen))[2] == attended
        assert _write(backend, tree, [3, 3], rows=6, **chosen)[1] == written


def _write(
    backend: str, tree: sk.TokenTree, contexts: list[int], rows: int = 8, **more: Any
) -> tuple[Tensor, list[int]]:
    """What the first number of each slot is after rows 1, 2, ... were written, and the status."""
    batch, made = len(contexts), []
    for name in (backend, "reference"):
        device = device_of(name)
        status = torch.full((batch,), 77, dtype=torch.int32, device=device)
        cache = torch.zeros(4 * batch, PAGE, 1, DIM, device=device)
        key = torch.arange(1.0, rows + 1).view(rows, 1, 1).repeat(1, 1, DIM)
        table, lengths = torch.arange(4 * batch).view(batch, 4), torch.tensor(contexts)
        moved = [move(value, device) for value in (key, table, lengths, tree)]
        options = {key: move(value, device) for key, value in more.items()}
        sk.kv.write(moved[0], None, cache, None, *moved[1:], **options, status=status, backend=name)
        made.append((cache.cpu()[..., 0].flatten(), status.tolist()))
    assert torch.equal(made[0][0], made[1][0]) and made[0][1] == made[1][1]
    return made[0]


def slots_below_zero(backend: str) -> None:
    """They name no place: nothing of the context is overwritten, nor read as a node."""
    tree = _chains([0, 4, 8], 8, _int32(-2, 0, -1, 1, 2**31 - 1, 1, 2, 3))
    held, status = _write(backend, tree, [3, 3])
    assert status == [8, 16]
    assert held.nonzero().flatten().tolist() == [3, 4, 20, 21, 22] and held[held != 0].tolist() == [2, 4, 6, 7, 8]
    assert _write(backend, _chains([0, 4], 4, _int32(-2, -1, -(2**31), 99)), [3], rows=4)[1] == [8 | 16]
    for visibility in ("tree", "block"):
        assert _attend(backend, _attention(tree, [3, 3], visibility=visibility))[2] == [8, 16]
    both = tree._replace(slots=_int32(-2, 2**31 - 1, 1, 2, 0, 1, 2, 3))
    assert _attend(backend, _attention(both, [3, 3]))[2] == [8 | 16, 0]


def contexts_beyond_the_table(backend: str) -> None:
    """Tokens that the table has no column for are flagged where a row sees them; their number costs nothing."""
    tree = _chains([0, 4, 8], 8)
    for contexts in ([2**62, 2**63 - 1], [2**31 - 1, 17], [16, 12]):
        for window in (0, 1, 3, 2**63 - 1):
            _attend(backend, _attention(tree, contexts, window=window))
    assert _attend(backend, _attention(tree, [2**62, 12]))[2] == [16, 0]


def numbers_that_are_not_finite(backend: str) -> None:
    """Scores and sinks of NaN or +inf make rows NaN; values make a column not finite, whatever their weight."""
    tree = _chains([0, 2], 2)
    for dtype in (torch.float32, torch.float16):
        call = _attention(tree, [9], scale=1.0)
        for name in ("query", "key_cache", "value_cache"):
            call[name] = (torch.zeros_like(call[name]) if name != "value_cache" else torch.ones_like(call[name])).to(
                dtype
            )
        call["query"][..., 0] = 1.0

        def attend(call: dict[str, Any] = call, **changes: Any) -> tuple[Tensor, Tensor]:
            return run(backend, "attention_tree_attention", call | changes)  # type: ignore[no-any-return]

        for place in (2, 9):  # in the context, and the root
            for value in (torch.inf, -torch.inf, torch.nan):
                keys, values = call["key_cache"].clone(), call["value_cache"].clone()
                keys[place // PAGE, place % PAGE, 0, 0] = -60000.0  # its weight is 0
                values[place // PAGE, place % PAGE, 0, 3] = value
                out, lse = attend(key_cache=keys, value_cache=values)
                assert not bool(out[..., 3].isfinite().any()) and bool(out[..., 4].eq(1).all())
                assert bool(lse.isfinite().all())
            for value in (torch.inf, torch.nan):
                keys = call["key_cache"].clone()
                keys[place // PAGE, place % PAGE, 0, 0] = value
                out, lse = attend(key_cache=keys)
                assert bool(out.isnan().all()) and bool(lse.isnan().all())
        for sink in (torch.inf, torch.nan):
            out, lse = attend(sinks=torch.full((2,), sink))
            assert bool(out.isnan().all()) and bool(lse.isnan().all())
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 1, 2)
    for lses in ([torch.inf, 0.0], [0.0, torch.inf], [torch.inf] * 2, [torch.nan, -torch.inf], [0.0, torch.nan]):
        call = {"values": values, "lses": torch.tensor(lses).view(1, 2, 1)}
        out, lse = run(backend, "attention_merge_states", call)
        assert bool(out.isnan().all()) and bool(lse.isnan().all())


def tables_without_rows(backend: str) -> None:
    """A table that has no row is not a table that is not there: keys are not stored unturned, nor rows moved."""
    device = device_of(backend)
    status = torch.full((1,), 77, dtype=torch.int32, device=device)
    keys, values = ([torch.zeros(2, 4, 1, 4, device=device)] for _ in range(2))
    given = (torch.ones(1, 2, 1, 2, 1, 4), None, torch.empty(0, 2, 4))
    where = (torch.arange(2).view(1, 2), torch.tensor([3]), _int32(2))
    sk.kv.inject(*move(given, device), keys, values, *move(where, device), status=status, backend=backend)
    assert status.tolist() == [16] and not bool(keys[0].any()) and not bool(values[0].any())
    buffer = torch.arange(8.0, device=device).view(2, 4)
    path = move((torch.arange(2).view(1, 2), torch.tensor([2]), _int32(0, 2, 3).view(1, 3), _int32(3)), device)
    more = {"cu_nodes": _int32(0, 0).to(device), "slots": _int32().to(device), "status": status}
    sk.kv.commit(sk.KvBuffers([buffer]), *path, **more, backend=backend)
    assert status.tolist() == [8] and torch.equal(buffer.flatten().cpu(), torch.arange(8.0))


CHECKS = (
    offsets_that_do_not_ascend,
    queries_that_do_not_ascend,
    slots_below_zero,
    contexts_beyond_the_table,
    numbers_that_are_not_finite,
    tables_without_rows,
)
