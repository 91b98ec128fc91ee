"""What the families measure: which rows there are, what stands in them, and what is judged. Never how long anything took."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from bench import baselines, linear, memory, overhead, suite, verify
from bench.data import MissingData, Sizes, normal
from bench.linear import Place
from bench.rows import Goal

from .conftest import make_setting

SIZES, LARGE = Sizes(requests=2, nodes=4, vocab=64), Sizes(requests=1, nodes=4, vocab=128)
VERIFIED = ("verify_greedy", "verify_match", "verify_rejection")


def lighten(monkeypatch):
    """No fresh processes, no compiler, and random logits in the place of recorded ones."""
    monkeypatch.setattr(memory, "extra_bytes", lambda case, backend: 4096)
    monkeypatch.setattr(baselines, "compiled", lambda function: function)
    monkeypatch.setattr(verify, "recorded", lambda sizes: normal(sizes, seed=1)._replace(data="recorded"))


@pytest.fixture
def light(monkeypatch):
    lighten(monkeypatch)


def grouped(module, setting, *arguments):
    """All groups, whose number must be the one that progress is told."""
    found = list(module.groups(setting, *arguments))
    assert len(found) == module.count(setting)
    return found


@pytest.fixture(scope="module")
def suites():
    """The groups of a full and of a quick suite of the family `verify`."""
    with pytest.MonkeyPatch.context() as patch:
        lighten(patch)
        return {
            "full": grouped(verify, make_setting(), SIZES, LARGE),
            "quick": grouped(verify, make_setting(quick=True), SIZES),
        }


def columns(row):
    return row.op, row.case, row.dtype, row.data, row.accepted


class TestVerify:
    def test_every_case_has_its_rows(self, suites):
        groups = suites["full"]
        rows = [row for group in groups for row in group]
        assert not [row for row in rows if row.note and row.variant != "eager topk"]
        timed = [row for row in rows if not row.case.endswith("memory alone")]
        expected = {
            (part.op, part.label, dtype, data, which)
            for part in verify.PARTS
            for which in part.outcomes
            for dtype in ("float32", "bfloat16")
            for data in ("recorded", "normal")
        }
        assert {columns(row) for row in timed} == expected
        assert all(len({columns(row) for row in group}) == 1 for group in groups)
        assert Counter(row.variant for row in timed if row.accepted in ("none", "all")) == Counter(cpu=48, amax=48)

    def test_goals_hold_where_half_is_accepted(self, suites):
        rows = [row for group in suites["full"] for row in group]
        judged = [row for row in rows if row.goal is not None]
        assert all(row.variant == "cpu" and row.accepted == "half" and row.op in VERIFIED for row in judged)
        limits = {(part.op, part.label): part.limit for part in verify.PARTS}
        for row in judged:
            if row.case.endswith("memory alone"):
                assert (row.goal, row.time_us, row.met) == ("<= 1e+06 bytes extra", None, True)
            else:
                assert row.goal == f"<= {limits[row.op, row.case]:g} units; <= 1e+06 bytes extra"
        assert len(judged) == 4 * 6 + 6
        assert [part.limit for part in verify.PARTS[:6]] == [0.8, 2.0, 4.0, 4.0, 2.5, 2.5]

    def test_figures_are_ratios_within_one_group(self, suites):
        for group in suites["quick"]:
            found = {row.variant: row for row in group}
            cpu, unit, eager = found["cpu"], found["amax"], found["eager"]
            assert cpu.unit == unit.unit == "amax" and unit.units == 1.0
            assert cpu.units == pytest.approx(cpu.time_us / unit.time_us)
            assert cpu.speedup_over_eager == pytest.approx(eager.time_us / cpu.time_us)
            assert eager.speedup_over_eager == 1.0
            assert cpu.extra_bytes == 4096 and eager.extra_bytes is None
            assert cpu.gb_per_s == pytest.approx(cpu.needed_bytes / cpu.time_us / 1e3)
            assert cpu.share_of_read == pytest.approx(cpu.gb_per_s / 20.0)
            assert cpu.share_of_copy == pytest.approx(cpu.gb_per_s / 15.0)

    def test_needed_bytes_are_the_rows_of_visited_nodes(self, suites):
        rows = {(row.op, row.dtype, row.variant): row.needed_bytes for group in suites["quick"] for row in group}
        row = 64 * 4
        assert rows["verify_match", "float32", "cpu"] == 5 * row  # 1 and 2 of 3 drafts: 2 and 3 nodes
        assert rows["verify_match", "bfloat16", "cpu"] == 5 * row // 2
        assert rows["verify_match", "float32", "amax"] == 8 * row
        assert rows["verify_rejection", "float32", "cpu"] == 10 * row  # each visited node has a draft with its law
        assert rows["verify_rejection", "float32", "amax"] == 16 * row
        assert rows["sample_sample", "float32", "cpu"] == rows["sample_sample", "float32", "amax"] == 2 * row

    def test_recorded_logits_that_are_missing_leave_rows_that_say_so(self, light, setting, monkeypatch):
        def missing(sizes):
            raise MissingData("no recorded logits: nothing there")

        monkeypatch.setattr(verify, "recorded", missing)
        absent = [row for group in islice(verify.groups(setting, SIZES, LARGE), 2 * 23) for row in group]
        assert len(absent) == 2 * 23
        assert all(row.data == "recorded" for row in absent)
        assert all(row.time_us is None and row.note == "no recorded logits: nothing there" for row in absent)
        assert {row.variant for row in absent} == {"cpu"}
        quick = [row for group in grouped(verify, replace(setting, quick=True), SIZES) for row in group]
        assert {row.data for row in quick} == {"normal"}
        assert all("normal instead of recorded logits: no recorded logits: nothing there" in row.note for row in quick)

    def test_a_wrong_op_is_neither_timed_nor_meets_its_goal(self, light, setting, monkeypatch):
        import specdec_kernels as sk

        right = sk.verify.match

        def wrong(*arguments, **options):
            result = right(*arguments, **options)
            return result._replace(tokens=result.tokens + 1)

        monkeypatch.setattr(sk.verify, "match", wrong)
        rows = [row for group in grouped(verify, replace(setting, quick=True), SIZES) for row in group]
        refused = [row for row in rows if row.op == "verify_match" and row.variant == "cpu"]
        assert len(refused) == 6
        for row in refused:
            assert row.time_us is row.units is row.extra_bytes is None
            assert row.note.startswith("wrong result: tokens[0, 0] must be") and row.met is False
        assert suite.wrong(rows, setting) == refused

    def test_an_outcome_that_cannot_be_is_a_row_with_a_reason(self, light, setting, monkeypatch):
        same = normal(SIZES)
        monkeypatch.setattr(verify, "recorded", lambda sizes: same._replace(draft=same.target))
        rows = [row for group in grouped(verify, replace(setting, quick=True), SIZES) for row in group]
        notes = {row.note for row in rows if row.op == "verify_rejection"}
        assert notes == {"not measured: no seed in 50 decides requests [0, 1] clearly"}
        assert all(row.met is False for row in rows if row.op == "verify_rejection")

    def test_memory_that_is_unknown_meets_no_goal(self, light, setting, monkeypatch):
        def unknown(case, backend):
            raise memory.UnknownMemoryError("extra memory unknown: the system does not tell (OSError)")

        monkeypatch.setattr(memory, "extra_bytes", unknown)
        rows = [row for group in grouped(verify, replace(setting, quick=True), SIZES) for row in group]
        judged = [row for row in rows if row.goal is not None]
        assert judged and all(row.met is False and row.note.startswith("extra memory unknown") for row in judged)


def places():
    return tuple(place._replace(size=1 << 16, inputs=64) for place in linear.PLACES)


class TestLinear:
    def test_every_number_of_rows_has_its_rows(self, setting):
        groups = grouped(linear, setting, places())
        for group in groups:
            assert [row.variant for row in group] == ["read"] + ["cpu", "eager"] * 5
            assert not [row for row in group if row.time_us is None]
        assert [(group[0].dtype, group[0].case) for group in groups] == [
            (dtype, f"read, {place}") for place in ("from memory", "from cache") for dtype in linear.DTYPES
        ]

    def test_goals_are_set_for_one_row_and_for_eight(self, setting):
        goals = {row.case: row.goal for group in grouped(linear, setting, places()) for row in group if row.goal}
        assert goals == {
            "1 row, from memory": ">= 0.85 of read bandwidth",
            "8 rows, from memory": "<= 1.3 x one row",
            "1 row, from cache": ">= 45 GB/s",
            "8 rows, from cache": "<= 2 x one row",
        }

    def test_figures_are_held_against_the_read_and_the_best_row_of_the_same_run(self, setting):
        for group in grouped(linear, setting, places()):
            read, others = group[0], group[1:]
            one = min(row.time_us for row in others if row.case.startswith("1 row,"))
            for row in others:
                assert row.read_gb_per_s == read.gb_per_s
                assert row.share_of_read == pytest.approx(row.gb_per_s / read.gb_per_s)
                assert row.ratio_to_one_row == pytest.approx(row.time_us / one)
            assert read.ratio_to_one_row is None and read.share_of_read == 1.0

    def test_bytes_and_work(self):
        place = Place("x", 1 << 16, 64, Goal("units", 1), Goal("units", 1), cached=False)
        assert [place.outputs(dtype) for dtype in linear.DTYPES.values()] == [256, 512, 1024]
        assert [place.size for place in linear.PLACES] == [256 << 20, 8 << 20]

    def test_needed_bytes_are_weights_scales_activations_and_results(self, setting):
        found = {
            (row.dtype, row.case): (row.needed_bytes, row.gflop_per_s * row.time_us * 1e3)
            for group in grouped(linear, setting, places()[:1] * 2)
            for row in group[1:]
        }
        assert found["float32", "2 rows, from memory"][0] == (1 << 16) + 4 * 2 * (64 + 256)
        assert found["int8", "1 row, from memory"][0] == (1 << 16) + 4 * 1024 + 4 * (64 + 1024)
        assert found["float32", "2 rows, from memory"][1] == pytest.approx(2 * 2 * 64 * 256)

    def test_all_dtypes_hold_the_same_weights(self):
        whole = linear.integers(40, 64)
        assert whole.abs().amax(1).tolist() == [127] * 40
        wide = whole.double() / 128
        assert bool((wide.bfloat16().double() == wide).all())

    def test_cached_weights_are_warmed_by_their_own_variant(self, setting, monkeypatch):
        seen = {}

        def measure(variants, **options):
            seen["prepare"], seen["variants"] = options["prepare"], variants
            return real(variants, **options)

        real = linear.measure
        monkeypatch.setattr(linear, "measure", measure)
        for place in places():
            next(linear.groups(setting, (place,)))
            log = []
            seen["prepare"](replace(seen["variants"][1], call=lambda log=log: log.append(1)))
            assert bool(log) == place.cached


class TestOverhead:
    def test_every_op_that_is_called_in_a_loop(self, setting):
        [rows] = grouped(overhead, setting)
        goals = {row.op: row.goal for row in rows if row.goal}
        assert goals.pop("verify_rejection") == "<= 25 us"
        assert set(goals.values()) == {"<= 12 us"}
        assert set(goals) == {
            *("tree_from_chains", "sample_sample", "sample_draft", "verify_greedy", "verify_match"),
            *("draft_ngram_lookup", "linear_skinny"),
        }
        assert Counter(row.variant for row in rows) == Counter({"cpu": 8, "cpu, out=": 8, "amax": 1})
        assert not [row for row in rows if row.time_us is None]
        assert all(row.goal is None for row in rows if row.variant != "cpu")

    def test_an_op_without_a_kernel_says_so(self, setting):
        [rows] = overhead.groups(replace(setting, backends=("cuda",)))
        assert all(row.note.startswith("failed: BackendUnavailableError: ") for row in rows if row.variant == "cuda")
        assert all(row.met is False for row in rows if row.variant == "cuda")
        assert len(rows) == 9
