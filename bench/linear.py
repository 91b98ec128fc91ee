"""``linear.skinny``: few rows, weights that stream from memory or lie in the cache.

All numbers of rows of one weight take turns in one run, with the fastest plain read of as many bytes, which is the limit.
Before a sample with cached weights the variant is called once, untimed, so that its own weights lie in the cache; weights that
stream drive themselves out.

Weights are integers times a power of two and activations have eight significant bits, so that every dtype holds the same product
and all variants are held against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import specdec_kernels as sk

from . import gates
from .machine import Reader, best_reader
from .measured import EAGER, Setting, add_note, best, judge, rows_of
from .rows import Goal, Row
from .runner import Outcome, Timing, Variant, measure

FAMILY, OP = "linear", "linear_skinny"
ROWS = (1, 2, 4, 8, 16)
QUICK_ROWS = (1, 8)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}

#: Largest error of a product, in sums of absolute products, that accumulation in float32 explains.
TOLERANCE = 2e-6

_SCALE = 2.0**-7
_READ = "read"
_PACKED_EAGER = "torch._weight_int8pack_mm with bfloat16 activations"


class Place(NamedTuple):
    """Where the weights lie.

    Attributes:
        name: for the column ``case``.
        size: bytes of the weights.
        inputs: columns of the weights.
        one_row: the goal for one row.
        eight_rows: the goal for eight rows.
        cached: whether the weights of a variant are in the cache before its samples.
        inner: calls per sample.
    """

    name: str
    size: int
    inputs: int
    one_row: Goal
    eight_rows: Goal
    cached: bool
    inner: int = 1

    def outputs(self, dtype: torch.dtype) -> int:
        """Rows of the weights."""
        return self.size // (self.inputs * dtype.itemsize)


PLACES = (
    Place(
        "from memory",
        256 << 20,
        4096,
        Goal("share_of_read", 0.85, at_least=True),
        Goal("ratio_to_one_row", 1.3),
        cached=False,
    ),
    Place(
        "from cache",
        8 << 20,
        1024,
        Goal("gb_per_s", 45.0, at_least=True),
        Goal("ratio_to_one_row", 2.0),
        cached=True,
        inner=4,
    ),
)


def count(setting: Setting) -> int:
    """How many groups :func:`groups` gives."""
    return len(PLACES) * len(DTYPES)


def groups(setting: Setting, places: tuple[Place, ...] = PLACES) -> Iterator[list[Row]]:
    """The rows of one weight after the other: each number of rows on each backend and by PyTorch."""
    for place in places:
        buffer = torch.zeros(place.size // 4)
        reader = best_reader(buffer)
        for name, dtype in DTYPES.items():
            yield _of_weight(setting, place, name, dtype, reader)


def goals(place: Place, rows: int) -> list[Goal]:
    """Of the product of a number of rows."""
    return {1: [place.one_row], 8: [place.eight_rows]}.get(rows, [])


def integers(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    """Weights ``[N, K]`` int8 in units of a scale; each row holds 127, so that packing to int8 finds this very scale."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    made[:, 0] = 127
    return made


def _key(variant: str, rows: int) -> str:
    return f"{variant} {rows}"


def _of_weight(setting: Setting, place: Place, name: str, dtype: torch.dtype, reader: Reader) -> list[Row]:
    setting.tick()
    whole = integers(place.outputs(dtype), place.inputs)
    weight = whole.to(torch.bfloat16) * _SCALE
    counts = QUICK_ROWS if setting.quick else ROWS
    x = torch.randn((max(counts), place.inputs), generator=torch.Generator().manual_seed(1)).bfloat16().float()
    setting.tick()
    right = gates.products(x, weight)
    setting.tick()
    variants = [Variant(_READ, reader.call, _read_nothing, place.inner)]
    for backend in setting.backends:
        packed = sk.linear.pack(weight, dtype, backend=backend)
        for rows in counts:
            call = partial(sk.linear.skinny, x[:rows], packed, backend=backend)
            variants.append(Variant(_key(backend, rows), call, right(rows, TOLERANCE, torch.float32), place.inner))
    eager, activations = _eager(dtype, whole, weight, x)
    del whole, weight
    for rows in counts:
        call = partial(eager, activations[:rows])
        gate = right(rows, TOLERANCE, activations.dtype)
        variants.append(Variant(_key(EAGER, rows), call, gate, place.inner))

    def warm(variant: Variant) -> None:
        if place.cached:
            variant.call()

    outcomes = measure(variants, repeats=setting.repeats, budget_s=setting.budget_s, prepare=warm, tick=setting.tick)
    return _rows(setting, place, name, counts, outcomes, reader)


def _eager(dtype: torch.dtype, whole: Tensor, weight: Tensor, x: Tensor) -> tuple[Any, Tensor]:
    """The product in PyTorch, and the activations that it takes: as fast as PyTorch has it for weights of this dtype."""
    if dtype == torch.int8:
        scales = torch.full((whole.shape[0],), _SCALE, dtype=torch.bfloat16)
        return (lambda part: torch._weight_int8pack_mm(part, whole, scales)), x.bfloat16()
    wide = weight.to(dtype)
    return (lambda part: functional.linear(part, wide)), x.to(dtype)


def _read_nothing(result: Any) -> str | None:
    """A reader of zeros finds nothing, or zero."""
    if result is None or float(result) == 0.0:
        return None
    return f"a buffer of zeros must be read as such, got {result}"


def _rows(
    setting: Setting, place: Place, name: str, counts: tuple[int, ...], outcomes: dict[str, Outcome], reader: Reader
) -> list[Row]:
    itemsize = DTYPES[name].itemsize
    outputs = place.outputs(DTYPES[name])
    shape = f"N={outputs}, K={place.inputs}"
    columns: dict[str, Any] = {"family": FAMILY, "op": OP, "dtype": name, "data": "normal", "shape": shape}
    read = rows_of(
        setting,
        {_READ: outcomes[_READ]},
        columns | {"case": f"{_READ}, {place.name}", "shape": f"{place.size} bytes"},
        needed={_READ: place.size},
    )
    add_note(read[0], reader.name)
    made = list(read)
    for number in counts:
        names = [variant for variant in (*setting.backends, EAGER)]
        scales = 4 * outputs if name == "int8" else 0
        needed = outputs * place.inputs * itemsize + scales + 4 * number * (place.inputs + outputs)
        made += rows_of(
            setting,
            {variant: outcomes[_key(variant, number)] for variant in names},
            columns | {"case": f"{_rows_text(number)}, {place.name}"},
            needed=dict.fromkeys(names, needed),
            flops=2 * number * outputs * place.inputs,
        )
    _compare(made, outcomes)
    for row in made:
        if row.variant == EAGER and row.note is None:
            row.note = _PACKED_EAGER if name == "int8" else f"F.linear, {name}"
    for number in counts:
        label = f"{_rows_text(number)}, {place.name}"
        judge([row for row in made if row.case == label], setting, goals(place, number))
    return made


def _rows_text(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"


def _compare(rows: list[Row], outcomes: dict[str, Outcome]) -> None:
    """Hold all rows against the read of this run, and against the best product of one row."""
    read = outcomes[_READ]
    speed = rows[0].gb_per_s if isinstance(read, Timing) else None
    one = best([row for row in rows[1:] if row.case.startswith("1 row,")])
    for row in rows:
        row.read_gb_per_s = speed
        row.share_of_read = row.gb_per_s / speed if row.gb_per_s is not None and speed else None
        if row is not rows[0] and row.time_us is not None:
            row.ratio_to_one_row = row.time_us / one
