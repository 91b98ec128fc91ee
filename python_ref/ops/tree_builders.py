"""Builders of token trees from nodes in any order: given parents, pools of beams, laws of positions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..types import MALFORMED, TokenTree
from . import checks

#: Most nodes of a request that is built, its root included, and most candidates in a pool.
MAX_NODES, MAX_POOL = 1024, 4096

_LARGEST_TOKEN = 2**31 - 1


class _Rows:
    """The rows of a batch of trees as lists, all padding at first."""

    def __init__(self, count: int, batch: int) -> None:
        self.tokens = [-1] * count
        self.parents = [-1] * count
        self.depths = [0] * count
        self.ends = [0] * count
        self.status = [0] * batch

    def put(self, first: int, parents: list[int], tokens: list[int]) -> list[int]:
        """Write a tree from row ``first`` on: its nodes in any topological order, the root first.

        Returns:
            The node that each row got.
        """
        children: list[list[int]] = [[] for _ in parents]
        for node, parent in enumerate(parents):
            if parent >= 0:
                children[parent].append(node)
        order: list[int] = []
        place = [0] * len(parents)
        pending = [0] if parents else []
        while pending:
            node = pending.pop()
            place[node] = len(order)
            order.append(node)
            pending += reversed(children[node])
        for i, node in enumerate(order):
            parent = parents[node]
            row = first + i
            self.tokens[row] = tokens[node]
            self.parents[row] = -1 if parent < 0 else place[parent]
            self.depths[row] = 0 if parent < 0 else self.depths[first + place[parent]] + 1
            self.ends[row] = i + 1
        for i in range(len(order) - 1, 0, -1):
            above = first + self.parents[first + i]
            self.ends[above] = max(self.ends[above], self.ends[first + i])
        return order

    def tree(self, like: Tensor, cu_nodes: Tensor, max_nodes: int, max_depth: int, out: Any) -> TokenTree:
        """The tree, tokens in the dtype of ``like``, written to ``out`` if that is given."""

        def column(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=like.device)

        tokens = torch.tensor(self.tokens, dtype=torch.int64).to(like.dtype).to(like.device)
        made = TokenTree(
            cu_nodes,
            tokens,
            column(self.parents),
            column(self.depths),
            column(self.ends),
            max_nodes,
            max_depth,
            status=column(self.status),
        )
        if out is None:
            return made
        for name in ("cu_nodes", "tokens", "parents", "depths", "ends", "status"):
            made = made._replace(**{name: getattr(out, name).copy_(getattr(made, name))})
        return made


def _strides(batch: int, width: int, like: Tensor) -> Tensor:
    return torch.arange(batch + 1, dtype=torch.int32, device=like.device) * width


def from_parents(
    tokens: Tensor,
    parents: Tensor,
    cu_nodes: Tensor,
    *,
    max_nodes: int,
    max_depth: int,
    lengths: Tensor | None = None,
    slots: bool = False,
    out: Any = None,
) -> tuple[TokenTree, Tensor]:
    """Trees whose nodes come in any topological order, in depth-first pre-order; siblings keep their order.

    Args:
        tokens: ``[T]`` int32 or int64, the root of a request in its first row.
        parents: ``[T]`` int32 or int64, local: -1 for the root, else below the node's own index.
        cu_nodes: ``[B+1]`` int32, first row of each request, then the end of the last.
        max_nodes: at most so many nodes per request, 0 to 1024.
        max_depth: at most so deep.
        lengths: ``[B]`` int32 or int64, live rows of each request; None: all.
        slots: whether the tree says in which row each node came.
        out: ``(tree, order)`` to write into.

    Returns:
        The tree, with the given ``cu_nodes``, and ``order [T]`` int64: the row where each node came from. Other rows
        are padding: token -1, parent -1, depth 0, end 0, their own row. A malformed request is its root alone, with
        status 8; offsets that do not ascend within ``[0, T]`` leave a request without nodes, with status 8.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or range.

    Deterministic. Reads values on the host: not for CUDA graphs.
    """
    op = "tree.from_parents"
    checks.tensor(op, "tokens", tokens, ("T",))
    total = tokens.shape[0]
    checks.tensor(op, "parents", parents, (total,))
    checks.tensor(op, "cu_nodes", cu_nodes, ("B+1",), (torch.int32,))
    if cu_nodes.shape[0] < 1:
        raise ValueError(f"{op}: cu_nodes must have at least one element, got shape [0]")
    batch = cu_nodes.shape[0] - 1
    checks.optional(op, "lengths", lengths, batch)
    checks.integer(op, "max_nodes", max_nodes, 0, MAX_NODES)
    checks.integer(op, "max_depth", max_depth, 0)
    names, above, offsets = tokens.tolist(), parents.tolist(), cu_nodes.tolist()
    rows, order, places = _Rows(total, batch), list(range(total)), [0] * total
    after = min(max(offsets[0], 0), total)
    for b in range(batch):
        # Rows that no request before has; offsets that ascend make them those from cu_nodes[b] to cu_nodes[b+1].
        first, after = after, min(max(offsets[b + 1], after), total)
        places[first:after] = range(after - first)
        live = after - first if lengths is None else int(lengths[b])
        inside = [above[first + i] for i in range(min(max(live, 0), after - first))]
        if (first, after) != (offsets[b], offsets[b + 1]):
            inside, rows.status[b] = [], MALFORMED
        elif not 0 <= live <= after - first or not _is_topological(inside, max_nodes, max_depth):
            inside, rows.status[b] = [-1] * min(1, after - first, max_nodes), MALFORMED
        taken = rows.put(first, inside, names[first:after])
        order[first : first + len(taken)] = [first + node for node in taken]
        places[first : first + len(taken)] = taken
    tree = rows.tree(
        tokens, cu_nodes, max_nodes, max_depth, None if out is None else out[0]._replace(cu_nodes=cu_nodes)
    )
    sources = torch.tensor(order, dtype=torch.int64, device=tokens.device)
    if slots:
        made = torch.tensor(places, dtype=torch.int32, device=tokens.device)
        tree = tree._replace(slots=made if out is None else out[0].slots.copy_(made))
    return tree, sources if out is None else out[1].copy_(sources)


def _is_topological(parents: list[int], max_nodes: int, max_depth: int) -> bool:
    if len(parents) > max_nodes:
        return False
    depths: list[int] = []
    for i, parent in enumerate(parents):
        if not (parent == -1 if i == 0 else 0 <= parent < i):
            return False
        depths.append(0 if i == 0 else depths[parent] + 1)
    return max(depths, default=0) <= max_depth


def _budgets(op: str, budget: Any, max_nodes: int | None, batch: int, exist: int) -> tuple[list[int], int]:
    """Nodes that each request may have, and rows that it gets."""
    if isinstance(budget, Tensor):
        checks.tensor(op, "budget", budget, (batch,))
        width = min(MAX_NODES, exist) if max_nodes is None else max_nodes
        checks.integer(op, "max_nodes", width, 0, MAX_NODES)
        return [min(max(b, 0), width) for b in budget.tolist()], width
    checks.integer(op, "budget", budget, 0, MAX_NODES)
    if max_nodes is not None:
        raise ValueError(f"{op}: max_nodes must be None unless budget is a tensor, got {max_nodes}")
    return [budget] * batch, budget


def _is_token(token: int) -> bool:
    return 0 <= token <= _LARGEST_TOKEN


def from_beams(
    root_tokens: Tensor,
    tokens: Tensor,
    parents: Tensor,
    scores: Tensor,
    budget: Any,
    *,
    max_depth: int,
    lengths: Tensor | None = None,
    max_nodes: int | None = None,
    out: Any = None,
) -> tuple[TokenTree, Tensor]:
    """The best candidates of a pool, closed under ancestors, equal siblings merged (EAGLE-2).

    Args:
        root_tokens: ``[B]`` int32 or int64; one that is no token (< 0) makes the request idle.
        tokens: ``[B, M]`` int32 or int64, candidates.
        parents: ``[B, M]`` int32 or int64, index in the pool, below the own; -1 = child of the root.
        scores: ``[B, M]`` float32, log-probability of the path to each candidate.
        budget: nodes of a request with its root, an int or ``[B]`` int32 or int64.
        max_depth: deeper candidates are absent.
        lengths: ``[B]`` int32 or int64, candidates of each request; None: ``M``.
        max_nodes: rows of each request where the budget is a tensor; None: ``min(1024, M + 1)``.
        out: ``(tree, order)`` to write into.

    Returns:
        The tree, ``max_nodes`` rows per request, siblings best first, and ``order [B * max_nodes]`` int32: index in
        the pool of each node, -1 for roots and padding. A length outside ``[0, M]`` leaves the root alone, with status
        8; a candidate that is absent only because its parent is no index below its own sets status 8.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or range.

    Deterministic. Reads values on the host: not for CUDA graphs.
    Source: EAGLE-2, Li et al. 2024 (arXiv 2406.16858), reranking.
    """
    op = "tree.from_beams"
    checks.tensor(op, "root_tokens", root_tokens, ("B",))
    batch = root_tokens.shape[0]
    checks.tensor(op, "tokens", tokens, (batch, "M"))
    pool = tokens.shape[1]
    if pool > MAX_POOL:
        raise ValueError(f"{op}: tokens must have at most {MAX_POOL} columns, got {pool}")
    checks.tensor(op, "parents", parents, (batch, pool))
    checks.tensor(op, "scores", scores, (batch, pool), (torch.float32,))
    checks.optional(op, "lengths", lengths, batch)
    checks.integer(op, "max_depth", max_depth, 0)
    budgets, width = _budgets(op, budget, max_nodes, batch, pool + 1)
    rows, order = _Rows(batch * width, batch), [-1] * (batch * width)
    for b, root in enumerate(root_tokens.tolist()):
        if not _is_token(root) or budgets[b] < 1:
            continue
        length = pool if lengths is None else int(lengths[b])
        if not 0 <= length <= pool:
            length, rows.status[b] = 0, MALFORMED
        columns = (tokens[b, :length].tolist(), parents[b, :length].tolist(), scores[b, :length].tolist())
        found, malformed = _candidates(*columns, max_depth)
        rows.status[b] |= MALFORMED * malformed
        best = sorted(found, key=lambda c: (-c.score, c.depth, c.index))[: budgets[b] - 1]
        node = {-1: 0} | {c.index: i + 1 for i, c in enumerate(best)}
        taken = rows.put(b * width, [-1, *(node[c.parent] for c in best)], [root, *(c.token for c in best)])
        order[b * width : b * width + len(taken)] = [-1 if i == 0 else best[i - 1].index for i in taken]
    tree = rows.tree(
        root_tokens, _strides(batch, width, root_tokens), width, max_depth, None if out is None else out[0]
    )
    indices = torch.tensor(order, dtype=torch.int32, device=root_tokens.device)
    return tree, indices if out is None else out[1].copy_(indices)


class _Candidate(NamedTuple):
    index: int
    parent: int
    depth: int
    token: int
    score: float


def _candidates(
    tokens: list[int], parents: list[int], scores: list[float], max_depth: int
) -> tuple[list[_Candidate], bool]:
    """What is present in a pool, merged, in the order of the pool; and whether a parent was out of range."""
    stands_for: dict[int, int] = {-1: -1}  # of a present candidate: the one it is merged into
    depths = {-1: 0}
    merged: dict[tuple[int, int], int] = {}
    largest: dict[int, float] = {}
    malformed = False
    for i, (token, parent, score) in enumerate(zip(tokens, parents, scores, strict=True)):
        if not score > -math.inf or not _is_token(token):
            continue
        if not -1 <= parent < i:
            malformed = True
        elif parent in stands_for and depths[parent] < max_depth:
            depths[i] = depths[parent] + 1
            same = merged.setdefault((stands_for[parent], token), i)
            stands_for[i] = same
            largest[same] = max(largest.get(same, -math.inf), score)
    found: dict[int, _Candidate] = {}
    for i, score in largest.items():
        above = stands_for[parents[i]]
        bound = found[above].score if above >= 0 else math.inf
        found[i] = _Candidate(i, above, depths[i], tokens[i], min(score, bound))
    return list(found.values()), malformed


def best_first(
    root_tokens: Tensor,
    log_probs: Tensor,
    token_ids: Tensor,
    budget: Any,
    *,
    total_budget: int | None = None,
    max_nodes: int | None = None,
    scores: Tensor | None = None,
    out: Any = None,
) -> TokenTree:
    """The most probable nodes of the tree over a product of laws, one per depth (DDTree).

    A node at depth ``d`` is a rank of law ``d - 1`` under any node at depth ``d - 1``; its score is the float32 sum of
    the log-probabilities on its path. Log-probabilities count as at most 0 and at most those of the ranks before,
    NaN as -inf; a rank with -inf or an id that is no token is absent. Nodes are taken by score (larger first), depth
    (smaller first), the place of the parent among the nodes of its depth, rank.

    Args:
        root_tokens: ``[B]`` int32 or int64; one that is no token (< 0) makes the request idle.
        log_probs: ``[B, D, K]`` float32.
        token_ids: ``[B, D, K]`` int32 or int64.
        budget: nodes of a request with its root, an int or ``[B]`` int32 or int64.
        total_budget: nodes of the batch, of which each live request has its root: the best by score, depth, request,
            place in the depth.
        max_nodes: rows of each request where the budget is a tensor; None: 1024, or fewer if no more exist.
        scores: ``[B * max_nodes]`` float32, receives the score of each node: 0 for a root, -inf for padding.
        out: a tree to write into.

    Returns:
        The tree, ``max_nodes`` rows per request, siblings by rank. Its status is 0.

    Raises:
        TypeError, ValueError: on a wrong dtype, shape or range.

    Deterministic. Reads values on the host: not for CUDA graphs.
    Source: DDTree, arXiv 2604.12989, level by level instead of with a heap.
    """
    op = "tree.best_first"
    checks.tensor(op, "root_tokens", root_tokens, ("B",))
    batch = root_tokens.shape[0]
    checks.tensor(op, "log_probs", log_probs, (batch, "D", "K"), (torch.float32,))
    depth, ranks = log_probs.shape[1:]
    checks.tensor(op, "token_ids", token_ids, (batch, depth, ranks))
    exist = 1
    for _ in range(depth if ranks else 0):
        exist = min(1 + ranks * exist, MAX_NODES)
    budgets, width = _budgets(op, budget, max_nodes, batch, exist)
    if total_budget is not None:
        checks.integer(op, "total_budget", total_budget, 0)
    checks.optional(op, "scores", scores, batch * width, (torch.float32,))
    roots = root_tokens.tolist()
    budgets = [n if _is_token(root) else 0 for root, n in zip(roots, budgets, strict=True)]
    chosen = [_best(log_probs[b], token_ids[b], budgets[b] - 1) for b in range(batch)]
    if total_budget is not None:
        left = max(total_budget - sum(n > 0 for n in budgets), 0)
        ranked = [(-c.score, c.depth, b, i) for b, found in enumerate(chosen) for i, c in enumerate(found)]
        taken = sorted(ranked)[:left]
        chosen = [[chosen[b][i] for _, _, owner, i in taken if owner == b] for b in range(batch)]
    rows = _Rows(batch * width, batch)
    reached = torch.full((batch * width,), -math.inf)
    for b, found in enumerate(chosen):
        if not budgets[b]:
            continue
        parents = [-1, *(c.parent for c in found)]
        order = rows.put(b * width, parents, [roots[b], *(c.token for c in found)])
        for i, node in enumerate(order):
            reached[b * width + i] = 0.0 if node == 0 else found[node - 1].score
    if scores is not None:
        scores.copy_(reached)
    return rows.tree(root_tokens, _strides(batch, width, root_tokens), width, depth, out)


class _Chosen(NamedTuple):
    score: float
    depth: int
    place: int  # among the nodes of its depth
    parent: int  # 0: the root, i + 1: entry i of the list
    token: int


def _best(log_probs: Tensor, token_ids: Tensor, count: int) -> list[_Chosen]:
    """The first ``count`` nodes of one request below its root, in order.

    Level by level: of the level above, all that can matter is its best ``count`` nodes, best first, and of those only
    node ``i`` with rank ``r`` where ``(i + 1) (r + 1) <= count``: the nodes with a parent and a rank that are as good
    come before.
    """
    if count < 1:
        return []
    above: list[tuple[float, int, int, int]] = [(0.0, 0, 0, 0)]
    levels: list[list[tuple[float, int, int, int]]] = []  # (score, place of the parent, rank, token)
    for law, ids in zip(log_probs.cpu()[:count], token_ids.tolist()[:count], strict=True):
        safe = torch.where(law.isnan(), -math.inf, law).clamp(max=0.0)
        safe = safe.cummin(0).values if safe.numel() else safe
        present = [r for r, log_prob in enumerate(safe.tolist()) if log_prob > -math.inf and _is_token(ids[r])][:count]
        totals = (torch.tensor([node[0] for node in above]).unsqueeze(1) + safe[present]).tolist()  # in float32
        level = [
            (total, i, r, ids[r])
            for i, row in enumerate(totals)
            for r, total in zip(present[: count // (i + 1)], row, strict=False)
            if total > -math.inf
        ]
        above = sorted(level, key=lambda node: (-node[0], *node[1:3]))[:count]
        levels.append(above)
    everything = [(-node[0], d, place) for d, level in enumerate(levels, start=1) for place, node in enumerate(level)]
    chosen: list[_Chosen] = []
    index = {(0, 0): 0}  # (depth, place) -> node
    for _, d, place in sorted(everything)[:count]:
        score, parent, _, token = levels[d - 1][place]
        chosen.append(_Chosen(score, d, place, index[d - 1, parent], token))
        index[d, place] = len(chosen)
    return chosen
