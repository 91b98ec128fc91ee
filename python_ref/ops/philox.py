"""The counter-based generator: Philox-4x32-10.

Key: the 64-bit seed, low half first. Counter, each word modulo 2^32:
``(index, position, stream | depth << 8, node << 8 | draw)``.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

#: What a number is for; noise of different streams is independent.
TARGET, DRAFT, COIN, RESIDUAL = range(4)

#: The race of block ``b`` has index ``BLOCK_INDEX + b``; the race of id ``x`` has ``x // 4``.
BLOCK_INDEX = 2**31

_WORD = 2**32 - 1
# The multipliers minus 2^32: with a word they make a product that fits a signed 64-bit number.
_MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# A word of a counter: an int, or an int64 tensor with values in [0, 2^32) for many counters at once.
Word = Any


class Place(NamedTuple):
    """Where in a request's randomness a number is drawn: everything but the index.

    Attributes:
        seed: of the request; its 64 bits are the key.
        position: absolute position of the token that the number helps to decide.
        stream: ``TARGET``, ``DRAFT``, ``COIN`` or ``RESIDUAL``.
        depth: depth of the node at which the decision falls.
        node: its local index.
        draw: number of the draw, where one node has several.
    """

    seed: int
    position: int
    stream: int
    depth: int = 0
    node: int = 0
    draw: int = 0

    @property
    def key(self) -> tuple[int, int]:
        """The key words."""
        return self.seed & _WORD, self.seed >> 32 & _WORD

    @property
    def counter(self) -> tuple[int, int, int]:
        """The counter words 1, 2 and 3; word 0 is the index."""
        return (
            self.position & _WORD,
            (self.stream | self.depth << 8) & _WORD,
            (self.node << 8 | self.draw) & _WORD,
        )


def _multiply(multiplier: int, word: Word) -> tuple[Word, Word]:
    """High and low 32 bits of ``(multiplier + 2^32) * word``."""
    product = multiplier * word
    return (product >> 32) + word, product & _WORD


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[int, int]) -> tuple[Word, Word, Word, Word]:
    """Four random words for a counter and a key: ten rounds."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def words(place: Place, index: Word) -> tuple[Word, Word, Word, Word]:
    """The four words at an index, or at each index of an int64 tensor."""
    return philox((index & _WORD, *place.counter), place.key)


def uniform(place: Place) -> float:
    """A coin in (0, 1): ``(r + 0.5) 2^-32`` of word 0 at index 0."""
    return float((words(place, 0)[0] + 0.5) * 2.0**-32)


def exponential(r: Tensor) -> Tensor:
    """``E(r) = -log(1 - u)`` in float64 with ``u = (r + 0.5) 2^-32``; ``r`` is int64 in [0, 2^32).

    Written so that both ends keep their full relative precision: the smallest value is 1.16e-10,
    the largest 22.9, none is 0 or infinite.
    """
    small = -torch.log1p(-(r.double() + 0.5) * 2.0**-32)
    large = -torch.log(((_WORD - r).double() + 0.5) * 2.0**-32)
    return torch.where(r < 2**31, small, large)


def block_noise(place: Place, blocks: Tensor) -> Tensor:
    """The exponential of each block ``[n]`` int64: word 0 at ``BLOCK_INDEX + block``."""
    return exponential(words(place, BLOCK_INDEX + blocks)[0])


def id_noise(place: Place, ids: Tensor) -> Tensor:
    """The exponential of each id ``[n]`` int64, ascending: word ``id % 4`` at ``id // 4``."""
    quads, quad_of = torch.unique_consecutive(ids >> 2, return_inverse=True)
    drawn = torch.stack(words(place, quads))
    return exponential(drawn[ids & 3, quad_of])
