"""How the CUDA kernels of verify go about a call depends on the GPU; no bit of the result does."""

import pytest
import torch

import specdec_kernels as sk
from specdec_kernels import _backend

from .calls import call, equal, outcome

RULES = [
    ("verify_rejection", {"rule": "token"}),
    ("verify_rejection", {"rule": "traversal"}),
    ("verify_rejection", {"rule": "greedy_plus_one"}),
    ("verify_threshold", {}),
    ("verify_typical", {}),
    ("verify_relaxed", {}),
    ("verify_synthetic", {}),
]
NAMES = ["-".join((op, *options.values())) for op, options in RULES]

pytestmark = pytest.mark.skipif(
    _backend.why_not("verify_match", "emulated") is not None, reason="the emulated kernels are not built"
)


@pytest.mark.parametrize(("op", "options"), RULES, ids=NAMES)
@pytest.mark.parametrize("vocab", [9, 9000])
def test_one_team_and_many_decide_alike(op, options, vocab, monkeypatch):
    """A GPU that one team fills, and one with room for all: walks of one team, of several, and launches by depth."""
    wide = 0
    for seed in range(12 if vocab == 9 else 4):
        arguments = call(op, seed, odd=False, vocab=vocab, batch=2, nodes=12, depth=3, **options)
        arguments["logprobs"] = "processed"
        tree = arguments["tree"]
        wide += tree.tokens.numel() > 2 * (tree.max_depth + 1)
        results = []
        for device, schedule in (("80", "in_order"), ("90", "in_order"), ("90", "reverse"), ("90", "shuffled")):
            monkeypatch.setenv("SPECDEC_EMULATOR_DEVICE", device)
            monkeypatch.setenv("SPECDEC_EMULATOR_SCHEDULE", schedule)
            results.append(outcome("emulated", op, arguments))
        assert all(equal(results[0], other) for other in results[1:]), f"seed {seed}"
    assert wide > 0  # of more nodes than a chain, or nothing goes by depth


@pytest.mark.parametrize("device", ["80", "90"])
@pytest.mark.parametrize(("op", "options"), RULES, ids=NAMES)
def test_requests_that_share_rows_are_told_apart(op, options, device, monkeypatch):
    """Offsets that are not in order: two requests have the same nodes, and other laws and noise."""
    monkeypatch.setenv("SPECDEC_EMULATOR_DEVICE", device)
    lengths = []
    for seed in range(30):
        arguments = call(op, seed, odd=False, vocab=5, batch=3, nodes=12, depth=3, kinds=("normal",), **options)
        cu_nodes = arguments["tree"].cu_nodes.clone()
        cu_nodes[2], cu_nodes[3] = cu_nodes[0].item(), cu_nodes[1].item()
        arguments |= {"tree": arguments["tree"]._replace(cu_nodes=cu_nodes), "active": None, "max_tokens": None}
        if "sampling" in arguments:
            settings = arguments["sampling"]._replace(temperature=torch.tensor([0.4, 1.0, 2.5]), top_k=None)
            arguments["sampling"] = settings
        ours, theirs = (outcome(backend, op, arguments) for backend in ("emulated", "cpu"))
        decided = zip(ours[:4], theirs[:4], strict=True)
        assert all(bool((a == b).all()) for a, b in decided), f"seed {seed}"
        assert int(ours[3][1]) == sk.Status.MALFORMED
        lengths += ours[1][[0, 2]].tolist()
    assert sum(lengths) > 1.2 * len(lengths)  # some drafts are accepted


@pytest.mark.parametrize("schedule", ["in_order", "reverse"])
def test_status_does_not_speak_of_what_was_visited_in_vain(schedule, monkeypatch):
    """Both children of the root hand something down, the second is the first to be visited, and its row has a NaN."""
    monkeypatch.setenv("SPECDEC_EMULATOR_DEVICE", "90")
    monkeypatch.setenv("SPECDEC_EMULATOR_SCHEDULE", schedule)
    offsets, parents = torch.tensor([0, 5], dtype=torch.int32), torch.tensor([-1, 0, 1, 0, 3], dtype=torch.int32)
    tree, _ = sk.tree.from_parents(torch.tensor([9, 0, 0, 1, 0]), parents, offsets, max_nodes=5, max_depth=2)
    logits, drafter = (torch.tensor([row]).repeat(5, 1) for row in ([0.0, 0.0, -2.0], [2.0, 0.0, -2.0]))
    logits[3, 2] = torch.nan
    met = []
    for seed in range(24):
        sampling = sk.Sampling.of(1, temperature=1.0, seed=seed)
        arguments = {"tree": tree, "logits": logits, "draft_logits": drafter, "rule": "traversal"}
        arguments |= {"sampling": sampling, "draft_sampling": sampling, "context_lens": torch.tensor([3])}
        results = [outcome(backend, "verify_rejection", arguments) for backend in ("emulated", "reference")]
        assert equal(*results)
        met.append(int(results[0][3][0]))
    assert set(met) == {0, sk.Status.NAN}
