"""``tree.optimal`` against the oracle's, and against the best of all small trees."""

import pytest
import torch
from oracle.test_shapes import best_rate, check, planner_cases

import python_ref.ops as oracle
import specdec_kernels as sk


def test_the_planner_finds_the_best_of_all_small_trees():
    for acceptance, law, max_nodes, options, limit, time_of in planner_cases(300):
        made = sk.tree.optimal(acceptance, max_nodes, **options)
        check(made, law, time_of, options["draft_cost"])
        assert isinstance(made, sk.TreeShape)
        assert len(made.parents) <= max_nodes and max(made.depths) <= limit
        best = best_rate(law, max_nodes, limit, time_of, options["draft_cost"])
        assert made.rate == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("draft_cost", [0.0, 0.03])
def test_larger_shapes_are_as_good_as_those_of_the_oracle(draft_cost):
    for acceptance in ([0.6, 0.2, 0.05], [[0.8, 0.1], [0.5, 0.2], [0.3, 0.3]], [0.1, 0.0, 0.3]):
        options = {"cost": lambda n: 1 + 0.01 * n, "draft_cost": draft_cost}
        ours, theirs = sk.tree.optimal(acceptance, 24, **options), oracle.tree.optimal(acceptance, 24, **options)
        assert ours.rate == pytest.approx(theirs.rate, rel=1e-12)


def test_the_best_nodes_of_one_law_are_those_of_best_first():
    """With descending acceptances and time to spare the best shape is the set of the most probable nodes."""
    acceptance = torch.tensor([0.55, 0.25, 0.1])
    for nodes in (2, 7, 20, 50):
        shape = sk.tree.optimal(acceptance, nodes, max_depth=4)
        reached = torch.empty(nodes)
        tree = sk.tree.best_first(
            torch.tensor([0]),
            acceptance.log().expand(1, 4, 3),
            torch.arange(3).expand(1, 4, 3),
            nodes,
            scores=reached,
            backend="cpu",
        )
        assert int(tree.ends[0]) == nodes == len(shape.parents)
        assert float(reached.double().exp().sum()) == pytest.approx(shape.expected, rel=1e-5)


def test_a_shape_of_many_nodes():
    shape = sk.tree.optimal([0.7, 0.1, 0.05], 256, cost=[1.0 + n / 200 for n in range(256)], draft_cost=0.05)
    assert 8 < len(shape.parents) < 256 and shape.rate > 2
