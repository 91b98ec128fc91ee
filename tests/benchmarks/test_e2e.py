"""Whole generations with synthetic acceptance: real drafters on small shapes, and a text that is known beforehand."""

import math
from dataclasses import replace

import pytest
import torch

import specdec_kernels as ops
from bench import e2e, e2e_report, machine, shapes
from bench.synthetic import Lengths, acceptance, tokens_per_step
from python_ref.models import Transformer

TINY = {
    **shapes.SHAPES["qwen3-0.6b"],
    "vocab_size": 40_000,  # more than the draft vocabulary of EAGLE-3
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 8192,
}
WORK = e2e.Work("qwen3-0.6b", "float32", context=9, new_tokens=30, repeats=1)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "qwen3-0.6b", TINY)


def _rows(work, *cases):
    told = []
    rows = list(e2e.Bench(work, cases, ops, machine.describe()).rows(told.append))
    assert told == list(range(1, len(cases) * work.repeats + 1))
    return rows


@pytest.mark.parametrize("drafter", e2e.DRAFTERS)
@pytest.mark.parametrize("batch", [1, 3])
def test_each_drafter_gets_the_acceptance_that_was_asked_for(drafter, batch):
    work = replace(WORK, batch=batch, new_tokens=90, temperature=0.7 if batch == 3 else 0.0)
    (row,) = _rows(work, e2e.Case(drafter, 4, 3.0))
    assert row.identical
    # 30 steps are not the law itself.
    assert abs(row.tokens_per_step - 3.0) < 0.2
    assert (row.drafter, row.num_draft, row.tau, row.batch) == (drafter, 4, 3.0, batch)
    assert row.nodes == (16 if drafter == "ddtree" else None)
    assert (row.weights, row.acceptance) == ("random", "synthetic")
    times = (row.plain_step_ms, row.verify_step_ms, row.draft_ms)
    assert all(time > 0 for time in times) and row.other_ms >= 0
    step = row.verify_step_ms + row.draft_ms + row.other_ms
    assert math.isclose(row.predicted_speedup, 3.0 * row.plain_step_ms / step)
    assert math.isclose(row.measured_over_predicted, row.measured_speedup / row.predicted_speedup)


def test_the_parts_of_a_step_are_measured_where_nothing_is_accepted(monkeypatch):
    seen = []
    row = e2e.Bench._row
    monkeypatch.setattr(e2e.Bench, "_row", lambda self, case, turns: seen.extend(turns) or row(self, case, turns))
    _rows(replace(WORK, repeats=2), e2e.Case("independent", 4, 3.0))
    for turn in seen:
        assert turn.right
        assert turn.plain.steps == 30 and turn.parts.steps == turn.whole.steps == 10
        assert turn.parts.mean_tokens_per_step == 1 and turn.whole.mean_tokens_per_step > 2
        assert turn.parts.drafted == [10] * 4 and turn.parts.accepted == [0] * 4
    assert seen[0].whole is not seen[1].whole


def test_positions_must_suffice(monkeypatch):
    e2e.check(WORK, e2e.Case("ngram", 4, 2.0))
    with pytest.raises(ValueError, match="context, new tokens and drafts must fit 8192 positions, got 8193"):
        e2e.check(replace(WORK, context=8113), e2e.Case("ngram", 4, 2.0))
    e2e.check(replace(WORK, context=8112), e2e.Case("ngram", 4, 2.0))


def test_a_drafter_does_its_own_work(monkeypatch):
    seen = []
    drafter = e2e.DFlashDrafter
    monkeypatch.setattr(e2e, "DFlashDrafter", lambda *a, **o: seen.append(drafter(*a, **o)) or seen[-1])
    calls = []
    block = drafter._block
    monkeypatch.setattr(drafter, "_block", lambda self, *a: calls.append(self) or block(self, *a))
    (row,) = _rows(WORK, e2e.Case("dflash", 7, 8.0))
    assert row.identical and row.tokens_per_step > 7
    assert len(seen) == 2 and set(calls) == set(seen)
    assert all(one.cache.keys(0).abs().sum() > 0 for one in seen)


def test_a_tree_is_built_once(monkeypatch):
    """By the drafter, from its own laws: what stands in them is replaced, and that there are so many."""
    calls, best_first = [], ops.tree.best_first
    monkeypatch.setattr(ops.tree, "best_first", lambda *a: calls.append(a) or best_first(*a))
    seen = []
    row = e2e.Bench._row
    monkeypatch.setattr(e2e.Bench, "_row", lambda self, case, turns: seen.extend(turns) or row(self, case, turns))
    _rows(replace(WORK, batch=2), e2e.Case("ddtree", 7, 4.0))
    steps = seen[0].parts.steps + seen[0].whole.steps
    assert len(calls) == steps + e2e._WARM
    for roots, scores, ids, nodes in calls:
        assert scores.shape == ids.shape == (2, 7, 8) and nodes == 16 and (roots >= 0).all()
        assert (scores[..., 0] > scores[..., 1]).all()


def test_a_tree_reaches_no_farther_than_it_has_nodes():
    work = replace(WORK, nodes=4)
    e2e.check(work, e2e.Case("ddtree", 7, 4.0))
    with pytest.raises(ValueError, match="acceptance must be from 1 to 4 with 3 drafts in a row, got 4.1"):
        e2e.check(work, e2e.Case("ddtree", 7, 4.1))
    (row,) = _rows(work, e2e.Case("ddtree", 7, 4.0))
    assert row.identical and row.tokens_per_step > 3.5


def test_a_wrong_text_is_found():
    bench = e2e.Bench(WORK, [e2e.Case("ngram", 4, 2.0)], ops, machine.describe())
    bench._text[3] = (bench._text[3] + 1) % TINY["vocab_size"]
    rows = list(bench.rows(lambda done: None))
    assert not rows[0].identical
    assert any("NOT what the target was to say" in line for line in e2e_report.conclusions(rows))


@pytest.mark.parametrize("num_draft", [1, 4, 15])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_acceptance_is_solved_for_and_drawn_evenly(num_draft, share):
    tau = 1 + share * num_draft
    alpha = acceptance(tau, num_draft)
    assert math.isclose(tokens_per_step(alpha, num_draft), tau, rel_tol=1e-9)
    lengths = Lengths(alpha, num_draft)
    drawn = torch.tensor([lengths.next() for _ in range(4000)])
    assert 0 <= drawn.min() and drawn.max() <= num_draft
    for i in range(1, num_draft + 1):
        assert abs((drawn >= i).float().mean().item() - alpha**i) < 0.002


def test_weights_are_told_apart_and_shared_where_they_are_one():
    filler = shapes.Filler(torch.float32, torch.device("cpu"))
    model = shapes.target("qwen3-0.6b")
    filler.fill(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    rows = model.model.embed_tokens.weight
    assert len(torch.unique(rows, dim=0)) == len(rows)
    assert abs(rows.std().item() - 0.02) < 1e-3
    assert torch.equal(model.model.norm.weight, torch.ones(32))
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_the_shapes_are_those_of_the_published_models():
    # Parameters in millions, a tied head counted once.
    known = {
        "qwen3-1.7b": 1720.6,
        "qwen3-4b": 4022.5,
        "qwen3-8b": 8190.7,
        "llama-3.2-1b": 1235.8,
        "llama-3.1-8b": 8030.3,
    }
    for name, millions in known.items():
        model = shapes.target(name)
        assert isinstance(model, Transformer)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions, name
