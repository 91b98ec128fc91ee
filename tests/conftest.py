"""Options, markers and fixtures of all tests.

A test that calls fused ops takes the fixture ``backend`` and says with ``@pytest.mark.op(...)``
which ops it calls. It then runs on every fused backend that can serve them here, and on ``cpu`` in
any case: a kernel that is missing fails, nothing is skipped.
"""

import sys
import zlib

import hypothesis
import pytest
import torch

from specdec_kernels import _backend

FUSED = ("cuda", "triton", "cpu", "emulated")

# Folders whose inputs are too little work for a second thread: on a busy machine threads wait for each other.
ONE_THREAD = ("agreement", "decoding", "dispatch", "docs", "laws")

# Kernels run by the CPU step by step: a million trials would take hours.
SLOW = ("emulated", "triton")

# The suite is the same in every run; `--hypothesis-profile soak` looks for new examples.
hypothesis.settings.register_profile("house", max_examples=1, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("soak", max_examples=5000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True)
def _threads(request):
    before = torch.get_num_threads()
    if request.path.parent.name in ONE_THREAD:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _schedule(request, monkeypatch):
    """Emulated kernels run in an order of threads that depends on the test, and some on a GPU without clusters."""
    if "backend" in request.fixturenames and request.node.callspec.params.get("backend") == "emulated":
        seed = zlib.crc32(request.node.nodeid.encode())
        orders = ("reverse", "one_warp_ahead", "shuffled", "one_warp_ahead")
        monkeypatch.setenv("SPECDEC_EMULATOR_SCHEDULE", orders[seed % 4])
        monkeypatch.setenv("SPECDEC_EMULATOR_SEED", str(seed))
        monkeypatch.setenv("SPECDEC_EMULATOR_DEVICE", "80" if seed % 3 == 0 else "90")
    yield


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        action="append",
        choices=(*FUSED, "reference"),
        help="backend of the tests that take one (repeatable); default: all fused ones that are available, and cpu",
    )


def pytest_configure(config):
    config.pluginmanager.register(_Tallies(), "tallies")
    config.addinivalue_line("markers", "op(*names): the ops that a test with the fixture `backend` calls")
    config.addinivalue_line("markers", "package: builds and installs distributions; see `make test-package`")


def pytest_generate_tests(metafunc):
    ops = [name for marker in metafunc.definition.iter_markers("op") for name in marker.args]
    if "backend" not in metafunc.fixturenames or not ops:
        return
    chosen = metafunc.config.getoption("--backend")
    if chosen is None:
        served = {b for b in FUSED if all(_backend.why_not(op, b) is None for op in ops)}
        slow = SLOW if metafunc.definition.path.parent.name == "laws" else ()
        chosen = [b for b in FUSED if b in served | {"cpu"} and b not in slow]
    metafunc.parametrize("backend", [b for b in chosen if all(_backend.has_op(op, b) for op in ops)])


def pytest_collection_modifyitems(config, items):
    if config.getoption("markexpr"):
        return
    late = [item for item in items if item.get_closest_marker("package")]
    if late:
        config.hook.pytest_deselected(items=late)
        items[:] = [item for item in items if item not in late]


def _tallies():
    """What the agreement tests of this process have counted."""
    compare = sys.modules.get("agreement.compare")
    return [str(tally) for tally in compare.TALLIES] if compare else []


class _Tallies:
    """Collects the tallies of the processes that share the tests."""

    def __init__(self):
        self.lines = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        self.lines += getattr(node, "workeroutput", {}).get("tallies", [])


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tallies"] = _tallies()


def pytest_terminal_summary(terminalreporter, config):
    for line in sorted(config.pluginmanager.get_plugin("tallies").lines + _tallies()):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
