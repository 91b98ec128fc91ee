"""What ``make gpu-check`` reads and chooses: reports, logs, kernels' resources, tests of a run; and the calls, on the CPU."""

import types
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch

import specdec_kernels as sk
from specdec_kernels._schema import OPS

from . import calls, reports, resources, selection

XDIST = """$ python -m pytest
[gw1] [  2%] PASSED tests/laws/test_x.py::test_a[cuda]
[gw0] [  4%] FAILED tests/laws/test_x.py::test_b
[gw0] [  6%] SKIPPED tests/laws/test_x.py::test_c
FAILED tests/laws/test_x.py::test_b - AssertionError: law is biased
"""
ALONE = """tests/x.py::test_a[a b] PASSED                    [ 33%]
tests/x.py::test_b ERROR                    [ 66%]
tests/x.py::test_c """


def test_a_log_tells_what_was_known_when_a_run_was_killed(tmp_path):
    (tmp_path / "tests-cuda.txt").write_text(XDIST)
    found = reports.tests(tmp_path, "tests-cuda")
    assert str(found) == "1 failed, 1 passed, 1 skipped, stopped before its end"
    assert found.failures == ["tests/laws/test_x.py::test_b: AssertionError: law is biased"]
    (tmp_path / "graphs.txt").write_text(ALONE)
    assert str(reports.tests(tmp_path, "graphs")) == "1 failed, 1 passed, stopped before its end"
    assert reports.tests(tmp_path, "other") is None


def test_an_error_without_a_message_shows_the_next_line(tmp_path):
    case = "<testcase classname='tests.x' name='t'><failure message='AssertionError:&#10; assert 1 == 2&#10; more'/></testcase>"
    (tmp_path / "a.xml").write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>")
    assert reports.tests(tmp_path, "a").failures == ["x::t: AssertionError: assert 1 == 2"]


def test_a_report_that_was_cut_off_leaves_the_log(tmp_path):
    (tmp_path / "tests-cuda.txt").write_text(XDIST)
    (tmp_path / "tests-cuda.xml").write_text("<testsuites><testsuite><testcase classname='x'")
    assert reports.tests(tmp_path, "tests-cuda").partial


def test_the_program_without_pytest_is_read_like_a_run(tmp_path):
    text = "PASSED replay[a-cuda-full]\nFAILED once[b-cuda-plain] - AssertionError: no\n1 passed, 1 failed\n"
    (tmp_path / "graphs.txt").write_text(text)
    found = reports.tests(tmp_path, "graphs")
    assert str(found) == "1 failed, 1 passed" and found.failures == ["once[b-cuda-plain]: AssertionError: no"]


@pytest.mark.parametrize(
    ("tool", "line"),
    [
        ("memcheck", "Invalid __global__ read of size 16 bytes"),
        ("racecheck", "Error: Race reported between Write access at 0x1 and Read access at 0x2 [4 hazards]"),
        ("initcheck", "Uninitialized __global__ memory read of size 4 bytes"),
        ("synccheck", "Barrier error detected. Divergent thread(s) in block"),
        ("memcheck", "Program hit cudaErrorIllegalAddress (error 700)"),
    ],
)
def test_findings_of_the_sanitizers(tmp_path, tool, line):
    log = f"========= COMPUTE-SANITIZER\n========= {line}\n=========     at error_kernel()+0x10\n"
    (tmp_path / f"{tool}-log.txt").write_text(log + "=========\n========= ERROR SUMMARY: 1 error\n")
    assert reports.sanitizer(tmp_path, tool) == ["ERROR SUMMARY: 1 error", line]


def test_the_end_of_an_output_is_its_errors_or_its_last_lines(tmp_path):
    (tmp_path / "build.txt").write_text("$ cmake\n" + "".join(f"step {i}\n\n" for i in range(9)))
    assert reports.tail(tmp_path, "build", 2) == ["step 7", "step 8"]
    (tmp_path / "build.txt").write_text("$ cmake\nx.cu(3): error: no such name\nstopped\n")
    assert reports.tail(tmp_path, "build") == ["x.cu(3): error: no such name"]


USAGE = """
Fatbin elf code:
================
arch = sm_90a
code version = [1,8]
host = linux

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN7specdec4cuda13greedy_kernelIfEEvNS_10VerifyCallE:
  REG:40 STACK:0 SHARED:132 LOCAL:0 CONSTANT[0]:1120 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z5otherv:
  REG:255 STACK:UNKNOWN SHARED:0 LOCAL:16 CONSTANT[0]:900

Fatbin elf code:
================
arch = sm_80
Resource usage:
 Function _Z5otherv:
  REG:24 STACK:8 SHARED:0 LOCAL:0 CONSTANT[0]:380
"""


def test_resources_of_each_kernel_on_each_architecture():
    found = [tuple(row.values()) for row in resources.parse(USAGE)]
    assert found == [
        ("_ZN7specdec4cuda13greedy_kernelIfEEvNS_10VerifyCallE", "sm_90a", "40", "0", "132", "0"),
        ("_Z5otherv", "sm_90a", "255", "UNKNOWN", "0", "16"),
        ("_Z5otherv", "sm_80", "24", "8", "0", "0"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("void specdec::cuda::greedy_kernel<float, (int)3>(specdec::VerifyCall)", "greedy_kernel<float, (int)3>"),
        ("specdec::cuda::(anonymous namespace)::walk_kernel(int)", "walk_kernel"),
        ("_Z5otherv", "_Z5otherv"),
    ],
)
def test_names_of_kernels_are_short(name, text):
    assert resources.short(name) == text


def item(backend=None, op=None, marked=()):
    parameters = {name: value for name, value in (("backend", backend), ("op", op)) if value}
    marks = [types.SimpleNamespace(args=marked)]
    return types.SimpleNamespace(callspec=types.SimpleNamespace(params=parameters), iter_markers=lambda name: marks)


@pytest.mark.parametrize(
    ("test", "on_cuda", "on_triton"),
    [
        (item(), True, False),
        (item("cpu", "verify_match"), True, False),
        (item("cuda", "verify_match"), True, False),
        (item("triton", "verify_match"), False, True),
        (item("cuda", marked=("verify_match", "verify_greedy")), True, False),
        (item("cuda", marked=("linear_pack",)), False, False),
        (item(object(), marked=("linear_pack",)), False, False),  # pytest's word for a parameter without values
        (item("triton", "linear_skinny"), False, False),
    ],
)
def test_a_run_takes_what_its_backend_can_serve_and_nothing_twice(test, on_cuda, on_triton):
    assert selection.wanted(test, ["cuda"]) == on_cuda
    assert selection.wanted(test, ["triton"]) == on_triton


def test_every_op_that_a_gpu_could_serve_is_called():
    assert {op for op, _ in calls.PAIRS} == {op.name for op in OPS if "cuda" in op.backends}
    assert all(calls.why_not(op, backend) for op, backend in calls.PAIRS) or torch.cuda.is_available()


ON_CPU = sorted({op for op, _ in calls.PAIRS})


@pytest.mark.parametrize("full", [False, True], ids=["plain", "full"])
@pytest.mark.parametrize("op", ON_CPU)
def test_what_changes_between_replays_fits_the_graph_and_changes_the_result(op, full):
    """The arguments of all steps have the shapes of the first, are valid, and lead to other results."""
    results = []
    for step in (0, 1, 2, 3):
        values = calls.changed(op, full, step)
        held = calls.copied(calls.changed(op, full, 0))
        assert [t.shape for t in calls.tensors(held)] == [t.shape for t in calls.tensors(values)]
        calls.overwrite(held, values)
        made = []
        for each in (held, values):
            arguments = calls.copied(each)
            made.append(calls.written(calls.function(op)(**arguments, backend="cpu"), arguments))
        calls._compare(op, f"step {step}", *made)
        results.append(made[0])
    for other in results[1:]:
        assert any(not torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), op


@pytest.fixture
def cpu_graphs(monkeypatch):
    """Graphs that call again what was called while they were captured: ``stale`` ones with what they saw then."""
    state = types.SimpleNamespace(graph=None, stale=False)
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    function = calls.function

    class Graph:
        def __init__(self):
            self.recorded = []

        def replay(self):
            for call in self.recorded:
                call()

    @contextmanager
    def graph(made):
        state.graph = made
        yield
        state.graph = None

    def watched(op):
        def call(**arguments):
            if state.graph is not None:
                kept = arguments
                if state.stale:
                    same = ("out", *calls.ALSO_WRITTEN)
                    kept = {name: v if name in same else calls.copied(v) for name, v in arguments.items()}
                state.graph.recorded.append(partial(function(op), **kept))
            return function(op)(**arguments)

        return call

    monkeypatch.setattr(calls, "DEVICE", "cpu")
    monkeypatch.setattr(calls, "function", watched)
    replaced = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda _: nullcontext()}
    for name, value in (replaced | {"synchronize": lambda: None, "CUDAGraph": Graph, "graph": graph}).items():
        monkeypatch.setattr(torch.cuda, name, value)
    return state


@pytest.mark.parametrize("op", ON_CPU)
def test_a_replay_must_follow_the_tensors_that_the_graph_reads(op, cpu_graphs):
    calls.replay(op, "cpu", full=True)
    cpu_graphs.stale = True
    with pytest.raises(AssertionError, match=f"{op}, step [123]: tensor"):
        calls.replay(op, "cpu", full=True)


def test_the_mode_that_forbids_to_wait_is_left_again(monkeypatch):
    modes = []
    monkeypatch.setattr(calls, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: modes.append("wait"))
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    calls.without_sync("verify_match", "cpu", full=False)
    assert modes == ["wait", "error", "default", "wait"]
    monkeypatch.setattr(calls, "function", lambda op: lambda **_: modes.append(1 / (modes[-1] != "error")))
    with pytest.raises(ZeroDivisionError):
        calls.without_sync("verify_match", "cpu", full=False)
    assert modes[-2:] == ["error", "default"]


def test_trees_that_change_are_valid_and_of_as_many_rows():
    first, swapped, idle = calls.tree(2), calls._swapped(1), calls._swapped(2)
    assert [t.cu_nodes.tolist() for t in (first, swapped, idle)] == [[0, 3, 7], [0, 4, 7], [0, 3, 3]]
    assert swapped.parents.tolist() == [-1, 0, 1, 0, -1, 0, 1]
    assert swapped.max_nodes == first.max_nodes and swapped.tokens.shape == first.tokens.shape


def test_a_replay_that_kept_old_lengths_would_be_seen():
    values = calls.changed("tree_from_chains", True, 1)
    stale = {**values, "lengths": calls.changed("tree_from_chains", True, 0)["lengths"]}
    made = [calls.tensors(sk.tree.from_chains(**calls.copied(each), backend="cpu")) for each in (stale, values)]
    with pytest.raises(AssertionError, match="tree_from_chains, x: tensor"):
        calls._compare("tree_from_chains", "x", *made)
