"""Each gate lets the right result through, and every kind of wrong one not."""

import pytest
import torch

import specdec_kernels as sk
from bench import gates

EXPECTED = sk.VerifyResult(
    tokens=torch.tensor([[3, 9, -1]]),
    num_tokens=torch.tensor([2], dtype=torch.int32),
    path=torch.tensor([[0, 1, -1]], dtype=torch.int32),
    status=torch.tensor([0], dtype=torch.int32),
)


def changed(name, place, value):
    field = getattr(EXPECTED, name).clone()
    field[place] = value
    return EXPECTED._replace(**{name: field})


def test_decisions_of_the_oracle_pass():
    assert gates.decisions(EXPECTED)(EXPECTED._replace(logprobs=torch.zeros(1, 3))) is None


@pytest.mark.parametrize(
    "result, reason",
    [
        (changed("tokens", (0, 1), 8), "tokens[0, 1] must be 9, got 8 (1 of 3 differ)"),
        (changed("num_tokens", 0, 1), "num_tokens[0] must be 2, got 1 (1 of 1 differ)"),
        (changed("path", (0, 2), 2), "path[0, 2] must be -1, got 2 (1 of 3 differ)"),
        (changed("status", 0, 4), "status[0] must be 0, got 4 (1 of 1 differ)"),
        (EXPECTED._replace(tokens=EXPECTED.tokens.int()), "tokens must be int64 [1, 3], got int32 [1, 3]"),
        (EXPECTED._replace(path=EXPECTED.path[:, :2]), "path must be int32 [1, 3], got int32 [1, 2]"),
        (None, "tokens must be a tensor, got NoneType"),
    ],
)
def test_other_decisions_do_not(result, reason):
    assert gates.decisions(EXPECTED)(result) == reason


def test_tuples_must_have_all_their_parts():
    check = gates.parts(torch.tensor([1, 2]), torch.tensor([3]))
    assert check((torch.tensor([1, 2]), torch.tensor([3]))) is None
    assert check((torch.tensor([1, 2]), torch.tensor([4]))) == "part 1[0] must be 3, got 4 (1 of 1 differ)"
    assert check((torch.tensor([1, 2]),)) == "the result must be 2 tensors, got tuple"
    assert check(torch.tensor([1, 2])) == "the result must be 2 tensors, got Tensor"


def test_one_tensor_must_be_equal():
    check = gates.equal("tokens", torch.tensor([1, 2]))
    assert check(torch.tensor([1, 2])) is None
    assert check(torch.tensor([2, 2])) == "tokens[0] must be 1, got 2 (1 of 2 differ)"
    assert check(torch.tensor([1.0, torch.nan])).startswith("tokens must be int64 [2], got float32 [2]")


def test_maxima_are_those_of_the_rows():
    rows = torch.tensor([[1.0, 5.0, 2.0], [0.0, -1.0, -2.0]])
    check = gates.maxima(rows, rows[:1])
    assert check([rows.amax(1), rows[:1].amax(1)]) is None
    assert check([rows.amin(1), rows[:1].amax(1)]) is not None
    assert check([rows.amax(0), rows[:1].amax(1)]) is not None
    assert check([rows.amax(1)]) is not None
    assert check([torch.full((2,), torch.nan), rows[:1].amax(1)]) is not None


class TestProducts:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    make = staticmethod(gates.products(x, weight, chunk=16))

    def test_right_ones_pass_with_any_number_of_rows(self):
        for rows in (1, 2, 3):
            assert self.make(rows, 2e-6, torch.float32)(self.x[:rows] @ self.weight.T) is None

    def test_a_rounding_of_the_result_is_forgiven_to_its_dtype_alone(self):
        rounded = (self.x @ self.weight.T).bfloat16()
        assert self.make(3, 2e-6, torch.bfloat16)(rounded) is None
        assert "must be at most 2.0e-06" in self.make(3, 2e-6, torch.float32)(rounded.float())

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda y: y.roll(1, 0),
            lambda y: y.roll(1, 1),
            lambda y: y * 1.001,
            lambda y: y.index_fill(1, torch.tensor([49]), 0.0),
            lambda y: y.index_fill(1, torch.tensor([7]), torch.nan),
            lambda y: y[:2],
            lambda y: y.double(),
            lambda y: None,
        ],
    )
    def test_wrong_ones_do_not(self, spoil):
        assert self.make(3, 2e-6, torch.float32)(spoil(self.x @ self.weight.T)) is not None
