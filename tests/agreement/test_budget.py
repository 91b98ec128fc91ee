"""draft.budget on the fused backends against the oracle, exactly."""

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk

from . import compare
from .budget_cases import call
from .cases import NAN

pytestmark = pytest.mark.op("draft_budget")


def check(backend, arguments, label):
    """Compare a call with the oracle; how many drafts were admitted."""
    made = compare.run(backend, "draft_budget", arguments)
    expected = oracle.draft.budget(**arguments)
    assert compare.same(made, expected), f"{label}: {made.tolist()}, the oracle {expected.tolist()}"
    return int(made.sum())


def test_agreement(backend):
    admitted = [check(backend, call(seed), f"seed {seed}") for seed in range(400)]
    assert len(set(admitted)) > 20 and 0 < admitted.count(0) < 300


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(
    ("batch", "width", "count"), [(64, 64, 200), (64, 64, 9000), (65, 64, 300), (600, 9, 3000), (3, 3000, 9001)]
)
def test_thousands_of_candidates(backend, batch, width, count, sampled):
    """As many as one block of the CUDA kernels sorts, and more."""
    admitted = 0
    for seed in range(4):
        arguments = call(seed, batch=batch, width=width, count=count, odd=seed % 2 == 1) | {"sampled": sampled}
        admitted += check(backend, arguments, f"seed {seed}")
    assert admitted > 100


def test_no_requests_no_candidates_no_drafts(backend):
    line = torch.tensor([1.0, 1.1, 1.2])
    for batch, width in ((0, 0), (0, 3), (3, 0), (5000, 0)):
        made = compare.run(backend, "draft_budget", {"scores": torch.zeros(batch, width), "costs": line})
        assert made.dtype == torch.int32 and made.tolist() == [0] * batch
    scores = torch.zeros(2, 2)
    for costs in (line[:1], torch.tensor([NAN, NAN, NAN, NAN]), torch.tensor([1.0, NAN, 0.0])):
        for sampled in (False, True):
            arguments = {"scores": scores, "costs": costs, "sampled": sampled}
            assert compare.run(backend, "draft_budget", arguments).tolist() == [0, 0]
    idle = {"scores": scores, "costs": line, "active": torch.tensor([False, False])}
    assert compare.run(backend, "draft_budget", idle).tolist() == [0, 0]
    nobody = {"scores": scores.fill_(NAN), "costs": line}
    assert compare.run(backend, "draft_budget", nobody).tolist() == [0, 0]


def test_ties_go_to_lower_requests_and_then_to_lower_columns(backend):
    scores = torch.full((3, 4), -0.5)
    for most in range(13):
        costs = torch.ones(most + 1)  # every draft is worth it
        made = compare.run(backend, "draft_budget", {"scores": scores, "costs": costs})
        assert made.tolist() == [min(most, 4), min(max(most - 4, 0), 4), max(most - 8, 0)]


def test_every_element_is_written_and_no_other(backend):
    device = compare.device_of(backend)
    for batch, width in ((1, 1), (4, 7), (70, 64)):
        around = torch.full((batch + 2,), 77, dtype=torch.int32, device=device)
        arguments = call(3, batch=batch, width=width, odd=False)
        ours = {name: compare.move(value, device) for name, value in arguments.items()}
        out = around[1:-1]
        assert sk.draft.budget(**ours, backend=backend, out=out) is out
        assert around[[0, -1]].tolist() == [77, 77] and torch.equal(out.cpu(), oracle.draft.budget(**arguments))


def test_inputs_are_left_as_they_were_and_calls_can_be_repeated(backend):
    arguments = call(5, batch=80, width=60, count=900, odd=False)
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    first = compare.run(backend, "draft_budget", arguments)
    assert torch.equal(first, compare.run(backend, "draft_budget", arguments))
    assert all(torch.equal(arguments[name], value) for name, value in before.items())
