"""The comparison: turns, seeds, and the arithmetic of its figures, with decoders that are made of paper."""

import pytest

from python_ref.decoding import Output, Statistics
from specdec_kernels.cli.comparison import Method, Row, compare, decoders, distinct_share

PLAIN, DRAFTED = Method("none", 0.0), Method("ngram", 0.0, num_draft=7)
SAMPLED, REJECTED = Method("none", 0.8), Method("independent", 0.8, "rejection")
METHODS = (PLAIN, DRAFTED, SAMPLED, REJECTED)


class Paper:
    """A decoder whose generations take a given time; it writes down what it was asked for."""

    max_batch = 2

    def __init__(self, method, log, seconds, steps, offset=0):
        self.method, self.log, self.seconds, self.steps, self.offset = method, log, seconds, steps, offset

    def generate(self, requests):
        self.log.append((self.method, requests))
        self.statistics = Statistics(
            total_seconds=self.seconds + 5.0, prefill_seconds=5.0, request_steps=self.steps * len(requests)
        )
        for request in requests:
            request.on_tokens([1] * request.max_new_tokens)
        return [Output([request.prompt[0] + self.offset] * request.max_new_tokens) for request in requests]


@pytest.fixture
def run():
    log, reports = [], []
    engines = [Paper(PLAIN, log, 1.0, 8), Paper(DRAFTED, log, 0.5, 2), Paper(SAMPLED, log, 2.0, 8)]
    engines.append(Paper(REJECTED, log, 4.0, 4, offset=1))
    rows = compare(METHODS, engines, [[10], [20], [30], [40], [50]], 8, reports.append)
    return log, reports, rows


def test_methods_take_turns_over_whole_generations(run):
    log, reports, _ = run
    order = [METHODS.index(method) for method, _ in log]
    assert order == [0, 1, 2, 3, 1, 2, 3, 0, 2, 3, 0, 1], "each batch begins with the next method"
    for turn, prompts in enumerate(([[10], [20]], [[30], [40]], [[50]])):
        for method, requests in log[4 * turn : 4 * turn + 4]:
            assert [request.prompt for request in requests] == prompts
            assert [request.seed for request in requests] == [2 * turn + i for i in range(len(prompts))]
            assert all(request.temperature == method.temperature for request in requests)
            assert all(request.stop_tokens == () and request.max_new_tokens == 8 for request in requests)
    assert reports == [8 * i for i in range(1, 21)]


def test_figures(run):
    _, _, (plain, drafted, sampled, rejected) = run
    assert plain.tokens_per_second == pytest.approx(40 / 3)
    assert (plain.speedup, plain.mean_tokens_per_step, plain.break_even_tokens_per_step) == (1, 1, 1)
    assert drafted.tokens_per_second == pytest.approx(40 / 1.5)
    assert drafted.baseline_tokens_per_second == plain.tokens_per_second
    assert drafted.speedup == pytest.approx(2) and drafted.mean_tokens_per_step == 4
    assert drafted.break_even_tokens_per_step == pytest.approx(2), "a step takes 0.15 s, a plain one 0.075 s"
    assert rejected.baseline_tokens_per_second == sampled.tokens_per_second == pytest.approx(40 / 6)
    assert rejected.speedup == pytest.approx(0.5) and rejected.break_even_tokens_per_step == pytest.approx(4)
    assert [row.identical_to_baseline for row in (plain, drafted, sampled, rejected)] == [True, True, True, None]
    assert all(row.prompts == 5 and row.new_tokens == 40 for row in (plain, drafted, sampled, rejected))


def test_a_text_that_differs_is_not_hidden():
    engines = [Paper(PLAIN, [], 1.0, 8), Paper(DRAFTED, [], 1.0, 8, offset=1)]
    rows = compare((PLAIN, DRAFTED), engines, [[10]], 8, lambda done: None)
    assert [row.identical_to_baseline for row in rows] == [True, False]


def test_which_rule_promises_the_text():
    assert Method("independent", 0.0, "rejection").promises_text
    assert Method("ngram", 0.8, "match").promises_text
    assert not REJECTED.promises_text


def test_names():
    names = [str(method) for method in (PLAIN, DRAFTED, REJECTED)]
    assert names == [
        "plain decoding at temperature 0",
        "ngram at temperature 0",
        "independent by rejection at temperature 0.8",
    ]


def test_decoders_differ_in_drafter_and_rule_alone(assets):
    import torch

    import specdec_kernels as sk
    from specdec_kernels.cli import engine

    target = engine.load(assets / engine.TARGET, "float32", torch.device("cpu"))
    drafters = {name: engine.make_drafter(name, target, "float32") for name in ("none", "ngram")}
    plain, drafted = decoders(target.model, sk, (PLAIN, DRAFTED), drafters, 3)
    assert plain.model is drafted.model and plain.ops is drafted.ops is sk
    assert plain.drafter is None and drafted.drafter is drafters["ngram"]
    assert (drafted.rule, drafted.num_draft, drafted.max_batch) == ("match", 7, 3)


def test_distinct_runs():
    assert distinct_share([[1, 2, 3, 4, 5]]) == 1
    assert distinct_share([[7] * 8]) == 1 / 5
    assert distinct_share([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]) == 1, "two texts may say the same"
    assert distinct_share([[1, 2, 1, 2, 1, 2], [9] * 5]) == 3 / 5
    assert distinct_share([[1, 2, 3], []]) == 1


def test_a_row_has_the_fields_of_the_file():
    assert list(Row.__dataclass_fields__)[:3] == ["drafter", "temperature", "rule"]
