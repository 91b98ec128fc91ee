"""Logits, and how a small vocabulary becomes a large one."""

import pytest
import torch

from bench.data import MissingData, Sizes, normal, recorded, stretch
from bench.data import _window as window


def falling(rows=3, width=64):
    """Rows that fall by 2.5 per unit of the logarithm of the rank, in an order of their own."""
    ranks = torch.arange(1, width + 1).log()
    generator = torch.Generator().manual_seed(0)
    return torch.stack([(-2.5 * ranks + i)[torch.randperm(width, generator=generator)] for i in range(rows)])


def test_normal_logits_are_correlated_and_reproducible():
    logits = normal(Sizes(vocab=4000))
    assert logits.target.shape == logits.draft.shape == (64, 4000)
    correlation = torch.corrcoef(torch.stack((logits.target.flatten(), logits.draft.flatten())))[0, 1]
    assert float(correlation) == pytest.approx(0.8, abs=0.01)
    assert torch.equal(normal(Sizes(vocab=4000)).draft, logits.draft)
    assert logits.to(torch.bfloat16).draft.dtype == torch.bfloat16


def test_stretched_rows_keep_what_was_recorded_and_where():
    rows = falling()
    wide = stretch(rows, 1000)
    assert wide.shape == (3, 1000)
    heads = wide.topk(64).values
    assert torch.equal(heads, rows.sort(descending=True).values)
    places = [[int((row == value).nonzero()[0]) for value in small] for row, small in zip(wide, rows, strict=True)]
    assert places[0] == places[1] == places[2], "an id is the same token in every row"
    assert torch.equal(stretch(rows, 64).sort().values, rows.sort().values)


def test_the_tail_goes_on_as_the_row_fell():
    wide = stretch(falling(), 1000).sort(descending=True).values
    expected = -2.5 * torch.arange(1, 1001).log() + torch.arange(3).unsqueeze(1)
    assert torch.allclose(wide, expected, atol=0.02)


def test_tails_are_similar_but_not_the_same():
    wide = stretch(torch.cat((falling(1), falling(1))), 1000)
    correlation = torch.corrcoef(wide)[0, 1]
    assert 0.3 < float(correlation) < 0.99


@pytest.mark.parametrize("width, vocab", [(64, 63), (31, 100)])
def test_rows_that_cannot_be_stretched_are_refused(width, vocab):
    with pytest.raises(ValueError, match="stretch: vocab must be at least V0, and V0 at least 32"):
        stretch(falling(1, width), vocab)


def test_windows_begin_where_every_outcome_is_possible():
    sizes = Sizes(requests=1, nodes=3, vocab=4)  # a request stops at its root, at its first draft, or not at all
    sure, other, open_ = [9.0, 0, 0, 0], [0, 9.0, 0, 0], [2.0, 1.5, 0, 0]
    target = torch.tensor([open_, open_, open_, sure, open_])
    draft = torch.tensor([open_, [1.0, 2.0, 0, 0], [1.0, 2.0, 0, 0], sure, other])
    assert window(target, draft, sizes) == 1  # not 2: row 3 can reject nothing; nor 0: row 0 neither
    assert window(target[:2], draft[:2], sizes) is None
    assert window(target[2:], draft[2:], sizes) is None


def test_windows_of_trees_can_decide_either_way_at_inner_nodes_and_have_their_children_to_draw():
    sizes = Sizes(requests=1, nodes=3, vocab=4)
    sure, open_, turned = [9.0, 0, 0, 0], [2.0, 1.5, 0, 0], [1.0, 2.0, 0, 0]
    target = torch.tensor([open_, open_, sure, sure, open_])
    draft = torch.tensor([turned, turned, sure, sure, [5.0, 4.9, 0, 0]])
    assert window(target, draft, sizes, {0: 2}) == 1  # leaves may be sure; not 2: its root is
    assert window(target, draft, sizes, {0: 2, 1: 2}) == 0
    assert window(target, draft, sizes, {0: 5}) is None


def test_recorded_logits_are_those_of_the_models(assets):
    logits = recorded(Sizes(requests=2, nodes=4, vocab=500), assets)
    assert logits.data == "recorded V=300, tail extrapolated"
    assert logits.target.shape == logits.draft.shape == (8, 500)
    small = recorded(Sizes(requests=2, nodes=4, vocab=300), assets)
    assert small.data == "recorded"
    assert torch.equal(logits.target.topk(300).values, small.target.sort(descending=True).values)


def test_recorded_logits_that_are_not_there_are_named(assets, tmp_path):
    with pytest.raises(
        MissingData, match="no recorded logits: python_ref/assets/pystdlib-target/config.json is not there"
    ):
        recorded(Sizes(), tmp_path)
    with pytest.raises(MissingData, match="9 prompts are needed, got"):
        recorded(Sizes(requests=9, nodes=4), assets)
    with pytest.raises(MissingData, match="at most 299 ids are wanted, got 300"):
        recorded(Sizes(requests=2, nodes=4, vocab=299), assets)
