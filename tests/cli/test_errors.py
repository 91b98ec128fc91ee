"""What a user does wrong is answered by one sentence on standard error and exit code 2."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from python_ref.training.corpus import SourceFile
from python_ref.training.tokenizer import train_tokenizer
from specdec_kernels import _backend
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
        (("--num-draft", "-1"), ("--num-draft must be an integer from 0 on, or auto, got '-1'",)),
        (("--max-batch", "0"), ("--max-batch must be from 1 to 65536, got 0",)),
        (("--max-batch", "999999999999"), ("--max-batch must be from 1 to 65536, got 999999999999",)),
        (("--temperature", "1e300"), ("temperature must be at most 3.403e+38, got 1e+300",)),
        (("--top-k", "3000000000"), ("top_k must be at most 2147483647, got 3000000000",)),
        (("--prompt", "a\udcff"), (r"--prompt must be UTF-8 text, got '\udcff' as character 2",)),
        (("--device", "cpu:"), ("--device must be cpu, cuda or cuda:<number>, got 'cpu:'",)),
        (("--device", "cpu:1"), ("--device must be cpu, cuda or cuda:<number>, got 'cpu:1'",)),
        (("--device", "cuda:"), ("--device must be cpu, cuda or cuda:<number>, got 'cuda:'",)),
        (("--device", "cuda:" + "9" * 5000), ("--device must be cpu, cuda or cuda:<number>, got 'cuda:99",)),
        (("--rule", "greedy", "--temperature", "1"), ("temperature must be 0 under the rule 'greedy', got 1.0",)),
        (
            ("--drafter", "independent", "--min-confidence", "1.5"),
            ("--min-confidence must be from 0 to 1, got 1.5",),
        ),
        (
            ("--drafter", "ngram", "--min-confidence", "0.5"),
            ("--min-confidence and --max-entropy must be for --drafter independent, got ngram",),
        ),
        (("--drafter", "independent", "--max-entropy", "nan"), ("--max-entropy must be at least 0, got nan",)),
        (
            ("--rule", "hope"),
            ("--rule must be one of match, greedy, rejection, block, traversal, greedy_plus_one, got 'hope'",),
        ),
        (("--backend", "gpu"), ("--backend must be one of cuda, triton, cpu, reference, got 'gpu'",)),
        (("--backend", "triton"), ("backend must be available, got 'triton': ",)),
        (("--device", "tpu"), ("--device must be cpu, cuda or cuda:<number>, got 'tpu'",)),
        (("--device", "cuda:99"), ("--device must be available, got 'cuda:99'",)),
        (("--dtype", "float8"), ("--dtype must be one of float32, bfloat16, float16, int8, got 'float8'",)),
        (
            ("--drafter", "oracle"),
            (
                "--drafter must be one of none, ngram, independent, independent-tree, eagle3, eagle3-tree, dflash, ddtree, "
                "or independent:<model> or independent-tree:<model> or eagle3:<model> or eagle3-tree:<model> or "
                "dflash:<model> or ddtree:<model>, "
                "got 'oracle'",
            ),
        ),
        (("--drafter", "ngram:x"), ("--drafter must be one of none, ngram, ", "got 'ngram:x'")),
        (("--drafter", "none:"), ("--drafter must be one of none, ngram, ", "got 'none:'")),
        (("--drafter", "ngram:"), ("--drafter must be one of none, ngram, ", "got 'ngram:'")),
        (("--drafter", "dflash:"), ("--drafter must be one of none, ngram, ", "or dflash:<model> ", "got 'dflash:'")),
        (("--drafter", "none", "--num-draft", "auto"), ("--num-draft auto must have a drafter, got --drafter none",)),
        (("--drafter", "eagle3:nowhere"), (f"or a shipped model ({engine.HEAD}), got 'nowhere'",)),
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
    ids=lambda value: ascii(" ".join(value))[1:60] if isinstance(value, tuple) else None,
)
def test_wrong_options_of_generate(specdec, shipped, options, parts):
    complains(specdec("generate", *PROMPT, *options), "generate", *parts)


KINDS = {engine.TARGET: "decoder", engine.DRAFT: "decoder", engine.HEAD: "eagle3", engine.BLOCKS: "dflash"}


@pytest.mark.parametrize(
    ("drafter", "model"),
    [(drafter, model) for drafter, (_, kind) in engine.MODELS.items() for model in KINDS if KINDS[model] != kind],
)
@pytest.mark.parametrize("place", ["name", "folder"])
def test_models_of_another_kind(specdec, shipped, monkeypatch, drafter, model, place):
    """They are told apart before anything is loaded."""
    monkeypatch.setattr(engine, "load", None)
    wanted, found = engine.MODELS[drafter][1], KINDS[model]
    names = ", ".join(sorted(name for name, kind in KINDS.items() if kind == wanted))
    named = shipped / model if place == "folder" else model
    said = f"must name a model of the kind {wanted} (shipped: {names}), got '{named}' of the kind {found}"
    for words in (("generate", *PROMPT), ("bench", "serve"), ("bench", "drafts")):
        result = specdec(*words, "--drafter", f"{drafter}:{named}")
        complains(result, " ".join(words[: 2 if words[0] == "bench" else 1]), f"--drafter {drafter} {said}")
    if found != "decoder":
        result = specdec("generate", *PROMPT, "--model", named)
        complains(result, "generate", f"--model must name a model of the kind decoder (shipped: {engine.DRAFT}, ")


def test_a_head_may_have_the_architecture_of_a_decoder(specdec, shipped, tmp_path):
    """Its loader looks at the tensors."""
    head = shutil.copytree(shipped / engine.HEAD, tmp_path / "head")
    config = json.loads((head / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    del config["draft_vocab_size"]
    (head / "config.json").write_text(json.dumps(config))
    result = specdec("generate", *PROMPT, "--drafter", f"eagle3:{head}")
    complains(result, "generate", f"{head}: lm_head.weight must have shape [300, 32], got [200, 32]")


@pytest.mark.parametrize("command", [("generate", *PROMPT), ("bench", "serve"), ("bench", "drafts")])
def test_a_drafter_that_there_is_not_is_refused_before_the_model_is_loaded(specdec, shipped, monkeypatch, command):
    monkeypatch.setattr(engine, "load", None)
    result = specdec(*command, "--drafter", "foo")
    said = result.stderr.splitlines()
    assert result.exit_code == 2 and len(said) == 1 and "--drafter must be one of none, ngram, " in said[0]


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    from bench import e2e

    monkeypatch.setattr(engine, "load", None)
    monkeypatch.setattr(e2e, "Bench", None)


def test_a_folder_without_a_model_is_refused_before_anything_is_loaded(specdec, shipped, nothing_is_loaded, tmp_path):
    said = f"config.json must exist in {tmp_path}, got no such file"
    for kind in engine.MODELS:
        for words in (("generate", *PROMPT), ("bench", "drafts")):
            result = specdec(*words, "--drafter", f"{kind}:{tmp_path}")
            complains(result, " ".join(words[: 2 if words[0] == "bench" else 1]), f"--drafter {kind}: {said}")
    complains(specdec("generate", *PROMPT, "--model", tmp_path), "generate", f"--model: {said}")


def test_a_rule_refuses_temperatures_before_anything_is_loaded(specdec, shipped, nothing_is_loaded, tmp_path):
    greedy = ("--rule", "greedy", "--drafter", "dflash")
    said = "temperature must be 0 under the rule 'greedy', got 0.8"
    complains(specdec("generate", *PROMPT, *greedy, "--temperature", "0.8"), "generate", said)
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n{"prompt": "y", "temperature": 0.8}')
    complains(specdec("generate", "--batch-file", path, *greedy), "generate", f"--batch-file line 2: {said}")
    path.write_text('{"prompt": "x"}\n{"prompt": "y", "top_p": 2}')
    said = "--batch-file line 2: top_p must be above 0 and at most 1, got 2"
    complains(specdec("generate", "--batch-file", path), "generate", said)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("command", [("generate", *PROMPT), ("demo",), ("bench", "serve"), ("bench", "e2e")])
@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_backend_without_its_device_is_refused_before_anything_is_loaded(
    specdec, shipped, nothing_is_loaded, monkeypatch, command, backend, by
):
    """The reason is what is missing, and not that some op is one of the CPU's."""
    monkeypatch.setattr(_backend._library, "triton_is_interpreted", lambda: False)
    monkeypatch.setattr(_backend, "_environment", None if by == "option" else backend)
    for op, _ in list(_backend._REASONS):
        if not op.startswith("linear_"):
            monkeypatch.setitem(_backend._REASONS, (op, backend), None)
    result = specdec(*command, *(("--backend", backend) if by == "option" else ()))
    name = " ".join(command[: 2 if command[0] == "bench" else 1])
    complains(
        result, name, f"backend must be available, got '{backend}': no CUDA device, or torch was built without CUDA"
    )


def test_the_demo_looks_for_all_models_before_it_loads_one(specdec, assets, nothing_is_loaded, tmp_path):
    shutil.copy(assets / "prompts.json", tmp_path)
    for name in (engine.TARGET, engine.DRAFT, engine.HEAD, engine.BLOCKS):
        result = specdec("demo", "--assets", tmp_path)
        complains(result, "demo", f"{tmp_path} must hold the models {engine.TARGET}, ", f"got no {name} (python")
        (tmp_path / name).mkdir()
        said = f"--assets: config.json must exist in {tmp_path / name}, got no such file"
        complains(specdec("demo", "--assets", tmp_path), "demo", said)
        shutil.copy(assets / name / "config.json", tmp_path / name)
    shutil.copy(assets / engine.HEAD / "config.json", tmp_path / engine.BLOCKS)
    said = "--assets must name a model of the kind dflash (shipped: "
    complains(specdec("demo", "--assets", tmp_path), "demo", said, "of the kind eagle3")


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
        ('{"prompt": "x"}\n{"prompt": "x", "top_k": 99999999999}', ("line 2: top_k must be at most 2147483647",)),
        (
            '{"prompt": "x"}\n{"prompt": "x", "temperature": 1%s}' % ("0" * 400),
            ("line 2: temperature must be at most",),
        ),
        ('{"prompt": "x", "seed": 1%s}' % ("0" * 5000), ("line 1 must be JSON that can be read", "too many digits")),
        ('{"prompt": "x", "seed": %s' % ("[" * 200_000), ("line 1 must be an object", "nested too deeply")),
        (
            '{"prompt": "x"}\n{"prompt": "a\\ud800"}',
            (r"line 2: prompt must be UTF-8 text, got '\ud800' as character 2",),
        ),
        (f'{{"prompt": "x"}}\n{{"prompt": "{"x" * 3000}"}}', ("line 2: prompt must have fewer than 1024 tokens",)),
        ('{"prompt": "x", "top_p": 2}', ("line 1: top_p must be above 0 and at most 1, got 2",)),
        ('{"prompt": ""}', ("--batch-file line 1 must have at least one token",)),
    ],
    ids=lambda value: ascii(value)[:60] if isinstance(value, str) else "",
)
def test_batch_files(specdec, shipped, tmp_path, content, parts):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    complains(specdec("generate", "--batch-file", path), "generate", *parts)


def test_bytes_that_are_no_text(specdec, shipped, tmp_path):
    complains(specdec("generate", stdin=b"abc\xff"), "generate", "standard input must be UTF-8 text, got: ", "0xff")
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}')
    complains(specdec("generate", "--batch-file", path), "generate", f"--batch-file must be UTF-8 text, got {path}: ")


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


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"architectures": 5}, "architectures must name one of LlamaForCausalLM, "),
        ({"eos_token_id": {}}, "config.json: eos_token_id must be a token id or a list of them, got {}"),
        ({"eos_token_id": ["x"]}, "config.json: eos_token_id must be a token id or a list of them, got ['x']"),
        ({"layer_types": 5}, "layer_types must be a list, got 5"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number, got small"),
        ({"hidden_size": True}, "hidden_size must be a positive integer, got True"),
        ({"vocab_size": 10**20}, "vocab_size must be at most 2147483647, got 100000000000000000000"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, got 'no'"),
        ({"rope_theta": "x", "rope_parameters": None}, "rope_theta must be a number, got x"),
        ({"rope_parameters": 5}, "rope_parameters must be an object, got 5"),
        ({"rope_parameters": None, "rope_scaling": 5}, "rope_scaling must be an object, got 5"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor must be above 0, got 0"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor must be a number, got 2"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 10**400}}, "factor must be a number, got 1000"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}},
            "high_freq_factor must be above low_freq_factor 4, got 4",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 1e9}},
            "max_position_embeddings times factor must be at most 8388608, got 1.024e+12",
        ),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 1e308}}, "must be at most 8388608, got 1.79"),
        ({"max_position_embeddings": 10**9}, "max_position_embeddings must be at most 8388608, got 1e+09"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_damaged_configurations(specdec, model, values, part):
    change_config(model, **values)
    complains(run(specdec, model), "generate", part)


def test_other_damaged_json(specdec, model):
    (model / "generation_config.json").write_text('{"eos_token_id": {}}')
    complains(run(specdec, model), "generate", "generation_config.json: eos_token_id must be a token id or a list")
    (model / "generation_config.json").write_text('{"a": ' + "[" * 200_000)
    complains(run(specdec, model), "generate", "generation_config.json must be JSON", "nested too deeply")
    (model / "generation_config.json").unlink()
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": [5]}}')
    complains(run(specdec, model), "generate", "weight_map must name a file for lm_head.weight, got [5]")


def test_memory_of_the_processor(specdec, shipped, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(engine, "load_model", fail)
    complains(specdec("generate", *PROMPT), "generate", "memory must suffice for the model and its cache, got: ")


@pytest.mark.parametrize(
    ("redirection", "part"),
    [
        ("generate <&-", "specdec generate: --prompt, --prompt-file or --batch-file must be given"),
        ("info >&-", "specdec: standard output must be open, got a closed one"),
        ("info >/dev/full", "specdec: standard output must be writable, got: no space left on device"),
        ("--help >/dev/full", "specdec: standard output must be writable, got: no space left on device"),
    ],
)
def test_streams_that_are_not_there(redirection, part):
    program = "from specdec_kernels.cli.main import run; run()"
    shell = f'exec "$0" -c "$1" {redirection}'
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = ["bash", "-c", shell, sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(part)


@pytest.mark.parametrize("command", ["info", "generate"])
def test_files_that_may_not_be_written(specdec, monkeypatch, tmp_path, command):
    """They are refused before the work: for root the system refuses nothing, so it is asked in its place."""
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    path = tmp_path / "out.json"
    said = f"--json must name a file that can be written, got {path}: permission denied"
    complains(specdec(command, "--json", path), command, said)
    path.write_text("kept")
    complains(specdec(command, "--json", path), command, said)
    assert path.read_text() == "kept"


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
    models = "pystdlib-target, pystdlib-draft, pystdlib-eagle3 and pystdlib-dflash"
    needed = f"{tmp_path} must hold the models {models} and prompts.json, got no "
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
        (("--max-batch", "0"), "--max-batch must be from 1 to 65536, got 0"),
    ):
        complains(specdec("demo", "--assets", assets, *options), "demo", part)
