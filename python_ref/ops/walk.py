"""One request on its way through its tree: what the rules share.

A top-down rule decides one token at a node. Either it is the token of a child, which is then
visited, or it is the last token of the request, and the walk ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..types import DEAD_END, MALFORMED, NAN, VerifyResult
from . import checks, law
from .law import Row, Settings
from .mass import Margin
from .nodes import Nodes


class Options(NamedTuple):
    """The arguments that all rules take; as in :func:`python_ref.ops.verify.greedy`."""

    rows: Tensor | None
    allowed: Tensor | None
    allowed_rows: Tensor | None
    active: Tensor | None
    max_tokens: Tensor | None
    logprobs: str | None
    out: Any
    margin: Tensor | None
    divergence: Tensor | None = None


class Walk:
    """One request on its way down.

    Attributes:
        request: its index in the batch.
        settings: of the target's law.
        nodes: its tree.
        status: status bits so far.
        margin: of the decisions so far.
        divergence: of a lossy rule, how far off the law of the token is that is emitted next.
    """

    def __init__(self, tree: Any, logits: Tensor, request: int, s: Settings, options: Options):
        self.request, self.settings = request, s
        self.nodes = Nodes(tree, request)
        self.status = MALFORMED * self.nodes.malformed
        self.margin = Margin(options.margin is not None)
        self.tokens: list[int] = []
        self.path: list[int] = []
        self.scores: list[tuple[float, float]] = []
        self.divergence = 0.0
        self.divergences: list[float] = []
        self._logits, self._options = logits, options

    def row(self, node: int) -> Row:
        """The target's row of a node; an index out of range gives a row without any allowed id."""
        options, owner = self._options, self.nodes.first + node
        vocab = self._logits.shape[1]
        index = owner if options.rows is None else int(options.rows[owner])
        if not 0 <= index < self._logits.shape[0]:
            self.status |= MALFORMED
            return law.empty_row(vocab)
        mask = law.allowed_mask(options.allowed, options.allowed_rows, owner, vocab)
        row = law.read_row(self._logits[index], mask)
        self.status |= NAN * row.has_nan
        return row

    def children(self, node: int) -> list[int]:
        """The present children of a node, in order."""
        return self.nodes.children(node, self._logits.shape[1])

    def follow(self, node: int, token: int) -> tuple[int, int | None]:
        """The token, and the first child that holds it."""
        for child in self.children(node):
            if self.nodes.tokens[child] == token:
                return token, child
        return token, None

    def last_child(self, node: int) -> int:
        """The last child of a node, present or not; the node itself if it has none."""
        last, child = node, node + 1
        while child < self.nodes.ends[node]:
            last, child = child, self.nodes.ends[child]
        return last

    def emit(self, node: int, row: Row, token: int) -> None:
        """Emit the token decided at a node; -1: there is none."""
        self.status |= DEAD_END * (token < 0)
        self.tokens.append(token)
        self.path.append(node)
        self.divergences.append(self.divergence)
        self.divergence = 0.0
        if self._options.logprobs is not None:
            self.scores.append(law.log_law(row, self.settings, self._options.logprobs, token))


#: ``rule(walk, limit)`` emits at most ``limit`` tokens.
Rule = Callable[[Walk, int], None]

#: ``decide(walk, node, row) -> (token, child that is visited next, or None)``; token -1: dead end.
Decide = Callable[[Walk, int, Row], tuple[int, "int | None"]]


def top_down(decide: Decide) -> Rule:
    """The rule that visits nodes from the root on, while each decision is that of a child."""

    def run(walk: Walk, limit: int) -> None:
        node: int | None = 0 if walk.nodes.count else None
        while node is not None and len(walk.tokens) < limit:
            row = walk.row(node)
            token, child = decide(walk, node, row)
            walk.emit(node, row, token)
            node = child

    return run


def check(op: str, tree: Any, logits: Tensor, options: Options) -> tuple[int, int]:
    """Check what all rules take; returns the numbers of requests and of rows."""
    batch, count = checks.tree(op, tree)
    checks.logits(op, "logits", logits)
    checks.rows(op, "rows", options.rows, "logits", logits.shape[0], count)
    checks.law(op, options.allowed, options.allowed_rows, count, logits.shape[1])
    checks.optional(op, "active", options.active, batch, (torch.bool,))
    checks.optional(op, "max_tokens", options.max_tokens, batch)
    checks.choice(op, "logprobs", options.logprobs, checks.LOGPROBS)
    if options.divergence is not None:
        checks.tensor(op, "divergence", options.divergence, (batch, tree.max_depth + 1), (torch.float32,))
    return batch, count


def walk_all(tree: Any, logits: Tensor, settings: list[Settings], rule: Rule, options: Options) -> VerifyResult:
    """Walk every request that is active, and collect what they emit."""
    batch, width = len(settings), tree.max_depth + 1
    tokens = torch.full((batch, width), -1, dtype=tree.tokens.dtype)
    path = torch.full((batch, width), -1, dtype=torch.int32)
    num, status = torch.zeros(batch, dtype=torch.int32), torch.zeros(batch, dtype=torch.int32)
    logprobs, lse = torch.zeros((2, batch, width), dtype=torch.float64)  # overflow becomes inf
    if options.margin is not None:
        options.margin.fill_(torch.inf)
    if options.divergence is not None:
        options.divergence.zero_()
    for b, s in enumerate(settings):
        if options.active is not None and not options.active[b]:
            continue
        walk = Walk(tree, logits, b, s, options)
        limit = width if options.max_tokens is None else int(options.max_tokens[b])
        rule(walk, limit)
        n = len(walk.tokens)
        tokens[b, :n] = torch.tensor(walk.tokens, dtype=tokens.dtype)
        path[b, :n] = torch.tensor(walk.path, dtype=torch.int32)
        num[b], status[b] = n, walk.status
        for i, (logprob, row_lse) in enumerate(walk.scores):
            logprobs[b, i], lse[b, i] = logprob, row_lse
        if options.margin is not None:
            options.margin[b] = walk.margin.value
        if options.divergence is not None:
            options.divergence[b, :n] = torch.tensor(walk.divergences, dtype=torch.float32)
    scored = options.logprobs is not None
    made = [tokens, num, path, status] + [logprobs.float(), lse.float()] * scored
    if options.out is None:
        return VerifyResult(*(field.to(tree.tokens.device) for field in made))
    for target, source in zip(options.out, made, strict=False):
        target.copy_(source)
    return options.out  # type: ignore[no-any-return]
