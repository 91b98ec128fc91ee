"""Training of EAGLE-3 heads: what is trained is what will draft."""

import dataclasses
import json

import pytest
import torch

from python_ref.models import ModelConfig, Transformer
from python_ref.models.eagle3_checkpoint import load_eagle3
from python_ref.models.transformer import causal
from python_ref.training import eagle3
from python_ref.training.data import Encoded
from python_ref.training.evaluate import chain_acceptance
from python_ref.training.generate import continuations
from python_ref.training.recipes import Eagle3Recipe, Recipe
from python_ref.training.train import initialize, train

TARGET = Recipe("target", 32, 7, 4, 2, 48, tokens=4096, head_dim=8, vocab_size=90)
HEAD = Eagle3Recipe(
    "head", 32, 1, 4, 2, 40, tokens=4096, head_dim=8, vocab_size=90, draft_vocab_size=50, teacher="target"
)


@pytest.fixture(scope="module")
def target() -> Transformer:
    model = Transformer(ModelConfig.from_dict(TARGET.config())).requires_grad_(False)
    initialize(model, seed=3)
    model.lm_head.weight *= 30  # opinions
    return model


@pytest.fixture(scope="module")
def head(target):
    text = torch.randint(90, (4000,), generator=torch.Generator().manual_seed(0)).square() // 90
    return eagle3.build(HEAD, target, text).requires_grad_(False)


def drafted(head, features, tokens, place, steps):
    """The hidden states of a chain behind ``place``, one token at a time over growing keys, as inference does it."""
    keys, values = [], []

    def attend(layer, query, key, value):
        keys.append(key)
        values.append(value)
        group = query.shape[1] // key.shape[1]
        all_keys, all_values = (torch.cat(x).repeat_interleave(group, dim=1) for x in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query, all_keys) * query.shape[2] ** -0.5
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), all_values)

    def pair(hidden, i):
        return head(hidden, tokens[i + 1 : i + 2], torch.tensor([i]), attend)

    for i in range(place + 1):
        hidden = pair(head.fuse(features[i : i + 1]), i)
    states = [hidden]
    for s in range(1, steps):
        states.append(pair(states[-1], place + s))
    return torch.cat(states)


def test_a_chain_in_training_is_a_chain_in_drafting(head, target):
    tokens = torch.randint(90, (2, 24), generator=torch.Generator().manual_seed(1))
    features = eagle3.labels(head, target, tokens)[0]
    steps = 6
    trained = torch.stack([h.view(2, 23, -1) for h in eagle3.unrolled(head, features, tokens, steps)])
    for row in range(2):
        for place in (0, 1, 5, 12, 17):
            wanted = drafted(head, features[row], tokens[row], place, steps)
            torch.testing.assert_close(trained[:, row, place], wanted, rtol=1e-5, atol=1e-5)


def test_the_loss_is_that_of_the_paper(head, target):
    """Soft cross-entropy of every draft against the target's law over the draft vocabulary, counted one by one."""
    windows = torch.randint(90, (3, 17), generator=torch.Generator().manual_seed(2))
    ids, total = head.target_ids(), 0.0
    for s in range(3):
        entropies = []
        for text in windows:
            features, logits = told(target, head, text[:-1])
            for i in range(16 - 1 - s):
                label = logits[i + 1 + s]
                if int(label.argmax()) not in ids.tolist():
                    continue
                law = label[ids].softmax(-1)
                drafts = head.logits(drafted(head, features, text, i, s + 1)[-1:])[0]
                entropies.append(-(law * drafts.log_softmax(-1)).sum())
        assert 20 < len(entropies) < 3 * (15 - s)  # some of the target's best tokens cannot be drafted
        total += 0.8**s * torch.stack(entropies).mean()
    torch.testing.assert_close(eagle3.loss_of(head, windows, target, 3), total, rtol=1e-5, atol=1e-5)


def told(target, head, text):
    """Features and logits of the target at every token."""
    hidden, features = target(text, torch.arange(len(text)), causal(1), features=head.features)
    return features, target.logits(hidden)


def test_gradients_reach_every_weight_and_not_the_target(target):
    head = eagle3.build(HEAD, target, torch.arange(90).repeat(50))
    windows = torch.randint(90, (2, 33), generator=torch.Generator().manual_seed(3))
    eagle3.loss_of(head, windows, target, 4).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())
    assert all(parameter.grad is None for parameter in target.parameters())


def test_the_draft_vocabulary_is_the_most_frequent():
    text = torch.tensor([5, 5, 5, 2, 2, 9, 9, 0, 7])
    assert eagle3.draft_vocabulary(text, 10, 3).tolist() == [2, 5, 9]
    assert eagle3.draft_vocabulary(text, 10, 4).tolist() == [0, 2, 5, 9]


def test_an_untrained_head_hands_the_highest_feature_on(target):
    text = torch.randint(90, (4000,), generator=torch.Generator().manual_seed(4))
    head = eagle3.build(HEAD, target, text).requires_grad_(False)
    assert torch.equal(head.target_ids(), eagle3.draft_vocabulary(text, 90, 50))
    assert head.t2d.sum() == 50 and head.t2d[head.target_ids()].all()
    assert torch.equal(head.lm_head.weight, target.lm_head.weight[head.target_ids()])
    features, _ = told(target, head, text[:200])
    fused = head.fuse(features)
    assert 0.8 < fused.pow(2).mean().sqrt() < 1.6
    high = features.view(200, 3, 32)[:, 2]
    assert torch.nn.functional.cosine_similarity(fused, high, dim=1).mean() > 0.7
    whole = eagle3.build(dataclasses.replace(HEAD, draft_vocab_size=90), target, text)
    assert whole.d2t is None and torch.equal(whole.lm_head.weight, target.lm_head.weight)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_chain_acceptance_is_that_of_drafting_step_by_step(temperature, head, target, monkeypatch):
    """At temperature 0 by drafting chains; above by the ratio of the laws, with coins that are all one half."""
    monkeypatch.setattr(torch, "rand", lambda shape, generator=None: torch.full(shape, 0.5))
    prompts = torch.randint(90, (4, 6), generator=torch.Generator().manual_seed(5))
    score, shares = chain_acceptance(target, head, prompts, temperature=temperature, drafts=3, new=25, seed=7)
    steps = tokens = 0
    accepted_at = [0, 0, 0]
    to_target = head.target_ids().tolist()
    for text in continuations(target, prompts, 25, temperature, seed=7):
        features, logits = told(target, head, text)
        place = 6
        while place < len(text):
            count = 0
            while count < 3 and place + count < len(text):
                states = drafted(head, features, text, place - 2, count + 1)
                row, token = head.logits(states[-1:])[0], int(text[place + count])
                if temperature == 0:
                    holds = to_target[int(row.argmax())] == token
                else:
                    p = float((logits[place + count - 1] / temperature).softmax(-1)[token])
                    q = (row / temperature).softmax(-1)
                    holds = token in to_target and 0.5 * p < float(q[to_target.index(token)])
                if not holds:
                    break
                count += 1
            if place + count + 1 > len(text):
                break
            steps, tokens, place = steps + 1, tokens + count + 1, place + count + 1
            for i in range(count):
                accepted_at[i] += 1
    assert score == tokens / steps and shares == [count / steps for count in accepted_at]
    assert steps > accepted_at[0] >= accepted_at[1] > 0


def test_windows_are_of_people_and_of_the_target_in_turns(target):
    recipe = dataclasses.replace(HEAD, tokens=1024 * 10, step_tokens=1024)
    data = Encoded(torch.zeros(20_000, dtype=torch.int64), [], None)
    task = eagle3.Eagle3Task(recipe, data, target, torch.ones(20_000, dtype=torch.int64))
    assert task.windows(0).shape == (4, 257) and task.windows(0).sum(1).tolist() == [0, 0, 257, 257]
    last = [task.windows(step) for step in (8, 9)]
    assert [windows.shape for windows in last] == [(1, 1025), (1, 1025)]
    assert sorted(windows.float().mean().item() for windows in last) == [0.0, 1.0]


@pytest.fixture(scope="module")
def data() -> Encoded:
    """A text in which each token tells the next one."""
    stream = (torch.arange(20_000) * 7) % 90
    return Encoded(stream, [(stream[:300], 300), (stream[40:42], 2)], None)


@pytest.fixture
def recipe():
    return dataclasses.replace(
        HEAD, tokens=25 * 1024, step_tokens=1024, window=64, unrolled=3, warmup=5, long=0.1, generated=1
    )


def written(folder, data):
    """A folder with the text that the target would have to write."""
    (folder / "head").mkdir(parents=True)
    torch.save(data.stream[:4000], folder / "head" / "generated.pt")
    return folder


def test_training_learns_and_exports(data, recipe, target, tmp_path):
    written(tmp_path, data)
    lines = []
    before = eagle3.agreement(eagle3.build(recipe, target, data.stream), target, data.held_out, 512, 3)
    options = {"compiled": False, "autocast": False, "teacher": target, "log": lines.append}
    assert not train(recipe, tmp_path, data, steps=10, **options)
    assert train(recipe, tmp_path, data, **options)
    head = load_eagle3(tmp_path / "head" / "export", target)
    after = eagle3.agreement(head, target, data.held_out, 512, 3)
    assert all(b > a + 0.1 for a, b in zip(before, after, strict=True))
    record = json.loads((tmp_path / "head" / "log.jsonl").read_text().splitlines()[-1])
    assert record["step"] == record["of"] == 25
    assert record["held_out_agreement"] == pytest.approx(after, abs=0.02)  # rounding to 16 bits
    assert head.d2t is not None and len(lines) == 2


def test_slices_change_nothing(data, recipe, target, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    options = {"compiled": False, "autocast": False, "teacher": target, "log": lambda line: None}
    try:
        short = dataclasses.replace(recipe, tokens=6 * 1024)
        assert train(short, written(tmp_path / "once", data), data, **options)
        slices = written(tmp_path / "slices", data)
        assert [train(short, slices, data, steps=3, **options) for _ in range(2)] == [False, True]
    finally:
        torch.set_num_threads(before)
    once, slices = (load_eagle3(tmp_path / run / "head" / "export", target) for run in ("once", "slices"))
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), slices.parameters(), strict=True))


def test_agreement_counts_places_that_have_a_label(head, target):
    tokens = torch.randint(90, (40,), generator=torch.Generator().manual_seed(8))
    found = eagle3.agreement(head, target, [(tokens, 40)], 30, 2)
    features, logits = told(target, head, tokens[:30])
    to_target = head.target_ids()
    for s in range(2):
        same = 0
        for i in range(29 - s):
            states = drafted(head, features, tokens, i, s + 1)
            same += int(to_target[head.logits(states[-1:])[0].argmax()]) == int(logits[i + 1 + s].argmax())
        assert found[s] == pytest.approx(same / (29 - s))
