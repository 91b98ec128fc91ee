"""``specdec bench e2e`` on a small shape in the place of a large one."""

import csv
import json

import pytest

from bench import shapes
from tests.benchmarks.test_e2e import TINY

FEW = ("--context", "5", "--max-new-tokens", "12", "--repeats", "1", "--dtype", "float32")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "qwen3-0.6b", TINY)


def test_rows_come_as_a_table_and_as_files(specdec, tmp_path):
    files = ("--json", str(tmp_path / "rows.json"), "--csv", str(tmp_path / "rows.csv"))
    result = specdec(
        "bench", "e2e", "--drafter", "dflash,ddtree", "--drafter", "ngram", "--acceptance", "2,3", *FEW, *files
    )
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["drafter"], row["num_draft"], row["tau"]) for row in rows] == [
        (name, 7, tau) for name in ("dflash", "ddtree", "ngram") for tau in (2.0, 3.0)
    ]
    wanted = "shape drafter tau plain_step_ms verify_step_ms draft_ms other_ms predicted_speedup measured_speedup"
    assert set(wanted.split()) <= set(rows[0])
    assert rows[0]["shape"] == "qwen3-0.6b" and rows[0]["weights"] == "random" and rows[0]["acceptance"] == "synthetic"
    with (tmp_path / "rows.csv").open() as file:
        assert [row["drafter"] for row in csv.DictReader(file)] == [row["drafter"] for row in rows]
    text = " ".join(result.output.split())
    assert "All texts are what the target was to say" in text and "acceptance synthetic" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shape", "gpt-5"), "--shape must be one of qwen3-0.6b"),
        (("--drafter", "none"), "--drafter must be one of dflash, ddtree, eagle3, ngram, independent, got 'none'"),
        (("--acceptance", "0.5"), "--acceptance must be numbers from 1 with commas, got '0.5'"),
        (("--acceptance", "nan"), "--acceptance must be numbers from 1 with commas, got 'nan'"),
        (("--acceptance", "9"), "acceptance must be from 1 to 8 with 7 drafts in a row, got 9"),
        (("--num-draft", "0"), "--num-draft must be integers from 1 to 63 with commas, got '0'"),
        (("--num-draft", "x"), "--num-draft must be integers from 1 to 63 with commas, got 'x'"),
        (("--nodes", "1"), "--nodes must be at least 2, got 1"),
        (("--nodes", "1025"), "--nodes must be at most 1024, got 1025"),
        (("--dtype", "float16"), "--dtype must be one of float32, bfloat16, int8, got 'float16'"),
        (("--batch", "0"), "--batch must be at least 1, got 0"),
        (("--temperature", "-1"), "temperature must be finite and at least 0, got -1.0"),
        (("--repeats", "0"), "--repeats must be at least 1, got 0"),
        (("--device", "tpu"), "--device must be cpu, cuda or cuda:<number>, got 'tpu'"),
    ],
)
def test_a_wrong_word_gets_one_sentence(specdec, words, said):
    result = specdec("bench", "e2e", *words)
    assert result.exit_code == 2
    assert said in result.stderr and result.stderr.count("\n") == 1
