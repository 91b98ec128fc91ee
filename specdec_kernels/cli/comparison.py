"""Drafters against plain decoding in one run: the same prompts, whole generations in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from python_ref.decoding import Candidate, Decoder, Output, Request, Statistics
from python_ref.decoding.calibration import apply, nodes_of
from python_ref.drafters import RATIO_RULES

#: Name of plain decoding in the place of a drafter.
PLAIN = "none"


@dataclass(frozen=True)
class Method:
    """One way to decode.

    Attributes:
        drafter: name of the drafter, :data:`PLAIN` for none.
        temperature: of the target and of sampled drafts.
        rule: how drafts are verified.
        num_draft: most drafts in a row.
        nodes: nodes of a tree, its root included; 0: as many as the drafter has.
    """

    drafter: str
    temperature: float
    rule: str = "match"
    num_draft: int = 4
    nodes: int = 0

    @property
    def promises_text(self) -> bool:
        """Whether the text must be that of plain decoding, and not only have its law."""
        return self.rule not in RATIO_RULES or self.temperature == 0

    def __str__(self) -> str:
        """Such as ``ngram at temperature 0``."""
        name = "plain decoding" if self.drafter == PLAIN else self.drafter
        rule = "" if self.rule == "match" else f" by {self.rule}"
        return f"{name}{rule} at temperature {self.temperature:g}"


@dataclass(frozen=True)
class Row:
    """What one method reached, beside plain decoding at the same temperature. The fields are those of the JSON file.

    Attributes:
        drafter: as in :class:`Method`, and so are ``temperature`` and ``rule``.
        tokens_per_second: of all prompts decoded together, without the time for reading the prompts.
        baseline_tokens_per_second: the same of plain decoding.
        speedup: their ratio; it equals ``mean_tokens_per_step / break_even_tokens_per_step``.
        mean_tokens_per_step: tokens that a request gained in a step of the target.
        break_even_tokens_per_step: time of a step with drafts, the drafter's part included, in plain steps.
        identical_to_baseline: whether all texts are those of plain decoding; None where the rule promises their law only.
        distinct_4gram_share: distinct runs of four tokens of a text over all of them: low where text repeats itself, which
            drafts copied from it live on.
        prompts: texts that were continued.
        new_tokens: tokens of all continuations.
        num_draft: most drafts in a row; 0 of plain decoding.
        nodes: nodes of a tree, its root included; 0: a chain.
    """

    drafter: str
    temperature: float
    rule: str
    tokens_per_second: float
    baseline_tokens_per_second: float
    speedup: float
    mean_tokens_per_step: float
    break_even_tokens_per_step: float
    identical_to_baseline: bool | None
    distinct_4gram_share: float
    prompts: int
    new_tokens: int
    num_draft: int
    nodes: int


@dataclass
class Tally:
    """Sums over the generations of one method.

    Attributes:
        seconds: of decoding, without the prompts.
        request_steps: target steps, counted once for every request that took part.
        texts: the new tokens of each prompt.
    """

    method: Method
    seconds: float = 0.0
    request_steps: int = 0
    texts: list[list[int]] = field(default_factory=list)

    def add(self, outputs: Sequence[Output], statistics: Statistics) -> None:
        """Count one generation."""
        self.seconds += statistics.decode_seconds
        self.request_steps += statistics.request_steps
        self.texts += [output.tokens for output in outputs]

    @property
    def new_tokens(self) -> int:
        """Tokens of all continuations."""
        return sum(map(len, self.texts))

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of decoding."""
        return self.new_tokens / self.seconds

    @property
    def step_seconds(self) -> float:
        """Decoding time of a step for one request."""
        return self.seconds / self.request_steps

    def against(self, plain: Tally) -> Row:
        """The figures beside those of plain decoding."""
        return Row(
            drafter=self.method.drafter,
            temperature=self.method.temperature,
            rule=self.method.rule,
            tokens_per_second=self.tokens_per_second,
            baseline_tokens_per_second=plain.tokens_per_second,
            speedup=self.tokens_per_second / plain.tokens_per_second,
            mean_tokens_per_step=self.new_tokens / self.request_steps,
            break_even_tokens_per_step=self.step_seconds / plain.step_seconds,
            identical_to_baseline=self.texts == plain.texts if self.method.promises_text else None,
            distinct_4gram_share=distinct_share(self.texts),
            prompts=len(self.texts),
            new_tokens=self.new_tokens,
            num_draft=0 if self.method.drafter == PLAIN else self.method.num_draft,
            nodes=self.method.nodes,
        )


def distinct_share(texts: Sequence[Sequence[int]], n: int = 4) -> float:
    """Distinct runs of ``n`` tokens within each text over all runs; 1 where no text is that long."""
    distinct = count = 0
    for text in texts:
        runs = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
        distinct += len(set(runs))
        count += len(runs)
    return distinct / count if count else 1.0


def decoders(
    model: Any, ops: Any, methods: Sequence[Method], drafters: dict[str, Any], max_batch: int
) -> list[Decoder]:
    """A decoder for each method: the same model, cache layout and linear layers, and what guesses for it."""
    return [
        Decoder(
            model,
            ops=ops,
            drafter=drafters[method.drafter],
            rule=method.rule,
            num_draft=method.num_draft,
            max_batch=max_batch,
        )
        for method in methods
    ]


def with_nodes(method: Method, decoder: Decoder) -> Method:
    """The method with the nodes that the trees of its drafter have."""
    return replace(method, nodes=nodes_of(decoder.drafter))


def compare(
    methods: Sequence[Method],
    engines: Sequence[Decoder],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    report: Callable[[int], None],
) -> list[Row]:
    """Continue all prompts by every method, and hold each against plain decoding.

    As many prompts as fit a batch are decoded by one method after the other, and the next batch begins with the next
    method: what the machine does meanwhile meets all of them alike. Whole generations take turns, not steps, because the
    engines would drive each other's weights out of the cache.

    Args:
        methods: plain decoding at every temperature among them.
        engines: the decoder of each method, warmed up.
        prompts: token ids.
        new_tokens: length of every continuation; no token ends it early.
        report: is told from time to time how many tokens there are by now.

    Returns:
        The figures of each method, in order.
    """
    tallies = [Tally(method) for method in methods]
    size, done = engines[0].max_batch, 0

    def count(tokens: list[int]) -> None:
        nonlocal done
        done += len(tokens)
        report(done)

    for turn, start in enumerate(range(0, len(prompts), size)):
        group = prompts[start : start + size]
        for i in range(len(methods)):
            place = (turn + i) % len(methods)
            apply(engines[place], Candidate(methods[place].num_draft, methods[place].nodes))
            requests = [
                request(prompt, new_tokens, methods[place].temperature, start + j, count)
                for j, prompt in enumerate(group)
            ]
            outputs = engines[place].generate(requests)
            tallies[place].add(outputs, engines[place].statistics)
    plain = {tally.method.temperature: tally for tally in tallies if tally.method.drafter == PLAIN}
    return [tally.against(plain[tally.method.temperature]) for tally in tallies]


def request(
    prompt: Sequence[int], new_tokens: int, temperature: float, seed: int, on_tokens: Callable[[list[int]], None] | None
) -> Request:
    """One text of the comparison. It runs to its full length, so that every method has the same work."""
    return Request(prompt, new_tokens, temperature, seed=seed, stop_tokens=(), on_tokens=on_tokens)
