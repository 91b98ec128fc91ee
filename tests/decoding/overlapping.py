"""Static drafters that do what a test wants, and overlapped decoders that count their pages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

import specdec_kernels as sk
from python_ref.decoding import OverlappedDecoder
from python_ref.decoding.static_drafter import Drafts
from python_ref.drafters import DFlashDrafter, Eagle3Drafter, IndependentDrafter, NgramDrafter

from .blocks import drafter_model
from .heads import head_of
from .helpers import model_of

#: Longer than any step, and short enough for a test that fails.
PATIENCE = 20.0


class StaticScripted:
    """Drafts ``script(text, count)`` as the drafter of ``helpers`` does; reads the texts on the thread of the device."""

    features: tuple[int, ...] = ()
    extent = 0

    def __init__(self, script: Callable[[list[int], int], list[int]], num_draft: int) -> None:
        self.script, self.depth, self.width = script, num_draft, num_draft + 1

    def attach(self, state: Any, *, greedy: bool, compact: bool) -> None:
        self.state = state

    def join(self, row: int) -> None:
        pass

    def prime(self, row: int, start: int, tokens: Any, features: Any) -> None:
        pass

    def draft(self, lanes: Any) -> Drafts:
        tokens = torch.full((len(lanes.rows), self.depth), -1)
        counts = torch.zeros(len(lanes.rows), dtype=torch.int32)
        for lane, (row, length) in enumerate(zip(lanes.rows.tolist(), lanes.lengths.tolist(), strict=True)):
            made = self.script(self.state.history[row, :length].tolist(), self.depth) if lanes.active[lane] else []
            tokens[lane, : len(made)] = torch.tensor(made, dtype=torch.int64)
            counts[lane] = len(made)
        return Drafts(tokens, counts)

    def absorb(self, lanes: Any, features: Any, result: Any) -> None:
        pass


class Gate(StaticScripted):
    """Drafts nothing, and keeps the device in step ``i`` until ``open(i)``."""

    def __init__(self, closed: Sequence[int] = ()) -> None:
        super().__init__(lambda text, count: [], 1)
        self.steps = 0
        self.entered = [threading.Event() for _ in range(64)]
        self.gates = [threading.Event() for _ in range(64)]
        self.log: list[tuple[str, int]] = []
        for i, gate in enumerate(self.gates):
            if i not in closed:
                gate.set()

    def open(self, step: int) -> None:
        self.gates[step].set()

    def draft(self, lanes: Any) -> Drafts:
        step, self.steps = self.steps, self.steps + 1
        self.log.append(("begin", step))
        self.entered[step].set()
        if not self.gates[step].wait(PATIENCE):
            raise TimeoutError(f"nobody opened step {step}")
        return super().draft(lanes)

    def absorb(self, lanes: Any, features: Any, result: Any) -> None:
        self.log.append(("end", self.steps - 1))


def drafters(target: Any) -> dict[str, Any]:
    """Every drafter that has a static form, by name; the target must have six layers."""
    return {
        "none": None,
        "ngram": NgramDrafter(sk),
        "independent": IndependentDrafter(model_of(1), sk),
        "itself": IndependentDrafter(target, sk),
        "cold": IndependentDrafter(model_of(1), sk, temperature=0.0),
        "eagle3": Eagle3Drafter(head_of(target, draft_vocab=17), sk),
        "eagle3 of the best": Eagle3Drafter(head_of(target), sk, temperature=0.0),
        "eagle3 tree": Eagle3Drafter(head_of(target, draft_vocab=17), sk, beams=3, nodes=12),
        "eagle3 wide tree": Eagle3Drafter(head_of(target), sk, beams=6, nodes=40),
        "dflash": DFlashDrafter(drafter_model(target), sk),
        "dflash of the best": DFlashDrafter(drafter_model(target), sk, coupled=False),
        "ddtree": DFlashDrafter(drafter_model(target), sk, nodes=12, coupled=False),
        "coupled ddtree": DFlashDrafter(drafter_model(target), sk, nodes=12),
    }


def decoder_of(model: Any, drafter: Any = None, **options: Any) -> OverlappedDecoder:
    return OverlappedDecoder(model, **({"ops": sk} | options), drafter=drafter)


def generate(decoder: OverlappedDecoder, requests: Any) -> list[list[int]]:
    """The texts; all pages must be free afterwards."""
    outputs = decoder.generate(requests)
    assert decoder.idle
    decoder.check_pages()
    return [output.tokens for output in outputs]
