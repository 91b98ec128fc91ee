"""What the host decides: who waits, who joins, what a round does, whose pages are free again.

A *round* is what the host hands to the device at a time: requests that join, pages, pieces of prompts, and one step of
all requests whose prompts are read. Nothing here depends on how many drafts were accepted in a round that has not been
seen: a request has pages for two steps more than the host knows of, and gets all that it may ever need promised when it
joins.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from .page_pool import PagePool
from .request import Output, Request

_numbers = itertools.count()


@dataclass(eq=False)
class Handle:
    """A request that was submitted.

    Attributes:
        request: what was asked for.
        output: what there is so far; complete once ``output.finish_reason`` says why. Besides the reasons of
            :class:`Output` these are ``"cancelled"``, and ``"error"`` where its callback or the device raised.
        number: its own among all of the process, in the order of submission.
    """

    request: Request
    output: Output = field(default_factory=Output)
    number: int = field(default_factory=lambda: next(_numbers))
    _limit: int = 0  # length at which the text ends at the latest
    _length: int = 0  # of the text, as far as results have been seen
    _read: int = 0  # tokens of the prompt that have gone to the device
    _row: int = -1
    _flying: int = 0  # steps whose results have not been seen
    _last_round: int = -1  # that touched its row

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return bool(self.output.finish_reason)


class Chunk(NamedTuple):
    """A piece of a prompt: ``length`` tokens from position ``start`` of a row."""

    row: int
    start: int
    length: int


class Round(NamedTuple):
    """What the device has to do, in this order.

    Attributes:
        number: of the round.
        num_pages: what the caches must have.
        joined: requests that take a row.
        pages: new entries of the block table: row, index and page.
        chunks: pieces of prompts.
        lanes: requests of the step; none: no step.
    """

    number: int
    num_pages: int
    joined: list[Handle]
    pages: list[tuple[int, int, int]]
    chunks: list[Chunk]
    lanes: list[Handle]


class Scheduler:
    """Requests from submission to the end of the last step that may write their pages.

    Attributes:
        pool: the pages.
        waiting: requests that have not joined.
        running: requests that have, and have not finished, in the order in which they joined.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        rows: int,
        width: int,
        extent: int,
        prefill_chunk: int,
        prefill_budget: int,
        page_size: int,
        num_pages: int,
        grows: bool,
    ) -> None:
        """Make an empty schedule.

        Args:
            max_batch: most requests that run together.
            rows: rows of the state: some belong to requests that have finished, until a step has ended.
            width: most tokens that a step adds to a text.
            extent: positions from the root on that a step may write.
            prefill_chunk: tokens of a piece of a prompt.
            prefill_budget: prompt tokens of a round, after which other prompts wait for the next one.
            page_size: positions of a page.
            num_pages: pages to begin with.
            grows: whether there may be more; else requests wait for pages.
        """
        self.pool = PagePool(num_pages, page_size)
        self.waiting: deque[Handle] = deque()
        self.running: list[Handle] = []
        self._leaving: list[Handle] = []
        self._rows = list(range(rows - 1, -1, -1))
        self._max_batch, self._width, self._extent, self._grows = max_batch, width, extent, grows
        self._chunk, self._budget = prefill_chunk, prefill_budget
        self._launched = self._ended = -1  # rounds

    @property
    def idle(self) -> bool:
        """Whether nobody waits, runs or leaves."""
        return not (self.waiting or self.running or self._leaving)

    def pages_for(self, limit: int) -> int:
        """Pages that a request may need whose text ends at a length of ``limit``."""
        return self.pool.count(limit + self._extent)

    def submit(self, handle: Handle, limit: int) -> None:
        """A request waits for its turn; ``limit`` is the length at which its text ends at the latest."""
        handle._limit, handle._length = limit, len(handle.request.prompt)
        self.waiting.append(handle)

    def plan(self) -> Round | None:
        """The next round; None if there is nothing to do before a result is seen."""
        joined = self._admit()
        pages: list[tuple[int, int, int]] = []
        chunks = self._read(pages)
        # A request that has steps in flight which end it at any rate is not in another one.
        lanes = [
            handle
            for handle in self.running
            if handle._read == len(handle.request.prompt) - 1 and handle._length + handle._flying < handle._limit
        ]
        if not (joined or chunks or lanes):
            return None
        self._launched += 1
        for handle in lanes:
            # What the steps in flight may add, and then what this one may write.
            reach = handle._length + handle._flying * self._width + self._extent
            self._reserve(handle, min(reach, handle._limit + self._extent), pages)
            handle._flying += 1
            handle._last_round = self._launched
        return Round(self._launched, self.pool.num_pages, joined, pages, chunks, lanes)

    def seen(self, handle: Handle) -> None:
        """The result of one more step of a request has come."""
        handle._flying -= 1

    def grown(self, handle: Handle, count: int) -> bool:
        """The text of a request has ``count`` more tokens; whether that is all it may have."""
        handle._length += count
        return handle._length >= handle._limit

    def knows(self, handle: Handle) -> bool:
        """Whether a request is waiting or running here."""
        return handle in self.waiting or handle in self.running

    def finish(self, handle: Handle, reason: str) -> None:
        """A request is over; its pages stay its own until the last round that touched it has ended."""
        handle.output.finish_reason = reason
        if handle._row < 0:
            self.waiting.remove(handle)
            return
        self.running.remove(handle)
        self._leaving.append(handle)
        self._free()

    def ended(self, number: int) -> None:
        """The device has ended a round, and all before it."""
        self._ended = number
        self._free()

    def reset(self) -> None:
        """The device has ended all rounds, one way or another."""
        self.ended(self._launched)

    def _free(self) -> None:
        for handle in [handle for handle in self._leaving if handle._last_round <= self._ended]:
            self._leaving.remove(handle)
            self.pool.release(handle.number)
            self._rows.append(handle._row)
            handle._row = -1

    def _admit(self) -> list[Handle]:
        """Requests that join now: as many as there is room for, in the order in which they came."""
        joined = []
        while self.waiting and self._rows and len(self.running) < self._max_batch:
            handle = self.waiting[0]
            need = self.pages_for(handle._limit)
            if need > self.pool.unpromised and self._grows:
                self.pool.grow(max(2 * self.pool.num_pages, self.pool.num_pages + need))
            if not self.pool.promise(handle.number, need):
                break
            self.waiting.popleft()
            handle._row = self._rows.pop()
            handle._last_round = self._launched + 1
            self.running.append(handle)
            joined.append(handle)
        return joined

    def _read(self, pages: list[tuple[int, int, int]]) -> list[Chunk]:
        """Pieces of the prompts that have not been read, the oldest first."""
        chunks: list[Chunk] = []
        budget = self._budget
        for handle in self.running:
            end = len(handle.request.prompt) - 1
            while handle._read < end and budget > 0:
                count = min(self._chunk, end - handle._read)
                self._reserve(handle, handle._read + count, pages)
                chunks.append(Chunk(handle._row, handle._read, count))
                handle._read += count
                handle._last_round = self._launched + 1
                budget -= count
        return chunks

    def _reserve(self, handle: Handle, length: int, pages: list[tuple[int, int, int]]) -> None:
        pages += ((handle._row, index, page) for index, page in self.pool.reserve(handle.number, length))
