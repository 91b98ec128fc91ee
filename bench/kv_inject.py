"""Projected keys and values of all layers of a block drafter go to their caches in one call, against PyTorch layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import specdec_kernels as sk

from .measured import COMPILE, EAGER, Setting, add_note, judge, rows_of
from .rows import Goal, Row
from .runner import Variant, measure

OP = "kv_inject"
LAYERS, REQUESTS, WIDTH, VALID = 5, 8, 16, 6
HEADS, DIM, PAGE, CONTEXT, EPS = 8, 128, 16, 100, 1e-6

#: Requests whose rows are more than 64 MB, on a GPU.
MANY = 512


class Injection(NamedTuple):
    """What is injected, and where to.

    Attributes:
        projected: ``[B, WIDTH, layers, 2, HEADS, DIM]`` bfloat16, a view of a product.
        key_norm: ``[layers, DIM]`` bfloat16.
        cos_sin: ``[positions, 2, DIM]`` float32.
        table: ``[B, pages]``.
        lengths: ``[B]``.
        counts: ``[B]``, valid rows.
        rows: flat numbers of the valid rows.
        positions: of the same rows.
        cells: flat rows of a cache for them, page by page.
        num_pages: of each cache.
    """

    projected: Tensor
    key_norm: Tensor
    cos_sin: Tensor
    table: Tensor
    lengths: Tensor
    counts: Tensor
    rows: Tensor
    positions: Tensor
    cells: Tensor
    num_pages: int


def injection(requests: int, layers: int, device: str) -> Injection:
    """Contexts of about :data:`CONTEXT` tokens in pages in any order; most rows of a verification were rejected."""
    draw = torch.Generator().manual_seed(0)
    each = (CONTEXT + PAGE + WIDTH) // PAGE + 1
    table = torch.randperm(requests * each, generator=draw).view(requests, each)
    lengths = CONTEXT + torch.arange(requests) % PAGE
    flat = torch.randn(requests * WIDTH, layers * 2 * HEADS * DIM, generator=draw).bfloat16()
    angles = torch.arange(each * PAGE).unsqueeze(1) * 10000.0 ** -(torch.arange(DIM // 2) / (DIM // 2))
    cosine, sine = angles.cos(), angles.sin()
    at = lengths.unsqueeze(1) + torch.arange(VALID)
    made = Injection(
        flat.view(requests, WIDTH, layers, 2, HEADS, DIM),
        torch.rand(layers, DIM, generator=draw).add(0.5).bfloat16(),
        torch.stack((torch.cat((cosine, cosine), 1), torch.cat((-sine, sine), 1)), 1),
        table.int(),
        lengths.int(),
        torch.full((requests,), VALID, dtype=torch.int32),
        (WIDTH * torch.arange(requests).unsqueeze(1) + torch.arange(VALID)).flatten(),
        at.flatten(),
        (table.gather(1, at // PAGE) * PAGE + at % PAGE).flatten(),
        requests * each,
    )
    return made._replace(**{name: getattr(made, name).to(device) for name in made._fields[:-1]})


def caches(given: Injection) -> list[Tensor]:
    """Keys of all layers, then values."""
    size = (given.num_pages, PAGE, HEADS, DIM)
    return [given.projected.new_zeros(size) for _ in range(2 * given.projected.shape[2])]


def layer_by_layer(given: Injection, buffers: list[Tensor]) -> None:
    """What one writes without an op for it, when the numbers of the valid rows are known."""
    flat = given.projected.flatten(0, 1)
    layers = flat.shape[1]
    cosine, sine = given.cos_sin[given.positions].unsqueeze(2).unbind(1)
    for layer in range(layers):
        key, value = flat[given.rows, layer].unbind(1)
        key = torch.nn.functional.rms_norm(key.float(), (DIM,), given.key_norm[layer].float(), EPS)
        key = key * cosine + key.roll(DIM // 2, -1) * sine
        buffers[layer].flatten(0, 1)[given.cells] = key.to(buffers[layer].dtype)
        buffers[layers + layer].flatten(0, 1)[given.cells] = value


def count(setting: Setting) -> int:
    """How many groups :func:`groups` gives."""
    return len(_batches(setting))


def _batches(setting: Setting) -> tuple[int, ...]:
    if setting.quick:
        return ()
    return (REQUESTS, MANY) if setting.device == "cuda" else (REQUESTS,)


def goals(setting: Setting, requests: int) -> list[Goal]:
    """Against the eager baseline on a CPU; on a GPU against the launch of a kernel, or against its copy bandwidth."""
    if setting.device == "cpu":
        return [Goal("speedup_over_eager", 3.0, at_least=True)]
    return [Goal("time_us", 12.0)] if requests == REQUESTS else [Goal("share_of_copy", 0.7, at_least=True)]


def groups(setting: Setting, family: str, layers: int = LAYERS) -> Iterator[list[Row]]:
    """The rows of one batch after the other."""
    for requests in _batches(setting):
        yield _of_batch(setting, family, layers, requests)


def _of_batch(setting: Setting, family: str, layers: int, requests: int) -> list[Row]:
    setting.tick()
    given = injection(requests, layers, setting.device)
    calls: dict[str, Callable[[list[Tensor]], object]] = {
        backend: partial(_inject, given, backend) for backend in setting.backends
    }
    calls[EAGER] = partial(layer_by_layer, given)
    calls[COMPILE] = partial(torch.compile(layer_by_layer, dynamic=False), given)
    expected = caches(given)
    layer_by_layer(given, expected)
    variants = []
    for name, call in calls.items():
        buffers = caches(given)
        variants.append(Variant(name, partial(call, buffers), partial(_right, buffers, expected)))
    setting.tick()
    outcomes = measure(
        variants, repeats=setting.repeats, budget_s=setting.budget_s, stopwatch=setting.stopwatch, tick=setting.tick
    )
    columns: dict[str, Any] = {"family": family, "op": OP, "case": "block drafter", "data": "normal"}
    columns |= {"dtype": "bfloat16"}
    columns["shape"] = f"{layers} layers, {requests} requests, {VALID} of {WIDTH} rows of {HEADS} x {DIM}"
    moved = 2 * requests * VALID * layers * 2 * HEADS * DIM * 2
    rows = rows_of(setting, outcomes, columns, needed=dict.fromkeys(outcomes, moved))
    for row in rows:
        if row.variant in (EAGER, COMPILE):
            add_note(row, "norm, rotation and index_put_ per layer, rows known on the host")
    judge(rows, setting, goals(setting, requests))
    return rows


def _inject(given: Injection, backend: str, buffers: list[Tensor]) -> None:
    half = len(buffers) // 2
    sk.kv.inject(
        *(given.projected, given.key_norm, given.cos_sin, buffers[:half], buffers[half:], given.table, given.lengths),
        given.counts,
        eps=EPS,
        backend=backend,
    )


def _right(buffers: list[Tensor], expected: list[Tensor], result: Any) -> str | None:
    """Whether all caches hold what they must hold, but for the last bit."""
    for i, (ours, theirs) in enumerate(zip(buffers, expected, strict=True)):
        wrong = (ours.float() - theirs.float()).abs() > theirs.float().abs() * 2**-7 + 1e-3
        if bool(wrong.any()):
            return f"buffer {i} must hold the injected rows, {int(wrong.sum())} of {wrong.numel()} numbers differ"
    return None
