"""Random inputs of the fused ops: rows of logits, settings, masks and trees with every oddity that the contract names.

A case is a dictionary of keyword arguments, the same for the fused ops and for the oracle.
"""

from __future__ import annotations

import math
from typing import Any

import hypothesis
import torch
from torch import Tensor

import python_ref.ops as oracle
import specdec_kernels as sk

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INDICES = (torch.int32, torch.int64)
ORDERS = ("top_k_first", "joint", "min_p_first")
INF, NAN = math.inf, math.nan
LARGEST = torch.finfo(torch.float32).max

TEMPERATURES = (0.0, 0.0, 1.0, 1.0, 0.7, 0.05, 1.6, 100.0, INF, 1e30, 1e-6, 1e-38, 1e-45, -1.0, NAN)
TOP_KS = (0, 0, 0, 1, 2, 3, 7, 50, 4096, 2**31 - 1, -1, -(2**31))
TOP_PS = (1.0, 1.0, 1.0, 0.9, 0.713, 0.31, 1e-6, 0.0, -0.5, 2.0, NAN)
MIN_PS = (0.0, 0.0, 0.0, 0.031, 0.3, 1e-5, 0.97, 1.5, -1.0, NAN)
USUAL = ((0.0, 0.7, 1.0, 1.6), (0, 0, 2, 7), (1.0, 1.0, 0.9, 0.4), (0.0, 0.0, 0.05))


def examples(count: int) -> hypothesis.settings:
    """So many examples, or more where the profile of the run asks for them."""
    return hypothesis.settings(max_examples=max(count, hypothesis.settings.default.max_examples))


class Draw:
    """A seeded source of choices."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def whole(self, low: int, high: int) -> int:
        """An integer in ``[low, high]``."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def one(self, options: Any) -> Any:
        return options[self.whole(0, len(options) - 1)]

    def chance(self, p: float) -> bool:
        return bool(torch.rand((), generator=self.generator) < p)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def whole_tensor(self, low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=self.generator).to(dtype)

    def permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator)


# ---- rows of logits ---------------------------------------------------------------------------------------------------

USUAL_ROWS = ("normal", "peaked")
ROWS = ("normal", "normal", "peaked", "ties", "flat", "few", "mixed", "adjacent", "huge", "empty", "nan")


def row(draw: Draw, vocab: int, kind: str) -> Tensor:
    """One row ``[V]`` float32."""
    if kind == "normal":
        return draw.normal(vocab) * 2
    if kind == "peaked":
        return draw.normal(vocab) * 12
    if kind == "ties":
        return draw.whole_tensor(-2, 2, (vocab,), torch.float32)
    if kind == "flat":
        return torch.full((vocab,), draw.one((0.0, -3.5, 1e4)))
    if kind == "few":  # a handful of finite ids
        out = torch.full((vocab,), -INF)
        out[draw.whole_tensor(0, vocab - 1, (min(vocab, 5),))] = draw.normal(min(vocab, 5))
        return out
    if kind == "mixed":
        out = draw.normal(vocab) * 3
        for value in (NAN, -INF, INF):
            if draw.chance(0.6):
                out[draw.whole_tensor(0, vocab - 1, (draw.whole(1, 3),))] = value
        return out
    if kind == "adjacent":  # neighbours in float32
        steps = draw.whole_tensor(0, 3, (vocab,), torch.int32)
        return (torch.full((vocab,), 1.5).view(torch.int32) + steps).view(torch.float32)
    if kind == "huge":
        return draw.normal(vocab) * draw.one((1e6, 1e30, 1e38))
    if kind == "empty":
        return torch.full((vocab,), -INF)
    assert kind == "nan"
    return torch.full((vocab,), NAN)


def rows(draw: Draw, count: int, vocab: int, dtype: torch.dtype, kinds: tuple[str, ...] = ROWS) -> Tensor:
    """``[count, V]``, each row of a kind of its own."""
    made = [row(draw, vocab, draw.one(kinds)) for _ in range(count)]
    return torch.stack(made).to(dtype) if made else torch.empty((0, vocab), dtype=dtype)


def near(draw: Draw, logits: Tensor, noise: float = 0.7) -> Tensor:
    """A drafter's rows: the target's, disturbed."""
    return (logits.float() + noise * draw.normal(*logits.shape)).to(logits.dtype)


# ---- settings and masks -----------------------------------------------------------------------------------------------


def stops(draw: Draw, batch: int, odd: bool, chance: float) -> dict[str, Tensor]:
    """Bounds at which drafting ends, each given with a probability."""
    made = {}
    for name, most in (("min_confidence", 1.0), ("max_entropy", 4.0)):
        if draw.chance(chance):
            made[name] = most * draw.uniform(batch)
            if odd and batch and draw.chance(0.5):
                made[name][draw.whole(0, batch - 1)] = draw.one((math.nan, 0.0, math.inf, -1.0))
    return made


def sampling(draw: Draw, batch: int, odd: bool, order: str) -> sk.Sampling:
    """Settings of a batch; ``odd`` takes them from the edges of the contract."""
    tables = (TEMPERATURES, TOP_KS, TOP_PS, MIN_PS) if odd else USUAL
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32)
    columns: list[Tensor | None] = [
        torch.tensor([draw.one(table) for _ in range(batch)], dtype=dtype)
        for table, dtype in zip(tables, dtypes, strict=True)
    ]
    for i in (1, 2, 3):
        if draw.chance(0.2):
            columns[i] = None
    seeds = [draw.whole(-(2**62), 2**62) * draw.one((1, 2)) for _ in range(batch)]
    return sk.Sampling(*columns, torch.tensor(seeds, dtype=torch.int64), order)  # type: ignore[arg-type]


def mask(draw: Draw, count: int, vocab: int) -> tuple[Tensor, Tensor | None]:
    """``allowed`` and ``allowed_rows`` for ``count`` rows, with dead ends and rows out of range."""
    words = (vocab + 31) // 32
    if draw.chance(0.3):
        height, index = count, None
    else:
        height = draw.whole(1, 4)
        index = draw.whole_tensor(-1, height - 1, (count,), draw.one(INDICES))
        for _ in range(count and draw.whole(0, 1)):
            index[draw.whole(0, count - 1)] = draw.one((-2, -(2**31), height, 2**31 - 1))
    allowed = draw.whole_tensor(-(2**31), 2**31 - 1, (height, words)).to(torch.int32)
    for r in range(height):
        kind = draw.whole(0, 5)
        if kind == 0:
            allowed[r] = 0
        elif kind == 1:
            allowed[r] = -1
        elif kind == 2:
            allowed[r] &= draw.whole_tensor(-(2**31), 2**31 - 1, (words,)).to(torch.int32)
    return allowed, index


def vocabularies(draw: Draw, vocab: int) -> tuple[Tensor, Tensor]:
    """``draft_to_target`` and ``target_to_draft``, ascending or shuffled, with draft ids that do not exist."""
    ids = draw.permutation(vocab)[: draw.whole(1, vocab)]
    if draw.chance(0.5):
        ids = ids.sort().values
    inverse = torch.full((vocab,), -1, dtype=torch.int64)
    inverse[ids] = torch.arange(ids.numel())
    gone = torch.zeros(ids.numel(), dtype=torch.bool)
    if draw.chance(0.3):
        gone = torch.rand(ids.shape, generator=draw.generator) < 0.2
        inverse[ids[gone]] = -1
    ids = torch.where(gone, -1 - draw.whole(0, 5), ids)
    dtype = draw.one(INDICES)
    return ids.to(dtype), inverse.to(dtype)


# ---- trees ------------------------------------------------------------------------------------------------------------


class Shape:
    """The shape of one request's tree: parents, depths and ends of its live nodes, in pre-order."""

    def __init__(self, parents: list[int]) -> None:
        self.parents = parents
        count = len(parents)
        self.depths = [0] * count
        self.ends = [i + 1 for i in range(count)]
        for i in range(1, count):
            self.depths[i] = self.depths[parents[i]] + 1
        for i in range(count - 1, 0, -1):
            self.ends[parents[i]] = max(self.ends[parents[i]], self.ends[i])

    def children(self, node: int) -> list[int]:
        return [i for i, parent in enumerate(self.parents) if parent == node]


def shape(draw: Draw, most: int, depth: int, branching: float) -> Shape:
    """A random tree of 1 to ``most`` nodes; ``branching`` 0 makes a chain."""
    parents, depths = [-1], [0]
    for i in range(1, draw.whole(1, most)):
        parent = i - 1
        while parent >= 0 and (depths[parent] >= depth or draw.chance(branching)):
            parent = parents[parent]
        if parent < 0:
            parent = 0
        if depth == 0:
            break
        parents.append(parent)
        depths.append(depths[parent] + 1)
    return Shape(parents)


def assemble(
    draw: Draw, shapes: list[Shape | None], vocab: int, depth: int, dtype: torch.dtype, padded: bool
) -> tuple[sk.TokenTree, list[int]]:
    """Flat trees with random tokens, garbage in all padding; the first row of each request. None: an idle request."""
    first, fields = [], ([], [], [], [])  # type: ignore[var-annotated]

    def garbage(count: int) -> None:
        for _ in range(count):
            for field in fields:
                field.append(draw.one((-7, -1, 0, 1, 3, 99, 2**31 - 1)))

    garbage(draw.whole(0, 2) if padded else 0)
    for made in shapes:
        first.append(len(fields[0]))
        if made is None:
            if draw.chance(0.5):
                garbage(draw.whole(1, 3))
                fields[3][first[-1]] = 0
            continue
        fields[0].extend(draw.whole(0, vocab - 1) for _ in made.parents)
        fields[1].extend(made.parents)
        fields[2].extend(made.depths)
        fields[3].extend(made.ends)
        garbage(draw.whole(0, 3) if padded else 0)
    offsets = [*first, len(fields[0])]
    garbage(draw.whole(0, 2) if padded else 0)
    columns = [torch.tensor(field, dtype=torch.int32) for field in fields]
    nodes = max((len(made.parents) for made in shapes if made is not None), default=0)
    tree = sk.TokenTree(
        torch.tensor(offsets, dtype=torch.int32), columns[0].to(dtype), *columns[1:], max_nodes=nodes, max_depth=depth
    )
    return tree, first


def chain_tree(chains: list[list[int]], dtype: torch.dtype = torch.int64, width: int | None = None) -> sk.TokenTree:
    """Chains (the root first) as trees, by the oracle."""
    width = width or max(map(len, chains))
    tokens = torch.tensor([chain + [-1] * (width - len(chain)) for chain in chains], dtype=dtype)
    made = oracle.tree.from_chains(tokens, torch.tensor([len(chain) for chain in chains]))
    return sk.TokenTree(*made)


# ---- memory -----------------------------------------------------------------------------------------------------------


def strided(draw: Draw, value: Any) -> Any:
    """The same values as a view into a larger, poisoned buffer (records field by field)."""
    if isinstance(value, tuple):
        return type(value)(*(strided(draw, field) for field in value))
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    poison = True if value.dtype == torch.bool else NAN if value.dtype.is_floating_point else 77
    if value.dim() == 1:
        step, offset = draw.whole(1, 3), draw.whole(0, 3)
        buffer = torch.full((offset + step * value.numel() + 3,), poison, dtype=value.dtype)
        view = buffer[offset : offset + step * value.numel() : step]
    else:
        margin = draw.whole(0, 5)
        buffer = torch.full((value.shape[0] + 2, value.shape[1] + margin + 3), poison, dtype=value.dtype)
        view = buffer[1 : 1 + value.shape[0], margin : margin + value.shape[1]]
    view.copy_(value)
    return view
