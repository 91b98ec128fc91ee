"""What the package says of itself."""

import pytest

import specdec_kernels as sk
from specdec_kernels._schema import OPS


@pytest.mark.parametrize("op", [op.name for op in OPS])
def test_every_op_names_a_reason_for_each_backend_that_is_missing(op):
    backends = sk.available_backends(op)
    assert set(backends) == set(sk.BACKENDS)
    assert backends["reference"] is None
    assert all(reason is None or len(reason) > 5 for reason in backends.values())


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="available_backends: op must be one of"):
        sk.available_backends("verify_nothing")
    with pytest.raises(ValueError, match="backend must be one of cuda, triton, cpu, reference, got 'gpu'"):
        with sk.use_backend("gpu"):
            pass
