"""``specdec certify``: what it writes, and how it fails."""

import json

import pytest
import torch

from specdec_kernels import certify as proof
from specdec_kernels.certify import certificate
from specdec_kernels.cli import certify

from .test_errors import complains


def accept_all(step):
    """A wrong verifier: every draft is accepted, and the token after them is the target's best."""
    tokens, best = step.tokens, step.target_probs()[:, -1].argmax(1)
    return torch.cat((tokens[:, 1:], best.unsqueeze(1)), 1), torch.full((len(tokens),), tokens.shape[1])


def test_it_writes_what_it_says(specdec, tmp_path):
    path = tmp_path / "c.json"
    made = specdec("certify", "--rule", "sample", "--trials", "5e2", "--json", path)
    assert made.exit_code == 0, made.output
    assert "no test failed" in made.stdout
    rows = json.loads(path.read_text())
    assert len(rows) == len(proof.cases_of("sample")) > 2
    assert {"op", "rule", "backend", "trials", "statistic", "threshold", "p_value", "passed"} <= set(rows[0])
    assert all(row["passed"] is True and row["trials"] == 500 for row in rows)


def test_the_oracle_is_enumerated(specdec):
    made = specdec("certify", "--rule", "sample", "--backend", "reference", "--no-peers")
    assert made.exit_code == 0 and "1e-12" in made.stdout


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_seed_is_any_integer(specdec, backend):
    """As everywhere it counts modulo 2^64."""
    options = ("--rule", "sample", "--trials", "500", "--backend", backend, "--no-peers", "--seed")
    large, small = specdec("certify", *options, 3 + 2**64), specdec("certify", *options, 3)
    assert large.exit_code == small.exit_code == 0 and large.stdout == small.stdout
    made = specdec("certify", *options, "99999999999999999999999")
    assert made.exit_code == 0 and "no test failed" in made.stdout
    assert specdec("certify", *options, -(10**40)).exit_code == 0


def test_models_that_cannot_be_made_are_one_sentence(specdec, monkeypatch):
    def fails(*_):
        raise ValueError("certify: models must be made, got none")

    monkeypatch.setattr(certify.proof, "cases_of", fails)
    complains(specdec("certify", "--rule", "sample"), "certify", "models must be made, got none")


def test_a_failure_is_exit_code_1(specdec, monkeypatch):
    monkeypatch.setattr(certificate, "fused", lambda backend: accept_all)
    monkeypatch.setattr(proof, "cases_of", lambda *_: certificate.cases_of("token")[:2])
    made = specdec("certify", "--rule", "token", "--trials", "2e3", "--no-peers")
    assert made.exit_code == 1
    assert "tests failed" in made.stdout and "FAILED" in made.stdout


def test_too_few_texts_to_tell_anything_are_refused(specdec):
    made = specdec("certify", "--rule", "token", "--trials", "10", "--no-peers")
    assert made.exit_code == 2
    assert "certify: trials must give two outcomes 10 texts each, got 10 for chain of 1, V=5" in made.stderr


def test_a_foreign_function_that_raises_has_failed_and_the_others_go_on(specdec, tmp_path, monkeypatch):
    def raises(step):
        raise TypeError("unexpected keyword argument 'seed'")

    peer = proof.PEERS[0]._replace(op="other.function", verifier=raises, module="math")
    monkeypatch.setattr(proof, "PEERS", (peer,))
    monkeypatch.setattr(proof, "cases_of", lambda *_: certificate.cases_of("token")[:1])
    path = tmp_path / "c.json"
    made = specdec("certify", "--rule", "token", "--trials", "3e3", "--json", path)
    assert made.exit_code == 1 and "other.function raised TypeError: unexpected keyword argument 'seed'" in made.stdout
    ours, theirs = json.loads(path.read_text())
    assert ours["passed"] is True and theirs["passed"] is False and "seed" in theirs["error"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rule", "best"), "--rule must be one of token"),
        (("--backend", "none"), "--backend must be one of cuda"),
        (("--trials", "many"), "--trials must be a number from 1 to 1e12, got 'many'"),
        (("--trials", "0"), "--trials must be a number from 1 to 1e12, got '0'"),
        (("--json", "/nowhere/at/all.json"), "--json must name a file in an existing folder"),
    ],
)
def test_wrong_options_are_one_sentence(specdec, options, said):
    complains(specdec("certify", *options), "certify", said)
