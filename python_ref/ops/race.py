"""Sampling from weights by exponential races: the smallest ``E / w`` wins.

``E / w`` is exponential with rate ``w``, and the first of independent exponentials is number ``i``
with probability ``w_i / sum(w)``. In two levels: blocks of 4,096 ids race with their masses, then
the ids of the winning block with their weights; ``w_i = mass_of_block * (w_i / mass_of_block)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .mass import Margin, Mass
from .philox import Place, block_noise, id_noise, uniform

BLOCK = 4096


def accepts(p: float, q: float, u: float) -> bool:
    """Whether a draft of probability ``q`` is accepted for a target ``p``: with ``min(1, p / q)``."""
    return p > 0 and (p >= q or u * q < p)


def coin(p: Mass, q: Mass, entry: int, place: Place, margin: Margin) -> bool:
    """Toss the coin of a draft: accept entry ``entry``, drawn from ``q``, for the target ``p``?"""
    u = uniform(place)
    margin.of_coin(u, p, q, entry)
    return accepts(float(p.w[entry]), float(q.w[entry]), u)


def _first(noise: Tensor, mass: Mass, margin: Margin) -> int:
    """Index of the smallest ``noise / w``, ties to the lowest; weight 0 does not compete."""
    scores = torch.where(mass.w > 0, noise / mass.w, math.inf)
    winner = int((scores == scores.min()).nonzero()[0])
    margin.of_winner(noise, mass, winner)
    return winner


def _ids(mass: Mass, ids: Tensor | None) -> tuple[Tensor, Tensor, Mass]:
    """Entries that compete or might, their ids, and their weights."""
    entries = ((mass.w > 0) | (mass.doubt > 0)).nonzero().flatten()
    named = entries if ids is None else ids[entries]
    return entries, named, Mass(mass.w[entries], mass.doubt[entries])


def two_level(mass: Mass, place: Place, margin: Margin, ids: Tensor | None = None) -> int:
    """Draw one entry with probability ``w / sum(w)``.

    Args:
        mass: weights ``[n]``.
        place: of the noise.
        margin: records how close the two races were.
        ids: ``[n]`` int64 ascending, the id of each entry; None: entry ``i`` has id ``i``.

    Returns:
        The entry, or -1 if all weights are zero.
    """
    entries, named, mass = _ids(mass, ids)
    if not bool((mass.w > 0).any()):
        margin.of_absence(mass)
        return -1
    blocks, block_of = torch.unique_consecutive(named // BLOCK, return_inverse=True)
    if blocks.numel() > 1:  # alone, a block wins whatever its noise
        sums = Mass(
            torch.zeros(blocks.shape, dtype=torch.float64).index_add(0, block_of, mass.w),
            torch.zeros(blocks.shape, dtype=torch.float64).index_add(0, block_of, mass.doubt),
        )
        inside = block_of == _first(block_noise(place, blocks), sums, margin)
        entries, named = entries[inside], named[inside]
        mass = Mass(mass.w[inside], mass.doubt[inside])
    return int(entries[_first(id_noise(place, named), mass, margin)])


def order_of(mass: Mass, place: Place, num: int, margin: Margin, ids: Tensor | None = None) -> list[int]:
    """Draw up to ``num`` entries without replacement: the first arrivals of one race of all ids.

    Given the first ``k`` arrivals, the next is entry ``i`` with probability ``w_i`` over the weight
    that is left (Gumbel top-k; Kool et al. 2019, arXiv 1903.06059, section 3). Arguments as
    in :func:`two_level`; returns entries in the order of arrival.
    """
    entries, named, mass = _ids(mass, ids)
    noise = id_noise(place, named)
    order = torch.sort(torch.where(mass.w > 0, noise / mass.w, math.inf), stable=True).indices
    there = int((mass.w > 0).sum())
    chosen = order[: min(num, there)]
    for k in range(len(chosen) if margin.wanted else 0):
        rest = order[k:]
        margin.of_winner(noise[rest], Mass(mass.w[rest], mass.doubt[rest]), 0)
    if there < num:
        margin.of_absence(Mass(mass.w[order[there:]], mass.doubt[order[there:]]))
    return [int(entry) for entry in entries[chosen]]
