"""Where drafting ends: by the law alone, on every backend; what goes on is what it was without a bound."""

import math

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk
from specdec_kernels._backend import device_of

from . import compare

ROWS, VOCAB = 6, 4200  # more than one block
INF, NAN = math.inf, math.nan


def peaked(seed=3):
    """Rows from sure to even."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, VOCAB, generator=generator) * torch.tensor([9.0, 6.0, 4.0, 2.0, 1.0, 0.0])[:, None]


def facts(logits):
    """Largest probability and entropy of each row, from the definition."""
    law = logits.double().softmax(1)
    return law.amax(1), torch.special.entr(law).sum(1)


def draft(backend, logits, temperature, **options):
    sampling = sk.Sampling.of(len(logits), temperature=temperature, seed=list(range(len(logits))))
    status = torch.full((len(logits),), 77, dtype=torch.int32, device=device_of(backend))
    arguments = {"logits": logits, "sampling": sampling, "positions": torch.arange(len(logits)), "num": 3}
    return compare.run(backend, "sample_draft", arguments | {"status": status} | options), status.cpu()


@pytest.mark.op("sample_draft")
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", [{}, {"replacement": True}, {"top": 2}, {"coupled": True}])
def test_rows_stop_by_their_law_and_others_are_as_before(backend, temperature, kind):
    logits = peaked()
    confidence, entropy = facts(logits / (temperature or 1.0))
    free, _ = draft(backend, logits, temperature, **kind)
    least, most = (confidence[2] + confidence[3]) / 2, (entropy[1] + entropy[2]) / 2
    for bounds, stopped in (
        ({"min_confidence": least}, confidence < least),
        ({"max_entropy": most}, entropy > most),
        ({"min_confidence": least, "max_entropy": most}, (confidence < least) | (entropy > most)),
    ):
        given = {name: bound.float().repeat(ROWS) for name, bound in bounds.items()}
        made, status = draft(backend, logits, temperature, **given, **kind)
        assert 0 < int(stopped.sum()) < ROWS
        assert torch.equal(made, torch.where(stopped[:, None], -1, free))
        assert status.tolist() == [0] * ROWS  # not a dead end


@pytest.mark.op("sample_draft")
def test_bounds_belong_to_requests_and_nan_is_none(backend):
    logits = peaked()[:3]
    requests = torch.tensor([1, 0, 1])
    least = torch.tensor([NAN, 1.5])  # nothing is that sure
    arguments = {
        "logits": logits,
        "sampling": sk.Sampling.of(2, seed=5),
        "positions": torch.arange(3),
        "num": 2,
        "requests": requests,
    }
    free = compare.run(backend, "sample_draft", arguments)
    for name, bounds in (("min_confidence", least), ("max_entropy", torch.tensor([NAN, -1.0]))):
        made = compare.run(backend, "sample_draft", arguments | {name: bounds})
        assert torch.equal(made, torch.where(requests[:, None] == 1, -1, free))
    open_bounds = {"min_confidence": torch.zeros(2), "max_entropy": torch.full((2,), INF)}
    assert torch.equal(compare.run(backend, "sample_draft", arguments | open_bounds), free)


@pytest.mark.op("sample_draft")
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_certainty_is_that_of_the_law_that_is_drawn_from(backend, temperature):
    logits = peaked()
    logits[4] = -INF
    logits[5] = 0.0
    requests = torch.tensor([0, 1, 2, -1, 4, 5])
    certainty = torch.full((ROWS, 2), 77.0, device=device_of(backend))
    allowed = torch.full((1, (VOCAB + 31) // 32), 0x55555555, dtype=torch.int32)  # even ids
    rows = torch.tensor([0, -1, 0, 0, 0, 0])
    _, status = draft(
        backend, logits, temperature, requests=requests, certainty=certainty, allowed=allowed, allowed_rows=rows
    )
    masked = logits.clone()
    masked[rows == 0] = masked[rows == 0].masked_fill(torch.arange(VOCAB) % 2 == 1, -INF)
    laws = torch.stack(facts(masked / (temperature or 1.0)), 1)
    for r, (found, expected) in enumerate(zip(certainty.cpu(), laws, strict=True)):
        if r in (3, 4):  # idle; nothing to draw
            assert found.tolist() == [0.0, 0.0]
        else:
            assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6), r
    assert status.tolist() == [0, 0, 0, 0, 2, 0]
    assert float(certainty[5, 1]) == pytest.approx(math.log(VOCAB / 2), rel=1e-5)


@pytest.mark.op("sample_draft")
def test_certainty_is_that_of_what_filters_leave(backend):
    logits = peaked()
    certainty = torch.zeros(ROWS, 2, device=device_of(backend))
    sampling = sk.Sampling.of(ROWS, temperature=0.8, top_k=5)
    arguments = {"logits": logits, "sampling": sampling, "positions": torch.arange(ROWS), "num": 1}
    compare.run(backend, "sample_draft", arguments | {"certainty": certainty})
    best = logits.topk(5, 1).values / 0.8
    assert torch.allclose(certainty.cpu().double(), torch.stack(facts(best), 1), rtol=1e-5, atol=1e-6)


@pytest.mark.op("draft_expand")
def test_children_below_the_bound_and_beams_above_it_are_left_out(backend):
    logits = peaked()
    law = logits.double().softmax(1)
    _, entropy = facts(logits)
    scores = torch.tensor([[-0.1, -0.2, -0.3], [-0.4, -0.5, -0.6]])
    free = compare.run(backend, "draft_expand", {"logits": logits, "scores": scores, "num": 4, "beams": 5})
    probability = law.gather(1, free.tokens.view(ROWS, 4))
    least = torch.tensor([0.05, float(probability[3, 1]) * 1.001])
    most = torch.tensor([float(entropy[:2].mean()), INF])
    made = compare.run(
        backend,
        "draft_expand",
        {
            "logits": logits,
            "scores": scores,
            "num": 4,
            "beams": 5,
            "min_confidence": least,
            "max_entropy": most,
        },
    )
    owner = torch.arange(ROWS) // 3
    kept = (probability >= least[owner, None]) & (entropy <= most[owner])[:, None]
    assert 0 < int(kept[:3].sum()) < 12 and 0 < int(kept[3:].sum()) < 12
    kept = kept.view(2, 12)
    assert torch.equal(made.tokens, torch.where(kept, free.tokens, -1))
    assert torch.equal(made.scores, torch.where(kept, free.scores, -INF))
    for b in range(2):
        order = made.scores[b].sort(descending=True, stable=True)
        best = [int(c) if s > -INF else -1 for s, c in zip(order.values[:5], order.indices[:5], strict=True)]
        assert made.beams[b].tolist() == best


def test_the_oracle_says_how_near_a_bound_was():
    logits = peaked()[:1]
    confidence, entropy = facts(logits)
    for name, at in (("min_confidence", confidence), ("max_entropy", entropy)):
        margins = []
        for factor in (1 + 1e-7, 1.5):
            margin = torch.zeros(1, dtype=torch.float64)
            bound = {name: (at * factor).float()}
            oracle.sample.draft(logits, sk.Sampling.of(1), torch.zeros(1).long(), 1, **bound, margin=margin)
            margins.append(float(margin))
        assert margins[0] < 1e-5 < margins[1]


@pytest.mark.op("sample_draft", "draft_expand")
def test_blocks_of_masked_logits_add_nothing(backend):
    """Finite, but far below all others: as masks are that are added."""
    logits = torch.full((2, 2 * 4096), torch.finfo(torch.float32).min)
    logits[:, :50] = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    _, entropy = facts(logits[:, :50])
    certainty = torch.zeros(2, 2, device=device_of(backend))
    for temperature in (0.0, 1.0):
        most = torch.full((2,), float(entropy.min()) - 0.1)
        made, _ = draft(backend, logits, temperature, max_entropy=most, certainty=certainty)
        assert torch.allclose(certainty[:, 1].cpu().double(), entropy, rtol=1e-5)
        assert made.tolist() == [[-1] * 3] * 2
    arguments = {"logits": logits, "scores": None, "num": 2, "beams": 2, "max_entropy": most}
    assert compare.run(backend, "draft_expand", arguments).tokens.tolist() == [[-1, -1]] * 2


@pytest.mark.op("sample_draft")
@pytest.mark.parametrize("temperature", [NAN, -INF, -1.0])
def test_a_temperature_that_is_none_counts_as_0(backend, temperature):
    logits = torch.tensor([[1.0, 0.9, 0.8, 0.7]])
    certainty = torch.zeros(1, 2, device=device_of(backend))
    sampling = sk.Sampling.of(1)._replace(temperature=torch.tensor([temperature]))
    arguments = {"logits": logits, "sampling": sampling, "positions": torch.tensor([3]), "num": 1}
    bounds = {"min_confidence": torch.tensor([0.5]), "certainty": certainty}
    assert compare.run(backend, "sample_draft", arguments | bounds).tolist() == [[-1]]
    assert torch.allclose(certainty[0].cpu().double(), torch.stack(facts(logits))[:, 0], rtol=1e-5)
