"""What a user does wrong is answered by one sentence on standard error and exit code 2."""

import json
import shutil

import pytest

from python_ref.training.corpus import SourceFile
from python_ref.training.tokenizer import train_tokenizer
from specdec_kernels.cli import engine

from .conftest import PROMPTS, SOURCE

PROMPT = ("--prompt", "x = 1")


def complains(result, command, *parts):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    said = [line for line in result.stderr.splitlines() if not line.endswith(" ...")]  # progress on a slow machine
    assert len(said) == 1 and said[0].startswith(f"specdec{' ' if command else ''}{command}: ")
    for part in parts:
        assert part in said[0]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--temperatur", "1"), ("no such option", "--temperatur", "(see specdec generate --help)")),
        (("--temperature", "hot"), ("invalid value for '--temperature'",)),
        (("--temperature", "-1"), ("temperature must be finite and at least 0, got -1",)),
        (("--temperature", "inf"), ("temperature must be finite and at least 0, got inf",)),
        (("--temperature", "nan"), ("temperature must be finite and at least 0, got nan",)),
        (("--top-p", "0"), ("top_p must be above 0 and at most 1, got 0.0",)),
        (("--top-k", "-1"), ("top_k must be at least 0, got -1",)),
        (("--min-p", "1.5"), ("min_p must be between 0 and 1, got 1.5",)),
        (("--max-new-tokens", "0"), ("max_new_tokens must be at least 1, got 0",)),
        (("--max-new-tokens",), ("--max-new-tokens", "argument")),
        (("--num-draft", "-1"), ("num_draft must be at least 0, got -1",)),
        (("--max-batch", "0"), ("max_batch must be at least 1, got 0",)),
        (("--rule", "hope"), ("--rule must be one of match, greedy, rejection, got 'hope'",)),
        (("--backend", "gpu"), ("--backend must be one of cuda, triton, cpu, reference, got 'gpu'",)),
        (("--backend", "triton"), ("backend must be available, got 'triton': ",)),
        (("--device", "tpu"), ("--device must be cpu, cuda or cuda:<number>, got 'tpu'",)),
        (("--device", "cuda:99"), ("--device must be available, got 'cuda:99'",)),
        (("--dtype", "float8"), ("--dtype must be one of float32, bfloat16, float16, int8, got 'float8'",)),
        (("--drafter", "oracle"), ("--drafter must be none, ngram, independent or independent:<model>, got 'oracle'",)),
        (("--drafter", "ngram:x"), ("--drafter must be none, ngram, independent or independent:<model>",)),
        (("--drafter", "independent:nowhere"), ("must name a folder with a model, or a shipped model", "'nowhere'")),
        (("--model", "nowhere"), (f"({engine.DRAFT}, {engine.TARGET}), got 'nowhere'",)),
        (
            ("--drafter", "ngram", "--rule", "greedy", "--temperature", "1"),
            ("temperature must be 0 under the rule 'greedy', got 1.0",),
        ),
        (("--json", "no/such/folder/x.json"), ("--json must name a file in an existing folder",)),
        (("--json", "."), ("--json must name a file, got the folder .",)),
        (("--batch-file", "x", "--prompt-file", "y"), ("one of --prompt, --prompt-file, --batch-file must be given",)),
        (("left over",), ("unexpected extra argument", "left over")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_options_of_generate(specdec, shipped, options, parts):
    complains(specdec("generate", *PROMPT, *options), "generate", *parts)


@pytest.mark.parametrize("command", ["info", "demo", "generate"])
def test_options_that_no_command_has(specdec, command):
    complains(specdec(command, "--fast"), command, "no such option", "--fast", f"(see specdec {command} --help)")


def test_no_such_command(specdec):
    complains(specdec("generat"), "", "no such command", "generat", "(see specdec --help)")
    complains(specdec("--fast"), "", "no such option", "--fast")


def test_prompts_that_are_not_there(specdec, shipped, tmp_path):
    missing = tmp_path / "missing.py"
    complains(specdec("generate", "--prompt-file", missing), "generate", f"{missing} must be a readable file")
    complains(specdec("generate", "--prompt-file", tmp_path), "generate", f"{tmp_path} must be a readable file")
    complains(specdec("generate", "--prompt", ""), "generate", "the prompt must have at least one token, got ''")
    latin = tmp_path / "latin.py"
    latin.write_bytes(b"# \xe9\n")
    complains(specdec("generate", "--prompt-file", latin), "generate", "utf-8")
    long = SOURCE * 40
    complains(specdec("generate", "--prompt", long), "generate", "prompt must have fewer than 1024 tokens, got ")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ("must hold at least one line",)),
        ('{"prompt": "x"}\n{"prompt": 3}', ("line 2 must be an object with a text as its prompt",)),
        ("not json", ("line 1 must be JSON",)),
        ("[1]", ("line 1 must be an object with a text as its prompt, got [1]",)),
        ('{"prompt": "x", "temprature": 1}', ("line 1 must have no fields but prompt, ", "got 'temprature'")),
        ('{"prompt": "x", "top_k": 1.5}', ("line 1: top_k must be an integer, got 1.5",)),
        ('{"prompt": "x", "seed": true}', ("line 1: seed must be an integer, got true",)),
        ('{"prompt": "x", "temperature": "hot"}', ("line 1: temperature must be a number, got",)),
        ('{"prompt": "x", "top_p": 2}', ("top_p must be above 0 and at most 1, got 2",)),
        ('{"prompt": ""}', ("--batch-file line 1 must have at least one token",)),
    ],
)
def test_batch_files(specdec, shipped, tmp_path, content, parts):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    complains(specdec("generate", "--batch-file", path), "generate", *parts)


def test_batch_file_that_is_not_there(specdec, shipped, tmp_path):
    path = tmp_path / "missing.jsonl"
    complains(specdec("generate", "--batch-file", path), "generate", f"{path} must be a readable file")


@pytest.fixture
def model(assets, tmp_path):
    """A copy of the target, to be damaged."""
    return shutil.copytree(assets / engine.TARGET, tmp_path / "model")


def change_config(model, **values):
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def run(specdec, model):
    return specdec("generate", *PROMPT, "--model", model)


def test_unknown_architecture(specdec, model):
    change_config(model, architectures=["MambaForCausalLM"])
    known = "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"
    complains(run(specdec, model), "generate", f"architectures must name one of {known}, got MambaForCausalLM")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_and_damaged_files(specdec, model, name):
    (model / name).write_text("{ damaged")
    complains(run(specdec, model), "generate", f"{model / name} must be ")
    (model / name).unlink()
    complains(run(specdec, model), "generate", f"{name} must exist in {model}, got no such file")


def test_weights_that_do_not_fit(specdec, model):
    change_config(model, num_hidden_layers=3)
    complains(run(specdec, model), "generate", "the checkpoint must hold model.layers.2.", "got no such tensor")
    change_config(model, num_hidden_layers=2, intermediate_size=65)
    complains(run(specdec, model), "generate", "mlp", "must have shape [65, 32], got [64, 32]")


def test_drafters_of_another_vocabulary(specdec, shipped, model):
    tokenizer = train_tokenizer([SourceFile("other.py", "import asyncio\nawait asyncio.sleep(1)\n" * 9)], 300)
    tokenizer.save(str(model / "tokenizer.json"))
    result = specdec("generate", *PROMPT, "--drafter", f"independent:{model}")
    complains(result, "generate", f"--drafter must have the vocabulary of {engine.TARGET}, got that of model")


def test_without_the_shipped_models(specdec, monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "ASSETS", tmp_path)
    complains(specdec("generate", *PROMPT), "generate", "a shipped model (none), got 'pystdlib-target'")
    needed = f"{tmp_path} must hold the models pystdlib-target and pystdlib-draft and prompts.json, got no "
    complains(specdec("demo"), "demo", f"{needed}prompts.json (python -m python_ref.training all makes them)")
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS))
    complains(specdec("demo"), "demo", f"{needed}pystdlib-target")


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "[1]", '[{"prompt": "x"}]', '[{"file": "a", "line": 1, "prompt": ""}]']
)
def test_damaged_prompts_of_the_demo(specdec, tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(content)
    complains(
        specdec("demo", "--assets", tmp_path),
        "demo",
        f"{path} must be a JSON list of objects with file, line and prompt",
    )


def test_wrong_options_of_the_demo(specdec, assets):
    for options, part in (
        (("--backend", "gpu"), "--backend must be one of"),
        (("--dtype", "float8"), "--dtype must be one of"),
        (("--device", "tpu"), "--device must be cpu"),
        (("--json", "no/such/x.json"), "--json must name a file in an existing folder"),
        (("--assets", "no/such"), "no/such must hold the models"),
    ):
        complains(specdec("demo", "--assets", assets, *options), "demo", part)


def test_errors_while_working(specdec, assets):
    """What only the decoder can know comes after the introduction."""
    for options, part in ((("--max-batch", "0"), "max_batch must be at least 1, got 0"),):
        result = specdec("demo", "--quick", "--assets", assets, *options)
        assert result.exit_code == 2 and part in result.stderr.splitlines()[-1]
