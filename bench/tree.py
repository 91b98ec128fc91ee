"""Builders of trees: 64 requests of 64 nodes, against the same in Python with a heap or a recursion; and how many drafts a
batch verifies (``budget.py``).

The limit is the overhead of a call: what must move are a few kilobytes. The baselines get lists and give lists, so
that nothing of their time is that of tensors.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import specdec_kernels as sk

from . import budget
from .measured import EAGER, Setting, add_note, judge, rows_of
from .rows import Goal, Row
from .runner import Variant, measure

FAMILY = "tree"
REQUESTS, NODES, DEPTH, RANKS = 64, 64, 8, 16
GOALS = {"cpu": [Goal("speedup_over_eager", 50.0, at_least=True)], "cuda": [Goal("time_us", 10.0)]}

Tree = list[tuple[int, ...]]


class Drafts(NamedTuple):
    """Laws of the positions of a block, as tensors and as lists, and pools of candidates in topological order."""

    roots: Tensor
    log_probs: Tensor
    token_ids: Tensor
    tokens: Tensor
    parents: Tensor
    cu_nodes: Tensor


def drafts(requests: int = REQUESTS, nodes: int = NODES, seed: int = 0) -> Drafts:
    """Laws as peaked as those of a good drafter, and random trees whose nodes come in order of depth."""
    draw = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn((requests, DEPTH, 4 * RANKS), generator=draw)).log_softmax(-1)
    best, ids = log_probs.topk(RANKS)
    best = (best * 1024).round() / 1024  # sums of these are exact: a heap of doubles has the same ties
    parents = torch.full((requests, nodes), -1, dtype=torch.int32)
    for i in range(1, nodes):
        parents[:, i] = torch.randint(max(0, i - 12), i, (requests,), generator=draw)
    return Drafts(
        torch.arange(requests),
        best,
        ids,
        torch.randint(1000, (requests * nodes,), generator=draw),
        parents.flatten(),
        (torch.arange(requests + 1) * nodes).int(),
    )


def by_heap(root: int, log_probs: list[list[float]], ids: list[list[int]], budget: int) -> Tree:
    """The best-first tree of one request: ``(token, parent, depth, end)`` of each node, in depth-first order."""
    children: list[list[int]] = [[]]
    nodes: list[tuple[float, int, int, int, int]] = [(0.0, -1, 0, root, 0)]  # score, parent, depth, token, level rank
    ranked = [0] * (len(log_probs) + 1)
    heap = [(-log_probs[0][0], 1, 0, 0, 0)]  # score, depth, rank of the parent in its level, own rank, parent
    while heap and len(nodes) < budget:
        score, depth, above, rank, parent = heapq.heappop(heap)
        row = log_probs[depth - 1]
        node = len(nodes)
        nodes.append((-score, parent, depth, ids[depth - 1][rank], ranked[depth]))
        children[parent].append(node)
        children.append([])
        if rank + 1 < len(row):
            heapq.heappush(heap, (-(nodes[parent][0] + row[rank + 1]), depth, above, rank + 1, parent))
        if depth < len(log_probs):
            heapq.heappush(heap, (-(nodes[node][0] + log_probs[depth][0]), depth + 1, ranked[depth], 0, node))
        ranked[depth] += 1
    return _ordered(children, [node[3] for node in nodes])


def by_recursion(tokens: list[int], parents: list[int]) -> Tree:
    """The nodes of one request in depth-first order."""
    children: list[list[int]] = [[] for _ in tokens]
    for i, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(i)
    return _ordered(children, tokens)


def _ordered(children: list[list[int]], tokens: list[int]) -> Tree:
    rows: list[list[int]] = []

    def visit(node: int, parent: int, depth: int) -> None:
        place = len(rows)
        rows.append([tokens[node], parent, depth, 0])
        for child in children[node]:
            visit(child, place, depth + 1)
        rows[place][3] = len(rows)

    visit(0, -1, 0)
    return [tuple(row) for row in rows]


def rows_of_tree(tree: sk.TokenTree) -> list[Tree]:
    """The same of a tree of tensors."""
    columns = [column.tolist() for column in (tree.tokens, tree.parents, tree.depths, tree.ends)]
    nodes = list(zip(*columns, strict=True))
    first = tree.cu_nodes.tolist()
    return [nodes[begin : begin + columns[3][begin]] for begin in first[:-1]]


def count(setting: Setting) -> int:
    """How many groups :func:`groups` gives."""
    return 2 + len(budget.SHAPES)


def groups(setting: Setting, requests: int = REQUESTS, nodes: int = NODES) -> Iterator[list[Row]]:
    """``best_first``, ``from_parents`` and ``draft.budget``, each in turns with its baseline."""
    made = drafts(requests, nodes)
    moved = made._replace(**{name: getattr(made, name).to(setting.device) for name in made._fields})
    laws = list(zip(made.roots.tolist(), made.log_probs.tolist(), made.token_ids.tolist(), strict=True))
    setting.tick()
    yield _group(
        setting,
        "tree_best_first",
        f"{requests} requests of {nodes} nodes, depth {DEPTH}, {RANKS} ids",
        lambda: [by_heap(root, log_probs, ids, nodes) for root, log_probs, ids in laws],
        lambda backend: sk.tree.best_first(moved.roots, moved.log_probs, moved.token_ids, nodes, backend=backend),
        "heapq, one request after the other",
        8 * requests * DEPTH * RANKS + 20 * requests * nodes,
    )
    tokens = made.tokens.view(requests, nodes).tolist()
    parents = made.parents.view(requests, nodes).tolist()
    yield _group(
        setting,
        "tree_from_parents",
        f"{requests} requests of {nodes} nodes",
        lambda: [by_recursion(*one) for one in zip(tokens, parents, strict=True)],
        lambda backend: sk.tree.from_parents(
            *(moved.tokens, moved.parents, moved.cu_nodes), max_nodes=nodes, max_depth=nodes, backend=backend
        )[0],
        "a recursion, one request after the other",
        40 * requests * nodes,
    )
    yield from budget.groups(setting)


def _group(setting: Setting, op: str, shape: str, slow: Any, fast: Any, note: str, needed: int) -> list[Row]:
    expected = slow()

    def right(result: Any) -> str | None:
        found = result if isinstance(result, list) else rows_of_tree(result)
        wrong = [b for b, (ours, theirs) in enumerate(zip(found, expected, strict=True)) if ours != theirs]
        return f"other trees for requests {wrong[:5]}" if wrong else None

    variants = [Variant(backend, partial(fast, backend), right, inner=4) for backend in setting.backends]
    variants.append(Variant(EAGER, slow, right))
    outcomes = measure(
        variants,
        repeats=setting.repeats,
        budget_s=setting.budget_s,
        stopwatch=setting.stopwatch,
        tick=setting.tick,
    )
    columns = {"family": FAMILY, "op": op, "case": "build", "dtype": "int64", "data": "random", "shape": shape}
    rows = rows_of(setting, outcomes, columns, needed=dict.fromkeys(outcomes, needed))
    for row in rows:
        if row.variant == EAGER:
            add_note(row, note)
    judge(rows, setting, GOALS[setting.device])
    return rows
