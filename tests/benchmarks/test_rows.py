"""Goals, their judgement, and the files."""

import csv
import json

import pytest

from bench import drafts, e2e, machine, serve
from bench.rows import COLUMNS, Goal, Row, as_dicts, columns, read_csv, write_csv, write_json


def row(**fields):
    return Row(family="verify", op="verify_match", case="T=1", variant="cpu", dtype="float32", **fields)


def test_a_goal_says_what_it_wants():
    assert str(Goal("units", 2.5)) == "<= 2.5 units"
    assert str(Goal("share_of_read", 0.85, at_least=True)) == ">= 0.85 of read bandwidth"


def test_a_bound_belongs_to_what_it_allows():
    assert Goal("units", 2.0).met_by(2.0) and not Goal("units", 2.0).met_by(2.001)
    assert Goal("gb_per_s", 45.0, True).met_by(45.0) and not Goal("gb_per_s", 45.0, True).met_by(44.9)


@pytest.mark.parametrize(
    "units, extra, met, reached",
    [
        (1.5, 1000, True, "1.5; 1e+03"),
        (2.5, 1000, False, "2.5; 1e+03"),
        (1.5, 2_000_000, False, "1.5; 2e+06"),
        (1.5, None, False, "1.5; -"),
        (None, None, False, "-; -"),
    ],
)
def test_all_goals_must_be_met_and_what_was_not_measured_meets_none(units, extra, met, reached):
    judged = row(units=units, extra_bytes=extra)
    judged.judge([Goal("units", 2.0), Goal("extra_bytes", 1_000_000)])
    assert judged.met is met
    assert judged.reached == reached
    assert judged.goal == "<= 2 units; <= 1e+06 bytes extra"


def test_a_row_without_goals_is_not_judged():
    judged = row(units=1.0)
    judged.judge([])
    assert judged.met is judged.goal is judged.reached is None


def test_files_hold_every_column(tmp_path):
    rows = [row(time_us=1.2345678), row(note="wrong result: tokens[0]")]
    write_csv(Row, rows, tmp_path / "new" / "rows.csv")
    found = read_csv(tmp_path / "new" / "rows.csv")
    assert [tuple(line) for line in found] == [COLUMNS, COLUMNS]
    assert (found[0]["time_us"], found[0]["note"], found[1]["time_us"]) == ("1.2346", "", "")
    write_json(rows, tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text()) == as_dicts(rows)


@pytest.mark.parametrize("kind", [Row, drafts.Row, e2e.Row, serve.Row])
def test_the_machine_stands_at_the_end_of_all_rows(kind, tmp_path):
    described = tuple(machine.describe())
    own = [name for name in columns(kind) if name not in described]
    assert columns(kind) == (*own, *described)
    made = kind(*own, **machine.describe())  # values in the order of the columns
    write_csv(kind, [made], tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert tuple(line) == tuple(as_dicts([made])[0]) == columns(kind)
    assert all(line[name] == name for name in own) and line["date"] == made.date


@pytest.mark.parametrize("kind", [Row, drafts.Row, e2e.Row, serve.Row])
def test_a_file_without_rows_has_the_columns_of_their_class(kind, tmp_path):
    write_csv(kind, [], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == ",".join(columns(kind)) + "\n"


def test_another_file_is_refused(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="bench: other.csv must have the columns of a benchmark"):
        read_csv(tmp_path / "other.csv")
