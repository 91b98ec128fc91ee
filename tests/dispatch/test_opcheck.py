"""Every op keeps the promises of its schema: what it mutates, its fake kernel, functionalisation."""

import pytest
import torch
from agreement.compare import device_of, move

from specdec_kernels import _library
from specdec_kernels._schema import BY_NAME, OPS

from .samples import MAKERS, arguments_of, function, sample, served


def test_every_op_has_a_sample_and_a_public_function():
    assert set(MAKERS) == set(BY_NAME)
    assert all(callable(function(op.name)) for op in OPS)


@pytest.mark.parametrize("op", list(BY_NAME))
def test_samples_cover_every_optional_argument(op):
    plain, full = (arguments_of(op, sample(op, full)) for full in (False, True))
    for argument, without, given in zip(BY_NAME[op].arguments, plain, full, strict=True):
        assert given is not None, argument.name
        if argument.type.endswith("?"):
            assert without is None, argument.name


@pytest.mark.parametrize("full", [False, True], ids=["plain", "full"])
@pytest.mark.parametrize(("op", "backend"), served())
def test_opcheck(op, backend, full):
    arguments = move(arguments_of(op, sample(op, full)), device_of(backend))
    overload = _library.overload(op, backend)
    assert set(torch.library.opcheck(overload, arguments).values()) == {"SUCCESS"}
