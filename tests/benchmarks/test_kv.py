"""The family `kv`: its rows and goals, that the baseline moves what the oracle moves, that a wrong move is refused."""

from dataclasses import replace

import pytest
import torch

import specdec_kernels as sk
from bench import kv, kv_inject

from .conftest import make_setting


@pytest.mark.parametrize("layout", kv.LAYOUTS, ids=lambda layout: layout.name)
def test_the_baseline_moves_what_the_oracle_moves(layout):
    where = kv.moves(3, "cpu")
    ours, theirs = (kv.caches(layout, 2, where.num_pages, "cpu") for _ in range(2))
    kv.select_and_copy(ours, where.sources, where.targets)
    before = theirs[0].float().clone()
    sk.kv.commit(sk.KvBuffers(theirs), where.table, where.lengths, where.path, where.counts, backend="reference")
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(ours, theirs, strict=True))
    assert int((theirs[0].float() != before).flatten(2).any(2).sum()) == 3 * kv.MOVED
    assert len(ours) == (8 if layout.scales else 4)


def test_a_call_can_be_repeated():
    where = kv.moves(3, "cpu")
    assert not set(where.sources.tolist()) & set(where.targets.tolist())


def test_every_layout_has_its_rows_and_its_goal():
    setting = make_setting(quick=True)
    groups = list(kv.groups(setting, layers=2))
    assert len(groups) == kv.count(setting) == 1 and kv.count(make_setting()) == 4
    [[cpu, eager]] = groups
    assert (cpu.variant, eager.variant, cpu.op) == ("cpu", "eager", "kv_commit")
    assert cpu.goal == ">= 10 x eager" and eager.goal is None and eager.note is not None
    assert cpu.needed_bytes == 2 * 8 * 4 * (2 * 2) * (8 * 128 * 2)
    assert cpu.speedup_over_eager == pytest.approx(eager.time_us / cpu.time_us)


def test_goals_of_a_gpu():
    setting = replace(make_setting(), device="cuda")
    assert list(map(str, kv.goals(setting, kv.REQUESTS))) == ["<= 12 us"]
    assert list(map(str, kv.goals(setting, kv.MANY))) == [">= 0.8 of copy bandwidth"]
    assert kv.count(setting) == 8


def test_a_wrong_move_is_not_timed(monkeypatch):
    right = sk.kv.commit

    def wrong(buffers, *arguments, **options):
        right(sk.KvBuffers(buffers.groups[:-1]), *arguments, **options)

    monkeypatch.setattr(sk.kv, "commit", wrong)
    row = next(kv.groups(make_setting(quick=True), layers=2))[0]
    assert row.time_us is None and row.met is False
    assert row.note.startswith("wrong result: buffer 3 must hold the moved rows, ")


def test_the_baseline_injects_what_the_oracle_injects():
    given = kv_inject.injection(3, 2, "cpu")
    ours, theirs = kv_inject.caches(given), kv_inject.caches(given)
    kv_inject.layer_by_layer(given, ours)
    kv_inject._inject(given, "reference", theirs)
    assert kv_inject._right(ours, theirs, None) is None
    written = [int((cache != 0).any(-1).any(-1).sum()) for cache in theirs]
    assert written == [3 * kv_inject.VALID] * 4
    theirs[3].mul_(2)
    assert kv_inject._right(ours, theirs, None).startswith("buffer 3 must hold the injected rows, ")


def test_rows_of_an_injection():
    [rows] = kv_inject.groups(make_setting(), "kv", layers=1)
    assert [row.variant for row in rows] == ["cpu", "eager", "compile"]
    assert rows[0].goal == ">= 3 x eager" and rows[1].goal is None and rows[2].note is not None
    assert rows[0].needed_bytes == 2 * 8 * kv_inject.VALID * 2 * (8 * 128 * 2)
    assert list(kv_inject.groups(make_setting(quick=True), "kv")) == []
