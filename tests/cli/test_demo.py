"""``specdec demo``: what it shows, what it writes, and what it makes of its figures."""

import json
import math
from dataclasses import replace

import pytest
import torch

import specdec_kernels as sk
from python_ref.decoding import Decoder, Request
from specdec_kernels import _backend
from specdec_kernels.cli import demo, engine
from specdec_kernels.cli.comparison import Row
from specdec_kernels.cli.errors import UserError
from specdec_kernels.cli.output import printable

from .conftest import PROMPTS

FIELDS = [
    "drafter",
    "temperature",
    "rule",
    "tokens_per_second",
    "baseline_tokens_per_second",
    "speedup",
    "mean_tokens_per_step",
    "break_even_tokens_per_step",
    "identical_to_baseline",
    "distinct_4gram_share",
    "prompts",
    "new_tokens",
    "num_draft",
    "nodes",
]
METHODS = [
    ("none", 0.0, "match", True),
    ("ngram", 0.0, "match", True),
    ("independent", 0.0, "match", True),
    ("eagle3", 0.0, "match", True),
    ("eagle3-tree", 0.0, "match", True),
    ("dflash", 0.0, "match", True),
    ("ddtree", 0.0, "match", True),
    ("none", 0.8, "match", True),
    ("ngram", 0.8, "match", True),
    ("independent", 0.8, "match", True),
    ("independent", 0.8, "rejection", None),
    ("eagle3", 0.8, "match", True),
    ("eagle3-tree", 0.8, "match", True),
    ("dflash", 0.8, "match", True),
    ("ddtree", 0.8, "match", True),
]


@pytest.fixture(scope="module")
def quick(assets, tmp_path_factory):
    """One quick run: its output and its rows."""
    import typer.testing

    from specdec_kernels.cli.main import app

    path = tmp_path_factory.mktemp("demo") / "rows.json"
    arguments = ["demo", "--quick", "--assets", str(assets), "--json", str(path)]
    result = typer.testing.CliRunner().invoke(app, arguments, prog_name="specdec")
    assert result.exit_code == 0, result.stderr
    return result, json.loads(path.read_text())["methods"]


def test_rows(quick):
    _, rows = quick
    assert [(r["drafter"], r["temperature"], r["rule"], r["identical_to_baseline"]) for r in rows] == METHODS
    plain = {}
    for row in rows:
        assert list(row) == FIELDS
        assert row["prompts"] == 4 and row["new_tokens"] == 4 * 48
        assert 0 < row["distinct_4gram_share"] <= 1
        assert row["num_draft"] == {"none": 0, "dflash": 7, "ddtree": 7}.get(row["drafter"], 4)
        assert row["nodes"] == (16 if "tree" in row["drafter"] else 0)
        if row["drafter"] == "none":
            plain[row["temperature"]] = row
            assert row["speedup"] == row["mean_tokens_per_step"] == row["break_even_tokens_per_step"] == 1
        base = plain[row["temperature"]]
        assert row["baseline_tokens_per_second"] == base["tokens_per_second"]
        assert math.isclose(row["speedup"], row["tokens_per_second"] / base["tokens_per_second"])
        assert math.isclose(row["speedup"], row["mean_tokens_per_step"] / row["break_even_tokens_per_step"])
        if row["identical_to_baseline"]:
            assert row["distinct_4gram_share"] == base["distinct_4gram_share"]
        if row["drafter"] == "independent":
            assert row["mean_tokens_per_step"] > 1.2, "the two models nearly agree"


def test_text_is_that_of_the_model(quick, assets):
    """The first prompt is continued before the reader's eyes, by every method."""
    result, _ = quick
    target = engine.load(assets / engine.TARGET, "float32", torch.device("cpu"))
    for which, temperature, times in ((0, 0.0, 7), (1, 0.8, 7)):
        prompt = PROMPTS[which]["prompt"]
        request = Request(target.encode(prompt), 32, temperature, seed=which, stop_tokens=())
        text = target.decode(Decoder(target.model, ops=sk).generate([request])[0].tokens)
        assert result.stdout.count(printable(text)) == times
        assert prompt.splitlines()[-1] in result.stdout
        assert f"prompt: {PROMPTS[which]['file']}, line {PROMPTS[which]['line']}" in result.stdout


def test_table_and_sentence(quick):
    result, rows = quick
    lines = result.stdout.splitlines()
    for row in rows:
        figures = [f"{row[name]:.2f}" for name in ("speedup", "mean_tokens_per_step", "break_even_tokens_per_step")]
        (line,) = [line for line in lines if f"{row['tokens_per_second']:.1f}" in line.split() and figures[2] in line]
        assert line.split()[0] == row["drafter"]
        assert [cell for cell in line.split() if cell in figures]
        assert line.rstrip().endswith({True: "yes", None: "its law"}[row["identical_to_baseline"]])
    sentence = demo.meaning([Row(**row) for row in rows])
    assert " ".join(sentence.split()) in " ".join(result.stdout.split())
    assert all(len(line) <= 80 for line in lines[-16:]), "the table fits a terminal"


def served_by(device):
    return demo._served_by(engine.serving(demo._used(device), device))


def test_ops_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(_backend, "_environment", None)
    late = {"verify_match", "linear_skinny"}
    for op in demo._OPS:
        for backend in ("cpu", "cuda"):
            monkeypatch.setitem(_backend._REASONS, (op, backend), None)
        monkeypatch.setitem(_backend._REASONS, (op, "triton"), "not here")
    assert served_by("cpu") == "ops on cpu"
    assert served_by("cuda") == "ops on cuda"
    for op in late:
        for backend in ("cpu", "cuda"):
            monkeypatch.setitem(_backend._REASONS, (op, backend), "late")
    assert served_by("cpu") == "ops on cpu, but verify.match, linear.skinny on reference, which is slow"
    assert served_by("cuda") == "ops on cuda, but verify.match on reference, which is slow"


def test_who_was_asked_for_is_named(monkeypatch):
    monkeypatch.setattr(_backend, "_environment", "reference")
    assert served_by("cpu") == "ops on reference"
    monkeypatch.setattr(_backend, "_environment", None)
    with sk.use_backend("reference"):
        assert served_by("cpu") == "ops on reference"
    with sk.use_backend("cuda"), pytest.raises(UserError, match="backend must be available, got 'cuda'"):
        served_by("cpu")


def test_the_full_run_is_long_enough():
    assert demo._FULL.prompts >= 20 and demo._FULL.new_tokens >= 128
    assert {method.temperature for method in demo.METHODS} == {0.0, 0.8}


def row(drafter, temperature, speedup, gain, rule="match", identical=True):
    return Row(
        drafter, temperature, rule, 100 * speedup, 100.0, speedup, gain, gain / speedup, identical, 0.9, 20, 2560, 4, 0
    )


def test_what_the_figures_mean():
    plain = [row("none", t, 1.0, 1.0) for t in (0.0, 0.8)]
    slow = row("ngram", 0.8, 0.5, 1.2)
    fast = row("ngram", 0.0, 1.25, 3.0)
    faster = row("independent", 0.8, 1.5, 2.1, "rejection", None)
    start = "On this machine a step with drafts takes the time of "
    end = "wherever the rule promises the text of plain decoding, it is that text, token for token."
    assert demo.meaning([*plain, slow]) == (
        f"{start}2.4 plain steps and gains 1.2 tokens; plain decoding is the fastest, the others reach 0.50 of its speed; "
        f"{end}"
    )
    assert demo.meaning([*plain, fast, slow, faster]) == (
        f"{start}1.4 to 2.4 plain steps and gains 1.2 to 3.0 tokens; faster than plain decoding: independent by rejection "
        "at temperature 0.8 (1.50 times its speed), ngram at temperature 0 (1.25 times its speed), and slower: the rest "
        f"(0.50); {end}"
    )
    assert demo.meaning([*plain, fast, faster]) == (
        f"{start}1.4 to 2.4 plain steps and gains 2.1 to 3.0 tokens; all of them are faster than plain decoding (1.25 to "
        f"1.50 times its speed); {end}"
    )
    looping = replace(plain[0], distinct_4gram_share=0.31)
    assert (
        "; the text repeats itself (distinct 4-grams: 0.31 at temperature 0), which flatters ngram above all; wherever"
        in demo.meaning([looping, plain[1], slow])
    )
    broken = row("ngram", 0.0, 0.5, 1.2, identical=False)
    assert demo.meaning([*plain, broken, slow]).endswith(
        "; the text of plain decoding was promised, and NOT given by ngram at temperature 0."
    )
