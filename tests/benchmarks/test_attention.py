"""The family `attention`: which rows there are, what is judged, and that a wrong result is refused."""

import pytest

import specdec_kernels as sk
from bench import attention
from bench.attention import Shape

from .conftest import make_setting

TINY = Shape(requests=2, heads=4, kv_heads=2, dim=16, context=20, page=4)


@pytest.fixture(scope="module")
def groups():
    setting = make_setting()
    found = list(attention.groups(setting, TINY))
    assert len(found) == attention.count(setting)
    return found


def test_every_number_of_nodes_has_its_rows(groups):
    assert [(group[0].dtype, group[0].case) for group in groups] == [
        (dtype, case) for dtype in ("float32", "bfloat16") for case in ("1 node", "2 nodes", "4 nodes", "8 nodes")
    ]
    for group in groups:
        assert [row.variant for row in group] == ["cpu", "eager", "eager contiguous"]
        assert not [row for row in group if row.time_us is None]
    assert attention.count(make_setting(quick=True)) == 4


def test_goals_are_set_for_the_bandwidth_and_over_torch(groups):
    assert {row.case: row.goal for group in groups for row in group if row.goal} == {
        "1 node": ">= 0.6 of read bandwidth",
        "2 nodes": ">= 0.6 of read bandwidth",
        "4 nodes": ">= 0.6 of read bandwidth",
        "8 nodes": ">= 3 x eager; >= 1.3 x eager contiguous",
    }


def test_bytes_work_and_ratios(groups):
    cpu, eager, contiguous = groups[3]
    assert cpu.needed_bytes == 4 * 2 * 2 * 28 * 2 * 16 + 4 * 2 * 2 * 8 * 4 * 16
    chain, star = 1 + 2 + 3 + 4 + 5, 3 * 2  # a chain of half of the nodes, and children of the root
    work = 4 * 2 * 4 * 16 * (8 * 20 + chain + star)
    assert cpu.gflop_per_s * cpu.time_us * 1e3 == pytest.approx(work)
    assert cpu.speedup_over_eager == pytest.approx(eager.time_us / cpu.time_us)
    assert cpu.speedup_over_contiguous == pytest.approx(contiguous.time_us / cpu.time_us)


def test_a_wrong_result_is_not_timed(monkeypatch):
    right = sk.attention.tree_attention

    def wrong(*arguments, **options):
        out, lse = right(*arguments, **options)
        return out + 0.1, lse

    monkeypatch.setattr(sk.attention, "tree_attention", wrong)
    row = next(attention.groups(make_setting(), TINY))[0]
    assert row.time_us is None and row.met is False
    assert row.note.startswith("wrong result: errors must be at most 1e-05, got 0.1")
