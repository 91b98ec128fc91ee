"""Random calls of ``draft.budget``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .cases import INF, NAN, Draw, strided

BAD_SCORES = (NAN, INF, -INF, 1.0, -0.0, -30.0, -30.01, -1e38, -1e-45)
BAD_COSTS = (NAN, INF, -INF, 0.0, -0.0, -1.0, 1e-42, 3e38)


def scatter(draw: Draw, value: Tensor, options: tuple[float, ...]) -> None:
    """Put some of the options anywhere."""
    for option in options:
        if draw.chance(0.3):
            value[draw.uniform(*value.shape) < 0.1] = option


def costs_of(draw: Draw, count: int, slope: float) -> Tensor:
    """A line, plateaus with steps between them, or any numbers; some of them are none."""
    number = torch.arange(count)
    kind = draw.one(("line", "plateaus", "plateaus", "noise"))
    if kind == "line":
        made = 1 + slope * number
    elif kind == "plateaus":
        made = 1 + slope * (number / draw.whole(2, 9)).ceil() * 4
    else:
        made = 1 + slope * number * draw.uniform(count)
    if draw.chance(0.3):
        scatter(draw, made, BAD_COSTS)
    return made


def call(
    seed: int, *, batch: int | None = None, width: int | None = None, count: int | None = None, odd: bool = True
) -> dict[str, Any]:
    """One call; without ``odd`` costs are a line and scores are usual ones."""
    draw = Draw(seed)
    batch = draw.one((0, 1, 2, 5, 33)) if batch is None else batch
    width = draw.one((0, 1, 2, 7, 40)) if width is None else width
    total = batch * width
    count = draw.one((1, 2, 5, total, total + 1, total + 9)) if count is None else count
    steps = draw.uniform(batch, width) * draw.one((0.01, 0.3, 2.0))
    if draw.chance(0.4):  # equal ones within a request and between requests
        steps = (steps * 4).round() / 4
    scores = -steps.cumsum(1)
    if draw.chance(0.2):  # a tree, or nonsense
        scores = scores[:, draw.permutation(width)]
    if odd and draw.chance(0.6):
        scatter(draw, scores, BAD_SCORES)
    count = max(count, 1)
    if odd:
        costs = costs_of(draw, count, draw.one((0.0, 0.003, 0.02, 0.2)))
    else:  # a draft is worth its time if it is accepted at least three times in ten
        costs = 1 + 0.3 * torch.arange(count) / max(batch, 1)
    arguments: dict[str, Any] = {"scores": scores, "costs": costs, "sampled": draw.chance(0.5)}
    if odd and draw.chance(0.4):
        arguments["active"] = draw.whole_tensor(0, 3, (batch,)) > 0
    if odd and draw.chance(0.4):
        arguments = {name: strided(draw, value) for name, value in arguments.items()}
        if draw.chance(0.5):
            arguments["scores"] = arguments["scores"].t().contiguous().t()
    return arguments
