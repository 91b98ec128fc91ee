"""Whether ``--num-draft auto`` finds the best number of drafts: its choice beside an exhaustive search.

The choice is made on prompts of its own, with the few tokens that a user's choice is made with. Then every setting decodes
other prompts, in turns, none of them given up early, and the chosen one is held against the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from python_ref.decoding import Candidate, Decoder, Point, Request, calibrate
from python_ref.decoding.calibration import NODES, depths_of, measure, nodes_of

from .rows import MachineColumns


@dataclass(frozen=True)
class Contest:
    """One drafter at one temperature.

    Attributes:
        drafter: as on the command line.
        decoder: with the drafter.
        chosen_on: requests that the choice is made on.
        measured_on: requests that all settings decode.
    """

    drafter: str
    decoder: Decoder
    chosen_on: Sequence[Request]
    measured_on: Sequence[Request]


@dataclass
class Row(MachineColumns):
    """One setting of one drafter. Rates are those of a text among ``batch``.

    Attributes:
        drafter: as on the command line.
        temperature: of the requests.
        batch: texts decoded together.
        num_draft: drafts in a row.
        nodes: nodes of a tree; 0: a chain.
        tokens_per_step: tokens that a request gained in a step.
        step_ms: time of a step, the mean of the fastest turn.
        tokens_per_s: their ratio.
        share_of_best: ``tokens_per_s`` over that of the best setting.
        chosen: whether it is what ``auto`` chose.
    """

    drafter: str
    temperature: float
    batch: int
    num_draft: int
    nodes: int
    tokens_per_step: float
    step_ms: float
    tokens_per_s: float
    share_of_best: float
    chosen: bool


@dataclass(frozen=True)
class Setting:
    """How it is measured.

    Attributes:
        machine: the columns of :func:`bench.machine.describe`.
        new_tokens: of each text of the search.
        turns: generations of each setting.
        report: is told how many generations are done.
    """

    machine: Mapping[str, Any]
    new_tokens: int = 96
    turns: int = 5
    report: Callable[[int], object] = field(default=lambda done: None)


def candidates(drafter: Any, chosen: Candidate) -> list[Candidate]:
    """Every setting that could be chosen: all depths of a chain; of a tree each with all numbers of nodes."""
    nodes = sorted({*NODES, chosen.nodes}) if nodes_of(drafter) else [0]
    found = [Candidate(depth, n) for depth in depths_of(drafter) for n in (nodes if depth else nodes[:1])]
    return found if chosen in found else [*found, chosen]


def most_candidates(drafter: Any) -> int:
    """How many settings there may be."""
    return len(candidates(drafter, Candidate(0, nodes_of(drafter))))


def measure_all(contests: Sequence[Contest], setting: Setting) -> Iterator[list[Row]]:
    """The rows of each contest, the best first."""
    done = 0
    for contest in contests:
        decoder = contest.decoder
        chosen = calibrate(decoder, contest.chosen_on)[0].candidate
        requests = [replace(request, max_new_tokens=setting.new_tokens) for request in contest.measured_on]
        start = done

        def count(number: int, start: int = start) -> None:
            nonlocal done
            done = start + number
            setting.report(done)

        points = measure(
            decoder,
            requests,
            candidates(decoder.drafter, chosen),
            new_tokens=setting.new_tokens,
            turns=setting.turns,
            behind=0.0,
            report=count,
        )
        yield _rows(contest, points, chosen, setting)


def _rows(contest: Contest, points: Sequence[Point], chosen: Candidate, setting: Setting) -> list[Row]:
    best = max(point.rate for point in points)
    rows = [
        Row(
            drafter=contest.drafter,
            temperature=contest.measured_on[0].temperature,
            batch=min(contest.decoder.max_batch, len(contest.measured_on)),
            num_draft=point.candidate.num_draft,
            nodes=point.candidate.nodes,
            tokens_per_step=point.tokens_per_step,
            step_ms=point.step_seconds * 1e3,
            tokens_per_s=point.rate,
            share_of_best=point.rate / best,
            chosen=point.candidate == chosen,
            **setting.machine,
        )
        for point in points
    ]
    return sorted(rows, key=lambda row: -row.tokens_per_s)
