"""Calls of the sampling ops whose outcome is known: drafts of which none, half or all are accepted.

The outcome hangs on the noise of each request's seed, so the drafts are chosen after asking the oracle what an op will decide:
for ``greedy`` and ``match`` the decided tokens themselves, for ``rejection`` tokens drawn from the draft's law, given that the
coin falls as wanted. No decision is closer than :data:`CLEAR`, so every backend must decide as the oracle does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import python_ref.ops as oracle
import specdec_kernels as sk
from python_ref.ops import law, philox
from python_ref.ops.philox import COIN, Place

from .data import Logits, Sizes, accepted_drafts, one_thread

#: The smallest margin of a decision, ten times what a backend is allowed.
CLEAR = 1e-4

_ATTEMPTS = 50
_CONTEXT, _SPREAD = 100, 37  # committed tokens of the first request, and how many more each of the others has


@dataclass(frozen=True)
class Case:
    """One call of a public function, and what it must give.

    Attributes:
        op: ``<family>_<function>``.
        arguments: of the function, without ``backend``.
        expected: the oracle's result.
        accepted: accepted drafts of each request, for the verify family.
        row_reads: rows of target and draft logits that any implementation must read.
    """

    op: str
    arguments: dict[str, Any]
    expected: Any
    accepted: list[int] = field(default_factory=list)
    row_reads: int = 0

    def call(self, backend: str, **options: Any) -> Callable[[], Any]:
        """The public function with its arguments, ready to be timed."""
        family, function = self.op.split("_", 1)
        return partial(getattr(getattr(sk, family), function), **self.arguments, **options, backend=backend)


def row_reads(op: str, accepted: Sequence[int], nodes: int) -> int:
    """Rows of logits that a rule must read on chains of ``nodes``: one for each node that it visits.

    ``verify_rejection`` also needs the law of the draft at each visited node that has one.
    """
    visited = sum(accepted) + len(accepted)
    return visited + (sum(min(a + 1, nodes - 1) for a in accepted) if op == "verify_rejection" else 0)


def contexts(requests: int) -> Tensor:
    """``[requests]`` int32: the committed tokens of each request."""
    return _CONTEXT + _SPREAD * torch.arange(requests, dtype=torch.int32)


class Laws:
    """The processed laws of all nodes in float64, each computed when it is first needed."""

    def __init__(self, logits: Logits, settings: dict[str, Any]) -> None:
        self.settings, self.logits = settings, logits
        self._known: dict[tuple[str, int], Tensor] = {}

    def __call__(self, which: str, row: int) -> Tensor:
        """Probabilities ``[V]`` of a row; ``which`` is ``target`` or ``draft``."""
        if (which, row) not in self._known:
            s = law.all_settings(sk.Sampling.of(1, **self.settings))[0]
            values = law.read_row(getattr(self.logits, which)[row]).logits
            self._known[which, row] = law.weights(values, s).normalised().w
        return self._known[which, row]


def searched(
    requests: int, attempt: Callable[[list[int], list[int]], Sequence[int]], attempts: int = _ATTEMPTS
) -> list[int]:
    """A seed per request for which ``attempt(pending requests, their seeds)``, the requests that failed, is empty.

    Raises:
        RuntimeError: if there is none among the first ``attempts``.
    """
    seeds = [1000 + b for b in range(requests)]
    pending = list(range(requests))
    with one_thread():
        for _ in range(attempts):
            pending = list(attempt(pending, [seeds[b] for b in pending]))
            if not pending:
                return seeds
            for b in pending:
                seeds[b] += 1000
    raise RuntimeError(f"no seed in {attempts} decides requests {pending} clearly")


def _tree(tokens: Tensor) -> sk.TokenTree:
    return sk.tree.from_chains(tokens, backend="reference")


@dataclass(frozen=True)
class Decided:
    """What plain decoding draws at each node, for seeds that make every draw clear.

    Attributes:
        tokens: ``[B, N]`` int64.
        seeds: one per request.
        settings: of ``Sampling.of``.
    """

    tokens: Tensor
    seeds: list[int]
    settings: dict[str, Any]


def decide(target: Tensor, sizes: Sizes, settings: dict[str, Any]) -> Decided:
    """Draw the token of each node by the oracle's ``sample.sample``, independently of any draft."""
    nodes = torch.arange(sizes.nodes)
    rows = torch.arange(sizes.rows).view(sizes.requests, sizes.nodes)
    tokens = torch.empty((sizes.requests, sizes.nodes), dtype=torch.int64)

    def attempt(pending: list[int], seeds: list[int]) -> list[int]:
        wanted = rows[pending].flatten()
        positions = (contexts(sizes.requests)[pending].unsqueeze(1) + nodes + 1).flatten()
        repeated = [seed for seed in seeds for _ in range(sizes.nodes)]
        sampling = sk.Sampling.of(len(repeated), **settings, seed=repeated)
        margin = torch.empty(len(repeated), dtype=torch.float64)
        drawn = oracle.sample.sample(target[wanted], sampling, positions, margin=margin)
        tokens[pending] = drawn.view(-1, sizes.nodes)
        near = margin.view(-1, sizes.nodes).amin(1) < CLEAR
        return [b for b, close in zip(pending, near.tolist(), strict=True) if close]

    return Decided(tokens, searched(sizes.requests, attempt), settings)


def chains(decided: Tensor, accepted: list[int], vocab: int) -> Tensor:
    """``[B, N]``: chains whose first ``accepted[b]`` drafts are the decided tokens, and the others not."""
    tokens = torch.zeros_like(decided)  # any root: it is emitted already
    tokens[:, 1:] = decided[:, :-1]
    late = torch.arange(decided.shape[1]) > torch.tensor(accepted).unsqueeze(1)
    return torch.where(late, (tokens + 1) % vocab, tokens)


def _follows(op: str, target: Tensor, sizes: Sizes, decided: Decided, which: str) -> Case:
    """A rule whose every token is the decided one."""
    accepted = accepted_drafts(which, sizes)
    place, last = torch.arange(sizes.nodes), torch.tensor(accepted).unsqueeze(1)
    expected = sk.VerifyResult(
        tokens=torch.where(place <= last, decided.tokens, -1),
        num_tokens=last.squeeze(1).int() + 1,
        path=torch.where(place <= last, place, -1).int(),
        status=torch.zeros(sizes.requests, dtype=torch.int32),
    )
    arguments = {"tree": _tree(chains(decided.tokens, accepted, sizes.vocab)), "logits": target}
    return Case(op, arguments, expected, accepted, row_reads(op, accepted, sizes.nodes))


def greedy(target: Tensor, sizes: Sizes, decided: Decided, which: str) -> Case:
    """``verify.greedy``; ``decided`` is that of temperature 0."""
    return _follows("verify_greedy", target, sizes, decided, which)


def match(target: Tensor, sizes: Sizes, decided: Decided, which: str) -> Case:
    """``verify.match`` under the settings and with the seeds of ``decided``."""
    case = _follows("verify_match", target, sizes, decided, which)
    case.arguments["sampling"] = sk.Sampling.of(sizes.requests, **decided.settings, seed=decided.seeds)
    case.arguments["context_lens"] = contexts(sizes.requests)
    return case


def coins(case: Case) -> Tensor:
    """``[B, N-1]`` float64: the coins that a case of ``rejection`` tosses for the drafts of its chains."""
    seeds, committed = case.arguments["sampling"].seed.tolist(), case.arguments["context_lens"].tolist()
    nodes = case.arguments["tree"].max_nodes
    tosses = [_tosses(seed, start, nodes) for seed, start in zip(seeds, committed, strict=True)]
    return torch.tensor(tosses, dtype=torch.float64).view(len(seeds), nodes - 1)


def _tosses(seed: int, committed: int, nodes: int) -> list[float]:
    """The coin of each draft of a chain; its position is that of the token at the node before it, plus one."""
    return [philox.uniform(Place(seed, committed + c, COIN, c - 1, c)) for c in range(1, nodes)]


def rejection(logits: Logits, sizes: Sizes, laws: Laws, which: str) -> Case:
    """``verify.rejection`` with drafts from the draft's law, which is processed like the target's."""
    accepted = accepted_drafts(which, sizes)
    committed = contexts(sizes.requests)
    tokens = torch.zeros((sizes.requests, sizes.nodes), dtype=torch.int64)
    found: dict[int, list[Tensor]] = {}

    def one(b: int, seed: int) -> bool:
        """Choose the drafts of a request, and ask the oracle whether they are accepted as wanted, and clearly."""
        rows = slice(b * sizes.nodes, (b + 1) * sizes.nodes)
        tosses = _tosses(seed, int(committed[b]), sizes.nodes)
        drafts = _drafts(laws, rows.start, tosses, accepted[b], seed)
        if drafts is None:
            return False
        tokens[b, 1:] = torch.tensor(drafts, dtype=torch.int64)
        sampling = sk.Sampling.of(1, **laws.settings, seed=seed)
        margin = torch.empty(1, dtype=torch.float64)
        laws_of = (logits.target[rows], logits.draft[rows], sampling, sampling)
        result = oracle.verify.rejection(_tree(tokens[b : b + 1]), *laws_of, committed[b : b + 1], margin=margin)
        found[b] = list(result[:4])
        return float(margin) >= CLEAR and int(result.num_tokens) == accepted[b] + 1

    def attempt(pending: list[int], seeds: list[int]) -> list[int]:
        return [b for b, seed in zip(pending, seeds, strict=True) if not one(b, seed)]

    seeds = searched(sizes.requests, attempt)
    sampling = sk.Sampling.of(sizes.requests, **laws.settings, seed=seeds)
    arguments = {
        "tree": _tree(tokens),
        "logits": logits.target,
        "draft_logits": logits.draft,
        "sampling": sampling,
        "draft_sampling": sampling,
        "context_lens": committed,
    }
    parts = [found[b] for b in range(sizes.requests)]
    expected = sk.VerifyResult(*(torch.cat([part[i] for part in parts]) for i in range(4)))
    reads = row_reads("verify_rejection", accepted, sizes.nodes)
    return Case("verify_rejection", arguments, expected, accepted, reads)


def _drafts(laws: Laws, first: int, us: list[float], accepted: int, seed: int) -> list[int] | None:
    """Drafts of one chain, from the draft's law given how the coins are to fall; None if one cannot fall so."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for node, u in enumerate(us):
        q = laws("draft", first + node)
        if node <= accepted:  # the others are never visited
            p = laws("target", first + node)
            heads = (p > 0) & ((p >= q) | (u * q < p))
            clear = (p - u * q).abs() > 10 * CLEAR * (p + u * q)
            q = q * (clear & (heads == (node < accepted)))
        if not bool((q > 0).any()):
            return None
        chosen.append(int(torch.multinomial(q, 1, generator=generator)))
    return chosen


def sample(target: Tensor, settings: dict[str, Any]) -> Case:
    """``sample.sample`` over all rows, one per request: plain decoding."""
    return _drawn("sample_sample", target, settings, {})


def draft(rows: Tensor, settings: dict[str, Any], num: int) -> Case:
    """``sample.draft`` over all rows, one per request, without replacement."""
    return _drawn("sample_draft", rows, settings, {"num": num})


def _drawn(op: str, rows: Tensor, settings: dict[str, Any], options: dict[str, Any]) -> Case:
    count = rows.shape[0]
    positions = contexts(count) + 1
    function = getattr(oracle.sample, op.split("_", 1)[1])
    found: dict[int, Tensor] = {}

    def attempt(pending: list[int], seeds: list[int]) -> list[int]:
        margin = torch.empty(len(pending), dtype=torch.float64)
        sampling = sk.Sampling.of(len(pending), **settings, seed=seeds)
        drawn = function(rows[pending], sampling, positions[pending], **options, margin=margin)
        found.update(zip(pending, drawn, strict=True))
        return [b for b, close in zip(pending, (margin < CLEAR).tolist(), strict=True) if close]

    seeds = searched(count, attempt)
    arguments = {"logits": rows, "sampling": sk.Sampling.of(count, **settings, seed=seeds), "positions": positions}
    return Case(op, arguments | options, torch.stack([found[b] for b in range(count)]), row_reads=count)
