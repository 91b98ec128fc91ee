"""The exact text of the checks of ``tree.optimal``, which is no op."""

import math

import pytest
import torch

import specdec_kernels as sk

CASES = [
    (([0.5], 0), {}, ValueError, "max_nodes must be at least 1, got 0"),
    (([0.5], 2.0), {}, TypeError, "max_nodes must be an int, got float"),
    (([0.5], True), {}, TypeError, "max_nodes must be an int, got bool"),
    (([0.5], 4), {"max_depth": -1}, ValueError, "max_depth must be at least 0, got -1"),
    (([0.5], 4), {"max_depth": "2"}, TypeError, "max_depth must be an int, got str"),
    ((0.5, 4), {}, ValueError, "acceptance must be numbers of shape [K] or [D, K], got 0.5"),
    (("half", 4), {}, ValueError, "acceptance must be numbers of shape [K] or [D, K], got 'half'"),
    (
        ([[0.5], [0.1, 0.1]], 4),
        {},
        ValueError,
        "acceptance must be numbers of shape [K] or [D, K], got [[0.5], [0.1, 0.1]]",
    ),
    (([0.5, -0.25], 4), {}, ValueError, "acceptance must be between 0 and 1, got [0.5, -0.25]"),
    (([math.nan], 4), {}, ValueError, "acceptance must be between 0 and 1, got [nan]"),
    (([[0.5, 0.25], [1.0, 0.5]], 4), {}, ValueError, "acceptance must sum to at most 1 in each row, got 1.5"),
    (([0.5], 3), {"cost": [1.0, 2.0]}, ValueError, "cost must have at least 3 elements, got 2"),
    (([0.5], 2), {"cost": [1.0, 0.0]}, ValueError, "cost must be positive and finite, got [1.0, 0.0]"),
    (([0.5], 2), {"cost": lambda n: math.inf}, ValueError, "cost must be positive and finite, got [inf, inf]"),
    (([0.5], 2), {"draft_cost": -0.5}, ValueError, "draft_cost must be a finite number of at least 0, got -0.5"),
    (([0.5], 2), {"draft_cost": "1"}, ValueError, "draft_cost must be a finite number of at least 0, got '1'"),
]


@pytest.mark.parametrize("case", CASES, ids=[case[3] for case in CASES])
def test_exact_text(case):
    arguments, options, error, text = case
    with pytest.raises((ValueError, TypeError)) as raised:
        sk.tree.optimal(*arguments, **options)
    assert type(raised.value) is error
    assert str(raised.value) == f"tree.optimal: {text}"


def test_tensors_and_sequences_are_taken():
    given = [[0.5, 0.25], [0.5, 0.25]]
    shapes = [
        sk.tree.optimal(kind, 5, cost=[1.0] * 5) for kind in (given, torch.tensor(given), tuple(map(tuple, given)))
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert sk.tree.optimal([], 5).parents == [-1] and sk.tree.optimal([[]], 5).rate == 1.0
