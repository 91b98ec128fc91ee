"""linear.pack and linear.skinny: the oracle's packed values, exact error bounds, and rows that know nothing of each other."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import python_ref.ops as oracle
import specdec_kernels as sk

from .calls import equal
from .cases import FLOATS, Draw, examples

LINEAR = pytest.mark.op("linear_pack", "linear_skinny")
WEIGHTS = (torch.float32, torch.bfloat16, torch.int8)
EPS = 2.0**-24  # of float32, rounded to nearest
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def unpacked(packed):
    """The rows ``[N, K]`` of packed weights."""
    outputs, inputs = packed.shape
    panels = packed.data.shape[0]
    return packed.data.transpose(1, 2).reshape(32 * panels, inputs)[:outputs]


def exact(x, packed):
    """The product in float64, and the sum of the magnitudes of its terms."""
    weight = unpacked(packed).double()
    if packed.scales is not None:
        weight = weight * packed.scales.double().unsqueeze(1)
    bias = torch.zeros(packed.shape[0]).double() if packed.bias is None else packed.bias.double()
    wide = x.double()
    return wide @ weight.T + bias, wide.abs() @ weight.abs().T + bias.abs()


def check(x, packed, ours):
    """Within the bound of any order of summation in float32, rounded once to the dtype of the result."""
    assert ours.dtype == x.dtype and ours.shape == (x.shape[0], packed.shape[0])
    wanted, magnitude = exact(x, packed)
    bound = (packed.shape[1] + 4) * EPS * magnitude
    bound = bound + ROUNDING[x.dtype] * (wanted.abs() + bound) + 2.0**-24 * (x.dtype == torch.float16)
    error = (ours.double() - wanted).abs()
    assert bool((error <= bound).all()), f"error {float((error - bound).max()):g} above the bound"


@LINEAR
@pytest.mark.parametrize("weights", WEIGHTS)
def test_packed_values_are_those_of_the_oracle(backend, weights):
    @examples(60)
    @given(seed=st.integers(0, 2**32))
    def check_(seed):
        draw = Draw(seed)
        outputs, inputs = draw.one((1, 2, 31, 32, 33, 64, 70)), draw.one((0, 1, 7, 16, 33, 100))
        weight = draw.normal(outputs, inputs) * draw.one((1e-30, 1.0, 1e30))
        if draw.chance(0.4) and inputs:
            weight[draw.whole(0, outputs - 1), draw.whole(0, inputs - 1)] = draw.one((math.nan, math.inf, -math.inf))
            weight[draw.whole(0, outputs - 1)] = 0.0
        if draw.chance(0.3):  # halves between two units of int8
            weight = draw.whole_tensor(-254, 254, (outputs, inputs), torch.float32) / 2
        weight = weight.to(draw.one(FLOATS))
        if draw.chance(0.5):
            weight = weight.T.contiguous().T
        ours = sk.linear.pack(weight, weights, backend=backend)
        theirs = oracle.linear.pack(weight, weights)
        assert ours.data.dtype == weights and ours.shape == (outputs, inputs)
        torch.testing.assert_close(unpacked(ours), theirs.data, rtol=0, atol=0, equal_nan=True)
        rest = -outputs % 32  # outputs of the last panel that do not exist
        assert not rest or not ours.data[-1, :, 32 - rest :].any()
        assert (ours.scales is None) == (weights != torch.int8)
        if ours.scales is not None:
            torch.testing.assert_close(ours.scales, theirs.scales, rtol=0, atol=0, equal_nan=True)

    check_()


@LINEAR
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_products_are_within_the_bound_of_float32(backend, weights, dtype):
    @examples(40)
    @given(seed=st.integers(0, 2**32))
    def check_(seed):
        draw = Draw(seed)
        outputs, inputs = draw.one((1, 5, 31, 32, 33, 96, 130)), draw.one((0, 1, 3, 16, 37, 256, 700))
        count = draw.one((0, 1, 2, 3, 7, 8, 13, 65))
        bias = draw.normal(outputs) if draw.chance(0.5) else None
        x = (draw.normal(count, inputs) * draw.one((0.1, 1.0))).to(dtype)
        if draw.chance(0.3):
            x = x.T.contiguous().T
        packed = sk.linear.pack(draw.normal(outputs, inputs), weights, bias, backend=backend)
        check(x, packed, sk.linear.skinny(x, packed, backend=backend))

    check_()


@LINEAR
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_oracle_keeps_the_same_bound(backend, weights):
    draw = Draw(1)
    x, weight, bias = draw.normal(5, 300), draw.normal(40, 300), draw.normal(40)
    packed = sk.linear.pack(weight, weights, bias, backend=backend)
    check(x, packed, oracle.linear.skinny(x, oracle.linear.pack(weight, weights, bias)))


@LINEAR
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("outputs", "inputs"), [(33, 37), (200, 512)])
def test_the_bits_of_a_row_depend_on_that_row_alone(backend, weights, dtype, outputs, inputs, threads):
    """1 to 70 rows (more than 64 go in chunks), any number of threads, wherever the row stands."""
    draw = Draw(2)
    packed = sk.linear.pack(draw.normal(outputs, inputs), weights, draw.normal(outputs), backend=backend)
    x = draw.normal(70, inputs).to(dtype)
    threads(1)
    alone = torch.cat([sk.linear.skinny(x[i : i + 1], packed, backend=backend) for i in range(70)])
    counts = range(1, 71) if backend != "reference" else (1, 2, 70)
    for count in (1, 2, 3):
        threads(count)
        for rows in counts if count == 2 else (1, 5, 64, 65, 70):
            ours = sk.linear.skinny(x[:rows], packed, backend=backend)
            assert equal([ours], [alone[:rows]]), (count, rows)
    turned = sk.linear.skinny(x.flip(0), packed, backend=backend)
    assert equal([turned.flip(0)], [alone])


@LINEAR
def test_many_products_in_one_region_of_threads(backend, threads):
    """A weight that is worth several threads gives the bits of one thread."""
    draw = Draw(3)
    packed = sk.linear.pack(draw.normal(3000, 700), torch.float32, backend=backend)
    x = draw.normal(8, 700)
    results = []
    for count in (1, 2):
        threads(count)
        results.append(sk.linear.skinny(x, packed, backend=backend))
    assert equal(results[:1], results[1:])
    check(x, packed, results[0])


@LINEAR
@pytest.mark.parametrize("weights", WEIGHTS)
def test_what_is_no_number_stays_in_its_row(backend, weights):
    draw = Draw(4)
    packed = sk.linear.pack(draw.normal(35, 20).abs() + 0.1, weights, backend=backend)
    x = draw.normal(4, 20)
    clean = sk.linear.skinny(x, packed, backend=backend)
    x[1, 3], x[2, 5] = math.nan, math.inf
    ours = sk.linear.skinny(x, packed, backend=backend)
    assert bool(torch.isnan(ours[1]).all()) and bool((ours[2] == math.inf).all())
    assert equal([ours[::3]], [clean[::3]])


@LINEAR
def test_without_inputs_the_bias_remains(backend):
    bias = torch.tensor([1.5, -2.0])
    for given_bias, expected in ((bias, bias.expand(3, -1)), (None, torch.zeros(3, 2))):
        packed = sk.linear.pack(torch.zeros(2, 0), torch.float32, given_bias, backend=backend)
        assert torch.equal(sk.linear.skinny(torch.zeros(3, 0), packed, backend=backend), expected)


@LINEAR
def test_results_in_place_with_any_row_stride(backend):
    draw = Draw(5)
    packed = sk.linear.pack(draw.normal(40, 9), backend=backend)
    x = draw.normal(66, 9)
    buffer = torch.full((66, 50), math.nan)
    out = buffer[:, 4:44]
    assert sk.linear.skinny(x, packed, backend=backend, out=out) is out
    assert equal([out], [sk.linear.skinny(x, packed, backend=backend)])
    assert bool(torch.isnan(buffer[:, :4]).all()) and bool(torch.isnan(buffer[:, 44:]).all())
