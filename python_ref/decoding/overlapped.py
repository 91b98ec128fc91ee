"""A serving loop that never waits: while the device runs a step, the host reads the result of the one before.

What the host does between two steps of :class:`~python_ref.decoding.decoder.Decoder` it does here during one::

    device   | step 1        | step 2        | step 3        |
    host       launch 2        launch 3        launch 4
               |               read 1          read 2          read results: texts, stops, callbacks, pages

To launch a step the host has to know nothing of the one that runs: lengths, texts and limits are on the device, and a
request has pages for all that two steps may write. That its text has ended the host finds one step late, and drops what
the extra step gave; only when that has ended are the pages free.

The text is that of plain decoding, for the same reasons as in the plain loop. Source of the scheme: the overlapped
scheduler of SGLang, whose rings, over-allocation and dropped steps these are.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .cache import PagedCache
from .device_queue import DeviceQueue, Ticket
from .request import Output, Request, check_rule
from .result_ring import LaneResult, ResultRing
from .scheduler import Handle, Round, Scheduler
from .static_drafter import StaticDrafter, static_of
from .static_step import Runner, StaticStep
from .statistics import Statistics
from .step_state import StepState

if TYPE_CHECKING:
    from ..drafters.protocol import Drafter
    from ..models import Transformer

RULES = ("match", "greedy")

# Steps that are launched before the result of the first of them is read.
_AHEAD = 2


@dataclass
class OverlappedStatistics(Statistics):
    """Counts and times of a run. Host and device work at the same time: their times do not add up to the total.

    ``prefill_seconds`` to ``verify_seconds`` are those of the device's thread on the CPU, and 0 on a GPU.

    Attributes:
        dropped: requests in all steps that had finished already; they are no part of ``request_steps``.
        waiting_seconds: how long the host had nothing to do but wait for a result.
    """

    dropped: int = 0
    waiting_seconds: float = 0.0

    @property
    def decode_seconds(self) -> float:
        """Everything: prompts are read between the steps of others."""
        return self.total_seconds


class _Flight(NamedTuple):
    """A round that the device has, and whose result has not been read."""

    round: Round
    ticket: Ticket


class OverlappedDecoder:
    """Generates text with a model, and with a drafter if there is one; serves requests as they come.

    ``generate`` is that of the plain decoder. To serve, ``submit`` requests at any time and call ``step`` as long as it
    says that there is work. All methods belong to one thread; callbacks (``Request.on_tokens``) run on it, and may
    submit, cancel and abort.

    Attributes:
        statistics: since they were last reset; :meth:`generate` does that if nothing else is being served.
        cache: keys and values of the target.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        ops: Any,
        drafter: Drafter | StaticDrafter | None = None,
        rule: str = "match",
        num_draft: int = 4,
        max_batch: int = 8,
        page_size: int = 16,
        prefill_chunk: int = 32,
        prefill_budget: int = 256,
        num_pages: int | None = None,
        compact: bool | None = None,
        graphs: bool = True,
    ) -> None:
        """Make a decoder.

        Args:
            model: the target, on the device where it shall run.
            ops: the package of the ops, ``python_ref.ops`` or ``specdec_kernels``; on a GPU the latter.
            drafter: guesses; None: plain decoding. One of :mod:`python_ref.drafters` that has a static form (``ngram``,
                ``independent``, ``eagle3``, ``dflash``), or a :class:`~python_ref.decoding.static_drafter.StaticDrafter`.
            rule: ``"match"``: text identical to plain decoding; ``"greedy"``: the argmax, for temperature 0.
            num_draft: most drafts in a row, per request and step.
            max_batch: most requests decoded together; others wait.
            page_size: tokens per page.
            prefill_chunk: prompt tokens per pass.
            prefill_budget: prompt tokens between two steps: with longer prompts the others go on decoding in between.
            num_pages: pages of all requests together; those for which there are none wait. None: as many as needed.
            compact: leave padding out of the passes of the models, for which the thread that runs them reads values;
                None: on the CPU.
            graphs: on a GPU, record steps and replay them; False: launch their kernels one by one.

        Raises:
            ValueError: if an argument is out of range, or the drafter has no static form.
        """
        if rule not in RULES:
            raise ValueError(f"OverlappedDecoder: rule must be one of {', '.join(RULES)}, got {rule!r}")
        least = {"num_draft": 0, "max_batch": 1, "prefill_chunk": 1, "prefill_budget": 1, "num_pages": 1}
        given = (num_draft, max_batch, prefill_chunk, prefill_budget, 1 if num_pages is None else num_pages)
        for (name, low), value in zip(least.items(), given, strict=True):
            if value < low:
                raise ValueError(f"OverlappedDecoder: {name} must be at least {low}, got {value}")
        self.model, self.ops, self.rule = model, ops, rule
        self.max_positions = model.config.max_positions
        self.device = device = model.model.embed_tokens.weight.device
        if compact and device.type != "cpu":
            raise ValueError(f"OverlappedDecoder: compact must be False on {device.type}, got True")
        made = static_of(drafter, num_draft)
        width = 1 if made is None else made.depth + 1
        # A step may write as much in any cache, and the verified path is in front of it.
        extent = 1 if made is None else max(made.width, made.extent, width)
        rows, pages = 2 * max_batch, 64 if num_pages is None else num_pages
        self._scheduler = Scheduler(
            max_batch=max_batch,
            rows=rows,
            width=width,
            extent=extent,
            prefill_chunk=prefill_chunk,
            prefill_budget=prefill_budget,
            page_size=page_size,
            num_pages=pages,
            grows=num_pages is None,
        )
        self._num_pages = num_pages
        self._queue = DeviceQueue(device)
        self._queue.follow()
        with self._queue.context():
            self._state = StepState(
                ops,
                rows,
                max_length=self.max_positions,
                width=width,
                extent=extent,
                page_size=page_size,
                num_pages=pages,
                device=device,
            )
            self._step = StaticStep(
                model, ops, self._state, made, rule, device.type == "cpu" if compact is None else compact
            )
            self._runner = Runner(self._step, self._queue, max_batch, graphs)
            self._runner.record()
        self._ring = ResultRing(_AHEAD, max_batch, width, device)
        self._flights: deque[_Flight] = deque()
        self._inside = False
        self._since = 0.0
        self.statistics = OverlappedStatistics()

    @property
    def cache(self) -> PagedCache:
        """Keys and values of the target. Its pages are those of the pool, see :meth:`check_pages`."""
        return self._step.cache

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, and every page is free."""
        return self._scheduler.idle and not self._flights

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Continue every request; the outputs come in the order of the requests.

        Requests that were submitted before are served as well. If a callback or the device raises, the exception passes,
        and all pages are free again.

        Raises:
            ValueError: if a prompt holds a token that is not of the vocabulary or leaves no position for a new one, if
                the rule is ``greedy`` and a temperature is not 0, or if there are not pages enough for a request alone.
        """
        self._refuse_within("generate")
        for request in requests:
            self.check(request)
        if self.idle:
            self.reset_statistics()
        handles = [self.submit(request) for request in requests]
        self.run_until_idle()
        return [handle.output for handle in handles]

    def submit(self, request: Request) -> Handle:
        """A request waits for its turn; nothing is computed before the next :meth:`step`.

        Raises:
            ValueError: as :meth:`generate`.
        """
        self.check(request)
        if self.idle and not self._inside:  # a step counts its own time, also where its last callback submits
            self._since = time.perf_counter() - self.statistics.total_seconds
            self._queue.follow()
        handle = Handle(request)
        self._scheduler.submit(handle, self._limit(request))
        return handle

    def cancel(self, handle: Handle) -> None:
        """A request ends here: what is on its way to it is dropped. One that is done already is left as it is.

        Its pages are free when the steps that it takes part in have ended, for which :meth:`step` must be called.

        Raises:
            ValueError: if another decoder has it.
        """
        if handle.done:
            return
        if not self._scheduler.knows(handle):
            raise ValueError("cancel: handle must be of a request of this decoder, got one of another")
        self._scheduler.finish(handle, "cancelled")

    def step(self) -> bool:
        """Launch a step, and read the result of the one before it; whether there is more to do.

        If a callback raises, its request ends with the reason ``"error"`` unless it has ended already, the others go on,
        and the first such exception passes once all results of the step are in the texts. If the device raises, all
        requests end so.

        Raises:
            RuntimeError: if it is called by a callback.
        """
        self._refuse_within("step")
        if self.idle:
            return False
        self._inside = True
        try:
            planned = self._scheduler.plan()
            if planned is not None:
                self._launch(planned)
            if len(self._flights) >= (_AHEAD if planned is not None else 1):
                self._land(self._flights.popleft())
        finally:
            self._inside = False
            self._count_time()
        return not self.idle

    def run_until_idle(self) -> None:
        """Serve all requests to their ends; if something raises, :meth:`abort`, and the exception passes."""
        self._refuse_within("run_until_idle")
        try:
            while self.step():
                pass
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Cancel all requests, and wait for the device; every page is free then. Callbacks may do so: what the step had for
        the others is dropped."""
        self._end_all("cancelled")

    def reset_statistics(self) -> None:
        """Count from here on. Times are those at which there is work; gaps between requests are no part of them."""
        self.statistics = OverlappedStatistics()
        self._since = time.perf_counter()
        self._step.seconds = dict.fromkeys(self._step.seconds, 0.0)

    def check(self, request: Request) -> None:
        """Refuse what :meth:`submit` would refuse.

        Raises:
            ValueError: if the request does not fit the model, the rule or the pages.
        """
        vocab, prompt = self.model.config.vocab_size, request.prompt
        if len(prompt) >= self.max_positions:
            raise ValueError(f"submit: prompt must have fewer than {self.max_positions} tokens, got {len(prompt)}")
        for token in prompt:
            if not 0 <= token < vocab:
                raise ValueError(f"submit: prompt must hold tokens from 0 to {vocab - 1}, got {token}")
        check_rule("submit", self.rule, request)
        need = self._scheduler.pages_for(self._limit(request))
        if self._num_pages is not None and need > self._num_pages:
            raise ValueError(f"submit: request must fit {self._num_pages} pages, got one of {need}")

    def check_pages(self) -> None:
        """Count the pages.

        Raises:
            RuntimeError: if one is lost or owned twice, or if all requests are gone and one is not free.
        """
        pool = self._scheduler.pool
        pool.check()
        if self.idle and (len(pool.free), pool.unpromised) != (pool.num_pages, pool.num_pages):
            raise RuntimeError(f"OverlappedDecoder: {pool.num_pages} pages must be free, got {len(pool.free)}")

    def _refuse_within(self, name: str) -> None:
        if self._inside:
            raise RuntimeError(f"OverlappedDecoder.{name}: must be called outside of callbacks, got a call within one")

    def _limit(self, request: Request) -> int:
        return min(len(request.prompt) + request.max_new_tokens, self.max_positions)

    def _launch(self, planned: Round) -> None:
        """Hand a round to the device; nothing here waits for it."""
        for handle in planned.joined:
            self.statistics.prompt_tokens += len(handle.request.prompt)
        joined = [(handle._row, handle.request, handle._limit) for handle in planned.joined]
        rows = [handle._row for handle in planned.lanes]  # as they are now: a row may have changed hands by then
        ticket = self._queue.submit(self._task(planned, joined, rows))
        self._flights.append(_Flight(planned, ticket))

    def _task(self, planned: Round, joined: list[tuple[int, Request, int]], rows: list[int]) -> Callable[[], None]:
        """What the device does in a round."""
        state, step, upload = self._state, self._step, self._queue.upload
        places = [row * state.max_pages + index for row, index, _ in planned.pages]
        pages = [page for _, _, page in planned.pages]

        def task() -> None:
            if planned.num_pages > state.num_pages:
                self._runner.forget()
                state.grow(planned.num_pages)
            for row, request, limit in joined:
                state.join(row, request, upload(list(request.prompt)), limit)
                if step.drafter is not None:
                    step.drafter.join(row)
            if places:
                state.set_pages(upload(places), upload(pages, torch.int32))
            for chunk in planned.chunks:
                step.prefill(*chunk)
            if rows:
                self._ring.write(planned.number, self._runner(rows))

        return task

    def _land(self, flight: _Flight) -> None:
        """Read the result of a round, if need be wait for it, and give everybody what is theirs."""
        before = time.perf_counter()
        try:
            flight.ticket.wait()
        except BaseException:
            self._end_all("error")
            raise
        self.statistics.waiting_seconds += time.perf_counter() - before
        self._scheduler.ended(flight.round.number)
        lanes, failure = flight.round.lanes, None
        results = self._ring.read(flight.round.number, len(lanes)) if lanes else []
        self.statistics.steps += bool(lanes)
        for handle, result in zip(lanes, results, strict=True):
            self._scheduler.seen(handle)
            try:
                self._take(handle, result)
            except BaseException as error:  # of a callback: the others' results are not lost
                failure = failure or error
                if not handle.done:
                    self._scheduler.finish(handle, "error")
        if failure is not None:
            raise failure

    def _take(self, handle: Handle, result: LaneResult) -> None:
        """Append the new tokens of a request up to its end, and tell it."""
        statistics, output, request = self.statistics, handle.output, handle.request
        if handle.done:
            statistics.dropped += 1
            return
        stops = self.model.config.stop_tokens if request.stop_tokens is None else request.stop_tokens
        kept: list[int] = []
        reason = "" if result.tokens else "dead_end"
        for token in result.tokens:
            if token < 0:
                reason = "dead_end"
                break
            kept.append(token)
            if token in stops:
                reason = "stop"
                break
        if self._scheduler.grown(handle, len(kept)) and not reason:
            reason = "length"
        output.tokens += kept
        output.steps += 1
        statistics.request_steps += 1
        statistics.count_drafts(result.drafted, min(len(result.tokens) - 1, len(kept)))
        statistics.new_tokens += len(kept)
        if reason:
            self._scheduler.finish(handle, reason)
            statistics.requests += 1
        if request.on_tokens is not None and kept:
            request.on_tokens(kept)

    def _end_all(self, reason: str) -> None:
        """End all requests, and let the device come to rest."""
        scheduler = self._scheduler
        for handle in [*scheduler.waiting, *scheduler.running]:
            scheduler.finish(handle, reason)
        while self._flights:
            with contextlib.suppress(Exception):  # told already, or nobody is left to be told
                self._flights.popleft().ticket.wait()
        scheduler.reset()
        self._queue.recover()

    def _count_time(self) -> None:
        statistics, seconds = self.statistics, self._step.seconds
        statistics.total_seconds = time.perf_counter() - self._since
        for name, spent in seconds.items():
            setattr(statistics, f"{name}_seconds", spent)
