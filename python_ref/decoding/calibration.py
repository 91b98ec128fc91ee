"""How many drafts a step should propose on this machine: measured, not guessed.

What a step costs depends on the machine, on the batch and on how many nodes the target verifies; what it yields depends on
the drafter and on the text. Both are measured at once: the same few tokens of the user's own prompts are decoded with every
number of drafts, in turns, and the number is taken for which

    tokens per step / seconds per step

is the largest. The tokens per step of a text are exact (the machine has no say in them), and of the seconds the least of
the turns counts: what disturbs a machine only adds. What is far behind after the first turn is not tried again.

Only decoding is timed, but every generation reads its prompts anew: where they are long that is most of what the choice
costs, see :func:`generations`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decoder import Decoder
    from .request import Request

#: Numbers of drafts in a row that are tried, and nodes of a tree.
NUM_DRAFT = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15)
NODES = (4, 8, 12, 16, 24, 32, 48, 64)
#: Tokens of each text that every candidate decodes, and how often.
NEW_TOKENS, TURNS = 32, 4
#: Share of the best rate below which a candidate is given up after a turn: more than noise takes.
BEHIND = 0.6


@dataclass(frozen=True)
class Candidate:
    """One setting.

    Attributes:
        num_draft: drafts in a row.
        nodes: nodes of a tree, its root included; 0: a chain.
    """

    num_draft: int
    nodes: int = 0


@dataclass(frozen=True)
class Point:
    """What a setting yields and costs, for one request of the batch.

    Attributes:
        candidate: the setting.
        tokens_per_step: tokens that a request gains in a step.
        step_seconds: of a step of all requests, the mean of the fastest turn.
    """

    candidate: Candidate
    tokens_per_step: float
    step_seconds: float

    @property
    def rate(self) -> float:
        """Tokens of a request in a second."""
        return self.tokens_per_step / self.step_seconds


def apply(decoder: Decoder, candidate: Candidate) -> None:
    """Give a decoder and its drafter a setting."""
    decoder.num_draft = candidate.num_draft
    if candidate.nodes:
        decoder.drafter.nodes = candidate.nodes  # type: ignore[union-attr]


def measure(
    decoder: Decoder,
    requests: Sequence[Request],
    candidates: Sequence[Candidate],
    *,
    new_tokens: int = NEW_TOKENS,
    turns: int = TURNS,
    behind: float = BEHIND,
    report: Callable[[int], object] | None = None,
) -> list[Point]:
    """Decode the same texts with every candidate, in turns.

    Args:
        decoder: with a drafter, between generations. Its setting is what it was afterwards, and its trace is not told.
        requests: as many as the batch has rows, or fewer; further ones are left out.
        candidates: what is tried.
        new_tokens: of each text, at most.
        turns: how often.
        behind: share of the best rate below which a candidate is given up; 0: none is.
        report: is told how many generations are done.

    Returns:
        A point for each candidate.

    Raises:
        TypeError: if the decoder is made for one number of drafts.
        ValueError: if it has no drafter, or there is no request.
        RuntimeError: if it is serving requests, or it is one of its callbacks that asks.
    """
    _check("measure", decoder, requests)
    few = [
        replace(request, max_new_tokens=min(new_tokens, request.max_new_tokens), on_tokens=None)
        for request in requests[: decoder.max_batch]
    ]
    seconds: list[list[float]] = [[] for _ in candidates]
    tokens = [0.0] * len(candidates)

    def points(which: Sequence[int]) -> list[Point]:
        return [Point(candidates[i], tokens[i], min(seconds[i])) for i in which]

    left, done = list(range(len(candidates))), 0
    with _borrowed(decoder):
        apply(decoder, candidates[-1])
        decoder.generate(few)  # warms up
        for _ in range(turns):
            for i in left:
                apply(decoder, candidates[i])
                decoder.generate(few)
                seconds[i].append(decoder.statistics.seconds_per_step)
                tokens[i] = decoder.statistics.mean_tokens_per_step
                done += 1
                if report is not None:
                    report(done)
            found = points(left)
            bound = behind * max(point.rate for point in found)
            left = [i for i, point in zip(left, found, strict=True) if point.rate >= bound]
    return points(range(len(candidates)))


@contextmanager
def _borrowed(decoder: Decoder) -> Iterator[None]:
    """A block after which a decoder has its setting and its trace again, whatever happens within; the trace hears nothing."""
    setting, trace = Candidate(decoder.num_draft, nodes_of(decoder.drafter)), decoder.trace
    decoder.trace = None
    try:
        yield
    finally:
        apply(decoder, setting)
        decoder.trace = trace


def _check(name: str, decoder: Decoder, requests: Sequence[Request]) -> None:
    if not hasattr(decoder, "num_draft"):
        raise TypeError(
            f"{name}: decoder must be a Decoder, whose number of drafts may change, got {type(decoder).__name__}"
        )
    if decoder.drafter is None:
        raise ValueError(f"{name}: decoder must have a drafter, got None")
    if not requests:
        raise ValueError(f"{name}: requests must not be empty, got none")
    if decoder.busy:
        raise RuntimeError(f"{name}: decoder must be between generations, got one that is serving requests")


def calibrate(
    decoder: Decoder,
    requests: Sequence[Request],
    *,
    new_tokens: int = NEW_TOKENS,
    turns: int = TURNS,
    report: Callable[[int], object] | None = None,
) -> list[Point]:
    """Set the number of drafts of a decoder, and the nodes of its drafter's trees, to what is the fastest here and now.

    Chains: every number in :data:`NUM_DRAFT`, 0 (plain decoding) included, as far as the drafter goes. Trees: first the depth,
    with the nodes that the drafter has, then the nodes, with that depth.

    An :class:`OverlappedDecoder` is made for one number of drafts: calibrate a :class:`Decoder` of its model and drafter first.
    If something raises, the decoder has the setting that it had.

    Under the rules ``match`` and ``greedy`` the text is the same whatever is chosen; under ``rejection`` its law is.

    Args:
        decoder: with a drafter, between generations.
        requests: what it is to decode; the first ``max_batch`` of them are what is measured, and no callback of theirs
            is called.
        new_tokens: tokens of each text that are decoded with each candidate.
        turns: how often.
        report: is told how many generations are done.

    Returns:
        What was measured, the chosen one first.

    Raises:
        TypeError: if the decoder is made for one number of drafts.
        ValueError: if it has no drafter, or there is no request.
        RuntimeError: if it is serving requests, or it is one of its callbacks that asks.
    """
    _check("calibrate", decoder, requests)
    nodes = nodes_of(decoder.drafter)
    told = 0

    def search(candidates: list[Candidate]) -> list[Point]:
        nonlocal told
        start = told

        def count(done: int) -> None:
            nonlocal told
            told = start + done
            if report is not None:
                report(told)

        return measure(decoder, requests, candidates, new_tokens=new_tokens, turns=turns, report=count)

    points = search([Candidate(n, nodes) for n in depths_of(decoder.drafter)])
    best = max(points, key=_worth)
    if nodes and best.candidate.num_draft > 0:
        points += search([Candidate(best.candidate.num_draft, n) for n in NODES if n != nodes])
    points.sort(key=_worth, reverse=True)
    apply(decoder, points[0].candidate)
    return points


def _worth(point: Point) -> tuple[bool, float]:
    """A candidate is worth its rate; drafts that gain nothing at all are worth less than none, whatever the clock says."""
    return point.tokens_per_step > 1 or point.candidate.num_draft == 0, point.rate


def generations(drafter: Any, turns: int = TURNS) -> int:
    """Generations that :func:`calibrate` takes, at most."""
    return (len(depths_of(drafter)) + (len(NODES) if nodes_of(drafter) else 0)) * turns


def depths_of(drafter: Any) -> list[int]:
    """The numbers of drafts in a row that are tried, as far as a drafter goes."""
    most = getattr(drafter, "most_drafts", NUM_DRAFT[-1])
    return [n for n in NUM_DRAFT if n <= most]


def nodes_of(drafter: Any) -> int:
    """Nodes of the trees of a drafter; 0: chains."""
    return int(drafter.nodes) if getattr(drafter, "is_tree", False) else 0
