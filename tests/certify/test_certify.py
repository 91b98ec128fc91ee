"""Certificates of our ops, of wrong functions, and of other packages' functions."""

from types import SimpleNamespace

import pytest
import torch
from oracle.definition import law as definition

from specdec_kernels import certify as proof
from specdec_kernels.certify import Case, adapters, certificate, certify, fused, processed
from specdec_kernels.certify.models import random_bins, random_models


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 3},
        {"top_p": 0.6, "filter_order": "joint"},
        {"min_p": 0.2, "top_k": 4, "top_p": 0.8, "filter_order": "min_p_first"},
    ],
)
def test_the_processed_law_is_the_definition(settings):
    logits = torch.randn(12, 9, generator=torch.Generator().manual_seed(1)).mul(2).round(decimals=1)
    made = processed(logits, settings)
    for row, found in zip(logits.tolist(), made.tolist(), strict=True):
        expected, near = definition(row, **settings)
        if near > 1e-9:
            assert found == pytest.approx(expected, abs=1e-12)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="certify: settings must be among"):
        processed(torch.zeros(1, 3), {"seed": 1})


def test_expected_laws_are_laws_and_bins_only_gather_them():
    models = random_models(3, 6, 1)
    whole, bins = Case(*models, length=3), random_bins(models[0], 2, 1)
    law, coarse = whole.expected().view(6, 6, 6), Case(*models, length=3, bins=bins).expected().view(2, 2, 2)
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    inside = [bins == i for i in (0, 1)]
    for i, first in enumerate(inside):
        for j, second in enumerate(inside):
            for k, third in enumerate(inside):
                assert float(law[first][:, second][:, :, third].sum()) == pytest.approx(
                    float(coarse[i, j, k]), abs=1e-12
                )


@pytest.mark.parametrize("rule", proof.RULES)
def test_every_standard_case_takes_three_steps_and_passes(rule):
    cases = [case for case in proof.cases_of(rule) if case.vocab < 1000]
    for made in certify(rule=rule, backend="cpu", cases=cases, trials=4_000):
        assert made.passed, made
        assert made.steps >= 3 and made.trials == 4_000
        assert 0 < made.finds < 1


def test_the_oracle_is_enumerated():
    steps = []
    for rule in (
        "token",
        "traversal",
        "greedy_plus_one",
        "match",
        "threshold",
        "sample",
    ):  # block is traversal on these
        for made in certify(rule=rule, backend="reference"):
            assert made.passed and made.statistic < 1e-12 and made.trials > 1, made
            steps.append(made.steps)
    assert max(steps) >= 3


def test_noise_that_is_met_twice_fails_an_enumeration(monkeypatch):
    real = certificate.error_of
    monkeypatch.setattr(certificate, "error_of", lambda *given: (real(*given)[0], real(*given)[1]._replace(reused=1)))
    (made,) = certify(rule="token", backend="reference", cases=proof.exact_cases_of("token")[:1])
    assert made.statistic < 1e-12 and not made.passed


def accept_all(step):
    """A wrong verifier: every draft is accepted, and the token after them is the target's best."""
    tokens, target = step.tokens, step.target_probs()
    best = target[:, -1].argmax(1)
    return torch.cat((tokens[:, 1:], best.unsqueeze(1)), 1), torch.full((len(tokens),), tokens.shape[1])


def test_a_wrong_function_is_found():
    made = list(certify(accept_all, "token", cases=proof.cases_of("token", chains_only=True)[:2], trials=3_000))
    assert [one.passed for one in made] == [False, False]
    assert all(one.p_value < 1e-9 for one in made)


def leviathan(step):
    """The rule of chains in plain PyTorch: what a user would bring along."""
    tokens, p, q = step.tokens, step.target_probs().double(), step.draft_probs().double()
    batch, nodes = tokens.shape
    out = torch.full((batch, nodes), -1)
    num = torch.zeros(batch, dtype=torch.int64)
    open_ = torch.ones(batch, dtype=torch.bool)
    rows = torch.arange(batch)
    for i in range(nodes):
        left = p[:, i]
        if i + 1 < nodes:
            draft = tokens[:, i + 1]
            accepted = open_ & (torch.rand(batch).double() * q[rows, i, draft] < p[rows, i, draft])
            left = (p[:, i] - q[:, i]).clamp(min=0)
        else:
            accepted = torch.zeros_like(open_)
        stopped = open_ & ~accepted
        if bool(stopped.any()):
            out[stopped, i] = torch.multinomial(left[stopped], 1).squeeze(1)
            num[stopped] = i + 1
        if bool(accepted.any()):
            out[accepted, i] = tokens[accepted, i + 1]
        open_ = accepted
    return out, num


def test_a_right_function_of_somebody_else_passes():
    torch.manual_seed(5)
    cases = proof.cases_of("token", chains_only=True)[:3]
    assert all(one.passed for one in certify(leviathan, "token", cases=cases, trials=8_000, op="mine"))


def test_a_function_that_emits_nothing_or_no_token_is_refused():
    case = proof.cases_of("token")[:1]
    with pytest.raises(ValueError, match="certify: a verifier must emit at least one token"):
        next(certify(lambda s: (s.tokens, torch.zeros(len(s.tokens))), cases=case, trials=100))
    with pytest.raises(ValueError, match=r"certify: emitted tokens must be in \[0, 5\)"):
        next(certify(lambda s: (s.tokens + 7, torch.ones(len(s.tokens))), cases=case, trials=100))
    with pytest.raises(ValueError, match="certify: rule must be one of 'token'"):
        next(certify(rule="none"))
    with pytest.raises(ValueError, match="certify: trials must be at least 1, got 0"):
        next(certify(trials=0))
    with pytest.raises(ValueError, match="certify: trials must give two outcomes 10 texts each, got 12 for chain of 1"):
        next(certify(backend="cpu", trials=12))


def test_a_law_that_is_too_flat_is_found_in_a_large_vocabulary():
    """Its mass leaves the likely ids, however these are shared out."""

    def flat(step):
        return fused("cpu")(step._replace(sampling=step.sampling._replace(temperature=step.sampling.temperature * 1.2)))

    (case,) = [case for case in proof.cases_of("token", chains_only=True) if case.vocab == 50_000]
    assert not next(certify(flat, "token", cases=[case])).passed


@pytest.mark.parametrize("argument", ["target_probs", "target_logits"])
def test_both_forms_of_the_signature_of_vllm_are_called_rightly(argument, monkeypatch):
    def sampler(drafts, draft, target, bonus):
        """Leviathan's rule on ``[B * count]`` drafts."""
        count = len(drafts) // len(bonus)
        p, q = (x.double().view(len(bonus), count, -1) for x in (target, draft))
        tokens, still = torch.full((len(bonus), count + 1), -1), torch.ones(len(bonus), dtype=torch.bool)
        for i, token in enumerate(drafts.long().view(len(bonus), count).unbind(1)):
            has, drawn = (x[:, i].gather(1, token[:, None])[:, 0] for x in (p, q))
            taken = torch.rand(len(bonus)).double() * drawn < has
            rest = torch.multinomial((p[:, i] - q[:, i]).clamp(min=0) + 1e-30, 1)[:, 0]
            tokens[still, i] = torch.where(taken, token, rest)[still]
            still &= taken
        tokens[still, count] = bonus[:, 0][still].long()
        return tokens

    if argument == "target_logits":

        def function(ids, counts, most, every, draft_probs, target_logits, bonus, settings):  # fmt: skip
            return sampler(ids, draft_probs, target_logits.softmax(1), bonus)
    else:

        def function(ids, counts, most, every, draft_probs, target_probs, bonus, settings):  # fmt: skip
            return sampler(ids, draft_probs, target_probs, bonus)

    monkeypatch.setattr(adapters, "_module", lambda name: SimpleNamespace(rejection_sample=function))
    torch.manual_seed(3)
    cases = proof.cases_of("token", chains_only=True)[:3]
    assert all(made.passed for made in certify(adapters.vllm, "token", cases=cases, trials=6_000))


def test_peers_that_are_installed_are_called_as_their_packages_call_them():
    for peer in proof.PEERS:
        if peer.missing() is None:
            cases = proof.cases_of(peer.rule, chains_only=not peer.trees)[:1]
            made = next(certify(peer.verifier, peer.rule, device=peer.device, cases=cases, trials=1_500, op=peer.op))
            assert made.passed and made.op == peer.op, made


def test_chains_alone_are_given_to_functions_of_chains():
    tree = Case(*random_models(5, 5, 1), parents=(-1, 0, 0))
    with pytest.raises(ValueError, match="certify: parents must be those of a chain"):
        next(certify(proof.PEERS[0].verifier, cases=[tree], trials=100))


def test_the_same_seed_gives_the_same_certificate():
    case = proof.cases_of("block")[:1]
    first, second = (next(certify(rule="block", backend="cpu", cases=case, trials=2_000)) for _ in range(2))
    assert first == second
    other = next(certify(rule="block", backend="cpu", cases=case, trials=2_000, seed=1))
    assert other.statistic != first.statistic


def test_our_verifier_can_be_given_too():
    case = proof.cases_of("traversal")[4:5]
    assert next(certify(fused("cpu"), "traversal", cases=case, trials=2_000)).passed
