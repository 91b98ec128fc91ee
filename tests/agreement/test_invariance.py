"""What results may not depend on: threads, the other requests, the instruction set."""

import processes
import pytest
import torch

from . import compare
from .calls import LAW, call, equal, outcome
from .tree_cases import ALL as TREES

EVERY = pytest.mark.op(*LAW)
PER_NODE = ("rows", "draft_rows", "allowed_rows", "draft_allowed_rows")
PER_REQUEST = ("context_lens", "active", "max_tokens", "relax")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@EVERY
@pytest.mark.parametrize("op", LAW)
@pytest.mark.parametrize(("vocab", "batch"), [(40, 33), (9000, 1), (20000, 3)])
def test_threads(backend, op, vocab, batch, threads):
    """Many requests, and few that are split over the vocabulary."""
    for seed in range(6):
        arguments = call(op, seed, vocab=vocab, batch=batch)
        results = []
        for count in (1, 2, 3):
            threads(count)
            results.append(outcome(backend, op, arguments))
        assert equal(results[0], results[1]) and equal(results[0], results[2]), f"seed {seed}"


@EVERY
@pytest.mark.parametrize("op", LAW)
def test_the_same_call_twice(backend, op):
    for seed in range(10):
        arguments = call(op, seed)
        assert equal(outcome(backend, op, arguments), outcome(backend, op, arguments))


def settings_of(sampling, chosen):
    if sampling is None:
        return None
    return type(sampling)(*(None if field is None else field[chosen] for field in sampling[:5]), sampling.filter_order)


def alone(op, arguments, b):
    """The call of one request, or of one row, out of a batch."""
    one = slice(b, b + 1)
    made = dict(arguments)
    if op.startswith("sample"):
        for name in ("logits", "positions", "requests", "depths", "nodes", "active", "allowed_rows"):
            if made.get(name) is not None:
                made[name] = made[name][one]
        if "requests" not in made:
            made["sampling"] = settings_of(made["sampling"], one)
            made |= {name: made[name][one] for name in ("min_confidence", "max_entropy") if name in made}
        if "allowed" in made and "allowed_rows" not in made:
            made["allowed"] = made["allowed"][one]
        return made
    tree = made["tree"]
    first, after = (min(max(int(row), 0), tree.tokens.numel()) for row in tree.cu_nodes[b : b + 2])
    nodes = slice(first, max(first, after))
    columns = [field[nodes] for field in tree[1:5]]
    made["tree"] = tree._replace(
        cu_nodes=torch.tensor([0, columns[0].numel()], dtype=torch.int32),
        **dict(zip(("tokens", "parents", "depths", "ends"), columns, strict=True)),
    )
    for name, index in (("logits", "rows"), ("draft_logits", "draft_rows"), ("allowed", "allowed_rows")):
        if made.get(name) is not None and made.get(index) is None:
            if name == "allowed" and "draft_allowed_rows" in made:  # which names rows of the whole mask
                made[index] = torch.arange(nodes.start, nodes.stop)
            else:
                made[name] = made[name][nodes]
    for names, chosen in ((PER_NODE, nodes), (PER_REQUEST, one)):
        for name in names:
            if arguments.get(name) is not None:
                made[name] = made[name][chosen]
    for name in ("sampling", "draft_sampling"):
        if name in made:
            made[name] = settings_of(made[name], one)
    return made


@EVERY
@pytest.mark.parametrize("op", LAW)
def test_a_request_alone_is_the_same_request_in_a_batch(backend, op):
    for seed in range(25):
        arguments = call(op, seed, batch=5, malformed=0.0)
        together = outcome(backend, op, arguments)
        for b in range(5):
            apart = outcome(backend, op, alone(op, arguments, b))
            assert equal([field[b : b + 1] for field in together], apart), f"seed {seed}, request {b}"


DIGESTS = """
import hashlib
import torch
from agreement import calls, tree_cases
for module, ops in ((calls, calls.LAW), (tree_cases, tree_cases.ALL)):
    for op in ops:
        digest = hashlib.sha256()
        for seed in range(16):
            vocab = (None, None, 4097, 9001)[seed % 4]
            batch = None if vocab is None else 2
            for field in module.outcome("cpu", op, module.call(op, seed, vocab=vocab, batch=batch)):
                digest.update(field.reshape(-1).view(torch.uint8).numpy().tobytes() if field.numel() else b"")
        print(op, digest.hexdigest())
"""


def test_the_instruction_set_does_not_change_a_bit():
    """Decisions and log-probabilities; a set that this machine lacks is lowered to what it has."""
    said = [processes.python(DIGESTS, SPECDEC_CPU_ISA=isa) for isa in ("baseline", "avx2", "avx512")]
    assert len(said[0].splitlines()) == len(LAW) + len(TREES)
    assert said[0] == said[1] == said[2]


@pytest.mark.op("draft_ngram_lookup", "tree_from_chains")
def test_threads_of_lookups_and_chains(backend, threads):
    history = torch.randint(0, 3, (65, 40), generator=torch.Generator().manual_seed(1))
    lengths = torch.arange(65)
    results = []
    for count in (1, 2):
        threads(count)
        drafts = compare.run(backend, "draft_ngram_lookup", {"history": history, "lengths": lengths})
        made = compare.run(backend, "tree_from_chains", {"tokens": history, "lengths": lengths})
        results.append([*drafts, *(field for field in made if isinstance(field, torch.Tensor))])
    assert equal(*results)
