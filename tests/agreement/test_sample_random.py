"""Plain sampling and drafting on random inputs, against the oracle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from . import compare
from .cases import ROWS, USUAL_ROWS, examples
from .sample_cases import Case

SAMPLE = ("sample_sample", "sample_draft")
SEEDS = st.integers(0, 2**32)


@pytest.mark.op(*SAMPLE)
@pytest.mark.parametrize("op", SAMPLE)
@pytest.mark.parametrize("odd", [False, True], ids=["usual", "odd"])
def test_draws_equal_the_oracle(backend, op, odd):
    tally = compare.Tally(f"{op}, {'odd' if odd else 'usual'} inputs, {backend}")

    @examples(250)
    @given(seed=SEEDS, views=st.booleans())
    def check(seed, views):
        case = Case(op, seed, odd=odd, kinds=ROWS if odd else USUAL_ROWS)
        arguments = case.strided() if views else case.arguments
        compare.draws(backend, op, arguments, tally)

    check()
    tally.close(near=0.03 if odd else 0.001, different=0.001)
