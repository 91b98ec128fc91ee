"""Tables and conclusions."""

import io

import pytest
from rich.console import Console

from bench import report, suite
from bench.rows import Row


def row(op="verify_match", variant="cpu", **fields):
    values = {"family": "verify", "case": "T=1", "dtype": "float32", "data": "normal", "accepted": "half"}
    return Row(op=op, variant=variant, **(values | fields))


def shown(family, rows):
    console = Console(file=io.StringIO(), width=80)
    for part in report.tables(family, rows, ("cpu",)):
        console.print(part)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    "microseconds, text",
    [
        (None, "-"),
        (0.5, "0.5 us"),
        (12.34, "12.3 us"),
        (999.4, "999 us"),
        (999.6, "1 ms"),
        (1312.0, "1.31 ms"),
        (152_000.0, "152 ms"),
        (2_300_000.0, "2.3 s"),
    ],
)
def test_durations_have_three_digits_and_a_unit(microseconds, text):
    assert report.duration(microseconds) == text


def test_a_table_shows_the_ops_and_not_the_baselines():
    lines = shown(
        "verify",
        [
            row(time_us=1500.0, units=1.1, speedup_over_eager=40.0, extra_bytes=9000, goal="<= 2 units", met=True),
            row(variant="amax", time_us=1300.0),
            row(op="verify_greedy", time_us=3000.0, goal="<= 0.8 units; <= 1e+06 bytes extra", met=False),
        ],
    )
    assert lines[0] == "float32, normal"
    assert lines[2].split() == "match T=1 half 1.5 ms 1.1 40x - 9 <= 2 yes".split()
    assert lines[3].split() == "greedy T=1 half 3 ms - - - - <= 0.8 no".split()
    assert lines[4] == "" and lines[5].startswith("drafts: which of them are accepted.")


def test_nothing_is_cut_where_a_line_has_80_columns():
    wide = {"time_us": 123456.0, "units": 0.123, "speedup_over_eager": 1234.0, "speedup_over_compile": 1234.0}
    longest = [
        row(op="verify_rejection", case="T=1, top-p 0.9", extra_bytes=872448, goal="<= 2.5 units", met=True, **wide)
    ]
    assert "\u2026" not in " ".join(shown("verify", longest))
    rules = [row(case="greedy_plus_one, tree, T=1, top-p 0.9", extra_bytes=872448, goal="<= 8 units", met=True, **wide)]
    assert "\u2026" not in " ".join(shown("rules", rules))
    linear = [
        row(case="16 rows, from memory", gb_per_s=12.3, share_of_read=0.9, goal=">= 0.85 of read bandwidth", **wide)
    ]
    assert "\u2026" not in " ".join(shown("linear", linear))


def test_each_dtype_and_kind_of_data_has_a_table():
    lines = shown("verify", [row(), row(data="recorded"), row(dtype="bfloat16"), row()])
    titles = [line for line in lines if line.startswith(("float32", "bfloat16"))]
    assert titles == ["float32, normal", "float32, recorded", "bfloat16, normal"]


def gpu_rows():
    shared = {
        "dtype": "bfloat16",
        "op": "verify_rejection",
        "case": "T=1, top-p 0.9",
        "goal": ">= 0.7 of copy bandwidth",
    }
    large = "256 requests x 64 nodes, V=151,936"
    figures = {
        "time_us": 123456.0,
        "share_of_copy": 0.123,
        "speedup_over_eager": 1234.0,
        "speedup_over_compile": 1234.0,
    }
    return [
        row(variant="triton", shape=large, met=False, reached="0.123", **shared, **figures),
        row(variant="cuda", shape="1 request", met=True, reached="0.8", accepted="none", **(shared | {"case": "T=1"})),
        row(variant="eager", shape=large, **shared),
    ]


def test_on_a_gpu_each_shape_has_a_table_and_each_backend_a_line():
    console = Console(file=io.StringIO(), width=80)
    for part in report.tables("verify", gpu_rows(), ("cuda", "triton"), "cuda"):
        console.print(part)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "bfloat16, normal, 256 requests x 64 nodes, V=151,936"
    assert lines[2].split() == "rejection T=1, top-p 0.9 triton 123 ms 12 % 1234x 1234x >= 0.7 no".split()
    assert lines[4] == "bfloat16, normal, 1 request"
    assert lines[6].split() == "rejection T=1, none cuda - - - - >= 0.7 yes".split()
    assert "\u2026" not in "".join(lines)


def test_on_a_gpu_a_missed_goal_names_shape_and_backend_and_a_busy_processor_matters_not():
    said = report.conclusions([*gpu_rows(), row(load=9.0)], ("cuda", "triton"), "cuda")
    assert said == [
        "1 of 2 rows with goals meet them.",
        "missed: verify.rejection, T=1, top-p 0.9, bfloat16, normal, half, 256 requests x 64 nodes, V=151,936, triton: "
        "0.123 (goal >= 0.7 of copy bandwidth)",
    ]


@pytest.mark.parametrize("family", [name for name in suite.FAMILIES if name != "verify"])
def test_tables_of_all_families_show_rows_without_a_time(family):
    assert any(" - " in line for line in shown(family, [row(note="failed")]))


def test_calls_with_out_are_shown():
    assert any("cpu, out=" in line for line in shown("overhead", [row(variant="cpu, out=", time_us=3.0)]))


def test_conclusions_count_goals_and_name_what_was_missed():
    rows = [
        row(goal="<= 2 units", reached="1.5", met=True),
        row(op="verify_greedy", goal="<= 0.8 units", reached="0.9", met=False),
    ]
    assert report.conclusions(rows, ("cpu",)) == [
        "1 of 2 rows with goals meet them.",
        "missed: verify.greedy, T=1, float32, normal, half: 0.9 (goal <= 0.8 units)",
    ]


def test_conclusions_repeat_notes_once():
    rows = [
        row(note="no recorded logits"),
        row(note="no recorded logits"),
        row(variant="eager topk", note="wrong result: tokens[0] must be 1, got 2"),
        row(variant="eager", note="F.linear", time_us=3.0),
    ]
    assert report.conclusions(rows, ("cpu",)) == [
        "2 rows: no recorded logits",
        "verify.match, T=1, float32, normal, half, eager topk: wrong result: tokens[0] must be 1, got 2",
    ]


def test_a_busy_machine_is_mentioned():
    assert report.conclusions([row(load=0.2)], ("cpu",)) == []
    assert "load 1.5" in report.conclusions([row(load=1.5)], ("cpu",))[0]
