"""The family `tree`: its baselines build the trees that the oracle builds, and a wrong tree is refused."""

import pytest
import torch

import specdec_kernels as sk
from bench import budget, tree

from .conftest import make_setting


def test_baselines_build_what_the_oracle_builds():
    made = tree.drafts(requests=5, nodes=20, seed=3)
    laws = [column.tolist() for column in (made.roots, made.log_probs, made.token_ids)]
    expected = sk.tree.best_first(made.roots, made.log_probs, made.token_ids, 20, backend="reference")
    assert [tree.by_heap(*one, 20) for one in zip(*laws, strict=True)] == tree.rows_of_tree(expected)
    pools = made.tokens.view(5, -1).tolist(), made.parents.view(5, -1).tolist()
    expected, _ = sk.tree.from_parents(
        *(made.tokens, made.parents, made.cu_nodes), max_nodes=20, max_depth=20, backend="reference"
    )
    assert [tree.by_recursion(*one) for one in zip(*pools, strict=True)] == tree.rows_of_tree(expected)


def test_every_builder_has_its_rows_and_its_goal():
    setting = make_setting()
    groups = list(tree.groups(setting, requests=3, nodes=9))
    assert len(groups) == tree.count(setting)
    builders = ["tree_best_first"] * 2 + ["tree_from_parents"] * 2
    assert [row.op for group in groups for row in group] == [*builders, *["draft_budget"] * 2 * len(budget.SHAPES)]
    for cpu, eager in groups:
        assert (cpu.variant, eager.variant) == ("cpu", "eager") and cpu.time_us > 0 and eager.time_us > 0
        assert cpu.speedup_over_eager == pytest.approx(eager.time_us / cpu.time_us)
        goal = ">= 1.5 x eager" if cpu.op == "draft_budget" else ">= 50 x eager"
        assert cpu.goal == goal and eager.goal is None


def test_a_wrong_tree_is_not_timed(monkeypatch):
    right = sk.tree.best_first

    def wrong(*arguments, **options):
        made = right(*arguments, **options)
        return made._replace(tokens=torch.where(made.depths == 1, made.tokens + 1, made.tokens))

    monkeypatch.setattr(sk.tree, "best_first", wrong)
    rows = next(tree.groups(make_setting(), requests=2, nodes=9))
    assert rows[0].time_us is None and rows[0].note == "wrong result: other trees for requests [0, 1]"
    assert rows[0].met is False


def test_the_baseline_of_the_budget_admits_what_the_oracle_admits():
    for seed in range(20):
        scores, costs = budget.inputs(9, 5, seed)
        costs = costs[: 46 - seed]
        made = budget.eager(scores, costs)
        assert torch.equal(made, sk.draft.budget(scores, costs, backend="reference")) and made.dtype == torch.int32
        assert 0 < int(made.sum())


def test_a_wrong_budget_is_not_timed(monkeypatch):
    right = sk.draft.budget
    monkeypatch.setattr(sk.draft, "budget", lambda *a, backend: right(*a, backend=backend) + (backend != "reference"))
    [rows] = budget.groups(make_setting(), shapes=((3, 4),))
    assert rows[0].time_us is None and rows[0].note.startswith("wrong result: ") and rows[1].time_us > 0
