"""Serving: requests that come and go at any moment, callbacks, failures, and a host that does not wait."""

import gc
import threading
import time

import pytest
import torch

import specdec_kernels as sk
from python_ref.decoding import Decoder, OverlappedDecoder, Request
from python_ref.decoding.device_queue import DeviceQueue

from .helpers import model_of, perfect, plain, prompt_of, requests_of
from .overlapping import PATIENCE, Gate, StaticScripted, decoder_of, drafters


@pytest.fixture(scope="module")
def model():
    return model_of(0)


@pytest.fixture(scope="module")
def target():
    return model_of(0, num_hidden_layers=6)


def free(decoder):
    decoder.check_pages()
    return decoder.idle


# ---- arrivals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["none", "ngram", "independent", "eagle3", "eagle3 tree", "dflash", "dflash of the best", "coupled ddtree"]
)
def test_requests_may_come_at_any_step(name, target):
    requests = requests_of(7, 0.8, new=7)
    expected = plain(target, requests)
    decoder = decoder_of(target, drafters(target)[name], max_batch=3, num_draft=3, prefill_chunk=4, prefill_budget=8)
    for gap in (0, 1, 2, 5):
        handles = []
        for request in requests:
            handles.append(decoder.submit(request))
            for _ in range(gap):
                decoder.step()
        decoder.run_until_idle()
        assert [handle.output.tokens for handle in handles] == expected, gap
        assert all(handle.done for handle in handles) and free(decoder)


def test_a_long_prompt_does_not_keep_the_others_from_decoding(model):
    requests = [Request([3], max_new_tokens=20), Request(prompt_of(1, 41), max_new_tokens=4)]
    decoder = decoder_of(model, prefill_chunk=4, prefill_budget=4)
    short = decoder.submit(requests[0])
    decoder.step()
    long = decoder.submit(requests[1])
    while not long.output.tokens:
        decoder.step()
    assert len(short.output.tokens) == 11  # while ten pieces of the prompt were read
    decoder.run_until_idle()
    assert [short.output.tokens, long.output.tokens] == plain(model, requests)


def test_step_without_work_does_nothing(model):
    decoder = decoder_of(model)
    assert decoder.idle and not decoder.step() and decoder.statistics.steps == 0
    decoder.run_until_idle()
    decoder.abort()


# ---- cancellation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "victims"), [("none", range(4)), ("independent", (2,)), ("eagle3 tree", (0, 3))])
def test_a_request_may_be_cancelled_at_every_moment(name, victims, target):
    """While it waits, while its prompt is read, while its steps are in flight, and when it is done."""
    requests = requests_of(4, 0.8, new=3)
    expected = plain(target, requests)
    options = {"max_batch": 2, "num_draft": 2, "prefill_chunk": 3, "prefill_budget": 3}
    decoder = decoder_of(target, drafters(target)[name], **options)
    for victim in victims:
        for moment in range(40):
            handles = [decoder.submit(request) for request in requests]
            for _ in range(moment):
                decoder.step()
            finished, late = decoder.idle, handles[victim].done
            before = list(handles[victim].output.tokens)
            decoder.cancel(handles[victim])
            decoder.cancel(handles[victim])
            decoder.run_until_idle()
            for i, handle in enumerate(handles):
                if i == victim and not late:
                    assert handle.output.finish_reason == "cancelled"
                    assert handle.output.tokens == before == expected[i][: len(before)]
                else:
                    assert handle.output.tokens == expected[i] and handle.output.finish_reason == "length"
            assert free(decoder)
            if finished:
                break
        else:
            raise AssertionError("there are moments that were not tried")


def test_abort_at_every_moment(model):
    requests = requests_of(5, 0.8, new=4)
    decoder = decoder_of(model, max_batch=2, prefill_chunk=3, prefill_budget=3)
    for moment in range(14):
        handles = [decoder.submit(request) for request in requests]
        for _ in range(moment):
            decoder.step()
        decoder.abort()
        assert free(decoder) and all(handle.done for handle in handles)
    assert [output.tokens for output in decoder.generate(requests)] == plain(model, requests)


def test_callbacks_may_cancel_and_submit(model):
    """One cancels itself, one cancels its neighbour, one submits another request."""
    expected = plain(model, [Request([5], max_new_tokens=9)])[0]
    for act in ("itself", "other", "more"):
        decoder, more = decoder_of(model, max_batch=2), []

        handles = []

        def told(tokens, act=act, decoder=decoder, more=more, handles=handles):
            if act == "more" and not more:
                more.append(decoder.submit(Request([5], max_new_tokens=9)))
            elif act != "more":
                decoder.cancel(handles[0 if act == "itself" else 1])

        first = Request([7, 8], max_new_tokens=9, on_tokens=told)
        handles += [decoder.submit(first), decoder.submit(Request([5], max_new_tokens=9))]
        decoder.run_until_idle()
        assert free(decoder)
        assert [handle.output.finish_reason for handle in handles] == [
            "cancelled" if act == "itself" else "length",
            "cancelled" if act == "other" else "length",
        ]
        assert len(handles[0].output.tokens) == (1 if act == "itself" else 9)
        assert handles[1].output.tokens == ([] if act == "other" else expected)
        assert [handle.output.tokens for handle in more] == ([expected] if act == "more" else [])


@pytest.mark.parametrize("name", ["none", "independent"])
@pytest.mark.parametrize("loop", [Decoder, OverlappedDecoder])
@pytest.mark.parametrize("at", [1, 2])
def test_a_callback_may_abort(loop, name, at, target):
    """Of both loops: of the step that it is told of the others get nothing, and what it submits then is served."""
    others = requests_of(3, 0.8)
    expected, more = plain(target, others), []

    def aborts(tokens):
        calls.append(tokens)
        if len(calls) == at:
            decoder.abort()
            assert [handle.output.finish_reason for handle in handles] == ["cancelled"] * 4
            more.append(decoder.submit(others[0]))

    decoder, calls = loop(target, ops=sk, drafter=drafters(target)[name], num_draft=2, max_batch=2), []
    handles = [decoder.submit(Request([1], on_tokens=aborts)), *map(decoder.submit, others)]
    while decoder.step():
        pass
    assert decoder.idle and len(calls) == at and handles[0].output.tokens == sum(calls, [])
    assert [handle.output.steps for handle in handles] == [at, at - 1, 0, 0]
    assert handles[1].output.tokens == expected[0][: len(handles[1].output.tokens)]
    assert more[0].output.tokens == expected[0] and more[0].output.finish_reason == "length"
    assert [output.tokens for output in decoder.generate(others)] == expected
    if loop is OverlappedDecoder:
        assert free(decoder)
    else:
        assert len(decoder.cache.free_pages) == decoder.cache.num_pages


# ---- callbacks ----------------------------------------------------------------------------------------------------------


def test_callbacks_come_in_order_with_the_tokens_of_each_step(model):
    heard = [[] for _ in range(4)]
    asked = requests_of(4, 0.6)
    expected = plain(model, asked)
    requests = [
        Request(r.prompt, r.max_new_tokens, r.temperature, seed=r.seed, on_tokens=heard[i].append)
        for i, r in enumerate(asked)
    ]
    decoder = decoder_of(model, StaticScripted(perfect(asked, expected), 3), num_draft=3)
    outputs = decoder.generate(requests)
    for parts, output, text in zip(heard, outputs, expected, strict=True):
        assert sum(parts, []) == output.tokens == text
        assert len(parts) == output.steps and all(1 <= len(part) <= 4 for part in parts)


class Fault(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 3, 6])
def test_an_exception_in_a_callback_frees_all_pages(model, at):
    calls = []

    def fails(tokens):
        calls.append(tokens)
        if len(calls) == at:
            raise Fault

    requests = [*requests_of(3, 0.5), Request([1, 2], max_new_tokens=6, on_tokens=fails)]
    decoder = decoder_of(model, max_batch=2)
    with pytest.raises(Fault):
        decoder.generate(requests)
    assert free(decoder) and len(calls) == at
    assert [output.tokens for output in decoder.generate(requests[:3])] == plain(model, requests[:3])


def test_step_by_step_only_the_request_of_the_callback_ends(model):
    def fails(tokens):
        raise Fault

    others = requests_of(3, 0.5)
    decoder = decoder_of(model)
    handles = [decoder.submit(request) for request in (Request([1], on_tokens=fails), *others)]
    faults = 0
    while not decoder.idle:
        try:
            decoder.step()
        except Fault:
            faults += 1
    assert faults == 1 and handles[0].output.finish_reason == "error" and len(handles[0].output.tokens) == 1
    assert [handle.output.tokens for handle in handles[1:]] == plain(model, others)
    assert free(decoder)


def test_a_callback_must_not_step(model):
    decoder = decoder_of(model)
    handle = decoder.submit(Request([1], on_tokens=lambda tokens: decoder.step()))
    with pytest.raises(RuntimeError, match="OverlappedDecoder.step: must be called outside of callbacks"):
        decoder.run_until_idle()
    assert handle.output.finish_reason == "error" and free(decoder)


# ---- failures of the device -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["join", "prime", "draft", "absorb"])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_exception_on_the_device_ends_all_requests_and_frees_all_pages(model, method, at):
    drafter, calls = StaticScripted(lambda text, count: [], 2), []
    real = getattr(drafter, method)

    def fails(*arguments):
        calls.append(method)
        if len(calls) == at:
            raise Fault
        return real(*arguments)

    setattr(drafter, method, fails)
    requests = requests_of(5, 0.5)
    decoder = decoder_of(model, drafter, max_batch=3, prefill_chunk=2)
    handles = [decoder.submit(request) for request in requests]
    with pytest.raises(Fault):
        decoder.run_until_idle()
    assert free(decoder)
    reasons = [handle.output.finish_reason for handle in handles]
    assert reasons.count("error") >= 2 and set(reasons) <= {"error", "length"}
    assert [output.tokens for output in decoder.generate(requests)] == plain(model, requests)


# ---- the host does not wait -----------------------------------------------------------------------------------------------


def test_the_host_reads_a_step_while_the_next_one_runs(model):
    """Step ``n + 1`` cannot end before the callback of step ``n`` has run: without overlap nobody would go on."""
    steps = 8
    gate = Gate(closed=range(1, steps))
    opened = []

    def told(tokens):
        step = len(opened)
        if step + 1 < steps:
            assert gate.entered[step + 1].wait(PATIENCE)  # the device is in the next step ...
            assert ("end", step + 1) not in gate.log  # ... and cannot have ended it
            gate.open(step + 1)
        opened.append(step)

    decoder = decoder_of(model, gate, num_draft=1)
    request = Request([4, 5], max_new_tokens=steps, on_tokens=told)
    (output,) = decoder.generate([request])
    assert [output.tokens] == plain(model, [Request([4, 5], max_new_tokens=steps)])
    assert opened == list(range(steps))
    assert [step for what, step in gate.log if what == "begin"] == list(range(steps))


def test_two_steps_are_launched_without_a_result(model):
    gate = Gate(closed=(0,))
    decoder = decoder_of(model, gate, num_draft=1)
    handle = decoder.submit(Request([4, 5], max_new_tokens=6))
    threading.Timer(0.3, gate.open, (0,)).start()
    decoder.step()  # launches a step and comes back at once
    assert not gate.gates[0].is_set() and handle.output.tokens == []
    decoder.step()  # launches the second one, and reads the first
    assert gate.gates[0].is_set() and len(handle.output.tokens) == 1
    decoder.run_until_idle()
    assert free(decoder)


@pytest.mark.parametrize("end", ["stop", "cancel"])
def test_pages_are_free_only_when_the_extra_step_has_ended(model, end):
    gate = Gate(closed=(2,))
    decoder = decoder_of(model, gate, num_draft=1, num_pages=8, page_size=4)
    text = plain(model, [Request([4, 5], max_new_tokens=6)])[0]
    stops = (text[1],) if end == "stop" else ()
    assert text[1] not in text[:1]
    handle = decoder.submit(Request([4, 5], max_new_tokens=6, stop_tokens=stops))
    decoder.step()
    decoder.step()
    decoder.step()  # reads step 1; step 2 is in flight
    if end == "cancel":
        decoder.cancel(handle)
    pool = decoder._scheduler.pool
    assert handle.done and gate.entered[2].wait(PATIENCE)
    owned = pool.pages(handle.number)
    assert owned and not set(owned) & set(pool.free) and not decoder.idle
    pool.check()
    gate.open(2)
    while decoder.step():
        pass
    assert len(pool.free) == 8 and decoder.statistics.dropped == 1
    assert handle.output.tokens == text[:2]
    assert free(decoder)


# ---- the queue of the device ----------------------------------------------------------------------------------------------


def test_tasks_run_in_order_and_not_after_one_that_raised():
    queue, seen = DeviceQueue(torch.device("cpu")), []
    tickets = [queue.submit(lambda i=i: seen.append(i)) for i in range(20)]
    tickets[-1].wait()
    assert seen == list(range(20)) and all(ticket.done for ticket in tickets)

    def fails():
        raise Fault

    tickets = [queue.submit(fails), queue.submit(lambda: seen.append("never"))]
    for ticket in tickets:
        with pytest.raises(Fault):
            ticket.wait()
    queue.recover()
    queue.submit(lambda: seen.append("again")).wait()
    assert seen[20:] == ["again"]


def test_the_thread_ends_with_the_decoder(model):
    before = set(threading.enumerate())
    decoder = decoder_of(model)
    decoder.generate([Request([1], max_new_tokens=3)])
    (worker,) = set(threading.enumerate()) - before
    del decoder
    gc.collect()
    worker.join(PATIENCE)
    assert not worker.is_alive()


def test_statistics_add_up_until_they_are_reset(model):
    requests = requests_of(3, 0.5)
    decoder = decoder_of(model)
    spent = []
    for runs in (1, 2):
        for request in requests:
            decoder.submit(request)
        decoder.run_until_idle()
        spent.append(decoder.statistics.total_seconds)
        assert not decoder.step() and decoder.statistics.total_seconds == spent[-1]
        assert decoder.statistics.requests == 3 * runs
    assert 0 < spent[0] < spent[1] and 0 < decoder.statistics.target_seconds < spent[1]
    decoder.generate(requests)
    assert decoder.statistics.requests == 3
    decoder.reset_statistics()
    assert decoder.statistics.new_tokens == 0


@pytest.mark.parametrize("aborts", [False, True])
@pytest.mark.parametrize("loop", [Decoder, OverlappedDecoder])
def test_what_a_callback_submits_last_does_not_move_the_clock(loop, aborts, model):
    """A closed loop: nothing is left to do but what the callback has just submitted. Nobody sleeps less than is asked."""
    nap, rounds = 0.01, 8

    def again(tokens):
        calls.append(tokens)
        time.sleep(nap)
        if aborts:
            decoder.abort()
        if len(calls) < rounds:
            decoder.submit(Request([1], max_new_tokens=1, on_tokens=again))

    decoder, calls = loop(model, ops=sk), []
    begin = time.perf_counter()
    decoder.submit(Request([1], max_new_tokens=1, on_tokens=again))
    while decoder.step():
        pass
    assert len(calls) == rounds
    assert nap * rounds <= decoder.statistics.total_seconds <= time.perf_counter() - begin


def test_a_request_of_another_decoder_cannot_be_cancelled():
    target = model_of()
    mine, other = decoder_of(target), decoder_of(target)
    handle = other.submit(requests_of(1, 0.0)[0])
    with pytest.raises(ValueError, match="cancel: handle must be of a request of this decoder"):
        mine.cancel(handle)
    other.run_until_idle()
    assert handle.output.finish_reason == "length"
