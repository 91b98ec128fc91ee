"""Training of DFlash drafters: what is trained is what will draft."""

import dataclasses
import json
import math
import re
import string

import pytest
import torch

import python_ref.ops as ops
from python_ref.models import ModelConfig, Transformer, load_tokenizer
from python_ref.models.dflash import DFlash, DFlashConfig
from python_ref.models.dflash_checkpoint import load_dflash
from python_ref.models.rotary import rotate
from python_ref.models.transformer import causal
from python_ref.training import clock, dflash, export
from python_ref.training.data import Encoded
from python_ref.training.evaluate import block_acceptance
from python_ref.training.generate import continuations
from python_ref.training.recipes import RECIPES, DFlashRecipe, Recipe
from python_ref.training.train import initialize, train

TARGET = Recipe("target", 32, 6, 4, 2, 48, tokens=4096, head_dim=8, vocab_size=90)
DRAFTER = DFlashRecipe(
    "drafter",
    32,
    2,
    4,
    2,
    40,
    tokens=4096,
    head_dim=8,
    vocab_size=90,
    step_tokens=128,
    window=32,
    anchors=6,
    long=0.0,
    block_size=5,
    teacher="target",
    target_layers=6,
    target_layer_ids=(1, 2, 4),
    mask_token_id=89,
    generated=4096,
    warmup=2,
)
KINDS = {
    "full": {},
    "sliding": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7},
    "causal": {"is_causal": True},
    "symmetric window": {"dflash_config": {"use_swa": True, "swa_window_size": 6}},
}


@pytest.fixture(scope="module")
def target() -> Transformer:
    model = Transformer(ModelConfig.from_dict(TARGET.config())).requires_grad_(False)
    initialize(model, seed=3)
    model.lm_head.weight *= 30  # opinions
    return model


def drafter_of(target, **changes):
    raw = DRAFTER.config()
    options = raw["dflash_config"] | changes.pop("dflash_config", {})
    made = DFlash(DFlashConfig.from_dict({**raw, **changes, "dflash_config": options}), target)
    made.load_state_dict(dflash.build(DRAFTER, target).state_dict())
    generator = torch.Generator().manual_seed(4)
    for parameter in made.parameters():
        if parameter.ndim == 1:  # norms that tell layers and directions apart
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made.requires_grad_(False)


def block_at(drafter, features, text, root):
    """The hidden states of one block, row by row and key by key, from the definition."""
    config, size = drafter.config, drafter.block_size
    table = drafter.prepare()
    context = drafter.hidden_norm(features[:root] @ drafter.fc.weight.T)
    ids = torch.tensor([int(text[root])] + [config.mask_token_id] * (size - 1))
    hidden = drafter._target[0].model.embed_tokens.weight[ids]
    positions = torch.arange(root + size)
    for i, layer in enumerate(drafter.layers):
        attention, x = layer.self_attn, layer.input_layernorm(hidden)
        rows = torch.cat((context, x))
        cosine, sine = table[positions].unbind(1)
        query = attention.q_norm((x @ attention.q_proj.weight.T).view(size, 4, 8))
        query = rotate(query, cosine[root:], sine[root:])
        key = attention.k_norm((rows @ attention.k_proj.weight.T).view(-1, 2, 8))
        key = rotate(key, cosine, sine)
        value = (rows @ attention.v_proj.weight.T).view(-1, 2, 8)
        mixed = torch.zeros(size, 4, 8)
        for row in range(size):
            seen = [
                j
                for j in range(root + size)
                if not (config.causal[i] and j > root + row)
                and not (config.windows[i] and root + row - j >= config.windows[i])
            ]
            for head in range(4):
                scores = key[seen, head // 2] @ query[row, head] / math.sqrt(8)
                mixed[row, head] = scores.softmax(-1) @ value[seen, head // 2]
        hidden = hidden + mixed.flatten(1) @ attention.o_proj.weight.T
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return drafter.norm(hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_in_training_is_a_block_in_drafting(kind, target):
    drafter = drafter_of(target, **KINDS[kind])
    text = torch.randint(90, (2, 30), generator=torch.Generator().manual_seed(1))
    _, features = target(text.flatten(), torch.arange(30).repeat(2), causal(2), features=drafter.features)
    features = features.view(2, 30, -1)
    anchors = torch.tensor([[1, 4, 13, 25], [2, 9, 10, 29]])
    trained = dflash.blocks(drafter, features, text, anchors)
    for row in range(2):
        for i, root in enumerate(anchors[row].tolist()):
            wanted = block_at(drafter, features[row], text[row], root)
            torch.testing.assert_close(trained[row, i], wanted, rtol=1e-4, atol=1e-5)


def test_a_block_sees_nothing_of_its_root_but_the_token(target):
    """The features at the root's position do not exist when the block is drafted."""
    drafter = drafter_of(target)
    text = torch.randint(90, (1, 20), generator=torch.Generator().manual_seed(5))
    features = torch.randn((1, 20, 3 * 32), generator=torch.Generator().manual_seed(6))
    anchors = torch.tensor([[8]])
    before = dflash.blocks(drafter, features, text, anchors)
    features[0, 8:] += 1
    assert torch.equal(dflash.blocks(drafter, features, text, anchors), before)
    features[0, 7] += 1
    assert not torch.allclose(dflash.blocks(drafter, features, text, anchors), before, atol=1e-3)


def test_the_loss_is_the_weighted_entropy_of_what_follows_an_anchor(target):
    """Half against the text, half against the target's law; nothing of rows behind the window."""
    drafter = drafter_of(target)
    windows = torch.randint(90, (2, 24), generator=torch.Generator().manual_seed(2))
    anchors = torch.tensor([[3, 21], [10, 22]])
    total = weight = 0.0
    for row, text in enumerate(windows):
        hidden, features = target(text, torch.arange(24), causal(1), features=drafter.features)
        law = target.logits(hidden).softmax(-1)
        for root in anchors[row].tolist():
            chances = drafter.logits(block_at(drafter, features, text, root)).log_softmax(-1)
            for o in range(1, min(5, 24 - root)):
                entropy = -0.5 * chances[o, text[root + o]] - 0.5 * (law[root + o - 1] * chances[o]).sum()
                share = math.exp(-(o - 1) / 4)
                total, weight = total + share * float(entropy), weight + share
    loss = dflash.loss_of(drafter, windows, anchors, target, 4.0)
    assert float(loss) == pytest.approx(total / weight, rel=1e-4)


def test_which_drafts_are_the_text(target):
    drafter = drafter_of(target)
    text = torch.randint(90, (24,), generator=torch.Generator().manual_seed(3))
    flags = dflash.agreement(drafter, target, text, 2)
    _, features = target(text, torch.arange(24), causal(1), features=drafter.features)
    wanted = []
    for root in range(2, 24 - 5 + 1):
        drafts = drafter.logits(block_at(drafter, features, text, root)).argmax(-1)[1:]
        wanted.append(drafts == text[root + 1 : root + 5])
    assert torch.equal(flags, torch.stack(wanted))


@pytest.mark.parametrize("nodes", [0, 60])
def test_acceptance_is_counted_along_the_text_of_the_target(nodes, target):
    """As a walk through the text, block by block; and of a target that is sure of everything, all is accepted."""
    drafter = drafter_of(target)
    prompts = torch.randint(90, (2, 6), generator=torch.Generator().manual_seed(8))
    tokens, shares = block_acceptance(target, drafter, prompts, temperature=0.0, nodes=nodes, ranks=50, new=40)
    walked = []
    for text in continuations(target, prompts, 40, 0.0):
        where, place = (drafter, target, text, 5), 0
        found = dflash.tree_agreement(*where, nodes, 50) if nodes else dflash.agreement(*where)
        flags = found.tolist()
        while place < len(flags):
            accepted = ([*flags[place], False]).index(False)
            if place + accepted + 1 <= len(flags):
                walked.append(accepted)
            place += accepted + 1
    assert tokens == pytest.approx(1 + sum(walked) / len(walked))
    assert shares == pytest.approx([sum(a > i for a in walked) / len(walked) for i in range(4)])


def test_which_tokens_are_a_path_of_the_tree(target):
    """Against all paths of the tree, one by one; a tree of two nodes is the best token alone."""
    drafter = drafter_of(target)
    text = torch.randint(90, (40,), generator=torch.Generator().manual_seed(9))
    _, features = target(text, torch.arange(40), causal(1), features=drafter.features)
    chains = dflash.agreement(drafter, target, text, 2)
    assert torch.equal(dflash.tree_agreement(drafter, target, text, 2, 2, 1)[:, 0], chains[:, 0])
    flags = dflash.tree_agreement(drafter, target, text, 2, 60, 20)
    depths = set()
    for row, root in enumerate(range(2, 40 - 5 + 1)):
        laws = drafter.logits(block_at(drafter, features, text, root)[1:]).log_softmax(-1)[None]
        scores, ids = laws.topk(20)
        tree = ops.tree.best_first(text[None, root], scores, ids, 60)
        paths = set()
        for node in range(1, int(tree.ends[0])):
            path = []
            while node > 0:
                path.insert(0, int(tree.tokens[node]))
                node = int(tree.parents[node])
            paths.add(tuple(path))
        depth = max(d for d in range(5) if d == 0 or tuple(text[root + 1 : root + 1 + d].tolist()) in paths)
        assert flags[row].tolist() == [True] * depth + [False] * (4 - depth)
        depths.add(depth)
    assert {0, 1} <= depths


def test_the_card_says_what_the_newest_rows_say(tmp_path):
    columns = (
        "drafter,temperature,batch,num_draft,nodes,tokens_per_step,step_ms,tokens_per_s,share_of_best,device,threads"
    )
    columns += ",load"
    rates = (100, 108, 120, 103)
    rows = [f"dflash,0.0,4,{n},0,{1 + n / 4},{8 + n},{rates[n]},{rates[n] / 120},a machine,2,1.5" for n in range(4)]
    trees = ["ddtree,0.0,4,0,16,1.0,9,90,0.5,a machine,2,2.25", "ddtree,0.0,4,3,16,2.5,20,99,0.9,a machine,2,2.25"]
    assert clock.section(tmp_path, 4, 16) == ""

    def write(name, *lines):
        (tmp_path / name).write_text("\n".join((columns, *lines)) + "\n")

    write("drafts-z-2026-01-01.csv", *rows, *trees)
    text = clock.section(tmp_path, 4, 16)
    assert "| drafts verified | 0 | 1 | 2 | 3 |\n|---|---|---|---|---|\n" in text
    assert "| tokens per step | 1.00 | 1.25 | 1.50 | 1.75 |\n" in text
    assert (
        "the first 4 shipped prompts, whole and together, on 2 threads of a machine, load 1.5 to 2.25 at the start"
        in text
    )
    assert (
        "2 drafts are the fastest here, at 120 tokens/s, and 3 reach 86 % of that: 3 of the 4 rows of a block" in text
    )
    assert "one draft takes 9.0 ms\nwhere one with 3 takes 11.0 ms, and gives 1.25 tokens in the place of 1.75." in text
    assert "gives 2.50 tokens per step and 1.10 times the tokens/s" in text and "a row give 1.03 times" in text
    quiet = (row.replace("a machine", "another").rpartition(",")[0] + "," for row in rows + trees)
    write("drafts-a-2026-02-01.csv", *quiet)
    assert "2 threads of another\n(`bench/results/drafts-a-2026-02-01.csv`)" in clock.section(tmp_path, 4, 16)
    write("drafts-b-2026-03-01.csv", *rows)  # no trees
    assert "another" in clock.section(tmp_path, 4, 16) and clock.section(tmp_path, 5, 16) == ""


def test_the_shipped_card_says_what_its_rows_say():
    recipe = RECIPES["pystdlib-dflash"]
    card = (export.ASSETS / recipe.name / "README.md").read_text(encoding="utf-8")
    (name,) = re.findall(r"`bench/results/(.*?)`", card)
    section = clock.section_of(clock.RESULTS / name, recipe.block_size, 16)
    assert section and section in card and "| the same in best-first trees of 16 nodes | " in card


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.teacher])
def test_the_shipped_cards_say_what_was_scored(name):
    prompts = json.loads((export.ASSETS / "prompts.json").read_text(encoding="utf-8"))
    count, length = export.prompt_batch(load_tokenizer(export.ASSETS / RECIPES[name].teacher), prompts).shape
    card = (export.ASSETS / name / "README.md").read_text(encoding="utf-8")
    assert f"behind {count} shipped prompts cut to {length} tokens, {export._NEW} new ones each | " in card


def test_a_card_says_how_its_model_was_made():
    """Each way once; a log that says nothing of it is not spoken for."""
    assert export.made_by("x", [{"step": 50, "loss": 1.0}, {"seconds": 3}]) == {"machine": "", "command": ""}
    slow = {"seconds": 3, "device": "cpu", "threads": 2, "autocast": True, "compiled": True}
    fast = slow | {"device": "cuda", "autocast": False, "compiled": False}
    made = export.made_by("x", [slow, {"step": 50}, slow])
    assert made["machine"] == " on 2 threads of the CPU, products in bfloat16"
    train = "`python -m python_ref.training train x --device"
    assert made["command"] == f"; this one was made by {train} cpu --bfloat16`"
    made = export.made_by("x", [slow, fast])
    assert made["machine"] == " on 2 threads of the CPU, products in bfloat16 and on cuda"
    assert made["command"].endswith(f"cpu --bfloat16` and {train} cuda --no-bfloat16 --eager`")


@pytest.mark.parametrize("name", RECIPES)
def test_every_card_can_be_filled(name):
    """With what the export knows of any model, and the scores of its kind."""
    card = (export._TEMPLATES / f"{name}.md").read_text(encoding="utf-8")
    known = {field for _, field, _, _ in string.Formatter().parse(card) if field}
    assert {"machine", "command", "minutes"} <= known and ("scored" in known) == bool(RECIPES[name].teacher)


def data_of(target):
    text = torch.randint(90, (3000,), generator=torch.Generator().manual_seed(7))
    return Encoded(text, [(text[:60], 60)], None)


def test_windows_are_whole_pieces_with_their_anchors(target):
    generated = torch.arange(320) % 90
    task = dflash.DFlashTask(DRAFTER, data_of(target), target, generated)
    seen = []
    for step in range(5):
        windows = task.windows(step)
        assert windows.shape == (4, 32 + 6)
        assert torch.equal(windows, task.windows(step))
        for row in windows:
            seen.append(int(row[0]))
            assert torch.equal(row[:32], (row[0] + torch.arange(32)) % 90)
            assert row[32:].unique().numel() == 6
            assert 1 <= int(row[32:].min()) and int(row[32:].max()) < 31
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(start % 90 for start in range(0, 320, 32))
    assert seen[:10] != seen[10:]


def test_training_learns_and_its_checkpoint_is_what_was_trained(tmp_path, target):
    recipe = dataclasses.replace(DRAFTER, tokens=40 * 128)
    rate = []
    train(recipe, tmp_path, data_of(target), steps=30, compiled=False, autocast=False, teacher=target, log=rate.append)
    train(recipe, tmp_path, data_of(target), compiled=False, autocast=False, teacher=target, log=rate.append)
    records = [json.loads(line) for line in (tmp_path / "drafter" / "log.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 40
    how = {"device": "cpu", "threads": torch.get_num_threads(), "autocast": False, "compiled": False}
    assert how.items() <= records[-1].items()
    assert len(records[-1]["held_out_accepted"]) == 4
    trained = load_dflash(tmp_path / "drafter" / "export", target)
    task = dflash.DFlashTask(recipe, data_of(target), target, torch.load(tmp_path / "drafter" / "generated.pt"))
    losses = [task.loss(model, task.windows(0)).item() for model in (task.build(), trained)]
    assert losses[1] < losses[0] - 0.3
