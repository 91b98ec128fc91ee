"""What the decoder promises besides its text: stops, limits, waiting, callbacks, statistics, failures."""

import math

import pytest
import torch

import specdec_kernels as sk
from python_ref.decoding import Decoder, PagedCache, Request, generate
from python_ref.drafters import IndependentDrafter, NgramDrafter

from .helpers import OPS, VOCAB, Scripted, corrupted, model_of, perfect, plain, prompt_of, requests_of

RULES = ("match", "greedy", "rejection")


@pytest.fixture(scope="module")
def model():
    return model_of(0)


def decoder_of(model, drafter=None, **options):
    return Decoder(model, ops=sk, drafter=drafter, **options)


def knowing(model, requests, **options):
    """A decoder whose drafter is always right."""
    return decoder_of(model, Scripted(perfect(requests, plain(model, requests))), **options)


def is_free(decoder):
    """Whether every page is free, and every row idle."""
    return sorted(decoder.cache.free_pages) == list(range(decoder.cache.num_pages)) and not decoder.batch.live


# ---- where a text ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("at", [0, 1, 3, 6])
def test_a_stop_token_inside_an_accepted_run_ends_the_text(model, rule, at):
    """The stop token is emitted, nothing after it, whatever else of the run was accepted."""
    prompt = prompt_of(3, 4)
    text = plain(model, [Request(prompt, max_new_tokens=12)])[0]
    stop = text[at]
    first = text.index(stop)
    request = Request(prompt, max_new_tokens=12, stop_tokens=(stop, VOCAB + 5))
    unstopped = Request(prompt, max_new_tokens=12, stop_tokens=())
    drafter = Scripted(perfect([unstopped], [text]))
    decoder = decoder_of(model, drafter, rule=rule, num_draft=8)
    output = decoder.generate([request])[0]
    assert output.tokens == text[: first + 1] and output.finish_reason == "stop"
    assert decoder.statistics.new_tokens == first + 1
    assert drafter.observed[-2:] == [[first + 1 - 9 * (first // 9)], [0]]
    assert is_free(decoder)


def test_stop_tokens_come_from_the_configuration_unless_the_request_names_its_own():
    prompt = prompt_of(3, 4)
    text = plain(model_of(0), [Request(prompt, max_new_tokens=6)])[0]
    stopping = model_of(0, eos_token_id=[text[2], VOCAB - 1])
    length = text.index(text[2]) + 1
    assert plain(stopping, [Request(prompt, max_new_tokens=6)])[0] == text[:length]
    assert plain(stopping, [Request(prompt, max_new_tokens=6, stop_tokens=())])[0] == text


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("most", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("num_draft", [0, 1, 4, 9])
def test_length_limits(model, rule, most, num_draft):
    requests = [Request(prompt_of(4, 5), max_new_tokens=most)]
    output = knowing(model, requests, rule=rule, num_draft=num_draft).generate(requests)[0]
    assert len(output.tokens) == most and output.finish_reason == "length"
    assert output.steps == math.ceil(most / (num_draft + 1))


@pytest.mark.parametrize("prompt", [1, 40, 62, 63])
def test_the_positions_of_the_model_end_the_text(model, prompt):
    """64 positions: a text has at most 64 tokens, and a prompt leaves room for one."""
    requests = [Request(prompt_of(5, prompt), max_new_tokens=200, temperature=0.9)]
    expected = plain(model, requests)
    assert len(expected[0]) == 64 - prompt
    script = perfect(requests, expected)
    eager = Scripted(lambda text, count: (script(text, 99) + [1] * 99)[: max(count, 20)])  # beyond all limits
    for drafter in (eager, NgramDrafter(sk), IndependentDrafter(model_of(1, max_position_embeddings=50), sk)):
        output = decoder_of(model, drafter, num_draft=7).generate(requests)[0]
        assert output.tokens == expected[0] and output.finish_reason == "length"


@pytest.mark.parametrize("rule", RULES)
def test_dead_ends(rule):
    """A token after which the model has no finite logit ends the text; the token before it stays."""
    prompt = prompt_of(6, 3)
    text = plain(model_of(0), [Request(prompt, max_new_tokens=10)])[0]
    last = next(i for i, token in enumerate(text) if token not in prompt and i >= 2)
    dead = model_of(0)
    dead.model.embed_tokens.weight[text[last]] = math.nan
    kept = text[: text.index(text[last]) + 1]
    for drafter in (None, Scripted(lambda known, count: (text + text)[len(known) - 3 :][:count])):
        decoder = decoder_of(dead, drafter, rule=rule, logprobs=None if drafter is None else "raw")
        output = decoder.generate([Request(prompt, max_new_tokens=10)])[0]
        assert output.tokens == kept and output.finish_reason == "dead_end"
        assert drafter is None or len(output.logprobs) == len(kept)
        assert is_free(decoder)


def test_a_dead_end_is_a_matter_of_one_request():
    dead = model_of(0)
    dead.model.embed_tokens.weight[7] = math.nan
    requests = [Request([7], max_new_tokens=4), Request([8, 9], max_new_tokens=4)]
    outputs = decoder_of(dead).generate(requests)
    assert outputs[0].tokens == [] and outputs[0].finish_reason == "dead_end"
    assert outputs[1].finish_reason in ("length", "dead_end") and outputs[1].tokens


# ---- many requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_requests_wait_for_a_row(model, rows):
    requests = requests_of(7, 0.8, new=4)
    expected = plain(model, requests)
    drafter = Scripted(corrupted(perfect(requests, expected), 3))
    decoder = decoder_of(model, drafter, max_batch=rows, num_draft=2)
    outputs = decoder.generate(requests)
    assert [output.tokens for output in outputs] == expected
    assert max(map(len, drafter.proposed)) == rows
    assert decoder.statistics.requests == 7 and is_free(decoder)


def test_no_requests(model):
    decoder = decoder_of(model, NgramDrafter(sk))
    assert decoder.generate([]) == [] and decoder.statistics.steps == 0


def test_a_decoder_is_used_again(model):
    requests = requests_of(3, 0.8, new=5)
    decoder = decoder_of(model, IndependentDrafter(model_of(1), sk))
    first = decoder.generate(requests)
    assert decoder.generate(requests) == first
    assert decoder.statistics.new_tokens == sum(len(output.tokens) for output in first)


def test_pages_are_taken_and_given_back_as_texts_grow(model):
    requests = requests_of(3, 0.8, new=30)
    decoder = decoder_of(model, page_size=2)
    pages = decoder.cache.num_pages
    decoder.generate(requests * 4)
    assert decoder.cache.num_pages > pages and is_free(decoder)  # the pool has grown


def test_callbacks_get_every_token_once_and_in_order(model):
    requests = requests_of(4, 0.9, new=6)
    expected = plain(model, requests)
    heard = [[] for _ in requests]
    listening = [Request(**{**vars(request), "on_tokens": heard[i].append}) for i, request in enumerate(requests)]
    outputs = decoder_of(model, Scripted(perfect(requests, expected)), num_draft=3).generate(listening)
    for output, parts, text in zip(outputs, heard, expected, strict=True):
        assert all(parts) and len(parts) == output.steps
        assert [token for part in parts for token in part] == text
        assert max(map(len, parts)) == 4


# ---- serving -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drafter", ["none", "ngram", "independent"])
def test_requests_may_come_at_any_step(model, drafter):
    requests = requests_of(7, 0.8, new=7)
    expected = plain(model, requests)
    made = {"none": None, "ngram": NgramDrafter(sk), "independent": IndependentDrafter(model_of(1), sk)}[drafter]
    decoder = decoder_of(model, made, max_batch=3, num_draft=3, prefill_chunk=4)
    for gap in (0, 1, 2, 5):
        handles = []
        for request in requests:
            handles.append(decoder.submit(request))
            assert not handles[-1].done and not decoder.idle
            for _ in range(gap):
                decoder.step()
        while decoder.step():
            pass
        assert [handle.output.tokens for handle in handles] == expected, gap
        assert all(handle.done for handle in handles) and decoder.idle and is_free(decoder)
    assert decoder.batch.size == 3 and not decoder.step()
    assert decoder.generate(requests[:1])[0].tokens == expected[0] and decoder.batch.size == 1


def test_callbacks_may_submit_and_not_step(model):
    """Also the one that is told of the last token of all."""
    requests = requests_of(3, 0.8, new=4)
    expected = plain(model, requests)
    handles, refused = [], []

    def submits(tokens):
        if len(handles) < 3:
            handles.append(decoder.submit(requests[len(handles)]))
            for call in (decoder.step, lambda: decoder.generate(requests)):
                with pytest.raises(RuntimeError, match="must be called outside of callbacks") as raised:
                    call()
                refused.append(str(raised.value))

    decoder = decoder_of(model, NgramDrafter(sk), max_batch=2)
    outputs = decoder.generate([Request(prompt_of(1, 3), max_new_tokens=1, on_tokens=submits)])
    assert len(outputs) == len(handles) == 1 and handles[0].output.tokens == expected[0]
    decoder.submit(Request(prompt_of(1, 3), max_new_tokens=12, on_tokens=submits))
    while decoder.step():
        pass
    assert [handle.output.tokens for handle in handles] == expected and is_free(decoder)
    assert set(refused) == {
        f"Decoder.{name}: must be called outside of callbacks, got a call within one" for name in ("step", "generate")
    }


def test_statistics_add_up_until_they_are_reset(model):
    decoder = decoder_of(model, max_batch=2)
    spent = []
    for runs in (1, 2):
        for request in requests_of(3, 0.8, new=4):
            decoder.submit(request)
        while decoder.step():
            pass
        spent.append(decoder.statistics.total_seconds)
        assert not decoder.step() and decoder.statistics.total_seconds == spent[-1]
        assert decoder.statistics.requests == 3 * runs
    assert 0 < spent[0] < spent[1] and decoder.statistics.target_seconds < spent[1]
    decoder.reset_statistics()
    assert decoder.statistics.requests == decoder.statistics.total_seconds == 0


def test_requests_that_were_submitted_are_served_by_generate_too(model):
    requests = requests_of(4, 0.8, new=5)
    decoder = decoder_of(model, max_batch=2)
    handle = decoder.submit(requests[3])
    decoder.step()
    outputs = decoder.generate(requests[:3])
    assert [output.tokens for output in [*outputs, handle.output]] == plain(model, requests)
    assert decoder.statistics.requests == 4


def test_what_cannot_be_served_is_not_taken(model):
    decoder = decoder_of(model)
    with pytest.raises(ValueError, match="prompt must hold tokens from 0 to 28, got 29"):
        decoder.submit(Request([29]))
    assert decoder.idle and decoder.batch.size == 0


# ---- statistics ----------------------------------------------------------------------------------------------------------


def test_statistics_of_a_drafter_that_is_always_right(model):
    requests = [Request(prompt_of(1, 6), max_new_tokens=10), Request(prompt_of(2, 3), max_new_tokens=7)]
    decoder = knowing(model, requests, num_draft=4)
    decoder.generate(requests)
    statistics = decoder.statistics
    assert (statistics.requests, statistics.prompt_tokens, statistics.new_tokens) == (2, 9, 17)
    assert (statistics.steps, statistics.request_steps) == (2, 4)  # 5 + 5 and 5 + 2 tokens
    assert statistics.drafted == statistics.accepted == [4, 3, 3, 3]
    assert statistics.acceptance == [1.0] * 4
    assert statistics.mean_tokens_per_step == 17 / 4
    parts = ("prefill_seconds", "draft_seconds", "target_seconds", "verify_seconds")
    assert all(getattr(statistics, name) > 0 for name in parts)
    assert sum(getattr(statistics, name) for name in parts) <= statistics.total_seconds
    assert statistics.decode_seconds == statistics.total_seconds - statistics.prefill_seconds
    assert statistics.to_dict()["mean_tokens_per_step"] == 17 / 4


def test_statistics_of_a_drafter_that_is_always_wrong(model):
    request = Request(prompt_of(1, 6), max_new_tokens=6)
    text = plain(model, [request])[0]
    script = perfect([request], [text])
    wrong = Scripted(lambda known, count: [(token + 1) % VOCAB for token in script(known, count)])
    decoder = decoder_of(model, wrong, num_draft=2)
    assert decoder.generate([request])[0].steps == 6
    assert decoder.statistics.accepted == [0, 0]
    assert decoder.statistics.drafted == [5, 4]  # the last step has room for one token, the one before for two
    assert decoder.statistics.acceptance == [0.0, 0.0]


def test_statistics_without_a_drafter(model):
    outputs, statistics = generate(model, requests_of(2, 0.0, new=5), ops=sk)
    assert statistics.drafted == statistics.accepted == statistics.acceptance == []
    assert statistics.mean_tokens_per_step == 1.0 and statistics.new_tokens == 11
    assert statistics.tokens_per_second > 0 and statistics.seconds_per_step > 0
    assert [output.steps for output in outputs] == [5, 6]


# ---- drafters ------------------------------------------------------------------------------------------------------------


def test_holes_and_what_follows_them_are_never_accepted(model):
    request = Request(prompt_of(1, 4), max_new_tokens=8, temperature=0.7)
    text = plain(model, [request])[0]
    script = perfect([request], [text])
    for rule in ("match", "rejection"):
        holes = Scripted(lambda known, count: [-1 if i == 1 else t for i, t in enumerate(script(known, count))])
        decoder = decoder_of(model, holes, num_draft=3, rule=rule)
        decoder.generate([request])
        assert decoder.statistics.accepted[1:] == [0] * (len(decoder.statistics.accepted) - 1)
        assert rule == "rejection" or decoder.statistics.accepted[0] > 0


def test_tokens_outside_the_vocabulary_are_holes(model):
    request = Request(prompt_of(1, 4), max_new_tokens=5)
    expected = plain(model, [request])[0]
    for token in (VOCAB, 2**31 - 1, -5):
        output = decoder_of(model, Scripted(lambda known, count, t=token: [t] * count)).generate([request])[0]
        assert output.tokens == expected


def test_what_a_drafter_sees(model):
    """Limits of idle rows are 0, serials tell requests apart, texts are those of the outputs so far."""
    seen = []

    class Watching(Scripted):
        def propose(self, batch, limits, rule):
            live = [request is not None for request in batch.requests]
            assert [limit > 0 for limit in limits] <= live and rule == "match"
            assert [serial >= 0 for serial in batch.serials] == live
            seen.append((tuple(batch.serials), tuple(map(len, batch.texts)), tuple(limits)))
            return super().propose(batch, limits, rule)

        def observe(self, batch, committed):
            super().observe(batch, committed)
            assert len(committed) == batch.size

    requests = [Request(prompt_of(i, 2), max_new_tokens=2 + i) for i in range(3)]
    drafter = Watching(lambda text, count: [])
    decoder_of(model, drafter, max_batch=2, num_draft=3).generate(requests)
    serials = [serial for serials, _, _ in seen for serial in serials if serial >= 0]
    assert len(set(serials)) == 3
    # Texts before each step: the first request ends after 2 tokens, the third takes its row with a prompt of 2.
    assert [lengths for _, lengths, _ in seen] == [(2, 2), (3, 3), (2, 4), (3, 5), (4, 5), (5, 5)]
    assert [limits for _, _, limits in seen] == [(1, 2), (0, 1), (3, 0), (2, 0), (1, 0), (0, 0)]
    assert drafter.observed == [[0, 0], [1, 1], [1, 1], [0, 0], [1, 1], [1, 0], [1, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize("ops", OPS)
def test_the_lookup_drafter_follows_a_text_that_repeats(ops):
    """Where the text repeats itself, prompt lookup drafts what comes, and is believed."""
    loop = [3, 4, 5, 6] * 3
    request = Request(loop, max_new_tokens=12)
    model = model_of(0)
    drafter = NgramDrafter(OPS[ops], max_n=3)
    assert Decoder(model, ops=OPS[ops], drafter=drafter).generate([request])[0].tokens == plain(model, [request])[0]
    batch_tokens = OPS[ops].draft.ngram_lookup(torch.tensor([loop]), torch.tensor([12]), 1, 3, 4)[0]
    assert batch_tokens.tolist() == [[3, 4, 5, 6]]


# ---- failures ------------------------------------------------------------------------------------------------------------


def failing(at):
    """A callback that fails at its so-many-th call."""
    calls = []

    def on_tokens(tokens):
        calls.append(tokens)
        if len(calls) == at:
            raise KeyboardInterrupt("enough")

    return on_tokens


@pytest.mark.parametrize("drafter", ["none", "scripted", "independent"])
def test_an_exception_passes_and_frees_all_pages(model, drafter):
    requests = requests_of(3, 0.8, new=6)
    expected = plain(model, requests)
    made = {"none": None, "scripted": Scripted(perfect(requests, expected)), "independent": None}[drafter]
    if drafter == "independent":
        made = IndependentDrafter(model_of(1), sk)
    decoder = decoder_of(model, made, num_draft=2)
    broken = Request(**{**vars(requests[1]), "on_tokens": failing(2)})
    with pytest.raises(KeyboardInterrupt, match="enough"):
        decoder.generate([requests[0], broken, requests[2]])
    assert is_free(decoder)
    if drafter == "independent":
        assert sorted(made.cache.free_pages) == list(range(made.cache.num_pages))
    assert [output.tokens for output in decoder.generate(requests)] == expected


def test_an_exception_ends_all_requests(model):
    decoder = decoder_of(model, max_batch=2)
    requests = [Request(prompt_of(i, 3), max_new_tokens=4) for i in range(4)]
    requests[1] = Request(prompt_of(1, 3), max_new_tokens=4, on_tokens=failing(2))
    short = decoder.submit(Request(prompt_of(5, 3), max_new_tokens=1))
    handles = [decoder.submit(request) for request in requests]
    with pytest.raises(KeyboardInterrupt, match="enough"):
        while decoder.step():
            pass
    assert short.output.finish_reason == "length"
    assert [handle.output.finish_reason for handle in handles] == ["error"] * 4
    assert decoder.idle and is_free(decoder)


def test_a_drafter_that_fails_frees_all_pages(model):
    def script(text, count):
        raise ZeroDivisionError

    decoder = decoder_of(model, Scripted(script))
    with pytest.raises(ZeroDivisionError):
        decoder.generate(requests_of(2, 0.0))
    assert is_free(decoder)


def greedy_request(**options):
    return Request([1, 2], **options)


WRONG = {
    "Request: prompt must have at least one token, got 0 tokens": lambda model: Request([]),
    "Request: max_new_tokens must be at least 1, got 0": lambda model: greedy_request(max_new_tokens=0),
    "Request: temperature must be finite and at least 0, got -1.0": lambda model: greedy_request(temperature=-1.0),
    "Request: temperature must be finite and at least 0, got inf": lambda model: greedy_request(temperature=math.inf),
    "Request: temperature must be finite and at least 0, got nan": lambda model: greedy_request(temperature=math.nan),
    "Request: temperature must be at most 3.403e+38, got 1e+39": lambda model: greedy_request(temperature=1e39),
    "Request: top_k must be at most 2147483647, got 2147483648": lambda model: greedy_request(top_k=2**31),
    "Request: top_k must be at least 0, got -1": lambda model: greedy_request(top_k=-1),
    "Request: top_p must be above 0 and at most 1, got 0.0": lambda model: greedy_request(top_p=0.0),
    "Request: top_p must be above 0 and at most 1, got 1.5": lambda model: greedy_request(top_p=1.5),
    "Request: min_p must be between 0 and 1, got 1.5": lambda model: greedy_request(min_p=1.5),
    "Decoder: rule must be one of match, greedy, rejection, block, traversal, greedy_plus_one, got 'strict'": lambda model: (
        decoder_of(model, rule="strict")
    ),
    "Decoder: logprobs must be one of None, 'processed', 'raw', got 'log'": lambda model: decoder_of(
        model, logprobs="log"
    ),
    "Decoder: num_draft must be at least 0, got -1": lambda model: decoder_of(model, num_draft=-1),
    "Decoder: max_batch must be at least 1, got 0": lambda model: decoder_of(model, max_batch=0),
    "Decoder: prefill_chunk must be at least 1, got 0": lambda model: decoder_of(model, prefill_chunk=0),
    "PagedCache: page_size must be a power of two, got 0": lambda model: decoder_of(model, page_size=0),
    "PagedCache: num_pages must be at least 1, got 0": lambda model: PagedCache(model.config, 1, num_pages=0),
    "NgramDrafter: min_n must be at least 1, got 0": lambda model: NgramDrafter(sk, min_n=0),
    "NgramDrafter: max_n must be at least 3, got 2": lambda model: NgramDrafter(sk, min_n=3, max_n=2),
    "IndependentDrafter: temperature must be at least 0, got -1": lambda model: IndependentDrafter(
        model, sk, temperature=-1
    ),
    "generate: prompt must have fewer than 64 tokens, got 64": lambda model: decoder_of(model).generate(
        [Request([1] * 64)]
    ),
    "generate: prompt must hold tokens from 0 to 28, got 29": lambda model: decoder_of(model).generate([Request([29])]),
    "generate: prompt must hold tokens from 0 to 28, got -1": lambda model: decoder_of(model).generate([Request([-1])]),
    "generate: temperature must be 0 under the rule 'greedy', got 0.5": lambda model: decoder_of(
        model, NgramDrafter(sk), rule="greedy"
    ).generate([greedy_request(temperature=0.5)]),
    "generate: temperature must be 0 under the rule 'greedy', got 0.25": lambda model: decoder_of(
        model, None, rule="greedy"
    ).generate([greedy_request(temperature=0.25)]),
}


@pytest.mark.parametrize("text", WRONG)
def test_exact_text_of_errors(model, text):
    with pytest.raises(ValueError) as raised:
        WRONG[text](model)
    assert str(raised.value) == text


def test_abort_ends_all_requests_and_frees_their_pages():
    model = model_of()
    requests = requests_of(3, 0.7)
    decoder = Decoder(model, ops=sk, drafter=NgramDrafter(sk), max_batch=2)
    handles = [decoder.submit(request) for request in requests]
    decoder.step()
    decoder.abort()
    assert decoder.idle and not any(decoder.batch.active)
    assert [handle.output.finish_reason for handle in handles] == ["cancelled"] * 3
    assert handles[0].output.tokens and not handles[2].output.tokens
    assert [output.tokens for output in decoder.generate(requests)] == plain(model, requests)


def test_without_drafts_nobody_is_asked():
    model = model_of()
    requests = requests_of(3, 0.7)

    class Silent:
        features = (0,)

        def __getattr__(self, name):
            raise AssertionError(name)

    decoder = Decoder(model, ops=sk, drafter=Silent(), num_draft=0)
    assert decoder.features == () and decoder.guesser is None
    assert [output.tokens for output in decoder.generate(requests)] == plain(model, requests)


def test_times_are_counted_where_a_callback_raises():
    def fail(tokens):
        raise RuntimeError("enough")

    decoder = Decoder(model_of(), ops=sk)
    with pytest.raises(RuntimeError, match="enough"):
        decoder.generate([Request([1, 2], max_new_tokens=4, on_tokens=fail)])
    assert decoder.statistics.decode_seconds > 0
