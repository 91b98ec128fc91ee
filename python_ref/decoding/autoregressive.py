"""Plain decoding: one token per step, the baseline that every drafter is held against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .attention import PagedAttention, Rows
from .batch import Step

if TYPE_CHECKING:
    from .decoder import Decoder
    from .statistics import Stopwatch


def step(decoder: Decoder, clock: Stopwatch) -> Step:
    """Draw the next token of every live request; laps of the clock go to the statistics.

    The root, the newest token of a text, goes through the model at its position ``n - 1``; the token
    that its row decides has position ``n``.
    """
    batch, statistics = decoder.batch, decoder.statistics
    live = batch.live
    texts = [batch.texts[row] for row in live]
    tokens = torch.tensor([text[-1] for text in texts], device=batch.device)
    positions = torch.tensor([len(text) - 1 for text in texts], device=batch.device)
    for row, text in zip(live, texts, strict=True):
        decoder.cache.reserve(row, len(text))
    rows = Rows.of_chains(live, [len(text) - 1 for text in texts], [1] * len(live), batch.device)
    hidden = decoder.model(tokens, positions, PagedAttention(decoder.ops, decoder.cache, rows))
    logits = decoder.model.logits(hidden)
    statistics.target_seconds += clock.lap()
    drawn = decoder.ops.sample.sample(logits, batch.live_sampling(), positions + 1).tolist()
    statistics.verify_seconds += clock.lap()
    new: list[list[int]] = [[] for _ in range(batch.size)]
    for row, token in zip(live, drawn, strict=True):
        new[row].append(token)
    return Step(new, [0] * batch.size)
