"""What is measured on a GPU: which shapes, which bytes, which goals. The rows are made on the CPU here, at a small size."""

import types
from collections import Counter

import pytest
import torch

from bench import gpu, machine, overhead, peers, plots, suite, verify_gpu
from bench.data import MissingData, Sizes
from bench.machine import Bandwidth
from bench.rows import as_dicts
from bench.runner import Timing, Variant, admit
from bench.verify_gpu import GPU_PARTS, NODES, REQUESTS, Shape

from .conftest import make_setting

VOCAB = 96
SMALL = [Shape("normal", 1, 8), Shape("normal", 3, 8, ("half", "none", "all"), compiled=True), Shape("normal", 5, 1)]


def taken(variant):
    """A stopwatch that needs no time: longer for the baselines."""
    variant.call()
    return 1e6 if variant.name == "eager" else 1e5


@pytest.fixture
def on_gpu(monkeypatch):
    """The CPU in the place of a GPU: its backend, a stopwatch that stands."""
    monkeypatch.setattr("bench.baselines.compiled", lambda function: function)
    return make_setting(stopwatch=taken)


def groups(setting, shapes=SMALL):
    return list(verify_gpu.groups(setting, VOCAB, shapes))


class TestShapes:
    def test_all_batches_of_all_chains_are_measured(self):
        full = verify_gpu.shapes(quick=False)
        normal = [shape for shape in full if shape.data == "normal"]
        assert {(s.requests, s.nodes) for s in normal} == {(b, n) for b in REQUESTS for n in NODES}
        assert (REQUESTS, NODES) == ((1, 4, 16, 64, 256), (1, 8, 64))
        shown = [s for s in full if s.outcomes != ("half",)]
        assert [(s.requests, s.nodes, s.outcomes) for s in shown] == [(64, 8, ("half", "none", "all"))]

    def test_chains_of_a_kind_come_together(self):
        for quick in (False, True):
            kinds = [(s.data, s.nodes) for s in verify_gpu.shapes(quick)]
            changes = 1 + sum(a != b for a, b in zip(kinds, kinds[1:], strict=False))
            assert changes == len(set(kinds))

    def test_the_ops(self):
        assert Counter(part.op for part in GPU_PARTS) == Counter(verify_greedy=1, verify_match=3, verify_rejection=3)
        assert {part.label for part in GPU_PARTS} == {"T=0", "T=1", "T=1, top-p 0.9", "T=1, top-k 50"}
        assert not [p for p in verify_gpu.parts_of(Shape("normal", 4, 1)) if p.op == "verify_rejection"]

    def test_the_number_of_groups(self):
        assert verify_gpu.count(make_setting(quick=True)) == 5 * 7
        assert verify_gpu.count(make_setting()) == 5 * 4 + 12 * 7 + 2 * 7

    def test_the_compiler_sees_few_shapes(self):
        """It refuses a ninth version of one function."""
        compiled = [shape for shape in verify_gpu.shapes(quick=False) if shape.compiled]
        most = Counter(part.op for _ in compiled for part in GPU_PARTS).most_common(1)[0][1]
        assert len(compiled) == 2 and most <= 8


class TestBytes:
    largest = Sizes(256, 64, 151_936)

    def part(self, op, label):
        return next(part for part in GPU_PARTS if (part.op, part.label) == (op, label))

    def test_logits(self):
        row = 2 * 151_936
        assert verify_gpu.logits_bytes(self.part("verify_match", "T=1"), self.largest) == 256 * 64 * row
        assert verify_gpu.logits_bytes(self.part("verify_rejection", "T=1"), self.largest) == 2 * 256 * 64 * row
        assert all(verify_gpu.logits_bytes(part, self.largest) < verify_gpu.MOST_BYTES for part in GPU_PARTS)

    def test_baselines_hold_float32_values_and_what_they_sort(self):
        plain, filtered = self.part("verify_match", "T=1"), self.part("verify_match", "T=1, top-p 0.9")
        sizes = Sizes(64, 8, 151_936)
        logits = sizes.rows * sizes.vocab
        assert verify_gpu.baseline_bytes(plain, sizes) == 20 * logits
        assert verify_gpu.baseline_bytes(filtered, sizes) == 44 * logits
        greedy = self.part("verify_greedy", "T=0")
        assert verify_gpu.baseline_bytes(greedy, sizes) == 2 * logits

    def test_the_bound_leaves_baselines_out_of_the_largest_shape_alone(self):
        fits = {
            (part.op, part.label): [
                (b, n)
                for b in REQUESTS
                for n in NODES
                if verify_gpu.baseline_bytes(part, Sizes(b, n, 151_936)) <= verify_gpu.MOST_BYTES
            ]
            for part in GPU_PARTS
        }
        assert (256, 64) in fits["verify_greedy", "T=0"]
        assert all((256, 64) not in found for (op, _), found in fits.items() if op != "verify_greedy")
        assert all((64, 8) in found for found in fits.values())

    def test_goals_depend_on_the_needed_bytes(self):
        assert [str(goal) for goal in verify_gpu.goals_for(64_000_000)] == [">= 0.7 of copy bandwidth"]
        assert [str(goal) for goal in verify_gpu.goals_for(63_999_999)] == ["<= 12 us"]


class TestRows:
    def test_every_case_has_its_rows(self, on_gpu):
        found = groups(on_gpu)
        assert len(found) == 7 + 3 * 7 + 4
        rows = [row for group in found for row in group]
        assert not [row for row in rows if row.note and row.variant != "eager topk"]
        assert {row.dtype for row in rows} == {"bfloat16"} and {row.data for row in rows} == {"normal"}
        for group in found:
            names = [row.variant for row in group if row.variant != "eager topk"]
            half = group[0].accepted == "half"
            compiled = half and group[0].shape.startswith("3 ")
            assert names == ["cpu", "amax"] + ["eager"] * half + ["compile"] * compiled

    def test_figures(self, on_gpu):
        rows = {(row.op, row.case, row.variant): row for group in groups(on_gpu, SMALL[1:2]) for row in group[:3]}
        row = rows["verify_match", "T=1", "cpu"]
        assert row.accepted == "all" and row.needed_bytes == 3 * 8 * VOCAB * 2
        row = next(g[0] for g in groups(on_gpu, [Shape("normal", 3, 8)]) if g[0].op == "verify_rejection")
        assert row.needed_bytes == 2 * (4 + 5 + 4) * VOCAB * 2
        assert row.time_us == 100.0 and row.speedup_over_eager == 10.0
        assert row.share_of_copy == pytest.approx(row.needed_bytes / 100.0 / 1e3 / 15.0)
        assert (row.goal, row.reached, row.met) == ("<= 12 us", "100", False)

    def test_a_backend_without_a_kernel_is_named_and_is_no_wrong_result(self, on_gpu, monkeypatch):
        reasons = {"cpu": None, "cuda": "module specdec_kernels._C_cuda is not built"}
        monkeypatch.setattr("specdec_kernels.available_backends", lambda op: reasons)
        setting = make_setting(stopwatch=taken, backends=("cpu", "cuda"))
        found = groups(setting, SMALL[:1])
        for group in found:
            [row] = [row for row in group if row.variant == "cuda"]
            assert row.note == "not available: module specdec_kernels._C_cuda is not built"
            assert row.met is False and row.time_us is None
        assert not suite.wrong([row for group in found for row in group], setting)

    def test_baselines_beyond_the_bound_say_so(self, on_gpu, monkeypatch):
        monkeypatch.setattr(verify_gpu, "MOST_BYTES", 10_000)
        for group in groups(on_gpu, SMALL[:1]):
            eager = [row for row in group if row.variant == "eager"]
            large = group[0].op != "verify_greedy"
            assert [row.note for row in eager] == (["not measured: would need about 0 GB"] if large else [None])

    def test_data_that_are_missing_leave_rows_that_say_so(self, on_gpu, monkeypatch):
        def missing(sizes):
            raise MissingData("no recorded logits: nothing there")

        monkeypatch.setattr(verify_gpu, "recorded", missing)
        found = groups(on_gpu, [Shape("recorded", 64, 8)])
        assert len(found) == 7
        assert all(row.note == "no recorded logits: nothing there" for group in found for row in group)

    def test_decisions_are_asked_for_once_for_all_batches(self, on_gpu, monkeypatch):
        from bench import cases

        asked = []
        real = cases.rejection
        monkeypatch.setattr(cases, "rejection", lambda *given: asked.append(given[-1]) or real(*given))
        groups(on_gpu, [Shape("normal", 1, 8), Shape("normal", 2, 8), Shape("normal", 5, 8)])
        assert asked == ["half"] * 3  # once for each kind of settings

    def test_an_exposed_launch_is_noted(self, monkeypatch):
        class Exposing:
            exposed = {"cpu"}

            def __call__(self, variant):
                return taken(variant)

        rows = [row for group in groups(make_setting(stopwatch=Exposing()), SMALL[:1]) for row in group]
        noted = [row for row in rows if row.note == "the processor could not queue the call in time: it counts"]
        assert {row.variant for row in noted} == {"cpu"} and len(noted) == 7


class FakeEvents:
    """Events of a device that reaches the call too early until enough reads are queued before it."""

    def __init__(self, enough):
        self.enough, self.reads, self.log = enough, 0, []


class TestStopwatch:
    @pytest.fixture
    def made(self, monkeypatch):
        state = FakeEvents(enough=4)

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                state.log.append("record")

            def query(self):
                early, state.reads = state.reads < state.enough, 0
                return early

            def synchronize(self):
                state.log.append("wait")

            def elapsed_time(self, other):
                return 0.25

        def amax(buffer, dim, out):
            state.reads += 1
            state.log.append("read")

        stopwatch = object.__new__(gpu.EventStopwatch)
        stopwatch._buffer = stopwatch._largest = None
        stopwatch._reads, stopwatch.exposed = {}, set()
        stopwatch._start, stopwatch._end = Event(True), Event(True)
        monkeypatch.setattr(gpu.torch, "amax", amax)
        return stopwatch, state

    def variant(self, state, inner=1):
        return Variant("cuda", lambda: state.log.append("call"), lambda _: None, inner)

    def test_reads_are_doubled_until_the_call_is_queued_behind_them(self, made):
        stopwatch, state = made
        assert stopwatch(self.variant(state)) == 250_000.0
        assert state.log.count("call") == 3 and state.log[-9:] == [
            "wait",
            *["read"] * 4,
            "record",
            "call",
            "record",
            "wait",
        ]
        state.log.clear()
        stopwatch(self.variant(state))
        assert state.log == [*["read"] * 4, "record", "call", "record", "wait"]  # it remembers how many it takes
        assert not stopwatch.exposed

    def test_a_call_that_cannot_be_hidden_is_known_as_such_and_tried_once_from_then_on(self, made):
        stopwatch, state = made
        state.enough = 1000
        stopwatch(self.variant(state))
        assert stopwatch.exposed == {"cuda"}
        state.log.clear()
        stopwatch(self.variant(state))
        assert state.log.count("call") == 1

    def test_short_calls_are_repeated(self, made):
        stopwatch, state = made
        state.enough = 0
        assert stopwatch(self.variant(state, inner=5)) == 50_000.0
        assert state.log.count("call") == 5


class Library:
    """The functions of the peer that are called, in plain PyTorch. ``spoil`` changes the tokens."""

    def __init__(self, spoil=lambda tokens: tokens, takes=(torch.bfloat16, torch.float32)):
        self.spoil, self.takes, self.seen = spoil, takes, []

    def softmax(self, logits, temperature):
        self.seen.append(logits.dtype)
        if logits.dtype not in self.takes:
            raise TypeError
        return (logits.float() / temperature.unsqueeze(1)).softmax(-1)

    def top_k_renorm_probs(self, probs, top_k):
        kept = torch.zeros_like(probs).scatter(1, probs.topk(top_k).indices, 1.0) * probs
        return kept / kept.sum(1, keepdim=True)

    def top_p_renorm_probs(self, probs, top_p):
        return probs

    def sampling_from_probs(self, probs):
        return probs.argmax(1).int()

    def top_k_sampling_from_probs(self, probs, top_k):
        return probs.argmax(1).int()

    def top_p_sampling_from_probs(self, probs, top_p):
        return probs.argmax(1).int()

    def chain_speculative_sampling(self, draft_probs, drafts, target_probs):
        assert draft_probs.shape[1] == drafts.shape[1] == target_probs.shape[1] - 1 and drafts.dtype == torch.int32
        assert draft_probs.dtype == target_probs.dtype == torch.float32
        tokens = torch.full((drafts.shape[0], drafts.shape[1] + 1), -1, dtype=torch.int32)
        tokens[:, 0], tokens[:, 1] = drafts[:, 0], 7
        return self.spoil(tokens), None, None


class TestPeer:
    logits = torch.randn(2 * 4, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    drafts = torch.tensor([[3, 4, 5], [6, 7, 8]])

    def variants(self, op, library, monkeypatch, drafts=None, **settings):
        monkeypatch.setattr(peers, "load", lambda: library)
        given = self.drafts if drafts is None else drafts
        return peers.variants(op, self.logits, self.logits, given, {"temperature": 0.7} | settings)

    @pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.9}])
    @pytest.mark.parametrize("op", ["verify_match", "verify_rejection"])
    def test_its_pipeline_has_the_right_form(self, op, settings, monkeypatch):
        [variant] = self.variants(op, Library(), monkeypatch, **settings)
        assert variant.name == "flashinfer" and admit(variant) is None

    def test_logits_that_it_does_not_take_are_converted(self, monkeypatch):
        library = Library(takes=(torch.float32,))
        [variant] = self.variants("verify_match", library, monkeypatch)
        assert admit(variant) is None and admit(variant) is None
        assert library.seen == [torch.bfloat16, torch.float32, torch.float32]  # asked once, before anything is timed

    @pytest.mark.parametrize(
        "spoil, reason",
        [
            (lambda tokens: tokens[:, :2], r"tokens must have shape \[2, 4\]"),
            (lambda tokens: tokens.index_fill(1, torch.tensor([0]), 9), "request 0 must begin with its drafts"),
            (lambda tokens: tokens.index_fill(1, torch.tensor([1]), 99), "request 0 must have some tokens, then -1"),
            (lambda tokens: tokens.index_fill(1, torch.tensor([0]), -1), "request 0 must have some tokens, then -1"),
        ],
    )
    def test_another_form_is_refused(self, spoil, reason, monkeypatch):
        import re

        [variant] = self.variants("verify_rejection", Library(spoil), monkeypatch)
        assert re.match(f"wrong result: {reason}", admit(variant).reason)

    def test_who_is_not_there_takes_no_part(self, monkeypatch):
        assert self.variants("verify_match", None, monkeypatch) == []
        assert self.variants("verify_greedy", Library(), monkeypatch) == []
        assert self.variants("verify_rejection", Library(), monkeypatch, drafts=self.drafts[:, :0]) == []

    def test_a_package_that_does_not_suit_the_machine_is_none(self, monkeypatch):
        def fails(name):
            raise OSError("no driver")

        monkeypatch.setattr(peers.importlib, "import_module", fails)
        assert peers.load() is None


def test_a_copy_moves_its_bytes_twice():
    microseconds = {"copy": 2.0, "torch.amax": 5.0, "torch.sum": 4.0}
    found = gpu.bandwidth(lambda variant: 1e3 * microseconds[variant.name], size=1 << 12, repeats=3, device="cpu")
    assert (found.copy, found.read, found.reader) == (2 * 4096 / 2e3, 4096 / 4e3, "torch.sum")


def test_a_setting_for_a_gpu_names_it_and_has_its_stopwatch(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(gpu, "EventStopwatch", lambda: taken)
    monkeypatch.setattr(gpu, "bandwidth", lambda stopwatch: Bandwidth(4.0, 3.0, "torch.amax"))
    reasons = {"cuda": None, "triton": "the package triton is not installed"}
    monkeypatch.setattr("specdec_kernels.available_backends", lambda op: reasons)
    setting = suite.prepare(quick=True, device="cuda")
    assert setting.machine["device"] == "NVIDIA H200" and setting.bandwidth.copy == 3.0
    assert (setting.device, setting.backends, setting.stopwatch) == ("cuda", ("cuda",), taken)
    assert (setting.quick, setting.repeats) == (True, suite.QUICK_REPEATS)
    assert (
        machine.file_name("verify", setting.machine | {"date": "2026-01-31"}, "cuda")
        == "verify-nvidia-h200-2026-01-31.csv"
    )


def test_on_a_gpu_the_overhead_of_ops_that_it_cannot_serve_is_not_measured(monkeypatch):
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    monkeypatch.setattr(overhead, "Placed", lambda *sizes: types.SimpleNamespace(case=lambda case: case))
    monkeypatch.setattr("specdec_kernels.available_backends", lambda op: {"cuda": "not built", "triton": None})
    setting = make_setting(device="cuda", backends=("cuda",))
    [rows] = overhead.groups(setting)
    assert "linear_skinny" not in {row.op for row in rows}
    ours = [row for row in rows if row.variant == "cuda"]
    assert len(ours) == 7 and {row.note for row in ours} == {"not available: not built"}
    assert not suite.wrong(rows, setting)


def test_lines_of_the_pictures_are_shares_over_bytes(on_gpu):
    on_gpu = make_setting(stopwatch=taken)
    rows = [row for group in groups(on_gpu, [Shape("normal", 5, 8), Shape("normal", 1, 8)]) for row in group]
    drawn = plots.lines([{k: "" if v is None else str(v) for k, v in row.items()} for row in as_dicts(rows)])
    assert len(drawn) == 7
    needed, share = drawn["verify.match, T=1"]["cpu"]
    assert needed == sorted(needed) and len(needed) == len(share) == 2


def test_without_rows_there_is_no_picture(tmp_path, capsys):
    (tmp_path / "resources.csv").write_text("a,b\n")
    assert plots.main(str(tmp_path), str(tmp_path)) == 1
    assert capsys.readouterr().out == "there are no rows to be drawn\n"


def test_quantiles_of_samples_in_nanoseconds():
    assert Timing((250_000.0,)).p50 == 250.0


class TestAssistant:
    """transformers, on the CPU."""

    def variants(self, **settings):
        generator = torch.Generator().manual_seed(1)
        target = torch.randn(2 * 4, 32, generator=generator).bfloat16()
        drafts = torch.tensor([[3, 4, 5], [6, 7, 8]])
        target.view(2, 4, 32)[1, torch.arange(3), drafts[1]] = 4.0
        draft = target.clone()
        draft.view(2, 4, 32)[0, 0, 3] = 20.0  # drawn for sure, and unlikely to be kept
        return peers.assistant(target, draft, drafts, {"temperature": 0.7} | settings)

    @pytest.mark.parametrize("settings", [{}, {"top_p": 0.99}])
    def test_its_part_has_the_right_form(self, settings):
        [variant] = self.variants(**settings)
        assert variant.name == "transformers" and admit(variant) is None
        numbers = torch.stack([variant.call()[1] for _ in range(40)])
        assert bool((numbers[:, 0] == 1).any()) and bool(
            (numbers[:, 1] == 4).all()
        )  # where both laws agree all are kept

    def test_who_is_not_there_takes_no_part(self, monkeypatch):
        monkeypatch.setattr(peers, "load", lambda module: None)
        assert self.variants() == []
