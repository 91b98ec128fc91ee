"""The extra memory of a call: what is there is seen, and a wrong result is not measured."""

import json
from dataclasses import replace

import pytest
import torch

from bench import cases, memory
from bench.data import Sizes, normal
from bench.memory import UnknownMemoryError

SIZES = Sizes(requests=2, nodes=4, vocab=64)


def greedy():
    target = normal(SIZES).target
    return cases.greedy(target, SIZES, cases.decide(target, SIZES, {"temperature": 0.0}), "half")


@pytest.mark.parametrize("size", [1 << 20, 3 << 20])
def test_memory_that_a_call_takes_and_gives_back_is_seen(size):
    seen, result = memory.controlled(lambda: int(torch.ones(size, dtype=torch.int8)[-1]))
    assert result == 1
    assert 0.9 * size <= seen <= 1.5 * size


def test_a_control_that_fails_stops_the_measurement(monkeypatch):
    monkeypatch.setattr(memory, "peak_growth", lambda call: (0, call()))
    with pytest.raises(UnknownMemoryError, match="extra memory unknown: of 1048576 bytes in a control 0 were seen"):
        memory.controlled(lambda: None)


def test_a_system_that_does_not_tell_is_reported(monkeypatch):
    monkeypatch.setattr(memory, "_resident", lambda: {})
    with pytest.raises(UnknownMemoryError, match=r"the system does not tell \(KeyError\)"):
        memory.peak_growth(lambda: None)


def test_a_wrong_result_is_not_measured():
    case = greedy()
    wrong = replace(case, expected=case.expected._replace(tokens=case.expected.tokens + 1))
    with pytest.raises(UnknownMemoryError, match=r"wrong result: tokens\[0, 0\] must be"):
        memory.of_case(wrong, "reference")


def test_a_fresh_process_measures_a_case():
    assert 0 <= memory.extra_bytes(greedy(), "cpu") < 1 << 30


def test_what_goes_wrong_in_the_process_is_the_reason(monkeypatch):
    class Done:
        returncode, stdout = 1, ""
        stderr = "Traceback:\n  ...\nbench.memory.UnknownMemoryError: wrong result: tokens[0]\n"

    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: Done)
    with pytest.raises(UnknownMemoryError, match=r"^extra memory unknown: wrong result: tokens\[0\]$"):
        memory.extra_bytes(greedy(), "cpu")
    Done.returncode, Done.stdout = 0, json.dumps({"extra_bytes": 4096})
    assert memory.extra_bytes(greedy(), "cpu") == 4096
