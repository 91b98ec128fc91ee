"""``specdec generate``: streams, batches, figures, and the same text whoever drafts."""

import json
import os
import subprocess
import sys

import pytest
import torch

import specdec_kernels as sk
from python_ref.decoding import Candidate, Decoder, Point, Request, Statistics
from specdec_kernels import _backend
from specdec_kernels.cli import engine, generate

from .conftest import PROMPTS, SOURCE

SAMPLED = ("--temperature", 0.8, "--top-k", 50, "--top-p", 0.95, "--min-p", 0.01, "--seed", 11)


@pytest.fixture
def go(specdec, shipped, tmp_path):
    """A run with its text and what it wrote as JSON."""

    def run(*options, **keywords):
        path = tmp_path / "out.json"
        result = specdec("generate", "--max-new-tokens", 24, "--json", path, *options, **keywords)
        assert result.exit_code == 0, result.stderr
        return result, json.loads(path.read_text())

    return run


def test_text_and_figures(go, shipped):
    result, written = go("--prompt", SOURCE, *SAMPLED)
    target = engine.load(shipped / engine.TARGET, "float32", torch.device("cpu"))
    request = Request(target.encode(SOURCE), 24, 0.8, 50, 0.95, 0.01, 11)
    expected = Decoder(target.model, ops=sk).generate([request])[0]
    (output,) = written["outputs"]
    assert output["tokens"] == expected.tokens and output["prompt"] == SOURCE
    assert result.stdout == output["text"] == target.decode(expected.tokens)
    assert output["finish_reason"] in ("length", "stop") and output["steps"] == len(expected.tokens)
    assert set(written) == {
        "model", "drafter", "rule", "num_draft", "backend", "device", "dtype", "outputs", "statistics",
    }  # fmt: skip
    assert written["drafter"] == "none" and written["model"].endswith(engine.TARGET)
    assert written["statistics"]["new_tokens"] == len(expected.tokens)


@pytest.mark.parametrize(
    "drafter",
    ["ngram", "independent", f"independent:{engine.DRAFT}", "eagle3", f"eagle3-tree:{engine.HEAD}", "dflash", "ddtree"],
)
@pytest.mark.parametrize("settings", [(), SAMPLED])
def test_drafters_do_not_change_the_text(go, drafter, settings):
    plain, _ = go("--prompt", SOURCE, *settings)
    drafted, written = go("--prompt", SOURCE, *settings, "--drafter", drafter, "--num-draft", 3)
    assert drafted.stdout == plain.stdout
    assert written["statistics"]["drafted"], "drafts were verified"
    if drafter.startswith("independent"):
        assert written["statistics"]["mean_tokens_per_step"] > 1.2


def test_other_rules(go):
    plain, _ = go("--prompt", SOURCE)
    for rule in ("greedy", "rejection"):
        drafted, written = go("--prompt", SOURCE, "--drafter", "independent", "--rule", rule)
        assert drafted.stdout == plain.stdout and written["rule"] == rule
    sampled, written = go("--prompt", SOURCE, "--drafter", "independent", "--rule", "rejection", "--temperature", 0.7)
    assert sampled.stdout and written["statistics"]["mean_tokens_per_step"] > 1.2


def test_a_drafter_that_stops_drafts_less_and_says_the_same(go):
    plain, eager = go("--prompt", SOURCE, "--drafter", "independent")
    stopping, written = go("--prompt", SOURCE, "--drafter", "independent", "--min-confidence", 0.06)
    assert stopping.stdout == plain.stdout
    assert 0 < sum(written["statistics"]["drafted"]) < sum(eager["statistics"]["drafted"])


def test_text_comes_in_pieces(go, monkeypatch):
    pieces = []
    monkeypatch.setattr(generate, "write_text", pieces.append)
    _, written = go("--prompt", SOURCE)
    assert "".join(pieces) == written["outputs"][0]["text"]
    assert len([piece for piece in pieces if piece]) > 10


def test_prompts_from_a_file_or_standard_input(go, tmp_path):
    text = SOURCE + "# \u00fc \U0001f40d\n"
    path = tmp_path / "prompt.py"
    path.write_text(text, encoding="utf-8")
    given, _ = go("--prompt", text)
    assert go("--prompt-file", path)[0].stdout == given.stdout
    assert go(stdin=text)[0].stdout == given.stdout
    assert go("--prompt-file", "-", stdin=text)[0].stdout == given.stdout


def test_batch_file(go, tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": item["prompt"]} for item in PROMPTS]
    lines[1] |= {"temperature": 0.9, "seed": 3, "max_new_tokens": 7}
    lines[3] |= {"top_k": 5, "top_p": 0.5, "min_p": 0.1, "temperature": 1}
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    result, written = go("--batch-file", path, "--drafter", "ngram", "--max-batch", 2)
    results = [json.loads(line) for line in result.stdout.splitlines()]
    assert results == written["outputs"]
    assert [item["prompt"] for item in results] == [item["prompt"] for item in PROMPTS]
    assert len(results[1]["tokens"]) <= 7
    names = {"temperature": "--temperature", "seed": "--seed", "max_new_tokens": "--max-new-tokens"}
    names |= {"top_k": "--top-k", "top_p": "--top-p", "min_p": "--min-p"}
    for line, item in zip(lines, results, strict=True):
        options = [part for name, option in names.items() if name in line for part in (option, line[name])]
        alone, _ = go("--prompt", line["prompt"], *options)
        assert alone.stdout == item["text"]


def test_lines_of_a_batch_end_at_newlines_only(go, tmp_path):
    """JSON lets other line ends of Unicode stand within a text."""
    prompts = ["a\u2028b", "c\u2029\x85d"]
    path = tmp_path / "prompts.jsonl"
    path.write_bytes("".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\r\n" for p in prompts).encode())
    _, written = go("--batch-file", path)
    assert [item["prompt"] for item in written["outputs"]] == prompts


def test_large_numbers_that_mean_something(go, tmp_path):
    path = tmp_path / "prompts.jsonl"
    line = {"prompt": SOURCE, "top_k": 2**31 - 1, "temperature": 10**30, "max_new_tokens": 10**400, "seed": 10**300}
    path.write_text(json.dumps(line))
    _, written = go("--batch-file", path, "--max-batch", 65536, "--drafter", "ngram", "--num-draft", 10**30)
    assert written["outputs"][0]["finish_reason"] in ("length", "stop")


def test_statistics_for_people(go):
    result, written = go("--prompt", SOURCE, "--drafter", "independent", "--stats")
    count = written["statistics"]["new_tokens"]
    assert f"{count} tokens in {written['statistics']['steps']} steps" in result.stderr
    for word in ("tokens per step", "tokens/s", "accepted drafts by position", "seconds: prompts", "verification"):
        assert word in result.stderr


def test_the_oracle_gives_the_same_text(go, monkeypatch):
    fused, _ = go("--prompt", SOURCE, *SAMPLED, "--drafter", "ngram")
    oracle, written = go("--prompt", SOURCE, *SAMPLED, "--drafter", "ngram", "--backend", "reference")
    assert oracle.stdout == fused.stdout and written["backend"] == "reference"
    monkeypatch.setattr(_backend, "_environment", "reference")
    _, written = go("--prompt", SOURCE, "--max-new-tokens", 1)
    assert written["backend"] == "reference"


@pytest.mark.parametrize("dtype", engine.DTYPES)
def test_dtypes(go, dtype):
    plain, written = go("--prompt", SOURCE, "--dtype", dtype, *SAMPLED)
    assert written["dtype"] == dtype and written["outputs"][0]["tokens"]
    assert go("--prompt", SOURCE, "--dtype", dtype, *SAMPLED, "--drafter", "independent")[0].stdout == plain.stdout


def test_a_model_is_a_folder_or_a_name(go, shipped):
    named, _ = go("--prompt", SOURCE, "--model", engine.DRAFT)
    folder, written = go("--prompt", SOURCE, "--model", shipped / engine.DRAFT)
    assert named.stdout == folder.stdout and written["model"] == str(shipped / engine.DRAFT)


def test_whoever_stops_listening_gets_no_traceback(assets):
    """As under ``specdec generate | head``."""
    program = "from specdec_kernels.cli.main import run; run()"
    options = ["generate", "--model", assets / engine.TARGET, "--prompt", SOURCE, "--max-new-tokens", "900"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    with subprocess.Popen([sys.executable, "-c", program, *options], **pipes) as process:
        assert process.stdout.read(1)
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 141
    assert [line for line in said.splitlines() if not line.endswith(" ...")] == []


@pytest.mark.parametrize("drafter", ["ngram", "ddtree"])
def test_the_number_of_drafts_that_is_the_fastest(go, drafter):
    plain, _ = go("--prompt", SOURCE, "--max-new-tokens", 20)
    drafted, written = go("--prompt", SOURCE, "--max-new-tokens", 20, "--drafter", drafter, "--num-draft", "auto")
    assert drafted.stdout == plain.stdout
    points = written["calibration"]
    worth = [
        (
            point["tokens_per_step"] > 1 or point["candidate"]["num_draft"] == 0,
            point["tokens_per_step"] / point["step_seconds"],
        )
        for point in points
    ]
    assert worth == sorted(worth, reverse=True)
    chosen = points[0]["candidate"]
    assert chosen == {"num_draft": written["num_draft"], "nodes": written["nodes"]}
    assert (written["nodes"] > 0) == (drafter == "ddtree")


def point(num_draft, gain, seconds, nodes=0):
    return Point(Candidate(num_draft, nodes), gain, seconds)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (
            [point(3, 2.0, 0.01, 16), point(0, 1.0, 0.008, 4)],
            "3 drafts in 16 nodes (200 tokens/s of a text; 0 drafts in 4 nodes: 125)",
        ),
        # The clock would have them, and they gain nothing.
        (
            [point(0, 1.0, 0.01), point(2, 1.0, 0.008)],
            "0 drafts (100 tokens/s of a text; 2 drafts: 125); no drafts gained a token",
        ),
    ],
)
def test_what_is_said_of_a_choice(capsys, points, said):
    generate._print_statistics(Statistics(), points)
    said = f"chosen on the first tokens: {said}"
    assert " ".join(capsys.readouterr().err.split()).startswith(f"{said} 0 tokens in 0 steps")
