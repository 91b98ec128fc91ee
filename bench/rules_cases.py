"""Calls of ``verify.rejection`` under its rules, on chains and on trees, and of ``verify.expect``, whose results are known.

On a tree the drafts are what ``sample.draft`` draws with the seed of the request, on a chain they are drawn from the draft's law
given that the coins fall as wanted (:mod:`bench.cases`). :class:`Tried` foretells where a path ends, so that the oracle is asked
about promising seeds alone; it has the last word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import python_ref.ops as oracle
import specdec_kernels as sk
from python_ref.ops import philox
from python_ref.ops.philox import COIN, Place

from . import cases
from .cases import CLEAR, Case, Laws
from .data import Logits
from .static_tree import CHAIN, StaticTree

# Seeds are cheap to look at.
_ATTEMPTS = 400

BOTTOM_UP = ("block", "traversal")
GREEDY_PLUS_ONE = "greedy_plus_one"


class Batch(NamedTuple):
    """What the cases of one kind of logits, settings and shape have in common.

    Attributes:
        logits: target rows of all nodes; draft rows of those that have one.
        laws: of these.
        tree: the shape of all requests.
        requests: how many.
    """

    logits: Logits
    laws: Laws
    tree: StaticTree
    requests: int

    @property
    def accepted(self) -> list[int]:
        """Half of the drafts on a path; of an odd number alternately rounded down and up."""
        return [(self.tree.depth + b % 2) // 2 for b in range(self.requests)]

    def law(self, which: str, request: int, node: int) -> Tensor:
        """The processed law ``[V]`` at a node, in float64."""
        tree = self.tree
        if which == "target":
            return self.laws(which, request * tree.nodes + node)
        return self.laws(which, request * tree.draft_rows + tree.draft_row[node])

    def draft_rows(self, requests: int) -> Tensor:
        """``[requests * nodes]``: the argument of that name."""
        own = torch.tensor(self.tree.draft_row)
        first = self.tree.draft_rows * torch.arange(requests).unsqueeze(1)
        return torch.where(own < 0, -1, own + first).flatten()

    def tokens_tree(self, tokens: Tensor) -> sk.TokenTree:
        """The draft trees with ``tokens [requests, N]``."""
        requests, nodes = tokens.shape
        parents = torch.tensor(self.tree.parents * requests, dtype=torch.int32)
        cu_nodes = nodes * torch.arange(requests + 1, dtype=torch.int32)
        made, _ = sk.tree.from_parents(
            tokens.flatten(), parents, cu_nodes, max_nodes=nodes, max_depth=self.tree.depth, backend="reference"
        )
        return made


def tosses(tree: StaticTree, seed: int, committed: int) -> list[float]:
    """The coin of each node, 0 for the root, which has none."""
    depths = enumerate(tree.depths)
    return [philox.uniform(Place(seed, committed + d, COIN, d - 1, v)) if v else 0.0 for v, d in depths]


class Tried:
    """One request with all children of all nodes tried in vain, in float64: what has been left at each node then.

    Attributes:
        handed: the budget of each node when it is entered. Top-down it is the probability to accept it when it is its turn.
        lasting: of an inner node the budget once its children have come to nothing, else as ``handed``.
        left: of an inner node what is left of the target's law, ``[V]``, up to a factor.
        possible: False where a draft could not have been drawn.
    """

    def __init__(self, batch: Batch, request: int, tokens: Sequence[int], rule: str, replacement: bool = False) -> None:
        """Try all children, as if they were drawn with replacement if that is asked for."""
        self._replacement = replacement
        tree, self.bottom_up = batch.tree, rule in BOTTOM_UP
        self.tree, self.possible = tree, True
        self.handed, self.lasting = [1.0] + [0.0] * (tree.nodes - 1), [1.0] * tree.nodes
        self.left: dict[int, Tensor] = {}
        for v in range(tree.nodes):
            self.lasting[v] = self.handed[v] if self.bottom_up else 1.0
            if tree.children[v]:
                self._try(batch, request, v, tokens)

    def _try(self, batch: Batch, request: int, v: int, tokens: Sequence[int]) -> None:
        a = self.lasting[v]
        w, q = a * batch.law("target", request, v), batch.law("draft", request, v)
        for child in self.tree.children[v]:
            token = tokens[child]
            if not (token >= 0 and q[token] > 0):
                self.possible = False
                break
            self.handed[child] = min(1.0, float(w[token] / q[token]))
            w = (w - q).clamp(min=0.0)
            total = float(w.sum())
            if not total + 1 - a > 0:  # a child whose budget is 1 does not come to nothing
                break
            w, a = w / (total + 1 - a), total / (total + 1 - a)
            if not self._replacement:
                q = q.index_fill(0, torch.tensor([token]), 0.0)
                q = q / q.sum().clamp(min=1e-300)
        self.left[v], self.lasting[v] = w, a

    def end(self, coins: Sequence[float]) -> int:
        """The node at which the path ends."""
        if self.bottom_up:
            return next(v for v in self.tree.post_order if v == 0 or coins[v] < self.lasting[v])
        node = 0
        while True:
            taken = [child for child in self.tree.children[node] if coins[child] < self.handed[child]]
            if not taken:
                return node
            node = taken[0]


def rejection(batch: Batch, rule: str) -> Case:
    """``verify.rejection`` with half of the drafts on a path accepted.

    Bottom-up, every other path ends at a node with a budget below 1: where all are 1, the rules do what ``token`` does.

    Raises:
        RuntimeError: if there is no such case among many seeds.
    """
    tree, requests, wanted = batch.tree, batch.requests, batch.accepted
    committed = cases.contexts(requests)
    tokens = torch.zeros((requests, tree.nodes), dtype=torch.int64)
    found: dict[int, list[Tensor]] = {}
    reads = [0] * requests

    def one(b: int, seed: int) -> bool:
        coins = tosses(tree, seed, int(committed[b]))
        drafts = _chain(batch, b, coins, rule, seed) if tree.name == CHAIN else _drawn(batch, b, seed, rule)
        if min(drafts, default=0) < 0:
            return False
        tokens[b, 1:] = torch.tensor(drafts, dtype=torch.int64)
        tried = None
        if rule != GREEDY_PLUS_ONE:
            tried = Tried(batch, b, [0, *drafts], rule)
            end = tried.end(coins)
            if not tried.possible or tree.depths[end] != wanted[b]:
                return False
            if tried.bottom_up and b % 2 and not tried.handed[end] < 1:
                return False
        margin = torch.empty(1, dtype=torch.float64)
        result = oracle.verify.rejection(**_arguments(batch, tokens, [seed], [b], rule), margin=margin)
        found[b] = list(result[:4])
        path = result.path[0, : int(result.num_tokens)].tolist()
        reads[b] = row_reads(tree, path, tried)
        return float(margin) >= CLEAR and len(path) == wanted[b] + 1

    def attempt(pending: list[int], seeds: list[int]) -> list[int]:
        return [b for b, seed in zip(pending, seeds, strict=True) if not one(b, seed)]

    seeds = cases.searched(requests, attempt, _ATTEMPTS)
    arguments = _arguments(batch, tokens, seeds, list(range(requests)), rule)
    expected = sk.VerifyResult(*(torch.cat([found[b][i] for b in range(requests)]) for i in range(4)))
    return Case("verify_rejection", arguments, expected, wanted, sum(reads))


def _arguments(batch: Batch, tokens: Tensor, seeds: list[int], which: list[int], rule: str) -> dict[str, Any]:
    """Of a call with some of the requests, which lie next to each other."""
    tree, first, last = batch.tree, which[0], which[-1] + 1
    sampling = sk.Sampling.of(len(which), **batch.laws.settings, seed=seeds)
    return {
        "tree": batch.tokens_tree(tokens[first:last]),
        "logits": batch.logits.target[first * tree.nodes : last * tree.nodes],
        "draft_logits": batch.logits.draft[first * tree.draft_rows : last * tree.draft_rows],
        "sampling": sampling,
        "draft_sampling": sampling,
        "context_lens": cases.contexts(batch.requests)[first:last],
        "rule": rule,
        "draft_rows": batch.draft_rows(len(which)),
    }


def row_reads(tree: StaticTree, path: Sequence[int], tried: Tried | None = None) -> int:
    """Rows of target and draft that must be read for one request.

    Top-down (``tried`` None, or of such a rule): the target's at each node of the path, and the draft's where it has children.
    Bottom-up: both at each inner node that is entered, which are those up to the end of the path that a budget is handed down
    to; and the target's where the path ends at a leaf.
    """
    entered = list(path)
    if tried is not None and tried.bottom_up:
        reached = {0}
        for v in range(1, tree.ends[path[-1]]):
            if tree.parents[v] in reached and tried.handed[v] > 0:
                reached.add(v)
        entered = [v for v in reached if tree.children[v] or v == path[-1]]
    return len(entered) + sum(bool(tree.children[v]) for v in entered)


def _drawn(batch: Batch, b: int, seed: int, rule: str) -> list[int]:
    """The drafts of one tree: what ``sample.draft`` gives at each inner node; -1 where the law has too few ids."""
    tree = batch.tree
    rows = batch.logits.draft[b * tree.draft_rows :][[tree.draft_row[v] for v in tree.inner]]
    num = len(tree.children[0])
    depths = torch.tensor([tree.depths[v] for v in tree.inner])
    drawn = sk.sample.draft(
        rows,
        sk.Sampling.of(1, **batch.laws.settings, seed=seed),
        cases.contexts(batch.requests)[b] + depths + 1,
        num,
        requests=torch.zeros_like(depths),
        depths=depths,
        nodes=torch.tensor(tree.inner),
        top=num - 1 if rule == GREEDY_PLUS_ONE else 0,
    )
    tokens: dict[int, int] = {}
    for v, own in zip(tree.inner, drawn.tolist(), strict=True):
        tokens.update(zip(tree.children[v], own, strict=True))
    return [tokens[v] for v in range(1, tree.nodes)]


def _chain(batch: Batch, b: int, coins: Sequence[float], rule: str, seed: int) -> list[int]:
    """Drafts of one chain, from the draft's law given how the coins are to fall; -1 for one that cannot fall so.

    Each is to be below the budget that is handed down, up to the last that is accepted; then none.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen, a = [], 1.0
    for node in range(batch.tree.nodes - 1):
        p, q, u = a * batch.law("target", b, node), batch.law("draft", b, node), coins[node + 1]
        if node <= batch.accepted[b] or rule in BOTTOM_UP:  # top-down the others are never visited
            heads = (p > 0) & (u * q < p)
            clear = (p - u * q).abs() > 10 * CLEAR * (p + u * q)
            q = q * (clear & (heads == (node < batch.accepted[b])))
        if not bool((q > 0).any()):
            return [-1]
        token = int(torch.multinomial(q, 1, generator=generator))
        if rule in BOTTOM_UP:
            a = min(1.0, float(p[token] / batch.law("draft", b, node)[token]))
        chosen.append(token)
    return chosen


def expect(batch: Batch, case: Case) -> Case:
    """``verify.expect`` for the drafts of a case of ``rejection``.

    It needs the rows of both at all inner nodes that a path may reach, whatever the rule.
    """
    given = {name: value for name, value in case.arguments.items() if name not in ("context_lens", "rule")}
    tree, reads = batch.tree, 0
    for b, tokens in enumerate(given["tree"].tokens.view(batch.requests, -1).tolist()):
        reached = {0}
        for v in range(1, tree.nodes):
            parent = tree.parents[v]
            if parent in reached and batch.law("target", b, parent)[tokens[v]] > 0:
                reached.add(v)
        reads += 2 * sum(bool(tree.children[v]) for v in reached)
    return Case("verify_expect", given, oracle.verify.expect(**given), row_reads=reads)
