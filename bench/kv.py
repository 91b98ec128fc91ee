"""The accepted rows of all layers move in one call, against ``index_select`` and ``index_copy_`` tensor by tensor (where
heads lie apart, and rows are not in one piece: indexing).

No source of a move is a target, so that a call can be repeated: the first branch of each tree is rejected, and the nodes
of the second take its place. Each variant has caches of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import specdec_kernels as sk

from . import kv_inject
from .measured import COMPILE, EAGER, Setting, add_note, judge, rows_of
from .rows import Goal, Row
from .runner import Variant, measure

FAMILY, OP = "kv", "kv_commit"
LAYERS, REQUESTS, MOVED = 32, 8, 4
HEADS, DIM, PAGE, CONTEXT = 8, 128, 16, 100

#: Requests whose rows are more than 64 MB, on a GPU.
MANY = 256


class Layout(NamedTuple):
    """How the caches of a model lie in memory.

    Attributes:
        name: for the column ``case``.
        dtype: of keys and values.
        heads_first: whether a page holds head by head.
        scales: whether there is a float32 scale per row and head beside each.
    """

    name: str
    dtype: torch.dtype
    heads_first: bool = False
    scales: bool = False


LAYOUTS = (
    Layout("rows in one piece", torch.bfloat16),
    Layout("heads apart", torch.bfloat16, heads_first=True),
    Layout("with scales", torch.float8_e4m3fn, scales=True),
)
QUICK_LAYOUTS = LAYOUTS[:1]


class Moves(NamedTuple):
    """Where the rows of all requests lie, and which of them move.

    Attributes:
        table: ``[B, pages]``.
        lengths: ``[B]``.
        path: ``[B, MOVED + 1]``.
        counts: ``[B]``.
        sources: flat row numbers, page by page.
        targets: of the same rows, afterwards.
        num_pages: of each cache.
    """

    table: Tensor
    lengths: Tensor
    path: Tensor
    counts: Tensor
    sources: Tensor
    targets: Tensor
    num_pages: int


def moves(requests: int, device: str) -> Moves:
    """Contexts of about :data:`CONTEXT` tokens in pages in any order."""
    draw = torch.Generator().manual_seed(0)
    each = (CONTEXT + PAGE + 2 * MOVED) // PAGE + 1
    table = torch.randperm(requests * each, generator=draw).view(requests, each)
    lengths = CONTEXT + torch.arange(requests) % PAGE
    path = torch.tensor([0, *range(MOVED + 1, 2 * MOVED + 1)], dtype=torch.int32).expand(requests, -1).contiguous()

    def rows(behind: Tensor) -> Tensor:
        at = lengths.unsqueeze(1) + behind
        return (table.gather(1, at // PAGE) * PAGE + at % PAGE).flatten()

    made = Moves(
        table.int(),
        lengths.int(),
        path,
        torch.full((requests,), MOVED + 1, dtype=torch.int32),
        rows(path[:, 1:].long()),
        rows(torch.arange(1, MOVED + 1).expand(requests, -1)),
        requests * each,
    )
    return made._replace(**{name: getattr(made, name).to(device) for name in made._fields[:-1]})


def caches(layout: Layout, layers: int, num_pages: int, device: str) -> list[Tensor]:
    """Keys and values, and scales, of all layers: ``[pages, page, heads, ...]``, full of numbers that differ."""
    size = (num_pages, HEADS, PAGE, DIM) if layout.heads_first else (num_pages, PAGE, HEADS, DIM)
    numbers = torch.arange(num_pages * PAGE * HEADS * DIM, device=device).remainder_(113).to(layout.dtype).view(size)
    made = [numbers.clone() for _ in range(2 * layers)]
    if layout.heads_first:
        made = [tensor.transpose(1, 2) for tensor in made]
    if layout.scales:
        scale = torch.arange(num_pages * PAGE * HEADS, device=device).float().view(num_pages, PAGE, HEADS)
        made += [scale.clone() for _ in range(2 * layers)]
    return made


def select_and_copy(buffers: list[Tensor], sources: Tensor, targets: Tensor) -> None:
    """What one writes without an op for it: tensor by tensor, through the bytes of types that have no copy of rows."""
    for buffer in buffers:
        rows = buffer.view(torch.int8) if buffer.element_size() == 1 else buffer
        if rows.is_contiguous():
            flat = rows.flatten(0, 1)
            flat.index_copy_(0, targets, flat.index_select(0, sources))
        else:
            rows[targets // PAGE, targets % PAGE] = rows[sources // PAGE, sources % PAGE]


def count(setting: Setting) -> int:
    """How many groups :func:`groups` gives."""
    return len(_layouts(setting)) * len(_batches(setting)) + kv_inject.count(setting)


def _layouts(setting: Setting) -> tuple[Layout, ...]:
    return QUICK_LAYOUTS if setting.quick else LAYOUTS


def _batches(setting: Setting) -> tuple[int, ...]:
    return (REQUESTS, MANY) if setting.device == "cuda" else (REQUESTS,)


def goals(setting: Setting, requests: int) -> list[Goal]:
    """Against the eager baseline on a CPU; on a GPU against the launch of a kernel, or against its copy bandwidth."""
    if setting.device == "cpu":
        return [Goal("speedup_over_eager", 10.0, at_least=True)]
    return [Goal("time_us", 12.0)] if requests == REQUESTS else [Goal("share_of_copy", 0.8, at_least=True)]


def groups(setting: Setting, layers: int = LAYERS) -> Iterator[list[Row]]:
    """The rows of one layout after the other, then those of ``kv.inject``."""
    for requests in _batches(setting):
        for layout in _layouts(setting):
            yield _of_layout(setting, layout, layers, requests)
    yield from kv_inject.groups(setting, FAMILY)


def _of_layout(setting: Setting, layout: Layout, layers: int, requests: int) -> list[Row]:
    setting.tick()
    where = moves(requests, setting.device)
    calls: dict[str, Callable[[list[Tensor]], object]] = {
        backend: partial(_commit, where, backend) for backend in setting.backends
    }
    calls[EAGER] = lambda buffers: select_and_copy(buffers, where.sources, where.targets)
    if not setting.quick:
        layer = torch.compile(select_and_copy, dynamic=False)
        calls[COMPILE] = lambda buffers: [
            layer(buffers[i : i + 2], where.sources, where.targets) for i in range(0, len(buffers), 2)
        ]
    expected = caches(layout, 1, where.num_pages, setting.device)
    select_and_copy(expected, where.sources, where.targets)
    kinds = [expected[0]] * (2 * layers) + expected[2:3] * (2 * layers)
    variants = []
    for name, call in calls.items():
        buffers = caches(layout, layers, where.num_pages, setting.device)
        variants.append(Variant(name, partial(call, buffers), partial(_right, buffers, kinds)))
    setting.tick()
    outcomes = measure(
        variants, repeats=setting.repeats, budget_s=setting.budget_s, stopwatch=setting.stopwatch, tick=setting.tick
    )
    columns: dict[str, Any] = {"family": FAMILY, "op": OP, "case": layout.name, "data": "numbers"}
    columns |= {"dtype": str(layout.dtype).removeprefix("torch.")}
    columns["shape"] = f"{layers} layers, {requests} requests, {MOVED} rows of {HEADS} x {DIM}"
    row_bytes = sum(tensor[0, 0].numel() * tensor.element_size() for tensor in kinds)
    rows = rows_of(setting, outcomes, columns, needed=dict.fromkeys(outcomes, 2 * requests * MOVED * row_bytes))
    for row in rows:
        if row.variant in (EAGER, COMPILE):
            add_note(
                row, "index_select and index_copy_ per tensor" if not layout.heads_first else "indexing per tensor"
            )
    judge(rows, setting, goals(setting, requests))
    return rows


def _commit(where: Moves, backend: str, buffers: list[Tensor]) -> None:
    sk.kv.commit(sk.KvBuffers(buffers), where.table, where.lengths, where.path, where.counts, backend=backend)


def _right(buffers: list[Tensor], expected: list[Tensor], result: Any) -> str | None:
    """Whether all caches hold what they must hold after any number of calls."""
    for i, (ours, theirs) in enumerate(zip(buffers, expected, strict=True)):
        wide = ours.float() != theirs.float()
        if bool(wide.any()):
            return f"buffer {i} must hold the moved rows, {int(wide.sum())} of {wide.numel()} numbers differ"
    return None
