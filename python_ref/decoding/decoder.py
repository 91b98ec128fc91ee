"""The decoder: requests come in, wait for a row, are prefilled, decoded together, and leave when they are done.

One class serves plain and speculative decoding; they differ in the step alone (``autoregressive.py``,
``speculative.py``), so that they share model, cache, attention and linear layers, and the comparison between them
is fair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import autoregressive, speculative
from .batch import Batch, Step
from .cache import PagedCache
from .prefill import prefill
from .request import Output, Request, check_rule
from .scheduler import Handle
from .statistics import Statistics, Stopwatch

if TYPE_CHECKING:
    from ..drafters.protocol import Drafter
    from ..models import Transformer
    from .trace import Recorder

LOGPROBS = (None, "processed", "raw")


class Decoder:
    """Generates text with a model, and with a drafter if there is one; serves requests as they come.

    ``generate`` takes a list of requests. To serve, ``submit`` requests at any time, also within callbacks, and call
    ``step`` as long as it says that there is work. Callbacks may also call ``abort``.

    The token at absolute position ``p`` of a request is drawn with the counters of position ``p`` and the request's
    seed, by ``ops.sample.sample`` or ``ops.verify.match`` alike: with a row-invariant linear layer
    (``model.use_linear``) the text is the same whatever the drafter, the number of drafts, the other requests, the
    pages and the chunks.

    Attributes:
        statistics: since they were last reset; :meth:`generate` does that if nothing else is being served.
        batch: the requests being decoded; drafters see it.
        cache: keys and values of the target; every page is free when there is nothing to do.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        ops: Any,
        drafter: Drafter | None = None,
        rule: str = "match",
        num_draft: int = 4,
        max_batch: int = 8,
        page_size: int = 16,
        prefill_chunk: int = 32,
        logprobs: str | None = None,
        trace: Recorder | None = None,
        expects: bool = False,
    ) -> None:
        """Make a decoder.

        Args:
            model: the target, on the device where it shall run.
            ops: the package of the ops, ``python_ref.ops`` or ``specdec_kernels``.
            drafter: guesses; None: plain decoding.
            rule: how drafts are verified. ``"match"``: text identical to plain decoding; ``"greedy"``: the argmax,
                for temperature 0; ``"rejection"`` (rule ``"token"`` of ``verify.rejection``), ``"block"``, ``"traversal"``
                and ``"greedy_plus_one"``: by the ratio of the laws, which keeps the law but not the text.
            num_draft: most drafts in a row, per request and step; how wide a tree is, its drafter knows. 0: plain decoding,
                the drafter is not asked. May be changed between generations.
            max_batch: most requests decoded together; others wait.
            page_size: tokens per page of the cache.
            prefill_chunk: prompt tokens per pass.
            logprobs: ``"processed"`` (of the law that is sampled) or ``"raw"`` (of the model's own) for every token.
            trace: is told every step; None: nobody.
            expects: whether the statistics also get what each step had to expect in closed form, under the rules that look
                at ratios (``verify.expect``).

        Raises:
            ValueError: if an argument is out of range.
        """
        if rule not in speculative.RULES:
            raise ValueError(f"Decoder: rule must be one of {', '.join(speculative.RULES)}, got {rule!r}")
        if logprobs not in LOGPROBS:
            known = ", ".join(map(repr, LOGPROBS))
            raise ValueError(f"Decoder: logprobs must be one of {known}, got {logprobs!r}")
        if num_draft < 0:
            raise ValueError(f"Decoder: num_draft must be at least 0, got {num_draft}")
        for name, value in (("max_batch", max_batch), ("prefill_chunk", prefill_chunk)):
            if value < 1:
                raise ValueError(f"Decoder: {name} must be at least 1, got {value}")
        self.model, self.ops, self.drafter = model, ops, drafter
        self._asked = rule  # what it takes must not depend on whether somebody guesses
        self.rule = rule if drafter is not None else "match"  # of a chain without drafts: plain decoding
        self.num_draft, self.max_batch, self.prefill_chunk = num_draft, max_batch, prefill_chunk
        self.logprobs, self.trace, self.expects = logprobs, trace, expects
        self.max_positions = model.config.max_positions
        weight = model.model.embed_tokens.weight
        self.device = weight.device
        self.cache = PagedCache(model.config, max_batch, page_size=page_size, dtype=weight.dtype, device=weight.device)
        self.statistics = Statistics()
        self.batch = Batch(0, ops, self.device)
        self._waiting: deque[Handle] = deque()
        self._owners: dict[int, Handle] = {}  # by row
        self._inside = False
        self._clock, self._total = Stopwatch(self.device), Stopwatch(self.device)

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Continue every request; the outputs come in the order of the requests.

        More requests than ``max_batch`` wait, and take the rows of those that finish; those that were submitted before are
        served as well. If a callback or the drafter raises, the exception passes, and all pages are free again.

        Raises:
            ValueError: if a prompt holds a token that is not of the vocabulary or leaves no position for a new one,
                or if the rule is ``greedy`` and a temperature is not 0.
        """
        self._refuse_within("generate")
        for request in requests:
            self.check(request)
        if self.idle:
            self.reset_statistics()
            self.batch = Batch(min(self.max_batch, len(requests)), self.ops, self.device)
        handles = [self._enqueue(request) for request in requests]
        while self.step():
            pass
        return [handle.output for handle in handles]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, and every page is free."""
        return not (self._waiting or self.batch.live)

    def submit(self, request: Request) -> Handle:
        """A request waits for its turn; nothing is computed before the next :meth:`step`.

        Raises:
            ValueError: as :meth:`generate`.
        """
        self.check(request)
        if self.idle and not self._inside and self.batch.size != self.max_batch:
            self.batch = Batch(self.max_batch, self.ops, self.device)
        return self._enqueue(request)

    def step(self) -> bool:
        """Read the prompts of requests for which there are rows, then one step of all; whether there is more to do.

        If a callback or the drafter raises, all requests end with the reason ``"error"``, and the exception passes.

        Raises:
            RuntimeError: if it is called by a callback.
        """
        self._refuse_within("step")
        if self.idle:
            return False
        for clock in (self._total, self._clock):
            clock.lap()  # what was between two steps is no part of them
        self._inside = True
        try:
            with torch.inference_mode():
                self._advance()
        finally:
            self._inside = False
            self.statistics.total_seconds += self._total.lap()
        return not self.idle

    def abort(self) -> None:
        """End all requests with the reason ``"cancelled"``; every page is free then. Callbacks may do so: what the step had
        for the others is dropped."""
        with torch.inference_mode():  # as the steps that made the caches
            self._end_all("cancelled")
            if self.guesser is not None and not self._inside:  # which the step does by itself
                self.guesser.observe(self.batch, [0] * self.batch.size)

    def reset_statistics(self) -> None:
        """Count from here on. Times are those of the steps; what is between them is no part of them."""
        self.statistics = Statistics()

    @property
    def busy(self) -> bool:
        """Whether there are requests, or a step is going on: the setting must stay what it is."""
        return self._inside or not self.idle

    @property
    def guesser(self) -> Drafter | None:
        """The drafter, if drafts are wanted."""
        return self.drafter if self.num_draft > 0 else None

    @property
    def features(self) -> tuple[int, ...]:
        """Ids of the layers whose outputs the drafter reads."""
        return tuple(getattr(self.guesser, "features", ()))

    def remaining(self, row: int) -> int:
        """Tokens that the request of a row may still get; 0 for an idle row."""
        request = self.batch.requests[row]
        if request is None:
            return 0
        limit = min(len(request.prompt) + request.max_new_tokens, self.max_positions)
        return limit - len(self.batch.texts[row])

    def check(self, request: Request) -> None:
        """Refuse what :meth:`generate` would refuse.

        Raises:
            ValueError: if the request does not fit the model or the rule.
        """
        vocab = self.model.config.vocab_size
        if len(request.prompt) >= self.max_positions:
            raise ValueError(
                f"generate: prompt must have fewer than {self.max_positions} tokens, got {len(request.prompt)}"
            )
        for token in request.prompt:
            if not 0 <= token < vocab:
                raise ValueError(f"generate: prompt must hold tokens from 0 to {vocab - 1}, got {token}")
        check_rule("generate", self._asked, request)

    def _refuse_within(self, name: str) -> None:
        if self._inside:
            raise RuntimeError(f"Decoder.{name}: must be called outside of callbacks, got a call within one")

    def _advance(self) -> None:
        try:
            if self._waiting and None in self.batch.requests:
                self._admit()
                self.statistics.prefill_seconds += self._clock.lap()
            self._step(self._clock)
        except BaseException:
            self._end_all("error")
            raise
        finally:
            if self.idle and self.guesser is not None:
                self.guesser.observe(self.batch, [0] * self.batch.size)

    def _enqueue(self, request: Request) -> Handle:
        handle = Handle(request, Output(logprobs=None if self.logprobs is None else []))
        self._waiting.append(handle)
        return handle

    def _admit(self) -> None:
        """Give idle rows to waiting requests, and prefill these."""
        for row in range(self.batch.size):
            if self.batch.requests[row] is None and self._waiting:
                handle = self._owners[row] = self._waiting.popleft()
                request = handle.request
                self.batch.join(row, request)
                if self.trace is not None:
                    self.trace.request(self.batch.serials[row], request)
                self._prefill(row, request.prompt[:-1])
                self.statistics.prompt_tokens += len(request.prompt)
        if self.guesser is not None:
            self.guesser.observe(self.batch, [0] * self.batch.size)

    def _end_all(self, reason: str) -> None:
        """End all requests, and free their pages."""
        live = self.batch.live
        told = [(self.batch.serials[row], self._owners[row].output) for row in live]
        for handle in [*(self._owners[row] for row in live), *self._waiting]:
            handle.output.finish_reason = handle.output.finish_reason or reason
        self._waiting.clear()
        for row in live:
            self._release(row)
        if self.trace is not None:
            for serial, output in told:
                self.trace.finish(serial, output)

    def _prefill(self, row: int, tokens: Sequence[int]) -> None:
        """Bring a prompt into the cache, and its features to the drafter that asked for them."""
        ready = (self.model, self.ops, self.cache, row, tokens, 0, self.prefill_chunk)
        if not self.features:
            prefill(*ready)
            return
        drafter: Any = self.guesser
        prefill(*ready, self.features, lambda features, start: drafter.prime(self.batch, row, features, start))

    def _step(self, clock: Stopwatch) -> None:
        """One step of all live requests, up to the tokens in their texts."""
        live = self.batch.live
        if self.guesser is None and self.logprobs is None and self.trace is None:
            step = autoregressive.step(self, clock)
        else:
            step = speculative.step(self, clock)
        self.statistics.steps += 1
        committed = [0] * self.batch.size
        for row in live:
            if self.batch.requests[row] is not None:  # else the callback of another one has aborted
                self.statistics.request_steps += 1
                self.statistics.count_expected(step.expected, row)
                committed[row] = self._commit(row, step)
        clock.lap()
        if self.guesser is not None:
            self.guesser.observe(self.batch, committed)
            self.statistics.draft_seconds += clock.lap()

    def _commit(self, row: int, step: Step) -> int:
        """Append the new tokens of a request up to its end, and retire it there; how many were appended."""
        request, output = self.batch.requests[row], self._owners[row].output
        assert request is not None
        stops = request.stop_tokens
        stops = self.model.config.stop_tokens if stops is None else stops
        kept: list[int] = []
        for token in step.tokens[row]:
            if token < 0:
                output.finish_reason = "dead_end"
                break
            kept.append(token)
            if token in stops:
                output.finish_reason = "stop"
                break
        self.batch.texts[row] += kept
        if not output.finish_reason and self.remaining(row) == 0:
            output.finish_reason = "length"
        output.tokens += kept
        output.steps += 1
        if step.logprobs is not None and output.logprobs is not None:
            output.logprobs += step.logprobs[row][: len(kept)]
        accepted = min(len(step.tokens[row]) - 1, len(kept))  # the rest is the target's own token
        self.statistics.count_drafts(step.drafted[row], accepted)
        self.statistics.new_tokens += len(kept)
        if output.finish_reason:
            if self.trace is not None:
                self.trace.finish(self.batch.serials[row], output)
            self._release(row)
            self.statistics.requests += 1
        if request.on_tokens is not None and kept:
            request.on_tokens(kept)
        return len(kept)

    def _release(self, row: int) -> None:
        self.batch.leave(row)
        self.cache.release(row)


def generate(model: Transformer, requests: Sequence[Request], **options: Any) -> tuple[list[Output], Statistics]:
    """Continue every request, and say what it cost; ``options`` are those of :class:`Decoder`."""
    decoder = Decoder(model, **options)
    return decoder.generate(requests), decoder.statistics
