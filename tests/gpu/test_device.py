"""Every op in a CUDA graph whose inputs change, and without a synchronisation. Only a machine with a GPU runs these."""

import pytest

from . import calls

FULL = pytest.mark.parametrize("full", [False, True], ids=["plain", "full"])
EVERY = pytest.mark.parametrize(("op", "backend"), calls.PAIRS)


@FULL
@EVERY
def test_a_graph_follows_lengths_and_data_that_change_on_the_device(op, backend, full):
    calls.replay(op, backend, full)


@FULL
@EVERY
def test_no_call_waits_for_the_device(op, backend, full):
    calls.without_sync(op, backend, full)


@pytest.mark.parametrize("backend", calls.BACKENDS)
def test_a_graph_of_a_whole_step_follows_lengths_that_change_on_the_device(backend):
    calls.replay_step(backend)


@pytest.mark.parametrize("backend", calls.BACKENDS)
def test_no_step_waits_for_the_device(backend):
    calls.step_without_sync(backend)
