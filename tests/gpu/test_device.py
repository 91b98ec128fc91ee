"""Every op in a CUDA graph whose inputs change, and without a synchronisation. Only a machine with a GPU runs these."""

import pytest

from . import calls

FULL = pytest.mark.parametrize("full", [False, True], ids=["plain", "full"])
EVERY = pytest.mark.parametrize(("op", "backend"), calls.PAIRS)
RULES = pytest.mark.parametrize(("op", "backend", "rule"), calls.RULES)


@FULL
@EVERY
def test_a_graph_follows_lengths_and_data_that_change_on_the_device(op, backend, full):
    calls.replay(op, backend, full)


@FULL
@EVERY
def test_no_call_waits_for_the_device(op, backend, full):
    calls.without_sync(op, backend, full)


@FULL
@RULES
def test_a_graph_of_another_rule_follows_them(op, backend, rule, full):
    calls.replay(op, backend, full, rule=rule)


@FULL
@RULES
def test_no_call_by_another_rule_waits_for_the_device(op, backend, rule, full):
    calls.without_sync(op, backend, full, rule=rule)


@pytest.mark.parametrize("backend", calls.BACKENDS)
def test_a_graph_of_a_whole_step_follows_lengths_that_change_on_the_device(backend):
    calls.replay_step(backend)


@pytest.mark.parametrize("backend", calls.BACKENDS)
def test_no_step_waits_for_the_device(backend):
    calls.step_without_sync(backend)


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("drafter", ["none", "ngram", "itself"])
def test_the_overlapped_loop_waits_for_nothing_but_results(backend, drafter):
    """A run whose shapes have been seen: no call of the host synchronises, but for the events behind the results."""
    for name in ("safetensors", "tokenizers"):
        pytest.importorskip(name)
    import torch
    from decoding.helpers import model_of, requests_of

    import specdec_kernels as sk
    from python_ref.decoding import OverlappedDecoder
    from python_ref.drafters import IndependentDrafter, NgramDrafter

    target = model_of(0).to("cuda")
    chosen = {"none": None, "ngram": NgramDrafter(sk), "itself": IndependentDrafter(target, sk)}[drafter]
    requests = requests_of(5, 0.7)
    with sk.use_backend(backend):
        decoder = OverlappedDecoder(target, ops=sk, drafter=chosen, num_draft=3, max_batch=4)
        before = [output.tokens for output in decoder.generate(requests)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            after = [output.tokens for output in decoder.generate(requests)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert after == before
