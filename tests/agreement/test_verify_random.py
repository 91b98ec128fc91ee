"""The verify family on random inputs, against the oracle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from . import compare
from .cases import ROWS, USUAL_ROWS, examples
from .verify_cases import Case

SEEDS = st.integers(0, 2**32)

# name -> op, rule, examples
CASES = {
    "greedy": ("verify_greedy", None, 150),
    "match": ("verify_match", None, 150),
    "rejection, token": ("verify_rejection", "token", 150),
    "rejection, block or traversal": ("verify_rejection", "traversal", 150),
    "rejection, greedy_plus_one": ("verify_rejection", "greedy_plus_one", 100),
    "threshold": ("verify_threshold", None, 100),
    "typical": ("verify_typical", None, 100),
    "relaxed": ("verify_relaxed", None, 100),
    "synthetic": ("verify_synthetic", None, 60),
}


@pytest.mark.op(*{op for op, _, _ in CASES.values()})
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("odd", [False, True], ids=["usual", "odd"])
def test_decisions_equal_the_oracle(backend, name, odd):
    op, rule, number = CASES[name]
    tally = compare.Tally(f"{name}, {'odd' if odd else 'usual'} inputs, {backend}")

    @examples(number)
    @given(seed=SEEDS, views=st.booleans())
    def check(seed, views):
        case = Case(op, seed, odd=odd, kinds=ROWS if odd else USUAL_ROWS, rule=rule)
        arguments = case.strided() if views else case.arguments
        compare.verify(backend, op, arguments, tally)

    check()
    tally.close(
        near=0.02, different=0.01
    )  # rejection of drafts whose law is the target's leaves a residual of rounding alone


@pytest.mark.op("verify_rejection")
def test_block_and_traversal_are_one_rule(backend):
    for seed in range(40):
        arguments = Case("verify_rejection", seed, rule="block").arguments
        block = compare.run(backend, "verify_rejection", arguments)
        traversal = compare.run(backend, "verify_rejection", {**arguments, "rule": "traversal"})
        assert all(compare.same(a, b) for a, b in zip(block, traversal, strict=True) if a is not None)
