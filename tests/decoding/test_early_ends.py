"""What figures and records say of requests that a callback, a drafter or ``abort`` ended."""

import pytest

import specdec_kernels as sk
from python_ref.decoding import Decoder, Request
from python_ref.decoding.trace import Recorder
from python_ref.drafters import IndependentDrafter

from .helpers import Scripted, model_of, perfect, plain, requests_of


@pytest.fixture(scope="module")
def model():
    return model_of(0)


def recorded(recorder):
    return recorder.to_dict(lambda token: b"x")["requests"]


def in_text(record):
    return [token for step in record["steps"] for token in step["emitted"]]


def test_expectations_are_those_of_the_steps_that_count():
    """Of the step in which a callback aborts only the rows count whose tokens were taken."""

    def aborts(tokens):
        decoder.abort()

    model = model_of(0)
    alone, others = requests_of(1, 0.9), requests_of(3, 0.9)
    drafter = IndependentDrafter(model_of(1), sk)
    decoder = Decoder(model, ops=sk, drafter=drafter, rule="rejection", expects=True)
    first = Request(**{**vars(alone[0]), "on_tokens": aborts})
    decoder.generate([first])
    wanted = dict(decoder.statistics.expected)
    assert decoder.statistics.request_steps == 1 and wanted["token"] >= 1
    decoder.generate([first, *others])
    assert decoder.statistics.request_steps == 1
    assert decoder.statistics.expected == pytest.approx(wanted)
    assert decoder.statistics.expected_tokens_per_step("token") == pytest.approx(wanted["token"])


def test_a_step_that_raises_expected_nothing(model):
    class Deaf(IndependentDrafter):
        features = (0,)

        def prime(self, *arguments):
            pass

        def absorb(self, *arguments):
            raise ZeroDivisionError

    decoder = Decoder(model, ops=sk, drafter=Deaf(model_of(1), sk), rule="rejection", expects=True)
    with pytest.raises(ZeroDivisionError):
        decoder.generate(requests_of(2, 0.9))
    assert decoder.statistics.request_steps == 0 and decoder.statistics.expected == {}


@pytest.mark.parametrize("at", [1, 2])
def test_a_record_ends_where_a_callback_aborts(model, at):
    """Also those of the neighbours: what the step had for them is in no text."""
    requests = requests_of(3, 0.8)
    script, calls = Scripted(perfect(requests, plain(model, requests))), []

    def aborts(tokens):
        calls.append(tokens)
        if len(calls) == at:
            decoder.abort()

    recorder = Recorder()
    decoder = Decoder(model, ops=sk, drafter=script, max_batch=2, trace=recorder)
    asked = [Request(**{**vars(requests[0]), "on_tokens": aborts}), *requests[1:]]
    outputs = decoder.generate(asked)
    first, second = recorded(recorder)  # the third had no row
    assert [record["finish_reason"] for record in (first, second)] == ["cancelled"] * 2
    assert [len(record["steps"]) for record in (first, second)] == [at, at]
    assert [in_text(first), in_text(second)] == [output.tokens for output in outputs[:2]]
    assert first["steps"][-1]["emitted"] and not second["steps"][-1]["emitted"]
    assert second["steps"][-1]["path"] == [0] and second["steps"][-1]["emitted_probabilities"] == []
    assert decoder.generate(requests)[0].tokens and len(recorded(recorder)) == 5


def test_a_record_ends_where_a_callback_raises(model):
    def fails(tokens):
        raise ZeroDivisionError

    recorder = Recorder()
    decoder = Decoder(model, ops=sk, trace=recorder)
    requests = requests_of(2, 0.8)
    handles = [decoder.submit(Request(**{**vars(requests[0]), "on_tokens": fails})), decoder.submit(requests[1])]
    with pytest.raises(ZeroDivisionError):
        decoder.step()
    assert [record["finish_reason"] for record in recorded(recorder)] == ["error"] * 2
    assert [in_text(record) for record in recorded(recorder)] == [handle.output.tokens for handle in handles]
    assert [len(handle.output.tokens) for handle in handles] == [1, 0]


def test_a_record_ends_between_two_steps(model):
    recorder = Recorder()
    decoder = Decoder(model, ops=sk, trace=recorder)
    handles = [decoder.submit(request) for request in requests_of(2, 0.8)]
    decoder.step()
    decoder.abort()
    assert [in_text(record) for record in recorded(recorder)] == [handle.output.tokens for handle in handles]
    assert [record["finish_reason"] for record in recorded(recorder)] == ["cancelled"] * 2
