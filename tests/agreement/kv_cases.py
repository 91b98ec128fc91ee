"""Random paged caches and calls of the kv family: every layout of engines, and data that is wrong in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import python_ref.ops as oracle
import specdec_kernels as sk
from specdec_kernels._backend import device_of

from .cases import FLOATS, INDICES, Draw, Shape, assemble, shape

CACHES = (*FLOATS, torch.float8_e4m3fn, torch.float8_e5m2)
DTYPES = (*CACHES, torch.uint8, torch.int8, torch.int64, torch.float64, torch.complex128)
LAYOUTS = ("nhd", "hnd", "interleaved", "scales", "latent", "gaps", "deep")


def storage(draw: Draw, count: int, dtype: torch.dtype) -> Tensor:
    """``[count]`` of random bytes."""
    return draw.whole_tensor(0, 255, (count * dtype.itemsize,), torch.uint8).view(dtype)


def tensor(draw: Draw, layout: str, rows: tuple[int, int], dtype: torch.dtype, odd: bool = True) -> Tensor:
    """``[pages, page_size, ...]`` in one of the layouts, as a view of memory with something around it."""
    pages, size = rows
    heads, dim = draw.whole(1, 3), draw.one((1, 3, 8, 16, 40)) if odd else 16
    offset = draw.one((0, 0, 1, 16)) if odd else 0

    def view(*sizes: int) -> Tensor:
        count = 1
        for extent in sizes:
            count *= extent
        return storage(draw, count + offset + 7, dtype)[offset : offset + count].view(sizes)

    if layout == "nhd":
        return view(pages, size, heads, dim)
    if layout == "hnd":
        return view(pages, heads, size, dim).transpose(1, 2)
    if layout == "interleaved":
        return view(pages, 2, size, heads, dim)[:, draw.whole(0, 1)]
    if layout == "scales":
        return view(pages, size, heads) if draw.chance(0.7) else view(pages, size)
    if layout == "latent":
        return view(pages, size, 1, 72)
    if layout == "gaps":
        return view(pages + 1, size, heads, 2, dim + 3)[1:, :, :, 1, ::2]
    return view(size, 3, 2, 4, pages, 3, 2)[:, ::2, :, ::3, :, ::2].permute(4, 0, 6, 1, 3, 5, 2)


def bytes_of(value: Tensor) -> Tensor:
    """All bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8, device=value.device).set_(value.untyped_storage()).cpu()


def twins(value: Any, device: str = "cpu") -> Any:
    """The same with tensors of their own; views of one storage stay views of one storage."""
    held: dict[int, torch.UntypedStorage] = {}

    def twin(given: Tensor) -> Tensor:
        source = given.untyped_storage()
        key = source._cdata
        if key not in held:
            held[key] = torch.UntypedStorage(source.nbytes(), device=device)
            held[key].copy_(source)
        made = torch.empty(0, dtype=given.dtype, device=device)
        return made.set_(held[key], given.storage_offset(), given.shape, given.stride())

    return pytree.tree_map_only(Tensor, twin, value)


def written(call: dict[str, Any]) -> list[Tensor]:
    """Bytes of everything that a call may write."""
    names = ("buffers", "key_cache", "value_cache", "key_caches", "value_caches", "status")
    found = pytree.tree_leaves([call.get(name) for name in names])
    return [bytes_of(leaf) for leaf in found if isinstance(leaf, Tensor)]


def outcome(
    function: Callable[..., Any], arguments: dict[str, Any], device: str = "cpu", **options: Any
) -> list[Tensor]:
    """Bytes of everything that a call has written."""
    call = twins(arguments, device)
    function(**call, **options)
    return written(call)


def check(op: str, arguments: dict[str, Any], backend: str, label: str) -> bool:
    """Compare a call with the oracle; whether it changed anything but the status."""
    name = op.split(".")[1]
    expected = outcome(getattr(oracle.kv, name), arguments)
    ours = outcome(getattr(sk.kv, name), arguments, device_of(backend), backend=backend)
    for i, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert torch.equal(a, b), (
            f"{op}, {label}, memory {i} differs at bytes {(a != b).nonzero().flatten().tolist()[:9]}"
        )
    return any(not torch.equal(a, b) for a, b in zip(expected[:-1], written(arguments)[:-1], strict=True))


class Pages(NamedTuple):
    """Where the rows of a batch lie."""

    block_table: Tensor
    table_rows: Tensor | None
    context_lens: Tensor
    num_pages: int


def pages(draw: Draw, batch: int, size: int, reach: int, spoil: bool) -> Pages:
    """Tables in which every request has pages of its own, for ``reach`` positions behind a context; some pages are
    nobody's. ``spoil``: ids, rows and lengths out of range."""
    longest = draw.whole(0, 2 * size)
    width = (longest + reach) // size + 1
    own_rows = draw.chance(0.5)
    rows = batch + 2 if own_rows else batch
    count = rows * width + 2
    table = draw.permutation(count)[: rows * width].view(rows, width)
    lengths = draw.whole_tensor(0, longest, (batch,), draw.one(INDICES))
    where = draw.permutation(rows)[:batch] if own_rows else None
    if spoil and batch:
        wrong = (-1, count, 2**31 - 1, -(2**31))
        for _ in range(draw.whole(0, 3)):
            table[draw.whole(0, rows - 1), draw.whole(0, width - 1)] = draw.one(wrong)
        if draw.chance(0.2):
            lengths[draw.whole(0, batch - 1)] = draw.one((-1, -(2**31), 2**31 - 1))
        if where is not None and draw.chance(0.3):
            where[draw.whole(0, batch - 1)] = draw.one((-1, rows, 2**31 - 1))
    table = table.to(draw.one(INDICES))
    if draw.chance(0.3):
        table = table.t().contiguous().t()
    return Pages(table, where if where is None else where.to(draw.one(INDICES)), lengths, count)


def late_slots(draw: Draw, made: Shape) -> list[int]:
    """Slots in another topological order than pre-order: parents come before their children."""
    left, order = list(range(len(made.parents))), []
    while left:
        ready = [i for i in left if made.parents[i] == -1 or made.parents[i] in order]
        order.append(draw.one(ready))
        left.remove(order[-1])
    slots = [0] * len(order)
    for slot, node in enumerate(order):
        slots[node] = slot
    return slots


class Commit:
    """A call of ``kv.commit``: ``arguments`` for the fused op and for the oracle alike."""

    def __init__(self, seed: int, *, spoil: bool, batch: int | None = None, most: int = 3) -> None:
        self.draw = draw = Draw(seed)
        self.batch = draw.whole(0, 3) if batch is None else batch
        self.width = draw.whole(1, 9)
        self.shapes = [shape(draw, 24, self.width - 1, draw.one((0.0, 0.3, 0.6))) for _ in range(self.batch)]
        path, counts = self._paths()
        offsets = torch.tensor([0, *(len(made.parents) for made in self.shapes)]).cumsum(0).int()
        self.arguments: dict[str, Any] = {"path": path, "num_tokens": counts}
        slots = draw.one((None, "call", "group"))
        if slots is not None:
            self.arguments["cu_nodes"] = offsets
        if draw.chance(0.5):
            self.arguments["active"] = draw.whole_tensor(0, 3, (self.batch,)) > 0
        self.arguments["status"] = torch.full((self.batch,), 77, dtype=torch.int32)
        if spoil:
            self._spoil(path, counts)
        groups = [self._group(spoil, slots == "group", most) for _ in range(draw.whole(1, most))]
        call = groups[0]
        if call.table_rows is not None:  # it would be that of the others
            own = torch.arange(self.batch)
            groups = [group if group.table_rows is not None else group._replace(table_rows=own) for group in groups]
        self.arguments |= {"block_table": call.block_table, "context_lens": call.context_lens}
        self.arguments["table_rows"] = call.table_rows
        if slots == "call":
            self.arguments["slots"] = self._slots(spoil)
        if len(groups) == 1 and slots != "group" and draw.chance(0.7):
            self.arguments["buffers"] = sk.KvBuffers(call.tensors)
        else:
            if call.table_rows is None:
                groups[0] = call._replace(block_table=None, context_lens=None)
            self.arguments["buffers"] = sk.KvBuffers(tuple(groups))

    def _paths(self) -> tuple[Tensor, Tensor]:
        """A path from the root down for each tree, as verification gives it."""
        draw = self.draw
        path = torch.full((self.batch, self.width), -1, dtype=torch.int32)
        counts = torch.zeros(self.batch, dtype=torch.int32)
        for b, made in enumerate(self.shapes):
            nodes = [0]
            while (below := made.children(nodes[-1])) and draw.chance(0.85):
                nodes.append(draw.one(below))
            nodes = nodes[: draw.whole(0, len(nodes))] if draw.chance(0.2) else nodes
            path[b, : len(nodes)] = torch.tensor(nodes, dtype=torch.int32)
            counts[b] = len(nodes)
        if draw.chance(0.3):
            path = torch.cat((path, path), dim=1)[:, : self.width]  # rows with a gap between them
        return path, counts

    def _spoil(self, path: Tensor, counts: Tensor) -> None:
        draw = self.draw
        for _ in range(draw.whole(0, 2) if self.batch else 0):
            b = draw.whole(0, self.batch - 1)
            if draw.chance(0.6):
                path[b, draw.whole(0, self.width - 1)] = draw.one((-1, 0, 1, 23, 4096, 2**31 - 1, -(2**31)))
            else:
                counts[b] = draw.one((-1, self.width, self.width + 1, 2**31 - 1, -(2**31)))
        offsets = self.arguments.get("cu_nodes")
        if offsets is not None and self.batch and draw.chance(0.2):
            offsets[draw.whole(0, self.batch)] = draw.one((-1, 0, 10**6))

    def _slots(self, spoil: bool) -> Tensor:
        found = [slot for made in self.shapes for slot in late_slots(self.draw, made)]
        slots = torch.tensor(found, dtype=torch.int32)
        if spoil and len(found) and self.draw.chance(0.4):
            slots[self.draw.whole(0, len(found) - 1)] = self.draw.one((-1, 0, 2**31 - 1, -(2**31)))
        return slots

    def _group(self, spoil: bool, with_slots: bool, most: int) -> sk.KvGroup:
        draw = self.draw
        size = 2 ** draw.whole(0, 6)
        where = pages(draw, self.batch, size, 30, spoil)
        made = [
            tensor(draw, draw.one(LAYOUTS), (where.num_pages, size), draw.one(DTYPES))
            for _ in range(draw.whole(1, most))
        ]
        if draw.chance(0.3):  # keys and values of one tensor
            both = storage(draw, where.num_pages * 2 * size * 24, torch.float16).view(where.num_pages, 2, size, 3, 8)
            made += [both[:, 0], both[:, 1]]
        slots = self._slots(spoil) if with_slots else None
        given = size if draw.chance(0.5) else None
        return sk.KvGroup(tuple(made), where.block_table, given, where.context_lens, slots, where.table_rows)


class Write:
    """A call of ``kv.write``."""

    def __init__(self, seed: int, *, spoil: bool, odd: bool = True, types: Iterable[torch.dtype] = FLOATS) -> None:
        self.draw = draw = Draw(seed)
        batch, heads, size = draw.whole(0, 3), draw.whole(1, 3), 2 ** draw.whole(0, 5)
        shapes = [None if odd and draw.chance(0.1) else shape(draw, 9, 4, 0.4) for _ in range(batch)]
        tree, _ = assemble(draw, shapes, 50, 4, draw.one(INDICES), padded=odd)
        where = pages(draw, batch, size, 40, spoil)
        if spoil and tree.tokens.numel():
            for name in ("parents", "depths", "ends"):
                if draw.chance(0.2):
                    getattr(tree, name)[draw.whole(0, tree.tokens.numel() - 1)] = draw.one((-1, 0, 3, 2**31 - 1))
        if draw.chance(0.4):
            places = torch.arange(tree.tokens.numel()) * 2 % 40
            tree = tree._replace(slots=places.int())
        rows = tree.tokens.numel()
        self.arguments: dict[str, Any] = {"tree": tree, "block_table": where.block_table}
        self.arguments |= {"table_rows": where.table_rows, "context_lens": where.context_lens}
        if draw.chance(0.4):
            chosen = [draw.permutation(12)[: draw.whole(0, 9)] - 1 for _ in range(batch)]
            offsets = [0]
            for nodes in chosen:
                offsets.append(offsets[-1] + nodes.numel())
            rows = offsets[-1] + draw.whole(0, 2)
            nodes = torch.full((rows,), 3, dtype=draw.one(INDICES))
            nodes[: offsets[-1]] = torch.cat([*chosen, torch.empty(0, dtype=torch.int64)])
            self.arguments |= {"query_nodes": nodes, "cu_queries": torch.tensor(offsets, dtype=torch.int32)}
        for name in ("key", "value") if draw.chance(0.8) else ("key",):
            self._side(name, (rows, heads), (where.num_pages, size), tuple(types), odd)
        if "value" not in self.arguments:
            self.arguments |= {"value": None, "value_cache": None}
        if draw.chance(0.5):
            self.arguments["active"] = draw.whole_tensor(0, 3, (batch,)) > 0
        self.arguments["status"] = torch.full((batch,), 77, dtype=torch.int32)

    def _side(self, name: str, rows: tuple[int, int], place: tuple[int, int], types: Any, odd: bool) -> None:
        draw = self.draw
        dim = draw.one((1, 5, 8, 24, 130)) if odd else 16
        pad = draw.one((0, 0, 8, 3)) if odd else 0
        given = draw.normal(rows[0], rows[1], dim + pad)[..., :dim] * 10.0 ** draw.whole(-4, 4)
        kind = draw.one(types)
        cache = draw.one(CACHES)
        count = place[0] * place[1] * rows[1] * dim
        memory = storage(draw, count + 9, cache)[: count + 8]
        if draw.chance(0.5):
            made = memory[:count].view(*place, rows[1], dim)
        else:
            made = memory[:count].view(place[0], rows[1], place[1], dim).transpose(1, 2)
        self.arguments |= {name: given.to(kind), f"{name}_cache": made}
        if draw.chance(0.5):
            scale = 2.0 ** draw.normal(1 if draw.chance(0.5) else rows[1])
            self.arguments[f"{name}_scale"] = scale
