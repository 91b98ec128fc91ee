"""``specdec bench``: what it refuses, what it writes, and how it ends."""

import json
import types

import pytest

from bench import gpu, machine, suite
from bench.machine import Bandwidth
from bench.rows import COLUMNS, Goal, Row, read_csv

from .conftest import MACHINE, make_setting


def family(*groups):
    """A family that measures nothing."""
    return types.SimpleNamespace(count=lambda setting: len(groups), groups=lambda setting: iter(groups))


def row(setting_free_op="verify_greedy", **fields):
    made = Row(family="verify", op=setting_free_op, case="T=0", variant="cpu", dtype="float32", **fields, **MACHINE)
    made.judge([Goal("units", 0.8)])
    return made


@pytest.fixture
def stub(monkeypatch):
    """Families that give these rows, on a machine that is not looked at."""
    monkeypatch.setattr(machine, "describe", lambda: dict(MACHINE))
    monkeypatch.setattr(machine, "bandwidth", lambda: Bandwidth(20.0, 15.0, "torch.sum"))

    def use(*rows):
        for name in suite.FAMILIES:
            monkeypatch.setitem(suite.FAMILIES, name, family(*([one] for one in rows)))

    use(row(time_us=1000.0, units=0.7))
    return use


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["speed"], f"specdec bench: the family must be one of {', '.join(suite.FAMILIES)}, all, got 'speed'"),
        (["--repeats", "0"], "specdec bench: --repeats must be at least 1, got 0"),
        (["--device", "gpu"], "specdec bench: --device must be one of cpu, cuda, got 'gpu'"),
        (
            ["linear", "--device", "cuda"],
            f"specdec bench: the family must be one of {', '.join(suite.ON_GPU)}, all with --device cuda, got 'linear'",
        ),
        (["--repeats", "x"], "specdec bench: invalid value for '--repeats'"),
        (["--json", "/"], "specdec bench: --json must name a file, got the folder /"),
        (["--csv", "/"], "specdec bench: --csv must name a file, got the folder /"),
        (["--csv", "nowhere/x.csv"], "specdec bench: --csv must name a file in an existing folder, got nowhere/x.csv"),
        (["--out", __file__], f"specdec bench: --out must name a folder, got the file {__file__}"),
        (["--fast"], "specdec bench: no such option: --fast"),
        (["verify", "linear"], "specdec bench: got unexpected extra argument"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(specdec, stub, arguments, message):
    done = specdec("bench", *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_the_help_names_everything(specdec):
    done = specdec("bench", "--help")
    assert done.exit_code == 0
    for word in ("|".join((*suite.FAMILIES, "all")), "--quick", "--device", "--repeats", "--json", "--csv", "--out"):
        assert word in done.stdout


def test_all_families_are_measured_and_shown(specdec, stub):
    done = specdec("bench")
    assert done.exit_code == 0
    count = len(suite.FAMILIES)
    assert done.stdout.count("float32") == count
    assert f"{count} of {count} rows with goals meet them." in done.stdout


def test_one_family_is_measured_alone(specdec, stub):
    done = specdec("bench", "linear")
    assert done.stdout.count("float32") == 1 and "1 of 1 rows" in done.stdout


def test_files(specdec, stub, tmp_path):
    done = specdec("bench", "--json", tmp_path / "rows.json", "--csv", tmp_path / "rows.csv", "--out", tmp_path / "new")
    assert done.exit_code == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == len(suite.FAMILIES) and all(tuple(one) == COLUMNS for one in rows)
    assert rows[0]["units"] == 0.7 and rows[0]["met"] is True
    assert len(read_csv(tmp_path / "rows.csv")) == len(suite.FAMILIES)
    names = [f"{name}-any-processor-family-1-model-2-2t-2026-01-31.csv" for name in sorted(suite.FAMILIES)]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert all(len(read_csv(tmp_path / "new" / name)) == 1 for name in names)


def test_rows_are_written_as_they_come(specdec, stub, tmp_path, monkeypatch):
    """A run that is stopped leaves what it had."""

    def groups(setting):
        yield [row(time_us=1.0)]
        raise KeyboardInterrupt

    monkeypatch.setitem(suite.FAMILIES, "verify", types.SimpleNamespace(count=lambda _: 2, groups=groups))
    assert specdec("bench", "verify", "--out", tmp_path).exit_code != 0
    [file] = tmp_path.iterdir()
    assert len(read_csv(file)) == 1


def test_a_gpu_that_is_not_there_is_named(specdec, stub, monkeypatch):
    monkeypatch.setattr(gpu, "missing", lambda: "torch sees no CUDA device")
    done = specdec("bench", "--device", "cuda")
    assert done.exit_code == 2
    assert done.stderr == "specdec bench: --device cuda must have a CUDA device, got none: torch sees no CUDA device\n"


def test_on_a_gpu_its_families_and_its_name_are_taken(specdec, stub, tmp_path, monkeypatch):
    setting = make_setting(device="cuda", backends=("cuda", "triton"))
    asked = []
    monkeypatch.setattr(gpu, "missing", lambda: None)
    monkeypatch.setattr(suite, "prepare", lambda *arguments: asked.append(arguments) or setting)
    for name in suite.ON_GPU:
        monkeypatch.setitem(suite.ON_GPU, name, family([row(time_us=3.0)]))
    done = specdec("bench", "--device", "cuda", "--quick", "--out", tmp_path)
    assert done.exit_code == 0 and asked == [(True, None, "cuda")]
    names = [f"{name}-any-processor-family-1-model-2-2026-01-31.csv" for name in sorted(suite.ON_GPU)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_missed_goal_is_no_failure_and_a_wrong_result_is(specdec, stub):
    stub(row(time_us=1000.0, units=0.9))
    done = specdec("bench", "verify")
    assert done.exit_code == 0 and "missed: verify.greedy, T=0, float32: 0.9 (goal <= 0.8 units)" in done.stdout
    stub(row(note="wrong result: tokens[0] must be 1, got 2"))
    done = specdec("bench", "verify")
    assert done.exit_code == 1 and "wrong result: tokens[0] must be 1, got 2" in done.stdout
    stub(row(note="no recorded logits"))
    assert specdec("bench", "verify").exit_code == 0


def test_options_reach_the_suite(specdec, stub, monkeypatch):
    seen = []
    monkeypatch.setitem(
        suite.FAMILIES,
        "verify",
        types.SimpleNamespace(count=lambda setting: 0, groups=lambda setting: seen.append(setting) or iter(())),
    )
    for options in ([], ["--quick"], ["--repeats", "3"], ["--quick", "--repeats", "70"]):
        specdec("bench", "verify", *options)
    assert [(s.quick, s.repeats) for s in seen] == [
        (False, suite.REPEATS),
        (True, suite.QUICK_REPEATS),
        (False, 3),
        (True, 70),
    ]


def test_progress_is_told_while_a_group_is_measured(stub, setting, monkeypatch):
    def groups(told):
        told.tick()
        yield [row()]
        told.tick()
        told.tick()
        yield [row()]

    monkeypatch.setitem(suite.FAMILIES, "verify", types.SimpleNamespace(count=lambda _: 2, groups=groups))
    heard = []
    assert len(suite.run("verify", setting, heard.append)) == 2
    assert heard == [0, 1, 1, 1, 2]


def test_a_module_runs_the_same_command(monkeypatch):
    import runpy
    import sys

    from specdec_kernels.cli import main

    called = []
    monkeypatch.setattr(main, "app", lambda *arguments, **options: called.append((arguments, options)))
    monkeypatch.setattr(sys, "argv", ["bench", "verify", "--quick"])
    runpy.run_module("bench", run_name="__main__")
    assert called == [((["bench", "verify", "--quick"],), {"prog_name": "specdec"})]
