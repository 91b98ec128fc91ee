"""The generator against the known answers of its authors, and its floats at both ends."""

import math

import pytest
import torch

from python_ref.ops.philox import Place, exponential, philox, uniform, words

ALL = 0xFFFFFFFF
# Random123's known-answer test of philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL,) * 4, (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    lanes = tuple(torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox(lanes, key)) == expected
    assert philox(counter, key) == expected  # and for plain integers


def test_exponential_is_positive_finite_and_precise_at_both_ends():
    ends = exponential(torch.tensor([0, 1, 2**31 - 1, 2**31, ALL - 1, ALL]))
    assert bool((ends > 0).all()) and bool(torch.isfinite(ends).all())
    assert math.isclose(float(ends[0]), 0.5 * 2.0**-32, rel_tol=1e-9)
    assert math.isclose(float(ends[-1]), -math.log(0.5 * 2.0**-32), rel_tol=1e-12)
    assert bool((ends.diff() > 0).all())


def test_counter_separates_every_field():
    places = [
        Place(seed=seed, position=position, stream=stream, depth=depth, node=node, draw=draw)
        for seed in (0, 1, -1, 2**40)
        for position in (0, 7)
        for stream in range(4)
        for depth in (0, 3)
        for node in (0, 5)
        for draw in (0, 2)
    ]
    assert len({uniform(place) for place in places}) == len(places)


def test_a_negative_seed_is_its_bits():
    index = torch.arange(3)
    for ours, same in zip(words(Place(-1, 0, 0), index), words(Place(2**64 - 1, 0, 0), index), strict=True):
        assert torch.equal(ours, same)


def test_single_precision_has_no_tail():
    """A uniform number rounds to 1 near the end, and its exponential is infinite: such an id would never win."""
    ends = torch.tensor([ALL - 1, ALL])
    single = -torch.log1p(-((ends.float() + 0.5) * 2.0**-32))
    assert bool(torch.isinf(single).all()) and bool(torch.isfinite(exponential(ends)).all())
