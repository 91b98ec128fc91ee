"""``specdec bench drafts`` on tiny models."""

import json

import pytest

from bench import machine
from python_ref.decoding import calibration

FEW = ("--max-batch", "2", "--max-new-tokens", "6", "--repeats", "1")


def test_every_setting_is_beside_the_chosen_one(specdec, shipped, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "NUM_DRAFT", (0, 1, 3, 7, 15))
    path = tmp_path / "rows.json"
    result = specdec("bench", "drafts", "--drafter", "ngram,dflash,ddtree", *FEW, "--json", path)
    assert result.exit_code == 0, result.output
    rows = json.loads(path.read_text())
    for name, settings in (("ngram", 5), ("dflash", 4), ("ddtree", 1 + 3 * len(calibration.NODES))):
        mine = [row for row in rows if row["drafter"] == name]
        assert settings <= len(mine) <= settings + 1, name  # no drafts in as many nodes as there are
        assert [row["tokens_per_s"] for row in mine] == sorted((row["tokens_per_s"] for row in mine), reverse=True)
        assert mine[0]["share_of_best"] == 1
        (chosen,) = (row for row in mine if row["chosen"])
        assert f"auto reaches {100 * chosen['share_of_best']:.1f} % of the best" in result.output
        most = {"ngram": 15}.get(name, 7)
        assert {row["num_draft"] for row in mine} == {n for n in (0, 1, 3, 7, 15) if n <= most}


@pytest.mark.parametrize(("load", "busy"), [(3.25, True), (0.1, False)])
def test_a_busy_machine_is_named(specdec, shipped, monkeypatch, load, busy):
    monkeypatch.setattr(calibration, "NUM_DRAFT", (0, 1))
    described = machine.describe("cpu") | {"load": load}
    monkeypatch.setattr(machine, "describe", lambda device: described)
    result = specdec("bench", "drafts", "--drafter", "ngram", *FEW)
    assert result.exit_code == 0, result.output
    assert ("Other processes were running (load 3.25 at the start)" in result.output) == busy


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--drafter", "none"), "--drafter must be one of ngram, independent"),
        (("--drafter", "none:"), "--drafter must be one of none, ngram, "),
        (("--drafter", "ngram:"), "--drafter must be one of none, ngram, "),
        (("--repeats", "0"), "--repeats must be at least 1, got 0"),
        (("--max-new-tokens", "0"), "--max-new-tokens must be at least 1, got 0"),
        (("--temperature", "-1"), "temperature must be finite and at least 0"),
    ],
)
def test_a_wrong_word_gets_one_sentence(specdec, shipped, words, said):
    result = specdec("bench", "drafts", *words)
    assert result.exit_code == 2
    assert said in result.stderr and result.stderr.count("\n") == 1
