"""Whole generations on the shapes of published models: what a drafter gains there, and what it costs.

Weights are random, and text and acceptance are synthetic (:mod:`bench.synthetic`); kernels, caches and the loop are real, and
plain decoding is the same code without a drafter. Three kinds of runs take turns:

* plain: ``plain_step_ms``;
* with drafts of which none is ever accepted: what the parts of a step cost, ``draft_ms``, ``verify_step_ms`` and ``other_ms``.
  With the tokens of a step that one hopes for they make the prediction::

      predicted_speedup = tau * plain_step_ms / (draft_ms + verify_step_ms + other_ms)

* with drafts that are accepted as they should be: ``measured_speedup``. So what is held against the prediction has steps of
  its own, which accept, commit and learn what those of the prediction did not.

Source of the formula: Leviathan et al. 2023, arXiv 2211.17192, theorem 3.8, with the times in place of its ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple, cast

import torch

from python_ref.decoding import Decoder, Request, Statistics
from python_ref.drafters import DFlashDrafter, Eagle3Drafter, IndependentDrafter, NgramDrafter

from . import shapes
from .rows import MachineColumns
from .synthetic import Script, ScriptedTarget, SyntheticDrafter, acceptance

#: Drafters that it knows, with their drafts in a row where nobody says how many.
DRAFTERS = {"dflash": 7, "ddtree": 7, "eagle3": 4, "ngram": 7, "independent": 4}
#: Name on the command line -> dtype of activations and caches, dtype of the packed weights on the CPU.
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "int8": (torch.float32, torch.int8),
}
# Steps with drafts of a run, at least; and before anything is timed.
_FEWEST, _WARM = 6, 3
_MS = 1e3


@dataclass(frozen=True)
class Work:
    """What all rows have in common.

    Attributes:
        shape: a name of :data:`bench.shapes.SHAPES`.
        dtype: a name of :data:`DTYPES`.
        device: where it runs.
        batch: texts decoded together.
        context: tokens of each prompt.
        new_tokens: steps of plain decoding, and about as many tokens with drafts.
        repeats: runs of each kind.
        nodes: of the trees of ``ddtree``, the root included.
        temperature: of the target.
    """

    shape: str
    dtype: str = "bfloat16"
    device: str = "cpu"
    batch: int = 1
    context: int = 128
    new_tokens: int = 64
    repeats: int = 5
    nodes: int = 16
    temperature: float = 0.0


@dataclass(frozen=True)
class Case:
    """One row: a drafter, its drafts in a row, and the mean tokens of a step that its drafts shall give."""

    drafter: str
    num_draft: int
    tau: float


@dataclass
class Row(MachineColumns):
    """What a case cost. Times are medians, in milliseconds per step of the whole batch.

    Attributes:
        shape: of the target; its weights are random.
        drafter: as in :class:`Case`, and so are ``num_draft`` and ``tau``, which is synthetic.
        nodes: nodes of a tree; None: a chain.
        dtype: of the weights.
        batch: texts decoded together.
        context: tokens of the prompts.
        new_tokens: as in :class:`Work`.
        plain_step_ms: a step of plain decoding.
        verify_step_ms: the target's pass over root and drafts, verification and commit.
        draft_ms: the drafter's part.
        other_ms: what is left of a step: the loop around them.
        tokens_per_step: what the steps behind ``measured_speedup`` had; near ``tau``.
        predicted_speedup: of ``tau`` and the times of each turn, the median.
        measured_speedup: tokens per second over those of plain decoding in the same turn, the median.
        measured_over_predicted: their ratio, the median of that of each turn.
        tokens_per_s: with drafts.
        plain_tokens_per_s: without.
        identical: whether all texts were what the target was to say.
        repeats: runs of each kind.
        weights: where they come from: ``random``.
        acceptance: whether drafts were accepted because they were right: ``synthetic``, they were made right.
    """

    shape: str
    drafter: str
    num_draft: int
    tau: float
    nodes: int | None
    dtype: str
    batch: int
    context: int
    new_tokens: int
    plain_step_ms: float
    verify_step_ms: float
    draft_ms: float
    other_ms: float
    tokens_per_step: float
    predicted_speedup: float
    measured_speedup: float
    measured_over_predicted: float
    tokens_per_s: float
    plain_tokens_per_s: float
    identical: bool
    repeats: int
    weights: str
    acceptance: str


def check(work: Work, case: Case) -> None:
    """Refuse what cannot be measured.

    Raises:
        ValueError: if ``tau`` is out of the reach of the drafts, or there are too few positions for the texts.
    """
    reach = _reach(work, case)
    if not 1 <= case.tau <= reach + 1:
        raise ValueError(f"acceptance must be from 1 to {reach + 1} with {reach} drafts in a row, got {case.tau:g}")
    most, need = shapes.SHAPES[work.shape]["max_position_embeddings"], work.context + _farthest(work, [case])
    if need > most:
        raise ValueError(f"context, new tokens and drafts must fit {most} positions, got {need}")


def _reach(work: Work, case: Case) -> int:
    """Drafts in a row that can be accepted: of a tree no more than it has nodes behind the root."""
    return min(case.num_draft, work.nodes - 1) if case.drafter == "ddtree" else case.num_draft


def _steps(work: Work, case: Case) -> int:
    """Steps with drafts that emit about as many tokens as plain decoding does."""
    return max(math.ceil(work.new_tokens / case.tau), _FEWEST)


def _farthest(work: Work, cases: Sequence[Case]) -> int:
    """Tokens of a text that no run comes near the end of, whatever is accepted."""
    drafted = ((max(_steps(work, case), _WARM) + 1) * (case.num_draft + 1) for case in cases)
    return max(work.new_tokens + 2, *drafted)


class _Turn(NamedTuple):
    """Statistics of one run of each kind, and whether the texts were right."""

    plain: Statistics
    parts: Statistics
    whole: Statistics
    right: bool


class Bench:
    """A target of a shape, and the drafters in front of it, made once for all cases."""

    def __init__(self, work: Work, cases: Sequence[Case], ops: Any, machine: Mapping[str, Any]) -> None:
        """Make the target.

        Args:
            work: what shall be measured.
            cases: and with which drafters.
            ops: the package of the ops.
            machine: the columns of :func:`bench.machine.describe`.
        """
        self.work, self.cases, self.ops, self._machine = work, cases, ops, machine
        length = _farthest(work, cases)
        activations, self._weights = DTYPES[work.dtype]
        self.device = torch.device(work.device)
        self._filler = shapes.Filler(activations, self.device)
        self.target = self._ready(shapes.target(work.shape))
        self._drafters: dict[tuple[str, int], Any] = {}
        self._script = Script(self.target.config.vocab_size, work.context + length, self.device)
        self._model = cast("Any", ScriptedTarget(self.target, self._script))  # what a decoder needs of a model
        prompt = self._script.tokens[: work.context]
        self._text = self._script.tokens[work.context :]
        self._requests = [Request(prompt, length, work.temperature, seed=i, stop_tokens=()) for i in range(work.batch)]
        self._plain = Decoder(self._model, ops=ops, max_batch=work.batch)
        self._run(self._plain, work.new_tokens)  # warms up

    def rows(self, report: Callable[[int], None]) -> Iterator[Row]:
        """Measure each case; ``report`` is told how many turns are done."""
        done = 0
        for case in self.cases:
            whole, parts = self._decoder(case, case.tau), self._decoder(case, 1.0)
            self._run(whole, _WARM)
            turns = []
            for _ in range(self.work.repeats):
                turns.append(self._turn(case, whole, parts))
                done += 1
                report(done)
            yield self._row(case, turns)

    def _turn(self, case: Case, whole: Decoder, parts: Decoder) -> _Turn:
        """One run of each kind."""
        steps = _steps(self.work, case)
        right = self._run(self._plain, self.work.new_tokens)
        right &= self._run(parts, steps)
        right &= self._run(whole, steps)
        return _Turn(self._plain.statistics, parts.statistics, whole.statistics, right)

    def _run(self, decoder: Decoder, steps: int) -> bool:
        """So many steps, far from the end of the texts; whether these are what the target was to say."""
        decoder.reset_statistics()
        handles = [decoder.submit(request) for request in self._requests]
        for _ in range(steps):
            decoder.step()
        decoder.abort()
        texts = [handle.output.tokens for handle in handles]
        return all(text == self._text[: len(text)] and len(text) >= steps for text in texts)

    def _row(self, case: Case, turns: Sequence[_Turn]) -> Row:
        work = self.work
        verify, draft, other = (median(_phases(turn.parts)[i] for turn in turns) for i in range(3))
        pairs = [_speedups(case.tau, turn) for turn in turns]
        # Of each turn by itself: what the machine does meanwhile meets all that it compares.
        predicted, measured = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
        return Row(
            shape=work.shape,
            drafter=case.drafter,
            num_draft=case.num_draft,
            tau=case.tau,
            nodes=work.nodes if case.drafter == "ddtree" else None,
            dtype=work.dtype,
            batch=work.batch,
            context=work.context,
            new_tokens=work.new_tokens,
            plain_step_ms=median(turn.plain.seconds_per_step * _MS for turn in turns),
            verify_step_ms=verify,
            draft_ms=draft,
            other_ms=other,
            tokens_per_step=sum(turn.whole.mean_tokens_per_step for turn in turns) / len(turns),
            predicted_speedup=predicted,
            measured_speedup=measured,
            measured_over_predicted=median(pair[1] / pair[0] for pair in pairs),
            tokens_per_s=median(turn.whole.tokens_per_second for turn in turns),
            plain_tokens_per_s=median(turn.plain.tokens_per_second for turn in turns),
            identical=all(turn.right for turn in turns),
            repeats=work.repeats,
            weights="random",
            acceptance="synthetic",
            **self._machine,
        )

    def _decoder(self, case: Case, tau: float) -> Decoder:
        reach = _reach(self.work, case)
        drafter = SyntheticDrafter(self._drafter(case), self._script, acceptance(tau, reach), reach)
        return Decoder(self._model, ops=self.ops, drafter=drafter, num_draft=case.num_draft, max_batch=self.work.batch)

    def _drafter(self, case: Case) -> Any:
        """The drafter of a case, with a cache of its own: of a model there is one for all cases that it fits."""
        shape, size = self.work.shape, case.num_draft + 1
        if case.drafter == "ngram":
            return NgramDrafter(self.ops)
        if case.drafter == "independent":
            model = self._once("independent", 0, lambda: shapes.decoder(shapes.smaller(shape)))
            return IndependentDrafter(model, self.ops)
        if case.drafter == "eagle3":
            head = self._once("eagle3", 0, lambda: shapes.eagle3(shape, self.target))
            return Eagle3Drafter(head, self.ops)
        block = self._once("dflash", size, lambda: shapes.dflash(shape, self.target, size))
        return DFlashDrafter(block, self.ops, nodes=self.work.nodes if case.drafter == "ddtree" else 0)

    def _once(self, kind: str, size: int, make: Callable[[], Any]) -> Any:
        if (kind, size) not in self._drafters:
            self._drafters[kind, size] = self._ready(make())
        return self._drafters[kind, size]

    def _ready(self, model: Any) -> Any:
        self._filler.fill(model)
        if self.device.type == "cpu":
            model.use_linear(self.ops.linear, self._weights)
        return model


def _speedups(tau: float, turn: _Turn) -> tuple[float, float]:
    """Predicted and measured."""
    predicted = tau * turn.plain.seconds_per_step * _MS / sum(_phases(turn.parts))
    return predicted, turn.whole.tokens_per_second / turn.plain.tokens_per_second


def _phases(statistics: Statistics) -> tuple[float, float, float]:
    """Verification, drafts and the rest, in milliseconds per step."""
    verify, draft = statistics.target_seconds + statistics.verify_seconds, statistics.draft_seconds
    rest = statistics.decode_seconds - verify - draft
    return verify / statistics.steps * _MS, draft / statistics.steps * _MS, rest / statistics.steps * _MS
