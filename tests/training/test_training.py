"""Corpus split, slices, generation and scores of the training, with a model of a few thousand parameters."""

import dataclasses
import hashlib
import json
import math

import pytest
import torch

from python_ref.models import ModelConfig, Transformer, load_model
from python_ref.models.transformer import causal
from python_ref.training import __main__ as command
from python_ref.training import corpus
from python_ref.training.data import Encoded, batch, generated_text
from python_ref.training.evaluate import bits_per_byte, tokens_per_step
from python_ref.training.generate import continuations
from python_ref.training.optimizer import orthogonalize
from python_ref.training.recipes import CONTEXT, RECIPES, Recipe
from python_ref.training.tokenizer import END_OF_TEXT, train_tokenizer
from python_ref.training.train import initialize, train

TINY = Recipe("tiny", 32, 2, 2, 1, 64, tokens=12 * 2048, head_dim=16, step_tokens=2048, window=64, vocab_size=300)


@pytest.fixture(scope="module")
def data() -> Encoded:
    files = [corpus.SourceFile(f"{n}.py", f"def f{n}(x):\n    return x + {n}\n" * 40) for n in range(60)]
    tokenizer = train_tokenizer(files, TINY.vocab_size)
    streams = [torch.tensor([0, *tokenizer.encode(file.text).ids]) for file in files]
    held_out = [(streams[-1], len(files[-1].text.encode()))]
    return Encoded(torch.cat(streams[:-1]), held_out, tokenizer)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over threads may differ from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(recipe: Recipe, seed: int = 0) -> Transformer:
    model = Transformer(ModelConfig.from_dict(recipe.config())).requires_grad_(False)
    initialize(model, seed)
    return model


def write(root, name, text="x = 1\n"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def test_corpus_reads_what_people_wrote(tmp_path):
    kept = [f"m{n}.py" for n in range(200)] + ["pkg/__init__.py", "pkg/testing.py"]
    for name in kept:
        write(tmp_path, name)
    dropped = ["test/a.py", "pkg/tests/b.py", "site-packages/c.py", "encodings/d.py", "_sysconfigdata_x.py"]
    for name in [*dropped, "config-3.12-x/e.py", "data.txt"]:
        write(tmp_path, name)
    write(tmp_path, "empty.py", "\n")
    write(tmp_path, "latin.py", b"# \xe9\n")
    train, held_out = corpus.read(tmp_path)
    assert sorted(f.name for f in train + held_out) == sorted(kept)
    assert 0 < len(held_out) < 0.15 * len(kept)
    for file in train + held_out:
        digest = int(hashlib.sha256(file.name.encode()).hexdigest()[:8], 16)
        assert (file in held_out) == (digest < 0.05 * 2**32)
    assert (train, held_out) == corpus.read(tmp_path)


def test_standard_library_split_is_disjoint_and_stable():
    train, held_out = corpus.read()
    assert len(train) > 300 and len(held_out) > 10
    assert not {f.name for f in train} & {f.name for f in held_out}
    assert corpus.read() == (train, held_out)
    assert corpus.fingerprint(train) != corpus.fingerprint(held_out)
    names = {f.name for f in train + held_out}
    assert "argparse.py" in names and not any("/test" in name or name.startswith("_sysconfigdata") for name in names)


def test_prompts_are_held_out_and_do_not_overlap():
    _, held_out = corpus.read()
    prompts = corpus.prompts(held_out, count=40, characters=300)
    texts = {file.name: file.text.splitlines(keepends=True) for file in held_out}
    assert len(prompts) == 40 and prompts == corpus.prompts(held_out, count=40, characters=300)
    seen = set()
    for prompt in prompts:
        lines = prompt["prompt"].splitlines(keepends=True)
        first = prompt["line"] - 1
        assert texts[prompt["file"]][first : first + len(lines)] == lines
        assert len(prompt["prompt"]) >= 300 > len(prompt["prompt"]) - len(lines[-1])
        places = {(prompt["file"], first + n) for n in range(len(lines))}
        assert not seen & places
        seen |= places


def test_tokenizer_keeps_every_text(data):
    text = "\tdef f():\n  # é \U0001f40d 漢\0 {END}\r\n"
    assert data.tokenizer.decode(data.tokenizer.encode(text).ids) == text
    assert data.tokenizer.token_to_id(END_OF_TEXT) == 0
    assert data.tokenizer.get_vocab_size() == TINY.vocab_size


def test_every_epoch_sees_every_window_once():
    stream = torch.arange(64 * 21 + 1)
    steps = [batch(stream, 64, 4, step) for step in range(10)]
    assert all(torch.equal(a, batch(stream, 64, 4, step)) for step, a in enumerate(steps))
    for epoch in (torch.cat(steps[:5]), torch.cat(steps[5:])):
        starts = sorted(epoch[:, 0].tolist())
        assert len(set(starts)) == 20 and {b - a for a, b in zip(starts, starts[1:], strict=False)} == {64}
        assert torch.equal(epoch, epoch[:, :1] + torch.arange(65))
    assert sorted(steps[0][:, 0]) != sorted(steps[5][:, 0])


def test_slices_change_nothing(data, tmp_path):
    options = {"compiled": False, "autocast": True, "log": lambda line: None}
    assert train(TINY, tmp_path / "once", data, **options)
    finished = [train(TINY, tmp_path / "slices", data, steps=5, **options) for _ in range(3)]
    assert finished == [False, False, True]
    once, slices = (torch.load(tmp_path / run / "tiny" / "state.pt") for run in ("once", "slices"))
    assert once["step"] == slices["step"] == 12
    for part in ("model", "muon", "adamw"):
        a, b = (torch.utils._pytree.tree_leaves(state[part]) for state in (once, slices))
        assert len(a) == len(b) > 0
        assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))
    assert not train(TINY, tmp_path / "none", data, minutes=0, **options)


def test_training_learns_and_exports(data, tmp_path):
    before = bits_per_byte(model_of(TINY), data.held_out, CONTEXT)
    longer = dataclasses.replace(TINY, tokens=60 * 2048)
    train(longer, tmp_path, data, compiled=False, log=lambda line: None)
    model = load_model(tmp_path / "tiny" / "export", dtype=torch.float32)
    after = bits_per_byte(model, data.held_out, CONTEXT)
    records = [json.loads(line) for line in (tmp_path / "tiny" / "log.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == records[-1]["of"] == 60
    # Rounding to 16 bits costs next to nothing.
    assert records[-1]["held_out_bits_per_byte"] == pytest.approx(after, rel=1e-2)
    assert after < 0.8 * before


@pytest.fixture
def trained(data, tmp_path, monkeypatch):
    """``trained("train", "tiny")`` runs the command with a tiny model and its pupil; gives the names of what it exports."""
    pupil = dataclasses.replace(TINY, name="pupil", teacher="tiny")
    exported = []
    monkeypatch.setattr(command, "RECIPES", {"tiny": TINY, "pupil": pupil})
    monkeypatch.setattr(command, "encode", lambda *_: data)
    monkeypatch.setattr(command, "export", lambda recipe, *_: exported.append(recipe.name))
    (tmp_path / "pupil").mkdir()
    torch.save(data.stream[:2000], tmp_path / "pupil" / "generated.pt")

    def run(*arguments):
        exported.clear()
        command.main([*arguments, "--folder", str(tmp_path), "--device", "cpu", "--eager", "--no-bfloat16"])
        return exported

    return run


def test_all_exports_what_is_finished_and_nothing_else(trained, capsys):
    assert trained("all", "--minutes", "0") == []
    said = capsys.readouterr().out.splitlines()
    assert said[-2].endswith("tiny: not finished, 0 of 12 steps; the same command goes on")
    assert said[-1].endswith("tiny: not exported, what ships is as it was")
    assert "pupil" not in "".join(said)
    assert trained("train", "tiny") == []
    assert trained("all", "--minutes", "0") == ["tiny"]
    assert "pupil: not finished, 0 of 12 steps" in capsys.readouterr().out
    assert trained("all") == ["tiny", "pupil"]


def refusal(run, *arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    text = str(caught.value)
    assert text.startswith("python -m python_ref.training: ") and "\n" not in text
    return text


def test_an_unfinished_model_is_exported_on_demand_only(trained, tmp_path):
    assert "tiny must be trained in" in refusal(trained, "export", "tiny")
    assert "tiny must be trained in" in refusal(trained, "export", "tiny", "--unfinished")
    trained("train", "tiny", "--minutes", "0")
    assert "tiny has 0 of 12 steps; " in refusal(trained, "export", "tiny")
    assert trained("export", "tiny", "--unfinished") == ["tiny"]
    trained("train", "tiny")
    assert trained("export", "tiny") == ["tiny"]
    # Half a model: the training was interrupted while it wrote it.
    (tmp_path / "tiny" / "exported_step").unlink()
    assert "tiny must be trained in" in refusal(trained, "export", "tiny")


def test_a_pupil_waits_for_its_teacher(trained, tmp_path):
    message = "pupil learns from tiny, whose training must be finished in"
    assert message in refusal(trained, "train", "pupil")
    trained("train", "tiny", "--minutes", "0")
    assert message in refusal(trained, "train", "pupil")
    assert not (tmp_path / "pupil" / "state.pt").exists()
    trained("train", "tiny")
    trained("train", "pupil", "--minutes", "0")
    assert (tmp_path / "pupil" / "state.pt").exists()


def test_a_teacher_is_followed(data, tmp_path):
    teacher = model_of(TINY, seed=5)
    pupil = dataclasses.replace(TINY, name="pupil", teacher="tiny", generated=1000, tokens=60 * 2048)

    def distance(model: Transformer) -> float:
        ids = data.held_out[0][0][:200]
        laws = [m.logits(m(ids, torch.arange(len(ids)), causal(1))).log_softmax(-1) for m in (teacher, model)]
        return torch.nn.functional.kl_div(laws[1], laws[0], log_target=True, reduction="batchmean").item()

    # A teacher with opinions: its law is far from flat.
    teacher.lm_head.weight.data *= 30
    train(pupil, tmp_path, data, compiled=False, teacher=teacher, log=lambda line: None)
    after = load_model(tmp_path / "pupil" / "export", dtype=torch.float32)
    assert distance(after) < 0.8 * distance(model_of(pupil))
    assert (tmp_path / "pupil" / "generated.pt").exists()


def test_generated_text_is_made_once(data, tmp_path):
    lines: list[str] = []
    teacher = model_of(TINY)
    first = generated_text(teacher, data.stream, 1, tmp_path / "text.pt", lines.append)
    assert first.shape == (64 * 512,) and len(lines) == 1
    assert torch.equal(first, generated_text(teacher, data.stream, 1, tmp_path / "text.pt", lines.append))
    assert len(lines) == 1


def test_continuations_follow_the_dense_model():
    model = model_of(TINY, seed=2)
    model.lm_head.weight.data *= 20
    prompts = torch.randint(300, (3, 9), generator=torch.Generator().manual_seed(0))
    text = continuations(model, prompts, 12, 0.0)
    for row in text:
        logits = model.logits(model(row, torch.arange(21), causal(1)))
        assert torch.equal(logits[8:-1].argmax(-1), row[9:])
    sampled = continuations(model, prompts, 12, 1.0, seed=3)
    assert torch.equal(sampled, continuations(model, prompts, 12, 1.0, seed=3))
    assert not torch.equal(sampled, continuations(model, prompts, 12, 1.0, seed=4))


def test_bits_per_byte_of_a_flat_model():
    model = model_of(TINY)
    model.model.norm.weight.zero_()
    files = [(torch.arange(150) % 300, 100), (torch.arange(7), 5)]
    assert bits_per_byte(model, files, 64) == pytest.approx(155 * math.log2(300) / 105)
    assert bits_per_byte(model, files, 64, limit=30) == pytest.approx(36 * math.log2(300) / (100 * 30 / 149 + 5))


def test_bits_per_byte_scores_each_token_once_in_its_context():
    model = model_of(TINY, seed=1)
    model.lm_head.weight.data *= 20
    ids = torch.randint(300, (100,), generator=torch.Generator().manual_seed(0))
    nats = 0.0
    for place in range(1, 100):
        begin = max(0, (place - 1) // 32 * 32 - 32)
        context = ids[begin:place]
        law = model.logits(model(context, torch.arange(len(context)), causal(1)))[-1].log_softmax(-1)
        nats -= law[ids[place]].item()
    assert bits_per_byte(model, [(ids, 50)], 64) == pytest.approx(nats / math.log(2) / 50, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_per_step_of_a_perfect_and_of_a_useless_draft(temperature):
    target = model_of(TINY, seed=1)
    target.lm_head.weight.data *= 20
    useless = model_of(TINY, seed=1)
    useless.lm_head.weight.data *= 20
    useless.model.norm.weight.neg_()
    prompts = torch.arange(30).view(3, 10)
    options = {"temperature": temperature, "drafts": 4, "new": 60}
    assert tokens_per_step(target, target, prompts, **options) == 5.0
    assert tokens_per_step(target, useless, prompts, **options) < 1.2


def test_orthogonalize():
    for shape in ((24, 40), (40, 24)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalize(matrix))
        assert 0.6 < values.min() and values.max() < 1.3


def test_schedule_uses_the_whole_budget():
    for recipe in RECIPES.values():
        rates = [recipe.rate(step) for step in range(recipe.steps)]
        assert max(rates) == 1.0 and rates[0] == 1 / recipe.warmup and rates[-1] < 0.01
        assert recipe.window_at(0) == recipe.window and recipe.window_at(recipe.steps - 1) == CONTEXT
        assert recipe.step_tokens % recipe.window == recipe.step_tokens % CONTEXT == 0
