"""The verify family on random inputs, against the oracle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from . import compare
from .cases import ROWS, USUAL_ROWS, examples
from .verify_cases import Case

VERIFY = ("verify_greedy", "verify_match", "verify_rejection")
SEEDS = st.integers(0, 2**32)


@pytest.mark.op(*VERIFY)
@pytest.mark.parametrize("op", VERIFY)
@pytest.mark.parametrize("odd", [False, True], ids=["usual", "odd"])
def test_decisions_equal_the_oracle(backend, op, odd):
    tally = compare.Tally(f"{op}, {'odd' if odd else 'usual'} inputs, {backend}")

    @examples(150)
    @given(seed=SEEDS, views=st.booleans())
    def check(seed, views):
        case = Case(op, seed, odd=odd, kinds=ROWS if odd else USUAL_ROWS)
        arguments = case.strided() if views else case.arguments
        compare.verify(backend, op, arguments, tally)

    check()
    tally.close(
        near=0.02, different=0.01
    )  # rejection of drafts whose law is the target's leaves a residual of rounding alone
