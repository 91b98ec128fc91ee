"""The vectors of docs/randomness.md: of the oracle to the bit, and of every backend."""

import pytest
import torch

import specdec_kernels as sk
from python_ref import ops as oracle
from python_ref.ops import law
from python_ref.ops.mass import TOLERANCE
from python_ref.ops.philox import (
    BLOCK_INDEX,
    COIN,
    DRAFT,
    RESIDUAL,
    TARGET,
    Place,
    exponential,
    uniform,
    words,
)

from .pages import table

PAGE = "docs/randomness.md"
PLACE = ("seed", "index", "position", "stream", "depth", "node", "draw")
RACE = ("mass", "r", "E(r)", "score")
SETTINGS = ("seed", "position", "temperature", "top_k", "top_p", "min_p")
# Logits that all float formats hold exactly.
LOGITS = (29 * torch.arange(10_000) % 64 / 16).unsqueeze(0)
IDS = torch.arange(10)
TARGET_LOGITS = torch.stack([(7 * IDS + 3 * v) % 11 / 4 for v in range(4)])
DRAFT_LOGITS = torch.stack([(5 * IDS + 2 * v) % 11 / 4 for v in range(4)])
CONTEXT = 100


def integers(text):
    return [int(part) for part in text.split()]


def hexadecimal(text):
    return [int(part, 16) for part in text.split()]


def test_words():
    rows = table(PAGE, *PLACE, "counter", "result")
    assert len(rows) >= 5
    for row in rows:
        seed, index, position, stream, depth, node, draw = (int(row[name]) for name in PLACE)
        place = Place(seed, position, stream, depth, node, draw)
        assert [index, *place.counter] == hexadecimal(row["counter"])
        assert list(words(place, index)) == hexadecimal(row["result"])


def test_numbers():
    for row in table(PAGE, "r", "u", "E(r)"):
        r = int(row["r"], 16)
        assert float(row["u"]) == (r + 0.5) * 2.0**-32
        assert float(exponential(torch.tensor([r]))) == pytest.approx(float(row["E(r)"]), rel=1e-14, abs=0)


def test_streams_have_the_numbers_of_the_table():
    rows = table(PAGE, "stream", "name", "what it decides", "position", "depth", "node", "index")
    numbered = {row["name"]: int(row["stream"]) for row in rows}
    assert numbered == {"target": TARGET, "draft": DRAFT, "coin": COIN, "residual": RESIDUAL}


def test_the_two_races_of_one_draw():
    (chosen,) = [row for row in table(PAGE, *SETTINGS, "token") if (row["seed"], row["position"]) == ("42", "1")]
    place = Place(42, 1, TARGET)
    w = law.weights(LOGITS[0].double(), law.Settings(1.0)).w
    blocks = table(PAGE, "block", *RACE)
    scores = []
    for row in blocks:
        block = int(row["block"])
        mass = float(w[4096 * block : 4096 * (block + 1)].sum())
        r = words(place, BLOCK_INDEX + block)[0]
        scores.append(check_race(row, r, float(row["mass"]), mass))
    winner = scores.index(min(scores))
    ids = table(PAGE, "id", "w", *RACE[1:])
    assert ids[0]["id"] == chosen["token"] and int(ids[0]["id"]) // 4096 == winner
    ranked = []
    for row in ids:
        x = int(row["id"])
        ranked.append(check_race(row, words(place, x // 4)[x % 4], float(row["w"]), float(w[x])))
    assert ranked == sorted(ranked)
    rest = torch.arange(4096 * winner, 4096 * (winner + 1))
    noise = torch.stack(words(place, rest // 4))[rest % 4, torch.arange(len(rest))]
    assert sorted((exponential(noise) / w[rest]).tolist())[:3] == pytest.approx(ranked, rel=1e-12, abs=0)


def check_race(row, r, said, weight):
    """The score of an entry of a race, after a look at what the table says of it."""
    assert said == pytest.approx(weight, rel=1e-14, abs=0)
    assert int(row["r"], 16) == r
    noise = float(exponential(torch.tensor([r])))
    assert float(row["E(r)"]) == pytest.approx(noise, rel=1e-14, abs=0)
    assert float(row["score"]) == pytest.approx(noise / weight, rel=1e-12, abs=0)
    return noise / weight


def settings_of(rows):
    kinds = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "seed": int}
    return sk.Sampling.of(len(rows), **{name: [kind(row[name]) for row in rows] for name, kind in kinds.items()})


def far_from_turning(margin):
    """The page promises a hundred times the tolerance."""
    assert bool((margin > 100 * TOLERANCE).all())


def test_plain_sampling_of_the_oracle():
    rows = table(PAGE, *SETTINGS, "token")
    positions = torch.tensor([int(row["position"]) for row in rows])
    margin = torch.zeros(len(rows), dtype=torch.float64)
    logits = LOGITS.expand(len(rows), -1)
    tokens = oracle.sample.sample(logits, settings_of(rows), positions, margin=margin)
    assert tokens.tolist() == [int(row["token"]) for row in rows]
    far_from_turning(margin)


@pytest.mark.op("sample_sample")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_sampling(backend, dtype):
    rows = table(PAGE, *SETTINGS, "token")
    positions = torch.tensor([int(row["position"]) for row in rows])
    logits = LOGITS.to(dtype).expand(len(rows), -1).contiguous()
    tokens = sk.sample.sample(logits, settings_of(rows), positions, backend=backend)
    assert tokens.tolist() == [int(row["token"]) for row in rows]


def drafts_of(row, draft, **options):
    """The four drafts of a row of the table, by ``sample.draft`` of the oracle or of the package."""
    where = {name: torch.tensor([int(row[name])]) for name in ("depth", "node")}
    return draft(
        LOGITS,
        sk.Sampling.of(1, seed=int(row["seed"])),
        torch.tensor([int(row["position"])]),
        4,
        row["draws"] == "with replacement",
        depths=where["depth"],
        nodes=where["node"],
        coupled=row["draws"] == "coupled",
        **options,
    )


DRAFTS = ("seed", "position", "depth", "node", "draws", "drafts")


def test_drafts_of_the_oracle():
    for row in table(PAGE, *DRAFTS):
        margin = torch.zeros(1, dtype=torch.float64)
        assert drafts_of(row, oracle.sample.draft, margin=margin)[0].tolist() == integers(row["drafts"])
        far_from_turning(margin)


@pytest.mark.op("sample_draft")
def test_drafts(backend):
    rows = table(PAGE, *DRAFTS)
    assert {row["draws"] for row in rows} == {"with replacement", "without replacement", "coupled"}
    for row in rows:
        assert drafts_of(row, sk.sample.draft, backend=backend)[0].tolist() == integers(row["drafts"])


STEP = ("seed", "drafts", "coins", "rejection", "match")


def step(package, seed, far=None, **options):
    """Three drafts and what both rules make of them; ``far`` looks at the margins, where there are any."""
    sampling = sk.Sampling.of(1, seed=seed)
    margins = [torch.zeros(1, dtype=torch.float64) for _ in range(5)] if far else [None] * 5
    extra = [options | ({} if margin is None else {"margin": margin}) for margin in margins]
    drafts = []
    for v in range(3):
        node = torch.tensor([v])
        position = torch.tensor([CONTEXT + v + 1])
        where = {"depths": node, "nodes": node}
        drafts.append(
            int(package.sample.draft(DRAFT_LOGITS[v : v + 1], sampling, position, 1, True, **where, **extra[v]))
        )
    tree = package.tree.from_chains(torch.tensor([[0, *drafts]]))
    context = torch.tensor([CONTEXT])
    rejected = package.verify.rejection(
        tree, TARGET_LOGITS, DRAFT_LOGITS, sampling, sampling, context, replacement=True, **extra[3]
    )
    matched = package.verify.match(tree, TARGET_LOGITS, sampling, context, **extra[4])
    for margin in margins if far else ():
        far(margin)
    return drafts, *(result.tokens[0, : result.num_tokens[0]].tolist() for result in (rejected, matched))


def test_a_step_of_the_oracle():
    rows = table(PAGE, *STEP)
    for row in rows:
        seed = int(row["seed"])
        expected = integers(row["drafts"]), integers(row["rejection"]), integers(row["match"])
        assert step(oracle, seed, far=far_from_turning) == expected
        coins = [uniform(Place(seed, CONTEXT + v + 1, COIN, v, v + 1)) for v in range(3)]
        assert [f"{coin:.6f}" for coin in coins] == row["coins"].split()
    assert {len(integers(row["rejection"])) for row in rows} == {1, 2, 3, 4}, "every length occurs"


@pytest.mark.op("sample_draft", "verify_rejection", "verify_match")
def test_a_step(backend):
    for row in table(PAGE, *STEP):
        expected = integers(row["drafts"]), integers(row["rejection"]), integers(row["match"])
        with sk.use_backend(backend):
            assert step(sk, int(row["seed"])) == expected
