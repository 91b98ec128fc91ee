"""The pages of the overlapped loop: none is lost, none owned twice, none written by a request that does not own it.

``make test-soak`` sends 10,000 requests; otherwise it is some hundred.
"""

import random
from collections import deque

import hypothesis
import pytest

from python_ref.decoding import Request
from python_ref.decoding.page_pool import PagePool
from python_ref.decoding.scheduler import Handle, Scheduler

from .helpers import model_of, plain, prompt_of
from .overlapping import decoder_of, drafters

SOAK = hypothesis.settings.default.max_examples > 1
REQUESTS = 10_000 if SOAK else 150
SIMULATED = 10_000 if SOAK else 2_000


@pytest.fixture(scope="module")
def target():
    return model_of(0, num_hidden_layers=6, hidden_size=16, intermediate_size=16, num_attention_heads=2)


@pytest.mark.parametrize("name", ["none", "ngram", "independent", "eagle3", "eagle3 tree", "dflash", "ddtree"])
def test_random_requests_with_cancellations(name, target):
    """Every text is right, or the beginning of it if it was cancelled; the pages are counted after every few steps."""
    chosen = random.Random(name)
    kinds = [
        Request(
            prompt_of(i, chosen.randint(1, 12)),
            max_new_tokens=chosen.randint(1, 8),
            temperature=chosen.choice((0.0, 0.9)),
            seed=i,
            stop_tokens=tuple(chosen.sample(range(29), chosen.choice((0, 0, 3)))),
        )
        for i in range(40)
    ]
    expected = plain(target, kinds)
    options = {"num_draft": 3, "page_size": 2, "prefill_chunk": 4, "prefill_budget": 8}
    decoder = decoder_of(target, drafters(target)[name], max_batch=6, num_pages=chosen.choice((None, 80)), **options)
    alive, sent, cancelled = [], 0, 0
    while sent < REQUESTS or not decoder.idle:
        while sent < REQUESTS and len(alive) < 12 and chosen.random() < 0.5:
            kind = chosen.randrange(40)
            alive.append((kind, decoder.submit(kinds[kind])))
            sent += 1
        decoder.step()
        if chosen.random() < 0.12 and alive:
            decoder.cancel(chosen.choice(alive)[1])
        if chosen.random() < 0.2:
            decoder.check_pages()
        for kind, handle in [pair for pair in alive if pair[1].done]:
            alive.remove((kind, handle))
            tokens = handle.output.tokens
            if handle.output.finish_reason == "cancelled":
                cancelled += 1
                assert tokens == expected[kind][: len(tokens)]
            else:
                assert tokens == expected[kind]
    assert not alive and cancelled > REQUESTS // 50
    decoder.check_pages()
    assert sorted(decoder._scheduler.pool.free) == list(range(decoder._scheduler.pool.num_pages))
    assert len(decoder._scheduler._rows) == 12


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_schedule_against_a_simulated_device(seed, grows):
    """A device that is up to two rounds behind writes as far as a step may; every page that it touches is the request's own.

    It holds the block table as the rounds have told it, and is asked at the moment at which it would write.
    """
    chosen = random.Random(seed)
    width, extent = chosen.choice(((1, 1), (5, 5), (4, 12)))
    size = chosen.choice((1, 4, 16))
    schedule = Scheduler(
        max_batch=6,
        rows=12,
        width=width,
        extent=extent,
        prefill_chunk=5,
        prefill_budget=11,
        page_size=size,
        num_pages=64 // size + 40,
        grows=grows,
    )
    pool, table, lengths, flights = schedule.pool, {}, {}, deque()
    alive, sent, finished = [], 0, 0

    def writes(handle, row, positions):
        for position in positions:
            assert table[row, position // size] == pool.pages(handle.number)[position // size]

    def execute():
        """The device runs the oldest round, and its result is seen."""
        nonlocal finished
        planned, rows, gained = flights.popleft()
        for row, index, page in planned.pages:
            table[row, index] = page
        for handle, row in rows:  # also of requests that the host has given up since
            length = lengths[handle]
            if length < handle._limit:
                writes(handle, row, range(length - 1, length - 1 + extent))
        schedule.ended(planned.number)
        for (handle, _), count in zip(rows, gained, strict=True):
            count = min(count, handle._limit - lengths[handle])
            lengths[handle] += count
            schedule.seen(handle)
            if not handle.done and (schedule.grown(handle, count) or chosen.random() < 0.05):
                schedule.finish(handle, "stop")
                finished += 1

    while sent < SIMULATED or not schedule.idle:
        if sent < SIMULATED and chosen.random() < 0.6:
            prompt, new = chosen.randint(1, 20), chosen.randint(1, 25)
            handle = Handle(Request([0] * prompt, max_new_tokens=new))
            schedule.submit(handle, prompt + new)
            lengths[handle] = prompt
            alive.append(handle)
            sent += 1
        planned = schedule.plan()
        if planned is not None:
            rows = [(handle, handle._row) for handle in planned.lanes]
            assert len(rows) <= 6 and len({row for _, row in rows}) == len(rows)
            flights.append((planned, rows, [chosen.randint(1, width) for _ in rows]))
        if flights and (len(flights) >= 2 or planned is None):
            execute()
        alive = [handle for handle in alive if not handle.done]
        if alive and chosen.random() < 0.1:
            schedule.finish(chosen.choice(alive), "cancelled")
        if chosen.random() < 0.05:
            pool.check()
    pool.check()
    assert finished > SIMULATED // 2 and not flights
    assert len(pool.free) == pool.num_pages == pool.unpromised
    assert grows or pool.num_pages == 64 // size + 40


def test_pages_that_are_lost_or_owned_twice_are_noticed():
    pool = PagePool(4, 2)
    assert pool.promise(0, 2) and pool.promise(1, 2) and not pool.promise(2, 1)
    assert [index for index, _ in pool.reserve(0, 3)] == [0, 1] and pool.reserve(0, 4) == []
    with pytest.raises(ValueError, match="PagePool.reserve: length must fit 2 pages, got 5"):
        pool.reserve(0, 5)
    pool.check()
    pool.free.append(pool.pages(0)[0])
    with pytest.raises(RuntimeError, match="must be free or owned once each"):
        pool.check()
    pool.free[-2:] = []
    with pytest.raises(RuntimeError, match="must be free or owned once each"):
        pool.check()
