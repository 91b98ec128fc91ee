"""``draft.budget``: chains of 8 drafts of 64 requests, and of 256; against a sort, a sum and a maximum in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import specdec_kernels as sk

from .measured import EAGER, Setting, judge, rows_of
from .rows import Goal, Row
from .runner import Variant, measure

SHAPES = ((64, 8), (256, 8))
GOALS = {"cpu": [Goal("speedup_over_eager", 1.5, at_least=True)], "cuda": [Goal("time_us", 12.0)]}


def inputs(requests: int, drafts: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores of chains whose drafts are accepted at seven in ten, more or less; costs that rise in steps of 64 drafts."""
    draw = torch.Generator().manual_seed(seed)
    scores = (0.4 + 0.6 * torch.rand((requests, drafts), generator=draw)).log().cumsum(1)
    number = torch.arange(requests * drafts + 1)
    return scores, 10 + 0.2 * (number / 64).ceil() + 0.01 * number


def eager(scores: Tensor, costs: Tensor) -> Tensor:
    """The same in plain PyTorch, for requests that are all active and scores and costs that are all numbers."""
    requests, drafts = scores.shape
    ranked = scores.flatten().sort(descending=True, stable=True)
    tokens = ranked.values[: costs.shape[0] - 1].double().exp().cumsum(0) + requests
    rates = torch.cat((tokens.new_full((1,), requests), tokens)) / costs[: tokens.shape[0] + 1]
    admitted = torch.arange(ranked.indices.shape[0], device=scores.device) < rates.argmax()
    counts = torch.zeros(requests, dtype=torch.int32, device=scores.device)
    return counts.index_add_(0, ranked.indices // drafts, admitted.int())


def groups(setting: Setting, shapes: tuple[tuple[int, int], ...] = SHAPES) -> Iterator[list[Row]]:
    """A group for each shape."""
    for requests, drafts in shapes:
        scores, costs = inputs(requests, drafts)
        expected = sk.draft.budget(scores, costs, backend="reference")
        scores, costs = scores.to(setting.device), costs.to(setting.device)

        def right(result: Any, expected: Tensor = expected) -> str | None:
            found = result.cpu()
            return None if torch.equal(found, expected) else f"{int(found.sum())} drafts, not {int(expected.sum())}"

        variants = [
            Variant(backend, partial(sk.draft.budget, scores, costs, backend=backend), right, inner=8)
            for backend in setting.backends
        ]
        variants.append(Variant(EAGER, partial(eager, scores, costs), right, inner=8))
        outcomes = measure(
            variants,
            repeats=setting.repeats,
            budget_s=setting.budget_s,
            stopwatch=setting.stopwatch,
            tick=setting.tick,
        )
        columns = {"family": "tree", "op": "draft_budget", "case": "budget", "dtype": "float32", "data": "random"}
        columns["shape"] = f"{requests} requests of {drafts} drafts"
        needed = scores.nbytes + costs.nbytes + expected.nbytes
        rows = rows_of(setting, outcomes, columns, needed=dict.fromkeys(outcomes, needed))
        judge(rows, setting, GOALS[setting.device])
        yield rows
