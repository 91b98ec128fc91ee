"""Bad data on the device sets ``status``; with ``SPECDEC_DEBUG=1`` it raises what the status says."""

import processes
import pytest
import torch
from agreement.compare import device_of, move
from dispatch.samples import function, sample

PROGRAM = """
import torch
import specdec_kernels as sk
from dispatch.samples import function
from errors.test_debug import CASES, spoiled
for name in CASES:
    op, call = spoiled(name, {backend!r})
    try:
        function(op)(**call)
        print("nothing")
    except ValueError as error:
        print(error)
"""

NAN = "logits must not contain NaN, got status 1 for requests"
MALFORMED = "tree and row indices must be well-formed, got status 8 for requests"
PAGES = "block_table must hold page ids within range, got status 16 for requests"
# name -> op, what is spoiled in its sample, the sentence
CASES = {
    "a NaN at the root": ("verify_greedy", lambda call: call["logits"].__setitem__(0, torch.nan), f"{NAN} [0]"),
    "NaN in both": ("verify_match", lambda call: call["logits"].fill_(torch.nan), f"{NAN} [0 1]"),
    "a NaN where thresholds decide": (
        "verify_threshold",
        lambda call: call["logits"][:3].fill_(torch.nan),
        f"{NAN} [0]",
    ),
    "a NaN that no draft can be near": (
        "verify_relaxed",
        lambda call: call["logits"][3].fill_(torch.nan),
        f"{NAN} [1]",
    ),
    "a wrong depth under typical acceptance": (
        "verify_typical",
        lambda call: call["tree"].depths.__setitem__(4, 0),
        f"{MALFORMED} [1]",
    ),
    "no row under given rates": (
        "verify_synthetic",
        lambda call: call.update(rows=torch.full((7,), 7)),
        f"{MALFORMED} [0 1]",
    ),
    "a NaN among the drafts": ("sample_draft", lambda call: call["logits"][1].fill_(torch.nan), f"{NAN} [1]"),
    "a NaN in plain decoding": ("sample_sample", lambda call: call["logits"][1].fill_(torch.nan), f"{NAN} [1]"),
    "a wrong end": ("verify_rejection", lambda call: call["tree"].ends.__setitem__(1, 9), f"{MALFORMED} [0]"),
    "a length out of range": ("tree_from_chains", lambda call: call["lengths"].fill_(9), f"{MALFORMED} [0 1]"),
    "a parent behind its child": (
        "tree_from_parents",
        lambda call: call["parents"].__setitem__(5, 3),
        f"{MALFORMED} [1]",
    ),
    "a parent outside the pool": (
        "tree_from_beams",
        lambda call: call.update(parents=torch.full((2, 5), 5)),
        f"{MALFORMED} [0 1]",
    ),
    "a row out of range": (
        "verify_greedy",
        lambda call: call.update(rows=torch.full((7,), -1)),
        f"{MALFORMED} [0 1]",
    ),
    "a request out of range": ("sample_draft", lambda call: call["requests"].__setitem__(1, 2), f"{MALFORMED} [1]"),
    "a path that turns back": ("kv_commit", lambda call: call["path"][1].fill_(2), f"{MALFORMED} [1]"),
    "a move to no page": ("kv_commit", lambda call: call["block_table"].fill_(-1), f"{PAGES} [0 1]"),
    "more rows than there are": ("kv_inject", lambda call: call["num_tokens"].fill_(4), f"{MALFORMED} [0 1]"),
    "an injected row to no page": ("kv_inject", lambda call: call["block_table"][1].fill_(-1), f"{PAGES} [1]"),
    "more tokens than there are": ("draft_block", lambda call: call["num_tokens"].fill_(-1), f"{MALFORMED} [0 1]"),
    "attention in a tree with a wrong end": (
        "attention_tree_attention",
        lambda call: call["tree"].ends.__setitem__(1, 9),
        f"{MALFORMED} [0]",
    ),
    "attention to no page": (
        "attention_tree_attention",
        lambda call: call["block_table"][1].fill_(-1),
        f"{PAGES} [1]",
    ),
    "a row to no page": ("kv_write", lambda call: call["block_table"][0].fill_(12), f"{PAGES} [0]"),
}


def spoiled(name, backend):
    """An op, and arguments of its public function that hold bad data."""
    torch.manual_seed(0)
    op, spoil, _ = CASES[name]
    call = sample(op, full=op in ("tree_from_chains", "sample_draft"))
    spoil(call)
    return op, {key: move(value, device_of(backend)) for key, value in call.items()} | {"backend": backend}


@pytest.mark.op(*{case[0] for case in CASES.values()})
def test_bad_data_raises_with_the_variable(backend):
    said = processes.python(PROGRAM.format(backend=backend), SPECDEC_DEBUG="1").splitlines()
    assert said == [f"{op.replace('_', '.', 1)}: {sentence}" for op, _, sentence in CASES.values()]


def test_bad_data_does_not_raise_without_it():
    said = processes.python(PROGRAM.format(backend="reference"), SPECDEC_DEBUG="0").splitlines()
    assert said == ["nothing"] * len(CASES)


@pytest.mark.op(*{case[0] for case in CASES.values()})
@pytest.mark.parametrize("name", CASES)
def test_bad_data_sets_the_status_that_the_sentence_names(backend, name):
    op, call = spoiled(name, backend)
    alone = op.startswith(("sample", "kv", "draft", "attention"))  # the status is no part of a result
    if alone:
        call["status"] = torch.zeros(2, dtype=torch.int32, device=device_of(backend))
    made = function(op)(**call)
    made = made if hasattr(made, "status") or alone else made[0]
    status = call.get("status", getattr(made, "status", None)).cpu()
    bit = int(CASES[name][2].split("status ")[1].split()[0])
    assert CASES[name][2].endswith(str((status & bit).nonzero().flatten().numpy()))
