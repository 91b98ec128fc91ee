"""Draft trees: builders of :class:`~specdec_kernels.types.TokenTree`, and exports for other engines."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _backend, _validate
from ._planner import optimal
from ._tree_exports import to_dense_mask, to_links, to_packed_mask, to_paths
from .types import TokenTree

__all__ = [
    "best_first",
    "from_beams",
    "from_chains",
    "from_parents",
    "optimal",
    "to_dense_mask",
    "to_links",
    "to_packed_mask",
    "to_paths",
]

#: Most nodes of a request that is built, its root included, and most candidates of a pool.
MAX_NODES, MAX_POOL = 1024, 4096


def from_chains(
    tokens: Tensor,
    lengths: Tensor | None = None,
    *,
    backend: str | None = None,
    out: TokenTree | None = None,
) -> TokenTree:
    """Chains of drafts as trees.

    Request ``b`` owns rows ``b*N`` to ``(b+1)*N``; the first ``lengths[b]`` of them are live, each
    the only child of the one before; the others are padding (token -1, end 0).

    Args:
        tokens: ``[B, N]`` int32 or int64, the root (newest token, already emitted) first, then the
            drafts.
        lengths: ``[B]`` int32 or int64, live tokens of each chain, the root included; 0 is an idle
            request. None: all ``N``. A length outside ``[0, N]`` makes the request root-only and
            sets status 8.
        backend: see :func:`specdec_kernels.use_backend`.
        out: a tree made by an earlier call of the same shape, written in place.

    Returns:
        A :class:`TokenTree` with ``max_nodes = N`` and ``max_depth = N - 1``.

    Raises:
        ValueError, TypeError: on a wrong shape, device or dtype.

    Deterministic. CUDA-graph safe. Reads and writes ``O(B * N)`` integers.
    """
    op = "tree.from_chains"

    def check() -> None:
        _validate.tensor(op, "tokens", tokens, ("B", "N"), _validate.INDICES)
        batch, width = tokens.shape
        device = tokens.device
        if lengths is not None:
            _validate.tensor(op, "lengths", lengths, (batch,), _validate.INDICES, device)
        if out is not None:
            _validate.new_tree(op, out, batch, batch * width, tokens.dtype, device)

    def launch(kernel: Callable[..., None]) -> TokenTree:
        batch, width = tokens.shape
        tree = _new(tokens, batch, batch * width, width, max(width - 1, 0)) if out is None else out
        kernel(tokens, lengths, *tree[:5], tree.status)
        _validate.raise_on_bad_data(op, tree.status)
        return tree

    return _backend.run("tree_from_chains", backend, tokens, check, launch)


def from_parents(
    tokens: Tensor,
    parents: Tensor,
    cu_nodes: Tensor,
    *,
    max_nodes: int,
    max_depth: int,
    lengths: Tensor | None = None,
    slots: bool = False,
    backend: str | None = None,
    out: tuple[TokenTree, Tensor] | None = None,
) -> tuple[TokenTree, Tensor]:
    """Trees whose nodes come in any topological order: level by level, in draw order, as they were made.

    Siblings keep the order in which they come, and nothing is merged.

    Args:
        tokens: ``[T]`` int32 or int64; the first row of a request is its root.
        parents: ``[T]`` int32 or int64, local index of the parent: -1 for the root, else below the node's own.
        cu_nodes: ``[B+1]`` int32, any stride, row offsets of the requests.
        max_nodes: host bound of the nodes of a request, at most 1,024.
        max_depth: host bound of the depth of a node.
        lengths: ``[B]`` int32 or int64, live rows of each request, the root included; 0 is an idle request. None: all
            of its rows.
        slots: whether ``tree.slots`` says in which row of its request each node came: then its KV stays where it was
            written in that order.
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``(tree, order)`` of an earlier call of the same shape, written in place.

    Returns:
        A :class:`TokenTree` with the given ``cu_nodes``, and ``order [T]`` int64: the row of ``tokens`` from which each
        row of the tree came. Rows that hold no live node are padding (token -1, end 0) and their own ``order``.

        A request that is no tree (a parent that is not an earlier node of it, a second root, more nodes or levels than
        the bounds, a length outside its rows) is its root alone; one whose ``cu_nodes`` do not ascend within ``[0, T]``
        has no nodes. Both set status 8.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    Deterministic. CUDA-graph safe. Reads and writes ``O(T)`` integers.
    """
    op = "tree.from_parents"

    def check() -> None:
        _validate.tensor(op, "tokens", tokens, ("T",), _validate.INDICES)
        count, device = tokens.shape[0], tokens.device
        _validate.tensor(op, "parents", parents, (count,), _validate.INDICES, device)
        _validate.tensor(op, "cu_nodes", cu_nodes, ("B+1",), _validate.INT32, device)
        if cu_nodes.shape[0] < 1:
            raise ValueError(f"{op}: cu_nodes must have at least one element, got shape [0]")
        batch = cu_nodes.shape[0] - 1
        check_host()
        if lengths is not None:
            _validate.tensor(op, "lengths", lengths, (batch,), _validate.INDICES, device)
        if out is not None:
            _validate.pair(op, "out", out, "a pair of a TokenTree and a tensor")
            _validate.new_tree(op, out[0], batch, count, tokens.dtype, device, "out[0]", offsets=False)
            if slots and out[0].slots is None:
                raise ValueError(f"{op}: out[0].slots must be given with slots, got None")
            if slots:
                _validate.output(op, "out[0].slots", out[0].slots, (count,), _validate.INT32, device)
            _validate.output(op, "out[1]", out[1], (count,), _validate.INT64, device)

    def check_host() -> None:
        _validate.integer(op, "max_nodes", max_nodes, 0, MAX_NODES)
        _validate.integer(op, "max_depth", max_depth, 0)
        _validate.flag(op, "slots", slots)

    def launch(kernel: Callable[..., None]) -> tuple[TokenTree, Tensor]:
        check_host()
        if out is None:
            tree = _new(tokens, cu_nodes.shape[0] - 1, tokens.shape[0], max_nodes, max_depth, cu_nodes)
            order = tokens.new_empty(tokens.shape[0], dtype=torch.int64)
            places = torch.empty_like(tree.parents) if slots else None
        else:
            tree, order = out
            places = tree.slots if slots else None
            if slots and places is None:
                check()
        columns = (tree.tokens, tree.parents, tree.depths, tree.ends)
        kernel(tokens, parents, cu_nodes, lengths, max_nodes, max_depth, *columns, places, order, tree.status)
        _validate.raise_on_bad_data(op, tree.status)
        return TokenTree(cu_nodes, *columns, max_nodes, max_depth, places, tree.status), order

    return _backend.run("tree_from_parents", backend, tokens, check, launch)


def from_beams(
    root_tokens: Tensor,
    tokens: Tensor,
    parents: Tensor,
    scores: Tensor,
    budget: int | Tensor,
    *,
    max_depth: int,
    lengths: Tensor | None = None,
    max_nodes: int | None = None,
    backend: str | None = None,
    out: tuple[TokenTree, Tensor] | None = None,
) -> tuple[TokenTree, Tensor]:
    """The best candidates of a pool as a tree: the reranking of EAGLE-2 and EAGLE-3.

    A candidate counts with its score, and at most with that of its parent, so that a node is never better than its
    ancestors. Siblings with the same token are one node: the one that comes first in the pool, with the largest of
    their scores and the children of all of them. The ``budget - 1`` best nodes stay, by score (larger first), then
    depth (smaller first), then index in the pool: with a node always its ancestors. Siblings stand in that order.

    Absent are candidates with a score of -inf or NaN, a token outside ``[0, 2^31)``, a depth above ``max_depth`` or an
    absent parent.

    Args:
        root_tokens: ``[B]`` int32 or int64, any stride; a negative one makes its request idle.
        tokens: ``[B, M]`` int32 or int64, candidates, any strides; ``M`` is at most 4,096.
        parents: ``[B, M]`` int32 or int64, index of the parent in the request's pool, below the candidate's own; -1 is
            the root.
        scores: ``[B, M]`` float32, log-probability of the path to each candidate.
        budget: nodes of a request, its root included: an int up to 1,024, or ``[B]`` int32 or int64; below 1 the
            request is idle.
        max_depth: host bound of the depth of a node.
        lengths: ``[B]`` int32 or int64, candidates of each request. None: ``M``.
        max_nodes: rows of each request where ``budget`` is a tensor, and its upper bound. None: ``min(1024, M + 1)``;
            where ``budget`` is an int it is that.
        backend: see :func:`specdec_kernels.use_backend`.
        out: ``(tree, order)`` of an earlier call of the same shape, written in place.

    Returns:
        A :class:`TokenTree` with ``max_nodes`` rows per request and tokens in the dtype of ``root_tokens``, and ``order
        [B * max_nodes]`` int32: index in the pool of each node, -1 for roots and padding.

        A length outside ``[0, M]`` leaves the root alone. A candidate whose parent is no earlier one is absent. Both
        set status 8.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    Deterministic; independent of the batch. CUDA-graph safe. Complexity: ``O(M log M)`` per request; on ``triton``
    ``O(M^2 log D)``, many candidates at a time.
    Source: EAGLE-2, Li et al. 2024, arXiv 2406.16858, section 4.2.
    """
    op = "tree.from_beams"

    def check() -> None:
        _validate.tensor(op, "root_tokens", root_tokens, ("B",), _validate.INDICES)
        batch, device = root_tokens.shape[0], root_tokens.device
        _validate.tensor(op, "tokens", tokens, (batch, "M"), _validate.INDICES, device)
        pool = tokens.shape[1]
        if pool > MAX_POOL:
            raise ValueError(f"{op}: tokens must have at most {MAX_POOL} columns, got {pool}")
        _validate.tensor(op, "parents", parents, (batch, pool), _validate.INDICES, device)
        _validate.tensor(op, "scores", scores, (batch, pool), _validate.FLOAT32, device)
        _validate.integer(op, "max_depth", max_depth, 0)
        width = _width(op, budget, max_nodes, pool + 1, batch, device)
        if lengths is not None:
            _validate.tensor(op, "lengths", lengths, (batch,), _validate.INDICES, device)
        if out is not None:
            _validate.pair(op, "out", out, "a pair of a TokenTree and a tensor")
            _validate.new_tree(op, out[0], batch, batch * width, root_tokens.dtype, device, "out[0]")
            _validate.output(op, "out[1]", out[1], (batch * width,), _validate.INT32, device)

    def launch(kernel: Callable[..., None]) -> tuple[TokenTree, Tensor]:
        _validate.integer(op, "max_depth", max_depth, 0)
        batch = root_tokens.shape[0]
        width = _width(op, budget, max_nodes, tokens.shape[1] + 1, batch, root_tokens.device)
        if out is None:
            tree = _new(root_tokens, batch, batch * width, width, max_depth)
            order = torch.empty_like(tree.parents)
        else:
            tree, order = out[0]._replace(max_nodes=width, max_depth=max_depth), out[1]
        budgets = budget if isinstance(budget, Tensor) else None
        where = (lengths, budgets, width, max_depth)
        kernel(root_tokens, tokens, parents, scores, *where, *tree[:5], tree.status, order)
        _validate.raise_on_bad_data(op, tree.status)
        return tree, order

    return _backend.run("tree_from_beams", backend, root_tokens, check, launch)


def best_first(
    root_tokens: Tensor,
    log_probs: Tensor,
    token_ids: Tensor,
    budget: int | Tensor,
    *,
    total_budget: int | None = None,
    max_nodes: int | None = None,
    scores: Tensor | None = None,
    backend: str | None = None,
    out: TokenTree | None = None,
) -> TokenTree:
    """The most probable nodes of the tree over a product of laws, one law per depth (DDTree).

    A node at depth ``d`` is a rank of law ``d - 1`` under any node at depth ``d - 1``. Its score is the sum, in float32
    along the path, of log-probabilities that are made safe first: NaN is -inf, at most 0, and at most those of the
    ranks before. A rank with -inf or an id outside ``[0, 2^31)`` is absent wherever it would stand.

    The order of nodes: score (larger first), depth (smaller first), the better parent (in the order of its depth),
    rank. The first ``budget - 1`` of it and the root are the tree: what a heap with that key pops.

    The tree is deterministic: verify it without a draft law. The laws are no law of texts to draw from.

    Args:
        root_tokens: ``[B]`` int32 or int64, any stride; a negative one makes its request idle.
        log_probs: ``[B, D, K]`` float32, any strides, descending in ``K``: the best ids of each depth.
        token_ids: ``[B, D, K]`` int32 or int64, their ids. Equal ids are not merged.
        budget: nodes of a request, its root included: an int up to 1,024, or ``[B]`` int32 or int64; below 1 the
            request is idle.
        total_budget: nodes that the batch shares, roots included: each live request keeps its root, and the best nodes
            of all requests within their own budgets stay, by score, depth, request, place in the depth.
        max_nodes: rows of each request where ``budget`` is a tensor, and its upper bound. None: the number of nodes
            that can exist, at most 1,024; where ``budget`` is an int it is that.
        scores: ``[B * max_nodes]`` float32, receives the score of each node: 0 for a root, -inf for padding. None: not
            reported.
        backend: see :func:`specdec_kernels.use_backend`.
        out: a tree made by an earlier call of the same shape, written in place.

    Returns:
        A :class:`TokenTree` with ``max_nodes`` rows per request, ``max_depth = D``, siblings by rank and tokens in the
        dtype of ``root_tokens``. Its status is 0.

    Raises:
        ValueError, TypeError: on a wrong shape, device, dtype or range.

    Deterministic; without ``total_budget`` independent of the batch. CUDA-graph safe. Of each law it looks at no more
    ranks that are present than there may be nodes, at absent ones before them, and at few behind. Complexity: ``O(N log
    N)`` per request.
    Source: DDTree, arXiv 2604.12989.
    """
    op = "tree.best_first"

    def exist() -> int:
        depth, ranks = log_probs.shape[1:]
        nodes = 1
        for _ in range(min(depth, MAX_NODES)):
            nodes = min(1 + ranks * nodes, MAX_NODES)
        return nodes

    def check() -> None:
        _validate.tensor(op, "root_tokens", root_tokens, ("B",), _validate.INDICES)
        batch, device = root_tokens.shape[0], root_tokens.device
        _validate.tensor(op, "log_probs", log_probs, (batch, "D", "K"), _validate.FLOAT32, device)
        _validate.tensor(op, "token_ids", token_ids, tuple(log_probs.shape), _validate.INDICES, device)
        width = _width(op, budget, max_nodes, exist(), batch, device)
        if total_budget is not None:
            _validate.integer(op, "total_budget", total_budget, 0)
        _validate.output(op, "scores", scores, (batch * width,), _validate.FLOAT32, device)
        if out is not None:
            _validate.new_tree(op, out, batch, batch * width, root_tokens.dtype, device)

    def launch(kernel: Callable[..., None]) -> TokenTree:
        batch, depth = root_tokens.shape[0], log_probs.shape[1]
        width = _width(op, budget, max_nodes, exist(), batch, root_tokens.device)
        if total_budget is not None:
            _validate.integer(op, "total_budget", total_budget, 0)
        if out is None:
            tree = _new(root_tokens, batch, batch * width, width, depth)
        else:
            tree = out._replace(max_nodes=width, max_depth=depth)
        budgets = budget if isinstance(budget, Tensor) else None
        shared = -1 if total_budget is None else total_budget
        kernel(root_tokens, log_probs, token_ids, budgets, width, shared, *tree[:5], tree.status, scores)
        return tree

    return _backend.run("tree_best_first", backend, root_tokens, check, launch)


def _width(op: str, budget: int | Tensor, max_nodes: int | None, exist: int, batch: int, device: torch.device) -> int:
    """Check a budget; the rows of each request."""
    if not isinstance(budget, Tensor):
        _validate.integer(op, "budget", budget, 0, MAX_NODES)
        if max_nodes is not None:
            raise ValueError(f"{op}: max_nodes must be None unless budget is a tensor, got {max_nodes}")
        return budget
    _validate.tensor(op, "budget", budget, (batch,), _validate.INDICES, device)
    if max_nodes is None:
        return min(MAX_NODES, exist)
    _validate.integer(op, "max_nodes", max_nodes, 0, MAX_NODES)
    return max_nodes


def _new(
    like: Tensor, batch: int, count: int, max_nodes: int, max_depth: int, cu_nodes: Tensor | None = None
) -> TokenTree:
    """A tree of ``count`` rows to be written; tokens have the dtype of ``like``."""
    status = like.new_empty(batch, dtype=torch.int32)
    return TokenTree(
        cu_nodes=status.new_empty(batch + 1) if cu_nodes is None else cu_nodes,
        tokens=like.new_empty(count),
        parents=status.new_empty(count),
        depths=status.new_empty(count),
        ends=status.new_empty(count),
        max_nodes=max_nodes,
        max_depth=max_depth,
        status=status,
    )
