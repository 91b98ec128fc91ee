"""``specdec bench serve``: what it measures, what it writes, and what it refuses."""

import csv
import importlib.util
import json

import pytest

from bench import serve
from specdec_kernels.cli import bench_serve

LOAD = ("--requests", "4", "--max-new-tokens", "3", "--repeats", "1")


@pytest.fixture(scope="module")
def served(assets, tmp_path_factory):
    """One run with every drafter: its output and its rows."""
    import typer.testing

    from specdec_kernels.cli import engine
    from specdec_kernels.cli.main import app

    path = tmp_path_factory.mktemp("serve") / "rows.json"
    names = ",".join(bench_serve._DRAFTERS)
    options = ["--drafter", names, "--max-batch", "2", "--rate", "200,inf", *LOAD, "--json", path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "ASSETS", assets)
        words = ["bench", "serve", *map(str, options)]
        result = typer.testing.CliRunner().invoke(app, words, prog_name="specdec")
    assert result.exit_code == 0, result.output
    return result, json.loads(path.read_text())


def test_rows_of_every_drafter(served):
    _, rows = served
    names = ("none", "ngram", "independent", "eagle3", "eagle3-tree", "dflash", "ddtree")
    order = [(rate, name, loop) for rate in (200, "inf") for name in names for loop in ("plain", "overlapped")]
    assert [(row["rate"], row["drafter"], row["loop"]) for row in rows] == order
    for row in rows:
        assert tuple(row) == serve.COLUMNS
        assert (row["batch"], row["requests"], row["new_tokens"]) == (2, 4, 12)
        assert row["num_draft"] == {"none": 0, "dflash": 7, "ddtree": 7}.get(row["drafter"], 4)
        assert row["identical"] is True and row["tokens_per_s"] > 0 and row["latency_ms_p99"] > 0
        assert (row["model"], row["dtype"], row["backend"]) == ("pystdlib-target", "float32", "cpu")
        assert row["device"] and row["date"] and row["version"]


def test_what_people_read(served):
    result, rows = served
    lines = result.stdout.splitlines()
    assert lines[0].startswith("pystdlib-target serves 4 requests with prompts of ")
    assert lines[0].endswith(" tokens, 3 new ones each, temperature 0; float32 on cpu, threads: 1; ops on cpu.")
    assert "at most 2 decoded together" in lines
    text = " ".join(result.stdout.split())
    for row in rows:
        assert any(line.split()[1:3] == [row["drafter"], row["loop"]] for line in lines if len(line.split()) > 3)
    assert "Tokens per second of the overlapped loop over the plain one, all requests at once: " in text
    assert "Median latency of the overlapped loop over that of the plain one, requests at their times: " in text
    assert "with no drafter, " in text and "with ddtree." in text
    assert "All texts are those of plain decoding, token for token." in text
    assert all(len(line) <= 80 for line in lines[1:])


def test_options_reach_the_measurement(specdec, shipped, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(serve, "measure", lambda setting, report: seen.append(setting) or iter(()))
    options = "--drafter ngram --drafter none,ngram --max-batch 3,1,3 --rate 0.5,inf --temperature 0.8 --num-draft 2"
    assert specdec("bench", "serve", *options.split(), "--requests", "7", "--max-new-tokens", "5").exit_code == 0
    (setting,) = seen
    assert [(one.name, one.num_draft) for one in setting.guessers] == [("ngram", 2), ("none", 2)]
    assert setting.batches == [3, 1] and setting.rates == [0.5, float("inf")] and setting.promised
    assert setting.repeats == bench_serve._FULL.repeats
    assert [request.seed for request in setting.requests] == list(range(7))
    assert {(r.max_new_tokens, r.temperature, r.stop_tokens) for r in setting.requests} == {(5, 0.8, ())}
    assert setting.requests[5].prompt == setting.requests[0].prompt != setting.requests[1].prompt  # there are five


def test_quick_and_full_loads(specdec, shipped, monkeypatch):
    seen = []
    monkeypatch.setattr(serve, "measure", lambda setting, report: seen.append(setting) or iter(()))
    for options in ((), ("--quick",), ("--quick", "--requests", "2")):
        assert specdec("bench", "serve", *options).exit_code == 0
    full, quick, two = seen
    assert full.batches == [1, 4, 16] and quick.batches == [4] and full.runs > quick.runs
    assert [len(setting.requests) for setting in seen] == [bench_serve._FULL.requests, bench_serve._QUICK.requests, 2]
    for setting in seen:
        assert any(rate < float("inf") for rate in setting.rates) and float("inf") in setting.rates
        assert {guesser.name for guesser in setting.guessers} == {"none", "ngram"}


def test_files(specdec, shipped, tmp_path):
    pytest.importorskip("matplotlib")
    files = ("--csv", tmp_path / "rows.csv", "--plot", tmp_path / "rows.svg")
    done = specdec("bench", "serve", "--drafter", "none", "--max-batch", "1,2", "--rate", "inf", *LOAD, *files)
    assert done.exit_code == 0, done.output
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["batch"], row["rate"], row["loop"]) for row in rows] == [
        (batch, "inf", loop) for batch in "12" for loop in ("plain", "overlapped")
    ]
    assert "most requests decoded together" in (tmp_path / "rows.svg").read_text()


def test_a_wrong_text_is_exit_code_1(specdec, shipped, monkeypatch):
    def measure(setting, report):
        yield [serve.Row("plain", "none", 0, 0.0, 1, "inf", 4, identical=False, note="4 of 4 texts are others")]

    monkeypatch.setattr(serve, "measure", measure)
    done = specdec("bench", "serve", *LOAD)
    assert done.exit_code == 1 and "WRONG" in done.stdout and "4 of 4 texts are others" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--drafter oracle", "--drafter must be one of none, ngram, "),
        ("--drafter none,", "--drafter must be one of none, ngram, "),
        ("--drafter eagle3:nowhere", "--drafter eagle3 must name a folder with a model, or a shipped model"),
        ("--rate 0", "--rate must be numbers above 0, or inf, with commas, got '0'"),
        ("--rate 1,-2", "--rate must be numbers above 0, or inf, with commas, got '-2'"),
        ("--rate nan", "--rate must be numbers above 0, or inf, with commas, got 'nan'"),
        ("--rate fast", "--rate must be numbers above 0, or inf, with commas, got 'fast'"),
        ("--max-batch 0", "--max-batch must be integers from 1 to 65536 with commas, got '0'"),
        ("--max-batch 4,65537", "--max-batch must be integers from 1 to 65536 with commas, got '65537'"),
        ("--max-batch many", "--max-batch must be integers from 1 to 65536 with commas, got 'many'"),
        ("--requests 0", "--requests must be at least 1, got 0"),
        ("--repeats 0", "--repeats must be at least 1, got 0"),
        ("--num-draft -1", "--num-draft must be at least 0, got -1"),
        ("--max-new-tokens 0", "max_new_tokens must be at least 1, got 0"),
        ("--temperature -1", "temperature must be finite and at least 0, got -1"),
        ("--model nowhere", "--model must name a folder with a model, or a shipped model"),
        ("--device tpu", "--device must be cpu, cuda or cuda:<number>, got 'tpu'"),
        ("--device cuda:99", "--device must be available, got 'cuda:99'"),
        ("--dtype float8", "--dtype must be one of float32, bfloat16, float16, int8, got 'float8'"),
        ("--backend gpu", "--backend must be one of cuda, triton, cpu, reference, got 'gpu'"),
        ("--json nowhere/x.json", "--json must name a file in an existing folder, got nowhere/x.json"),
        ("--csv /", "--csv must name a file, got the folder /"),
        ("--plot /", "--plot must name a file, got the folder /"),
        ("--plot rows.txt", "--plot must name a file that ends in .png, .svg, .pdf, got rows.txt"),
        ("--tokens 3", "no such option: --tokens"),
        ("verify", "got unexpected extra argument"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(specdec, shipped, options, said):
    done = specdec("bench", "serve", *options.split())
    lines = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
    assert done.exit_code == 2 and not done.stdout
    assert len(lines) == 1 and lines[0].startswith(f"specdec bench serve: {said}")


def test_a_picture_needs_its_package(specdec, shipped, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else found(name, *rest)
    )
    done = specdec("bench", "serve", "--plot", "rows.png")
    assert done.exit_code == 2
    assert done.stderr == (
        "specdec bench serve: --plot must have matplotlib, got no such package (pip install matplotlib)\n"
    )


def test_a_request_that_the_model_has_no_room_for(specdec, shipped, monkeypatch):
    """What a loop refuses is a sentence, too."""

    def measure(setting, report):
        raise ValueError("generate: prompt must have fewer than 4 tokens, got 5")

    monkeypatch.setattr(serve, "measure", measure)
    done = specdec("bench", "serve")
    assert done.exit_code == 2
    assert done.stderr.endswith("specdec bench serve: prompt must have fewer than 4 tokens, got 5\n")


def test_the_help_tells_of_every_option(specdec, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = specdec("bench", "serve", "--help").stdout
    options = (
        "--model --drafter --max-batch --rate --requests --max-new-tokens --temperature --num-draft --repeats --quick"
    )
    for option in (*options.split(), "--backend", "--device", "--dtype", "--json", "--csv", "--plot"):
        assert option in text
    assert "specdec bench serve" in specdec("bench", "--help").stdout
