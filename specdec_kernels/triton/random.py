# mypy: ignore-errors
"""Random numbers in kernels: Philox-4x32-10 words, exponentials, coins.

The same bits as ``csrc/common/philox.h`` and ``race.h``: the key is the request's seed, the counter
``(index, position, stream | depth << 8, node << 8 | draw)``. Who does what: an element of a tensor of
indices is one counter; nothing is read from memory. Deterministic: a number depends on its place alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: What a number is for.
TARGET = tl.constexpr(0)
DRAFT = tl.constexpr(1)
COIN = tl.constexpr(2)
RESIDUAL = tl.constexpr(3)

#: The race of block ``b`` has this index plus ``b``, word 0; that of id ``x`` has ``x // 4``, word ``x % 4``.
BLOCK_INDEX = tl.constexpr(2**31)

_WORD = tl.constexpr(2**32 - 1)


@triton.jit
def _low_word(value):
    return (value.to(tl.int64) & _WORD).to(tl.uint32)


@triton.jit
def words_at(index, seed, position, stream: tl.constexpr, depth, node, draw):
    """The four words at an index of a place; all arguments are integers modulo 2^32, the seed modulo 2^64."""
    c0 = _low_word(index)
    zero = c0 & 0
    c1 = zero | _low_word(position)
    c2 = zero | _low_word(depth.to(tl.int64) << 8 | stream)
    c3 = zero | _low_word(node.to(tl.int64) << 8 | draw.to(tl.int64))
    return tl.philox(seed, c0, c1, c2, c3, 10)


@triton.jit
def exponential(word):
    """``-log(1 - u)`` of a word, float64: ``1 - u`` is ``(~r + 0.5) 2^-32``, exact, so both ends keep all digits."""
    return -tl.log(((word.to(tl.int64) ^ _WORD).to(tl.float64) + 0.5) * 2.3283064365386963e-10)


@triton.jit
def coin(seed, position, depth, node):
    """A number in (0, 1): whether the draft at a node is accepted."""
    zero = node.to(tl.int64) * 0
    word, _, _, _ = words_at(zero, seed, position, COIN, depth, node, zero)
    return (word.to(tl.int64).to(tl.float64) + 0.5) * 2.3283064365386963e-10


@triton.jit
def block_noise(blocks, seed, position, stream: tl.constexpr, depth, node, draw):
    """The exponentials of blocks of ids."""
    word, _, _, _ = words_at(blocks.to(tl.int64) + BLOCK_INDEX, seed, position, stream, depth, node, draw)
    return exponential(word)


@triton.jit
def id_noise(start, seed, position, stream: tl.constexpr, depth, node, draw, TILE: tl.constexpr):
    """The exponentials of ids ``start`` to ``start + TILE - 1``; ``start`` is a multiple of 4."""
    quads = start // 4 + tl.arange(0, TILE // 4)
    w0, w1, w2, w3 = words_at(quads, seed, position, stream, depth, node, draw)
    quad = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [q, i, j] is word 2 i + j
    return exponential(tl.reshape(quad, [TILE]))


@triton.jit
def listed_id_noise(ids, seed, position, stream: tl.constexpr, depth, node, draw):
    """The exponentials of ids in any order."""
    w0, w1, w2, w3 = words_at(ids >> 2, seed, position, stream, depth, node, draw)
    low = tl.where((ids & 1) == 0, w0, w1)
    high = tl.where((ids & 1) == 0, w2, w3)
    return exponential(tl.where((ids & 2) == 0, low, high))
