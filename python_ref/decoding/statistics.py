"""What a run of the decoder cost, and what the drafts were worth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass
class Statistics:
    """Counts and times (in seconds) of one run.

    A step is one pass of the target over the drafts of all requests; a request step is one request's part in it.

    Attributes:
        requests: requests finished.
        prompt_tokens: tokens of their prompts.
        new_tokens: tokens emitted.
        steps: target steps.
        request_steps: requests in all steps.
        drafted: per draft position, request steps that proposed a draft there (one after the limits of the request
            had their say), whether or not verification came as far.
        accepted: per draft position, drafts that were emitted.
        expected: per rule, what the request steps had to expect in tokens, summed (``verify.expect``); empty if nobody asked.
        prefill_seconds: prompts, in the target and in the drafter.
        draft_seconds: the drafter's part of the steps.
        target_seconds: the target's part: the model, up to the logits.
        verify_seconds: tree, verification or sampling, and the way of the tokens to the host.
        total_seconds: everything, from the first request in to the last one out.
    """

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    request_steps: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    expected: dict[str, float] = field(default_factory=dict)
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    verify_seconds: float = 0.0
    total_seconds: float = 0.0

    @property
    def mean_tokens_per_step(self) -> float:
        """Tokens that a request gains in a step of the target; plain decoding has 1."""
        return self.new_tokens / self.request_steps if self.request_steps else 0.0

    @property
    def acceptance(self) -> list[float]:
        """Per draft position: the share of the drafts proposed there that were emitted."""
        return [a / d if d else 0.0 for a, d in zip(self.accepted, self.drafted, strict=True)]

    @property
    def decode_seconds(self) -> float:
        """Everything but the prompts."""
        return self.total_seconds - self.prefill_seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens emitted per second of decoding, of all requests together."""
        return self.new_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0

    @property
    def seconds_per_step(self) -> float:
        """Decoding time of one step."""
        return self.decode_seconds / self.steps if self.steps else 0.0

    def count_drafts(self, drafted: int, accepted: int) -> None:
        """Add one request's step: so many drafts were proposed, the first so many of them were emitted."""
        missing = drafted - len(self.drafted)
        if missing > 0:
            self.drafted += [0] * missing
            self.accepted += [0] * missing
        for i in range(drafted):
            self.drafted[i] += 1
        for i in range(accepted):
            self.accepted[i] += 1

    def count_expected(self, expected: Mapping[str, list[float]], row: int) -> None:
        """Add what the request of a row had to expect of one step, per rule."""
        for rule, values in expected.items():
            self.expected[rule] = self.expected.get(rule, 0.0) + values[row]

    def expected_tokens_per_step(self, rule: str) -> float:
        """The closed-form counterpart of ``mean_tokens_per_step`` under ``token``, ``traversal`` or ``greedy_plus_one``."""
        return self.expected.get(rule, 0.0) / self.request_steps if self.request_steps else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All fields and the derived figures, ready for JSON."""
        derived = ("mean_tokens_per_step", "acceptance", "decode_seconds", "tokens_per_second", "seconds_per_step")
        return asdict(self) | {name: getattr(self, name) for name in derived}


class Stopwatch:
    """Splits a run into laps; waits for the device where work is asynchronous."""

    def __init__(self, device: torch.device) -> None:
        self._wait = torch.cuda.synchronize if device.type == "cuda" else None
        self.lap()

    def lap(self) -> float:
        """Seconds since the last lap."""
        if self._wait is not None:
            self._wait()
        now = time.perf_counter()
        elapsed, self._last = now - getattr(self, "_last", now), now
        return elapsed
