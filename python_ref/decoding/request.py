"""What a user asks of the decoder, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# The ops take temperatures as float32 and top_k as int32.
_MAX_FLOAT32, _MAX_INT32 = (2 - 2.0**-23) * 2.0**127, 2**31 - 1


@dataclass(frozen=True)
class Request:
    """One text to continue.

    The tokens depend on nothing but the request and the model: not on the other requests, and under the rule
    ``match`` not on the drafter.

    Attributes:
        prompt: token ids, at least one.
        max_new_tokens: most tokens to emit, at least 1; the model's number of positions limits it too.
        temperature: 0 is the argmax, without randomness; at most what float32 holds.
        top_k: 0 is off, and so is all from the size of the vocabulary to 2^31 - 1.
        top_p: 1 is off.
        min_p: 0 is off.
        seed: key of the request's randomness, modulo 2^64.
        stop_tokens: ids that end the text (the stop token is emitted); None: those of the model's configuration.
        on_tokens: is called with the new tokens of every step, in order.
    """

    prompt: Sequence[int]
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop_tokens: Sequence[int] | None = None
    on_tokens: Callable[[list[int]], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: if a value is out of its range.
        """
        checks: tuple[tuple[str, object, bool, str], ...] = (
            ("prompt", f"{len(self.prompt)} tokens", len(self.prompt) > 0, "have at least one token"),
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "be at least 1"),
            (
                "temperature",
                self.temperature,
                0 <= self.temperature < math.inf,
                "be finite and at least 0",
            ),
            ("temperature", self.temperature, self.temperature <= _MAX_FLOAT32, f"be at most {_MAX_FLOAT32:.4g}"),
            ("top_k", self.top_k, self.top_k >= 0, "be at least 0"),
            ("top_k", self.top_k, self.top_k <= _MAX_INT32, f"be at most {_MAX_INT32}"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "be above 0 and at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "be between 0 and 1"),
        )
        for name, value, holds, requirement in checks:
            if not holds:
                raise ValueError(f"Request: {name} must {requirement}, got {str(value)[:80]}")


def check_rule(speaker: str, rule: str, request: Request) -> None:
    """Refuse a request that a rule does not take.

    Raises:
        ValueError: if the rule is ``greedy`` and the temperature is not 0.
    """
    if rule == "greedy" and request.temperature != 0:
        raise ValueError(f"{speaker}: temperature must be 0 under the rule 'greedy', got {request.temperature}")


@dataclass
class Output:
    """The continuation of one request.

    Attributes:
        tokens: the new tokens, a stop token included.
        finish_reason: ``"stop"`` (a stop token), ``"length"`` (``max_new_tokens`` or the model's positions) or
            ``"dead_end"`` (the model gave no token with a finite logit).
        steps: target steps that the request took part in.
        logprobs: log-probability of each token in nats, if the decoder was asked for it, else None.
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""
    steps: int = 0
    logprobs: list[float] | None = None
