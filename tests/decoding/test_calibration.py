"""The number of drafts that is the fastest, found by a machine whose costs are written down."""

from types import SimpleNamespace

import pytest

import specdec_kernels as sk
from python_ref.decoding import Candidate, Decoder, OverlappedDecoder, Request, calibrate, calibration
from python_ref.decoding.trace import Recorder
from python_ref.drafters import NgramDrafter

from .helpers import model_of

ALPHA = 0.8


class Machine:
    """A decoder whose steps cost what ``cost`` says, and yield what independent drafts yield."""

    def __init__(self, cost, drafter=None):
        self.cost, self.num_draft, self.max_batch, self.runs = cost, 4, 2, []
        self.busy, self.trace = False, None
        self.drafter = SimpleNamespace() if drafter is None else drafter

    def generate(self, requests):
        self.requests = requests
        nodes = getattr(self.drafter, "nodes", 0)
        self.runs.append((self.num_draft, nodes))
        # Of a tree each position has the more chance the more nodes there are beside it.
        alpha = 1 - (1 - ALPHA) ** (1 + nodes / 32) if nodes else ALPHA
        depth = min(self.num_draft, nodes - 1) if nodes else self.num_draft
        tokens = sum(alpha**i for i in range(depth + 1))
        self.statistics = SimpleNamespace(
            seconds_per_step=self.cost(self.num_draft, nodes), mean_tokens_per_step=tokens
        )

    def rate(self, num_draft, nodes=0):
        self.num_draft = num_draft
        if nodes:
            self.drafter.nodes = nodes
        self.generate(self.requests)
        return self.statistics.mean_tokens_per_step / self.statistics.seconds_per_step


@pytest.mark.parametrize(
    "cost",
    [
        lambda n, _: 1.0 + 0.01 * n,
        lambda n, _: 1.0 + 0.2 * n,
        lambda n, _: 1.0 + 0.9 * n,
        lambda n, _: 1.0 + (2.0 if n > 7 else 0.02 * n),
    ],
)
def test_a_chain_is_as_fast_as_the_best_of_all(cost):
    machine = Machine(cost)
    points = calibrate(machine, [Request([1])])
    chosen = machine.num_draft
    assert points[0].candidate == Candidate(chosen)
    assert [point.rate for point in points] == sorted((point.rate for point in points), reverse=True)
    every = range(calibration.NUM_DRAFT[-1] + 1)
    assert machine.rate(chosen) >= 0.95 * max(machine.rate(n) for n in every)


@pytest.mark.parametrize("each", [0.004, 0.03, 0.2])
def test_a_tree_has_a_depth_and_a_number_of_nodes(each):
    machine = Machine(lambda n, nodes: 1.0 + each * nodes, SimpleNamespace(is_tree=True, nodes=16, most_drafts=7))
    points = calibrate(machine, [Request([1])])
    chosen = points[0].candidate
    assert (machine.num_draft, machine.drafter.nodes) == (chosen.num_draft, chosen.nodes)
    assert all(point.candidate.num_draft <= 7 for point in points)
    best = max(machine.rate(n, nodes) for n in range(8) for nodes in calibration.NODES)
    assert machine.rate(chosen.num_draft, chosen.nodes) >= 0.95 * best


def test_it_is_measured_in_turns_on_the_first_tokens_of_the_requests():
    heard = []
    requests = [Request([1], 100, on_tokens=heard.append), Request([2], 9), Request([3])]
    machine = Machine(lambda n, _: 1.0 + 0.5 * n)
    told = []
    calibrate(machine, requests, report=told.append)
    assert [(r.prompt, r.max_new_tokens, r.on_tokens) for r in machine.requests] == [([1], 32, None), ([2], 9, None)]
    first = [n for n, _ in machine.runs[1 : 1 + len(calibration.NUM_DRAFT)]]
    assert first == list(calibration.NUM_DRAFT)
    counts = [sum(n == number for n, _ in machine.runs[1:]) for number in calibration.NUM_DRAFT]
    assert counts[first.index(machine.num_draft)] == calibration.TURNS
    assert counts[-1] == 1  # far behind
    assert told == list(range(1, len(machine.runs)))
    assert told[-1] <= calibration.generations(machine.drafter)


def test_nothing_to_choose_from_is_refused():
    with pytest.raises(ValueError, match="calibrate: decoder must have a drafter, got None"):
        calibrate(Decoder(model_of(0), ops=sk), [Request([1])])
    with pytest.raises(ValueError, match="calibrate: requests must not be empty"):
        calibrate(Machine(lambda n, _: 1.0), [])


def test_drafts_that_gain_nothing_are_not_made():
    machine = Machine(lambda n, _: 1.0 - 0.01 * n)  # a clock that is wrong
    machine.generate([])
    generate = machine.generate

    def alone(requests):
        generate(requests)
        machine.statistics.mean_tokens_per_step = 1.0

    machine.generate = alone
    assert calibrate(machine, [Request([1])])[0].candidate == Candidate(0)


def test_a_decoder_of_one_number_of_drafts_is_refused():
    said = "calibrate: decoder must be a Decoder, whose number of drafts may change, got OverlappedDecoder"
    with pytest.raises(TypeError) as raised:
        calibrate(OverlappedDecoder(model_of(0), ops=sk, drafter=NgramDrafter(sk)), [Request([1])])
    assert str(raised.value) == said


@pytest.mark.parametrize("call", [calibrate, lambda *given: calibration.measure(*given, [Candidate(1)])])
def test_a_decoder_that_is_serving_is_refused(call):
    """Also by the last callback of all, behind which there is nothing more to do."""
    name = "calibrate" if call is calibrate else "measure"
    refused = []

    def told(tokens):
        with pytest.raises(RuntimeError) as raised:
            call(decoder, [Request([1])])
        refused.append(str(raised.value))

    decoder = Decoder(model_of(0), ops=sk, drafter=NgramDrafter(sk), num_draft=3)
    handle = decoder.submit(Request([1, 2], max_new_tokens=1, on_tokens=told))
    with pytest.raises(RuntimeError, match=f"{name}: decoder must be between generations"):
        call(decoder, [Request([1])])
    assert not decoder.step() and len(handle.output.tokens) == 1
    assert refused == [f"{name}: decoder must be between generations, got one that is serving requests"]
    assert decoder.num_draft == 3


def test_a_measurement_leaves_the_setting_as_it_was():
    machine = Machine(lambda n, nodes: 1.0, SimpleNamespace(is_tree=True, nodes=16))
    calibration.measure(machine, [Request([1])], [Candidate(0, 16), Candidate(7, 48)])
    assert (machine.num_draft, machine.drafter.nodes) == (4, 16)


@pytest.mark.parametrize("at", [0, 3, 20])
def test_the_setting_is_what_it_was_where_something_raises(at):
    machine = Machine(lambda n, nodes: 1.0, SimpleNamespace(is_tree=True, nodes=16, most_drafts=7))
    machine.trace = trace = object()
    generate = machine.generate

    def fails(requests):
        if len(machine.runs) == at:
            raise KeyboardInterrupt
        generate(requests)

    machine.generate = fails
    with pytest.raises(KeyboardInterrupt):
        calibrate(machine, [Request([1])])
    assert (machine.num_draft, machine.drafter.nodes) == (4, 16) and machine.trace is trace


def test_a_trace_hears_nothing_of_it():
    recorder = Recorder()
    decoder = Decoder(model_of(0), ops=sk, drafter=NgramDrafter(sk), trace=recorder)
    calibrate(decoder, [Request([1, 2])], new_tokens=2, turns=1)
    assert decoder.trace is recorder and recorder.to_dict(lambda token: b"x")["requests"] == []
    decoder.generate([Request([1, 2], max_new_tokens=2)])
    assert len(recorder.to_dict(lambda token: b"x")["requests"]) == 1
