"""The state that the loop shares with drafters: which requests are being decoded, and their texts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .request import Request

_serials = itertools.count()


class Step(NamedTuple):
    """What one step gave each row of the batch; nothing for idle rows.

    Attributes:
        tokens: the new tokens; -1 where the model left no token to choose.
        drafted: drafts that were proposed for verification.
        logprobs: log-probabilities of the new tokens, if they were asked for.
        expected: per rule, what each row had to expect in tokens; empty if nobody asked.
    """

    tokens: list[list[int]]
    drafted: list[int]
    logprobs: list[list[float]] | None = None
    expected: Mapping[str, list[float]] = MappingProxyType({})


class Batch:
    """Rows of requests. A row is idle, or decodes one request until that is finished and another takes its place.

    Of a text of ``n`` tokens the target's cache holds ``n - 1``; the last one, at position ``n - 1``, is the root
    of the next step. So ``context_lens = n - 1``, and the next token to be decided has position ``n``.

    Attributes:
        size: number of rows.
        texts: per row the tokens so far, prompt and output; of an idle row what it held last.
        requests: per row the request, None where idle.
        serials: per row a number that no two requests of the process share; -1 where idle.
        sampling: settings of all rows, ``ops.Sampling`` with tensors ``[size]``; idle rows have any.
        device: where tensors live.
    """

    def __init__(self, size: int, ops: Any, device: torch.device) -> None:
        self.size = size
        self.device = device
        self.texts: list[list[int]] = [[] for _ in range(size)]
        self.requests: list[Request | None] = [None] * size
        self.serials = [-1] * size
        self.sampling: Any = None
        self._ops = ops
        self._compact: tuple[list[int], Any] | None = None
        self._history = torch.zeros((size, 0), dtype=torch.int64, device=device)
        self._in_history = [(-1, 0)] * size

    @property
    def active(self) -> list[bool]:
        """Which rows decode a request."""
        return [request is not None for request in self.requests]

    @property
    def live(self) -> list[int]:
        """The rows that decode a request, ascending."""
        return [row for row, request in enumerate(self.requests) if request is not None]

    def join(self, row: int, request: Request) -> None:
        """A request takes an idle row."""
        self.requests[row] = request
        self.texts[row] = list(request.prompt)
        self.serials[row] = next(_serials)
        self.sampling = self._settings(self.requests)
        self._compact = None

    def leave(self, row: int) -> None:
        """The request of a row is finished."""
        self.requests[row] = None
        self.serials[row] = -1
        self._compact = None

    def live_sampling(self) -> Any:
        """Settings of the live rows alone, ``ops.Sampling`` with tensors ``[len(live)]``."""
        live = self.live
        if len(live) == self.size:
            return self.sampling
        if self._compact is None or self._compact[0] != live:
            self._compact = (live, self._settings([self.requests[row] for row in live]))
        return self._compact[1]

    def history(self) -> tuple[Tensor, Tensor]:
        """The texts as tensors: ``[size, L]`` int64, of which the first ``[size]`` int64 are valid; 0 of idle rows."""
        live = self.live
        longest = max((len(self.texts[row]) for row in live), default=0)
        if longest > self._history.shape[1]:
            wide = self._history.new_zeros((self.size, 2 * longest))
            wide[:, : self._history.shape[1]] = self._history
            self._history = wide
        lengths = [0] * self.size
        for row in live:
            text, (serial, known) = self.texts[row], self._in_history[row]
            known = known if serial == self.serials[row] else 0
            if len(text) > known:
                self._history[row, known : len(text)] = torch.tensor(text[known:])
            self._in_history[row] = (self.serials[row], len(text))
            lengths[row] = len(text)
        return self._history, torch.tensor(lengths, device=self.device)

    def _settings(self, requests: Sequence[Request | None]) -> Any:
        def column(name: str, idle: float) -> list[Any]:
            kind = type(idle)  # torch refuses integers beyond int64 where it takes floats
            return [idle if request is None else kind(getattr(request, name)) for request in requests]

        return self._ops.Sampling.of(
            len(requests),
            temperature=column("temperature", 0.0),
            top_k=column("top_k", 0),
            top_p=column("top_p", 1.0),
            min_p=column("min_p", 0.0),
            seed=column("seed", 0),
            device=self.device,
        )
