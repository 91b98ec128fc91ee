"""What a CUDA graph needs of a step: one sequence of operations with one set of shapes, and no look at a value."""

import pytest
import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from python_ref.decoding import Request, static_step

from .helpers import model_of, plain, prompt_of, requests_of
from .overlapping import decoder_of, drafters, generate

# What waits for the device, or has a shape that values decide.
WAITING = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select", "unique")


@pytest.fixture(scope="module")
def target():
    return model_of(0, num_hidden_layers=6)


class Watch(TorchDispatchMode):
    """Writes down every operation with the shapes of its tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        name = str(function)
        assert not any(word in name for word in WAITING), name
        flat = _pytree.tree_leaves((args, kwargs, made))
        self.calls.append((name, [tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in flat]))
        return made


def _refuse(*arguments):
    raise AssertionError("a step must not read values on the host")


def begin(decoder, row, request):
    """What the loop does when a request joins, and room for some steps."""
    state, step = decoder._state, decoder._step
    state.join(row, request, torch.tensor(request.prompt), len(request.prompt) + request.max_new_tokens)
    places = torch.arange(4) + row * state.max_pages
    state.set_pages(places, (torch.arange(4) + 4 * row).int())
    if step.drafter is not None:
        step.drafter.join(row)
    step.prefill(row, 0, len(request.prompt) - 1)


@pytest.mark.parametrize("rule", ["match", "greedy"])
@pytest.mark.parametrize("name", ["none", "ngram", "independent", "eagle3", "eagle3 tree"])
def test_a_step_is_the_same_whatever_it_finds(name, rule, target, monkeypatch):
    decoder = decoder_of(target, drafters(target)[name], rule=rule, num_draft=3, compact=False, num_pages=16)
    idle = decoder._state.idle
    with torch.inference_mode():
        begin(decoder, 0, Request(prompt_of(1, 9), max_new_tokens=12))
        begin(decoder, 1, Request(prompt_of(2, 3), max_new_tokens=2))
        for method in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, method, _refuse)
        recorded = []
        for rows in ([0, 1], [0, idle], [0, 1], [idle, idle], [1, 0], [0, 1]):
            rows = torch.tensor(rows)
            with Watch() as watch:
                decoder._step(rows)
            recorded.append(watch.calls)
        monkeypatch.undo()
    assert len(recorded[0]) > 50
    for calls in recorded[1:]:
        assert calls == recorded[0]
    lengths = decoder._state.lengths.tolist()
    assert lengths[1] == 3 + 2  # its limit, whatever the steps beyond it found
    assert 9 + 4 <= lengths[0] <= 9 + 12 and lengths[idle] == 1


class Replayed:
    """What a recording is to the loop: it runs the step again for what is in ``rows``, into the same result."""

    def __init__(self, step, rows):
        self.step, self.rows, self.packed = step, rows, step(rows)

    def replay(self):
        self.packed.copy_(self.step(self.rows))


@pytest.mark.parametrize("name", ["none", "ngram", "independent", "eagle3", "eagle3 tree"])
def test_with_buckets_of_lanes_the_text_is_the_same(name, target, monkeypatch):
    """The loop as it runs on a GPU, but for the recording itself: lanes padded to a power of two, one result in place."""
    made = []

    def record(runner, lanes):
        graph = Replayed(runner._step, torch.full((lanes,), runner._step.state.idle))
        made.append(lanes)
        return static_step._Recorded(graph, graph.rows, graph.packed)

    monkeypatch.setattr(static_step.Runner, "_record", record)
    options = {"max_batch": 6, "compact": False, "num_draft": 3, "page_size": 2}
    requests = requests_of(9, 0.8, new=7)
    expected = plain(target, requests)
    for num_pages in (200, None):  # enough, and so few to begin with that the caches move
        made.clear()
        decoder = decoder_of(target, drafters(target)[name], num_pages=num_pages, **options)
        decoder._runner._graphs = True
        assert generate(decoder, requests) == expected
        assert set(made) <= {1, 2, 4, 6} and 6 in made
        assert num_pages is None or len(made) == len(set(made))


def test_idle_lanes_write_nothing(target):
    decoder = decoder_of(target, drafters(target)["eagle3"], num_draft=3, compact=False, num_pages=4)
    state = decoder._state
    with torch.inference_mode():
        for cache in state.caches:
            cache.storage.fill_(7.0)
        decoder._step(torch.full((3,), state.idle))
        assert all((cache.storage == 7.0).all() for cache in state.caches)
    assert state.lengths[state.idle] == 1 and not decoder._step.drafter.ready.any()


def test_a_step_writes_nothing_beyond_its_pages(target):
    """Exactly the pages that the loop reserves for one step; all others keep what they hold."""
    for name in ("none", "independent", "eagle3", "eagle3 tree", "eagle3 wide tree"):
        decoder = decoder_of(target, drafters(target)[name], num_draft=3, page_size=1, num_pages=400)
        state, extent = decoder._state, decoder._scheduler._extent
        request = Request(prompt_of(3, 7), max_new_tokens=30)
        with torch.inference_mode():
            for cache in state.caches:
                cache.storage.fill_(7.0)
            reach = 7 + extent
            state.join(0, request, torch.tensor(request.prompt), 37)
            # All that the row could name has a page, but only the first of these are reserved.
            state.set_pages(torch.arange(state.max_pages), torch.arange(state.max_pages).int())
            if decoder._step.drafter is not None:
                decoder._step.drafter.join(0)
            decoder._step.prefill(0, 0, 6)
            decoder._step(torch.tensor([0]))
            for cache in state.caches:
                assert (cache.storage[:, reach:] == 7.0).all(), name
                assert not (cache.storage[:, :6] == 7.0).all()
