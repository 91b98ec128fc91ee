# mypy: ignore-errors
"""Draws from a law by exponential races: the smallest ``E / w`` wins, equal scores go to the lower id.

Blocks of 4,096 ids race with their masses, then the ids of the winning block with their weights.

Who does what: one program draws; a vector holds the scores of all blocks, a tile those of the ids of one.
Memory traffic: one block of the row. Scores are float64, and no sum takes part in a race of ids.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .random import block_noise, id_noise

_LATE = tl.constexpr(float("inf"))
_NO_ONE = tl.constexpr(2**31 - 1)


@triton.jit
def first_of(noise, weights, names):
    """Of the names with a positive weight the one that arrives first; -1 if there is none."""
    scores = tl.where(weights > 0, noise / tl.where(weights > 0, weights, 1.0), _LATE)
    winner = tl.min(tl.where((weights > 0) & (scores == tl.min(scores)), names, _NO_ONE))
    return tl.where(winner == _NO_ONE, -1, winner)


@triton.jit
def race_of_blocks(masses, seed, position, stream: tl.constexpr, depth, node, draw, NB: tl.constexpr):
    """The block that wins, -1 if all masses are zero; alone, a block wins whatever its noise."""
    blocks = tl.arange(0, NB)
    if NB == 1:
        return tl.where(tl.sum(masses) > 0, 0, -1)
    else:
        return first_of(block_noise(blocks, seed, position, stream, depth, node, draw), masses, blocks)


@triton.jit
def race_of_ids(ids, start, weights, seed, position, stream: tl.constexpr, depth, node, draw, TILE: tl.constexpr):
    """The id of the tile from ``start`` on that wins; -1 if all weights are zero."""
    return first_of(id_noise(start, seed, position, stream, depth, node, draw, TILE), weights, ids)
