"""Turns, and the gate before the clock. The clock is made of paper: nothing here takes or measures time."""

import pytest

from bench.runner import FEWEST, Refused, Timing, Variant, counts, measure, turns


class Clock:
    """Nanoseconds that only pass when a call says so."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


def right(result):
    return None


def variants(clock, log, costs):
    def call(name, cost):
        def run():
            log.append(name)
            clock.now += cost

        return run

    return [Variant(name, call(name, cost), right) for name, cost in costs.items()]


def test_every_round_calls_each_variant_once_in_an_order_that_changes():
    clock, log = Clock(), []
    found = measure(variants(clock, log, {"a": 10, "b": 20, "c": 30}), repeats=12, clock=clock)
    assert log[:6] == ["a", "b", "c"] * 2  # the gate and the warm-up
    rounds = [tuple(log[i : i + 3]) for i in range(6, len(log), 3)]
    assert len(rounds) == 12
    assert all(sorted(part) == ["a", "b", "c"] for part in rounds)
    assert len(set(rounds)) > 1
    assert [found[name].samples for name in "abc"] == [(10.0,) * 12, (20.0,) * 12, (30.0,) * 12]


def test_slow_variants_get_fewer_samples_spread_over_all_rounds():
    clock, log = Clock(), []
    measure(variants(clock, log, {"fast": 10, "slow": 10**9}), repeats=20, budget_s=3.0, clock=clock)
    timed = log[4:]
    assert timed.count("fast") == 20 and timed.count("slow") == FEWEST
    places = [i for i, name in enumerate(timed) if name == "slow"]
    assert all(later - earlier > 1 for earlier, later in zip(places, places[1:], strict=False))


def test_counts_keep_a_minimum():
    assert counts([1.0, 0.001, 0.1], repeats=30, budget_s=2.0) == [FEWEST, 30, 20]
    assert counts([1.0], repeats=2, budget_s=0.0) == [2]


def test_turns_give_everyone_what_was_wanted():
    wanted = [7, 3, 1, 7]
    planned = turns(wanted)
    assert [sum(part.count(i) for part in planned) for i in range(4)] == wanted
    assert all(len(part) == len(set(part)) for part in planned)
    assert turns([]) == []


def test_what_is_wrong_is_not_timed():
    log = []

    def fails():
        raise ZeroDivisionError("no\nmore")

    found = measure(
        [
            Variant("good", lambda: log.append("good"), right),
            Variant("wrong", lambda: log.append("wrong"), lambda _: "tokens differ"),
            Variant("broken", fails, right),
            Variant("shy", lambda: None, lambda result: None if result.shape else "no"),
        ],
        repeats=3,
    )
    assert log.count("wrong") == 1
    assert isinstance(found["good"], Timing) and len(found["good"].samples) == 3
    assert found["wrong"] == Refused("wrong result: tokens differ")
    assert found["broken"] == Refused("failed: ZeroDivisionError: no")
    assert found["shy"].reason.startswith("failed: AttributeError")
    assert list(found) == ["good", "wrong", "broken", "shy"]


def test_every_sample_is_prepared_and_the_preparation_is_not_timed():
    clock, log = Clock(), []

    def prepare(variant):
        log.append(f"prepare {variant.name}")
        clock.now += 1000

    found = measure(variants(clock, log, {"a": 10, "b": 20}), repeats=3, prepare=prepare, clock=clock)
    assert found["a"].samples == (10.0,) * 3
    timed = log[2:]
    assert timed[::2] == [f"prepare {name}" for name in timed[1::2]]


def test_short_calls_are_repeated_within_a_sample():
    clock, log = Clock(), []
    [variant] = variants(clock, log, {"a": 7})
    found = measure([Variant("a", variant.call, right, inner=50)], repeats=2, clock=clock)
    assert found["a"].samples == (7.0, 7.0)
    assert len(log) == 1 + 3 * 50


def test_another_stopwatch_takes_the_samples():
    log = []

    def stopwatch(variant):
        variant.call()
        return {"a": 5.0, "b": 7.0}[variant.name]

    found = measure(variants(Clock(), log, {"a": 1, "b": 1}), repeats=3, stopwatch=stopwatch)
    assert (found["a"].samples, found["b"].samples) == ((5.0,) * 3, (7.0,) * 3)
    assert len(log) == 2 * (1 + 1 + 3)  # the gate, the warm-up, the samples


def test_progress_is_told_between_the_rounds():
    told = []
    measure(variants(Clock(), [], {"a": 1, "b": 1}), repeats=4, clock=Clock(), tick=lambda: told.append(1))
    assert len(told) == 2 + 4


def test_names_must_differ():
    with pytest.raises(ValueError, match=r"measure: variants must have different names, got \['a', 'a'\]"):
        measure([Variant("a", lambda: None, right)] * 2)


def test_quantiles_lie_between_the_samples():
    timing = Timing((4000.0, 1000.0, 3000.0, 2000.0, 5000.0))
    assert (timing.p50, timing.quantile(0.0), timing.quantile(1.0)) == (3.0, 1.0, 5.0)
    assert timing.quantile(0.2) == pytest.approx(1.8)
