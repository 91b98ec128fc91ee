"""Vocabularies around the blocks of 4,096 ids, of the usual sizes, and of a million, against the oracle."""

import pytest
import torch

import specdec_kernels as sk

from . import calls, compare
from .calls import LAW, call, check, outcome
from .cases import Draw, chain_tree, near, rows, sampling

EVERY = pytest.mark.op(*LAW)
F32, BF16 = torch.float32, torch.bfloat16
# rule, filters, dtype, seeds
USUAL = [
    *(
        (rule, filters, dtype, (1, 2) if dtype == F32 else (1,))
        for rule in ("match", "token")
        for filters in (False, True)
        for dtype in (F32, BF16)
    ),
    ("traversal", False, BF16, (1,)),
    ("traversal", True, F32, (1,)),
    ("greedy_plus_one", False, F32, (1,)),
    ("threshold", True, F32, (1,)),
    ("typical", False, F32, (1,)),
]


@EVERY
@pytest.mark.parametrize("op", LAW)
@pytest.mark.parametrize("vocab", [4095, 4096, 4097, 8197])
def test_around_the_blocks(backend, op, vocab):
    tally = compare.Tally(f"{op}, V={vocab}, {backend}")
    for seed in range(10):
        check(backend, op, call(op, seed, vocab=vocab, batch=2, nodes=4, depth=2), tally)
    tally.close(near=0.1, different=0.1)


@pytest.mark.op("sample_draft")
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.7013}, {"min_p": 0.9}, {"top_k": 4500, "top_p": 0.9873}], ids=str)
@pytest.mark.parametrize("spread", ["normal", "one infinite", "huge"])
def test_nearly_flat_laws(backend, filters, spread):
    """Temperatures up to infinity over more ids than any scratch holds: what a cut keeps cannot be gathered."""
    tally = compare.Tally(f"sample_draft, flat, {spread}, {filters}, {backend}")
    draw = Draw(6)
    for temperature in (1e4, 1e30, 1e37, 1e38, torch.inf):
        logits = rows(draw, 2, 6000, torch.float32, ("normal",))
        if spread == "one infinite":
            logits[:, 7] = torch.inf
        logits = logits * 1e37 if spread == "huge" else logits
        settings = sk.Sampling.of(2, temperature=temperature, seed=[1, 2], **filters)
        arguments = {"logits": logits, "sampling": settings, "positions": torch.tensor([3, 4]), "num": 5}
        compare.draws(backend, "sample_draft", arguments, tally)
    tally.close(near=0.3, different=0.3)


@EVERY
def test_every_block_is_reached_and_blocks_without_mass_are_not(backend):
    """One id in each of the blocks 0, 2 and 3: the block race decides, with the probabilities of the ids."""
    ids = torch.tensor([4095, 8192, 12289])
    row = torch.full((1, 12290), -torch.inf)
    row[0, ids] = torch.tensor([0.2, 0.5, 0.3]).log()
    count = 20000
    arguments = {
        "logits": row.expand(count, -1),
        "sampling": sampling(Draw(0), 1, False, "joint")._replace(
            temperature=torch.ones(count), top_k=None, top_p=None, min_p=None, seed=torch.arange(count)
        ),
        "positions": torch.zeros(count, dtype=torch.int64),
    }
    if backend == "reference":
        arguments["logits"] = arguments["logits"][:50]
        arguments["positions"] = arguments["positions"][:50]
        arguments["sampling"] = arguments["sampling"]._replace(temperature=torch.ones(50), seed=torch.arange(50))
    tokens = outcome(backend, "sample_sample", arguments)[0]
    shares = (tokens.unsqueeze(1) == ids).double().mean(0)
    assert float(shares.sum()) == 1.0
    bound = 5 * (0.25 / len(tokens)) ** 0.5
    assert bool(((shares - torch.tensor([0.2, 0.5, 0.3])).abs() < bound).all())


def chains(seed, vocab, dtype, filters):
    """Eight chains of four nodes over peaked rows, drafts drawn from the disturbed rows of the target."""
    draw = Draw(seed)
    batch, width = 8, 4
    count = batch * width
    target = rows(draw, count, vocab, dtype, ("normal", "peaked"))
    settings = sampling(draw, batch, False, draw.one(("top_k_first", "joint", "min_p_first")))
    temperature = torch.rand(batch, generator=draw.generator) + 0.3
    wide = {"top_k": None, "top_p": None, "min_p": None}
    tight = {
        "top_k": draw.whole_tensor(0, 200, (batch,), torch.int32),
        "top_p": 0.5 + torch.rand(batch, generator=draw.generator) / 2,
        "min_p": torch.rand(batch, generator=draw.generator) / 50,
    }
    settings = settings._replace(temperature=temperature, **(tight if filters else wide))
    drafter = near(draw, target, 0.5)
    contexts = draw.whole_tensor(0, 1000, (batch,))
    return target, drafter, settings, contexts, batch, width


def drafted(backend, target, drafter, settings, contexts, batch, width, coupled):
    """The tree of one chain per request, each draft drawn by the op itself."""
    nodes = torch.arange(batch * width)
    arguments = {
        "logits": drafter,
        "sampling": settings,
        "positions": contexts[nodes // width] + nodes % width + 1,
        "num": 1,
        "requests": nodes // width,
        "depths": nodes % width,
        "nodes": nodes % width,
        "coupled": coupled,
    }
    tokens = outcome(backend, "sample_draft", arguments)[0].view(batch, width)
    return chain_tree([[0, *row[: width - 1]] for row in tokens.tolist()])


@pytest.mark.op("sample_draft", *{calls.RULES[case[0]][0] for case in USUAL})
@pytest.mark.parametrize(("rule", "filters", "dtype", "seeds"), USUAL, ids=str)
def test_a_usual_vocabulary(backend, rule, filters, dtype, seeds):
    op, options = calls.RULES[rule]
    tally = compare.Tally(f"{rule}, V=32000, {'filters' if filters else 'full law'}, {dtype}, {backend}")
    lengths = []
    for seed in seeds:
        target, drafter, settings, contexts, batch, width = chains(seed, 32000, dtype, filters)
        coupled = op == "verify_match"
        tree = drafted(backend, target, drafter, settings, contexts, batch, width, coupled)
        arguments = {"tree": tree, "logits": target, "sampling": settings, "context_lens": contexts}
        arguments |= {"logprobs": "processed", **options}
        if op == "verify_rejection":
            arguments |= {"draft_logits": drafter, "draft_sampling": settings}
        result = compare.verify(backend, op, arguments, tally)
        lengths += result.num_tokens.tolist()
    tally.close(near=0.1, different=0.05)
    assert 1 < sum(lengths) / len(lengths) < 4  # some drafts are accepted, and some are not


@EVERY
@pytest.mark.parametrize("op", LAW)
def test_a_million_ids(backend, op):
    tally = compare.Tally(f"{op}, V=1000003, {backend}")
    options = {"vocab": 1_000_003, "batch": 1, "nodes": 2, "depth": 1, "dtype": torch.bfloat16, "kinds": ("normal",)}
    check(backend, op, call(op, 4, odd=False, **options), tally)
    tally.close(near=1.0, different=0.0)
