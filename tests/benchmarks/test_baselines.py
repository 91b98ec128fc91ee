"""The baselines compute what the ops compute, and their gate refuses them with any bug planted."""

import pytest
import torch

from bench import baselines, cases, contest
from bench.cases import Laws
from bench.data import ACCEPTED, Logits, Sizes, normal
from bench.runner import admit

SIZES = Sizes(requests=4, nodes=6, vocab=200)
LOGITS = normal(SIZES)
SETTINGS = [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.0, "top_k": 20}]
DTYPES = [torch.float32, torch.bfloat16]


def refusals(variants):
    return {variant.name: refused.reason for variant in variants if (refused := admit(variant)) is not None}


def made(op, dtype, settings, which="half"):
    """The baselines of one op."""
    logits = LOGITS.to(dtype)
    laws = Laws(logits, settings)
    if op == "greedy":
        decided = cases.decide(logits.target, SIZES, {"temperature": 0.0})
        return contest.variants(contest.greedy(logits.target, decided.tokens, which, SIZES), compiled=False)
    if op == "match":
        return contest.variants(contest.match(logits.target, laws, which, SIZES), compiled=False)
    if op == "rejection":
        case = cases.rejection(logits, SIZES, laws, which)
        return contest.variants(contest.rejection(case, logits, laws, SIZES), compiled=False)
    roots = Logits("normal", logits.target[:4], logits.target[:4])
    if op == "sample":
        return contest.variants(contest.sample(roots.target, Laws(roots, settings)), compiled=False)
    return contest.draft(roots.target, Laws(roots, settings), num=3, compiled=False)


@pytest.mark.parametrize("which", ACCEPTED)
@pytest.mark.parametrize("op", ["greedy", "match", "rejection"])
def test_chains_end_where_they_should(op, which):
    assert not refusals(made(op, torch.float32, {"temperature": 1.0}, which))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("op", ["match", "rejection", "sample", "draft"])
def test_laws_are_processed_as_by_the_oracle(op, settings, dtype):
    variants = [v for v in made(op, dtype, settings) if dtype == torch.float32 or v.name != contest.EAGER_TOPK]
    assert not refusals(variants)


def test_top_k_has_a_baseline_that_sorts_nothing():
    assert [variant.name for variant in made("match", torch.float32, SETTINGS[2])] == ["eager", "eager topk"]
    assert [variant.name for variant in made("sample", torch.float32, SETTINGS[0])] == ["eager"]


def no_filter(law):
    return lambda logits, settings: law(logits, settings._replace(top_k=None, top_p=None))


def hotter(law):
    return lambda logits, settings: law(logits, settings._replace(temperature=1.2 * settings.temperature))


def shifted(law):
    return lambda logits, settings: law(logits, settings).roll(1, -1)


def of_another_row(law):
    return lambda logits, settings: law(logits, settings).flip(-2)


def worst_first(law):
    return lambda logits, settings: law(-logits, settings)


BUGS = [no_filter, hotter, shifted, of_another_row, worst_first]


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("op", ["match", "rejection", "sample", "draft"])
def test_a_baseline_with_another_law_is_refused(op, bug, monkeypatch):
    variants = made(op, torch.float32, {"temperature": 0.7, "top_p": 0.5})
    monkeypatch.setattr(baselines, "law", bug(baselines.law))
    assert "eager" in refusals(variants)


def test_a_baseline_that_accepts_too_much_or_too_little_is_refused(monkeypatch):
    emit = baselines.emit
    for op in ("greedy", "match", "rejection"):
        variants = made(op, torch.float32, {"temperature": 1.0})
        for change in (1, -1):

            def wrong(drafts, accepted, bonus, change=change):
                return emit(drafts, (accepted + change).clamp(0, drafts.shape[1]), bonus)

            monkeypatch.setattr(baselines, "emit", wrong)
            assert "eager" in refusals(variants), op
            monkeypatch.setattr(baselines, "emit", emit)


def test_a_rejection_that_samples_the_target_instead_of_the_residual_is_refused(monkeypatch):
    variants = made("rejection", torch.float32, {"temperature": 1.0})
    draw = baselines.draw
    monkeypatch.setattr(baselines, "draw", lambda weights, noise: draw(LOGITS.target[::6].softmax(-1), noise))
    assert "eager" in refusals(variants)


def test_a_draw_is_the_inverse_of_the_cumulative_law():
    weights = torch.tensor([[0.0, 2.0, 0.0, 1.0, 1.0, 0.0]])
    noise = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.76, 1.0])
    drawn = baselines.draw(weights.expand(6, -1), noise)
    assert drawn.tolist() == [1, 1, 3, 3, 4, 5]


def test_ties_go_to_the_lower_id():
    law = baselines.law(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), baselines.Settings.of(1, top_k=2))
    assert law.tolist() == [[0.0, 0.5, 0.5, 0.0]]


def test_the_best_id_always_stays():
    law = baselines.law(torch.tensor([[1.0, 3.0, 2.0]]), baselines.Settings.of(1, top_p=1e-6))
    assert law.tolist() == [[0.0, 1.0, 0.0]]


def test_the_compiler_takes_part_beside_the_eager_call_and_not_where_the_host_knows_k(monkeypatch):
    monkeypatch.setattr(baselines, "compiled", lambda function: function)
    found = contest.match(LOGITS.target, Laws(LOGITS, SETTINGS[2]), "half", SIZES)
    assert [variant.name for variant in contest.variants(found, compiled=True)] == ["eager", "compile", "eager topk"]


def test_compiled_baselines_refuse_to_break_or_to_grow(monkeypatch):
    """A baseline that quietly fell back to eager PyTorch would be timed under the wrong name."""
    seen = {}
    monkeypatch.setattr(torch, "compile", lambda function, **options: seen.update(options) or function)
    baselines.compiled.cache_clear()
    baselines.compiled(baselines.greedy)
    baselines.compiled.cache_clear()
    assert seen == {"fullgraph": True, "dynamic": False}
