"""One step of speculative decoding that the device does alone: draft, target, verification, commit, advance.

It is the step of :mod:`python_ref.decoding.speculative` with one shape for a number of lanes, and with lengths, texts and
limits on the device: nothing in it depends on what the host knows, so the host may ask for the next step before it has
seen the result of the last. On a GPU a step is recorded as a CUDA graph, one for each number of lanes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .attention import PagedAttention
from .cache import PagedCache
from .device_queue import DeviceQueue
from .prompt import read_chunk
from .result_ring import ResultRing
from .static_drafter import Drafts, StaticDrafter
from .static_rows import StaticRows, run
from .step_state import Lanes, StepState

if TYPE_CHECKING:
    from ..models import Transformer


class StaticStep:
    """Everything that runs on the device.

    Attributes:
        width: nodes of a lane's tree.
        depth: most drafts in a row; a step gives at most one token more.
        seconds: on the CPU, time of the device's thread by phase; on a GPU nothing, for nobody waits there.
    """

    def __init__(
        self, model: Transformer, ops: Any, state: StepState, drafter: StaticDrafter | None, rule: str, compact: bool
    ) -> None:
        """Make the caches of target and drafter.

        Args:
            model: the target.
            ops: the package of the ops.
            state: the requests.
            drafter: guesses; None: a step is one of plain decoding.
            rule: ``"match"`` or ``"greedy"``.
            compact: whether passes leave padding out, for which values are read where the step runs: on the CPU.
        """
        self.model, self.ops, self.state, self.drafter, self.rule = model, ops, state, drafter, rule
        self.compact = compact
        self.width, self.depth = (1, 0) if drafter is None else (drafter.width, drafter.depth)
        self._features = () if drafter is None else tuple(drafter.features)
        self._space = model.config.max_positions
        model.prepare()
        self.cache: PagedCache = state.cache(model.config, model.model.embed_tokens.weight.dtype)
        if drafter is not None:
            drafter.attach(state, greedy=rule == "greedy", compact=compact)
        self.seconds = dict.fromkeys(("prefill", "draft", "target", "verify"), 0.0)
        self._timed = state.device.type == "cpu"
        self._since = 0.0

    def prefill(self, row: int, start: int, count: int) -> None:
        """Bring the tokens at positions ``start`` to ``start + count - 1`` of a text into the caches."""
        self._since = time.perf_counter()
        tokens = self.state.history[row, start : start + count]
        features = read_chunk(self.model, self.ops, self.cache, row, tokens, start, self._features)
        if self.drafter is not None:
            self.drafter.prime(row, start, tokens, features)
        self._lap("prefill")

    def __call__(self, rows: Tensor) -> Tensor:
        """One step of the requests in ``rows [B]`` int64; the result is packed as by :meth:`ResultRing.pack`."""
        self._since = time.perf_counter()
        lanes = self.state.lanes(rows, self.depth)
        tree = self._tree(lanes)
        self._lap("draft")
        chosen = StaticRows.of(tree, lanes.contexts, rows, self.compact)
        logits, features = self._target(tree, lanes, chosen)
        self._lap("target")
        result = self._verify(tree, lanes, logits, chosen)
        self._lap("verify")
        if self.drafter is not None:
            if features is not None:
                features = chosen.spread(features, len(tree.tokens))
                features = self.ops.kv.gather(features, tree.cu_nodes, result.path, result.num_tokens)
            self.drafter.absorb(lanes, features, result)
        self.state.advance(lanes, result.tokens, result.num_tokens)
        packed = ResultRing.pack(result.tokens, result.num_tokens, self._drafted(tree, lanes))
        self._lap("draft")
        return packed

    def _tree(self, lanes: Lanes) -> Any:
        """The tree to verify: roots alone, chains that end where the request does, or what the drafter has built."""
        drafts = Drafts() if self.drafter is None else self.drafter.draft(lanes)
        if drafts.tree is not None:
            return drafts.tree
        tokens = lanes.roots.unsqueeze(1)
        lengths = lanes.active.long()
        if drafts.tokens is not None and drafts.counts is not None:
            tokens = torch.cat((tokens, drafts.tokens.long()), dim=1)
            lengths = torch.minimum(drafts.counts.long(), lanes.limits).add(1).masked_fill(~lanes.active, 0)
        return self.ops.tree.from_chains(tokens, lengths)

    def _target(self, tree: Any, lanes: Lanes, chosen: StaticRows) -> tuple[Tensor, Tensor | None]:
        """Logits of the rows that went through the model, and their features."""
        model, attend = self.model, PagedAttention(self.ops, self.cache, chosen.rows)
        options = {"features": self._features} if self._features else {}
        ids = tree.tokens.clamp(0, model.config.vocab_size - 1)  # padding and holes need some embedding
        made = run(
            lambda ids, positions: model(ids, positions, attend, **options),
            tree,
            (ids,),
            lanes.contexts,
            self._space,
            chosen,
        )
        hidden, features = made if self._features else (made, None)
        return model.logits(hidden), features

    def _verify(self, tree: Any, lanes: Lanes, logits: Tensor, chosen: StaticRows) -> Any:
        """The decision, with the path of a tree moved to where its chain would be."""
        options = {
            "rows": chosen.inverse(len(tree.tokens)),
            "active": lanes.active,
            "max_tokens": lanes.left,
        }
        if self.rule == "greedy":
            result = self.ops.verify.greedy(tree, logits, **options)
        else:
            result = self.ops.verify.match(tree, logits, lanes.sampling, lanes.contexts, **options)
        if tree.max_nodes > tree.max_depth + 1:  # of a chain nothing has to move
            buffers = self.ops.KvBuffers(self.cache.buffers())
            self.ops.kv.commit(
                buffers,
                self.state.block_table,
                lanes.contexts,
                result.path,
                result.num_tokens,
                table_rows=lanes.rows,
            )
        return result

    def _drafted(self, tree: Any, lanes: Lanes) -> Tensor:
        """``[B]``, drafts in a row that were proposed and of use."""
        ends, depths = (column.view(len(lanes.rows), -1) for column in (tree.ends, tree.depths))
        live = torch.arange(ends.shape[1], device=ends.device) < ends[:, :1]
        return torch.minimum(depths.masked_fill(~live, 0).amax(1), lanes.limits)

    def _lap(self, name: str) -> None:
        if self._timed:
            now = time.perf_counter()
            self.seconds[name] += now - self._since
            self._since = now


class _Recorded(NamedTuple):
    graph: Any
    rows: Tensor
    packed: Tensor


class Runner:
    """Runs steps: on the CPU as they are, on a GPU from a recording."""

    def __init__(self, step: StaticStep, queue: DeviceQueue, max_lanes: int, graphs: bool) -> None:
        """Make a runner of steps of up to ``max_lanes`` lanes."""
        self._step, self._queue = step, queue
        self._graphs = graphs and queue.stream is not None
        self._recorded: dict[int, _Recorded] = {}
        # Memory of all recordings, of which one runs at a time.
        self._pool: Any = None
        self._buckets = [2**i for i in range((max_lanes - 1).bit_length())] + [max_lanes]

    def __call__(self, rows: list[int]) -> Tensor:
        """Within a task: one step of the requests in ``rows``; the first ``len(rows)`` lines of the result are theirs."""
        if not self._graphs:
            return self._step(self._queue.upload(rows))
        bucket = next(size for size in self._buckets if size >= len(rows))
        if bucket not in self._recorded:
            self._recorded[bucket] = self._record(bucket)
        recorded = self._recorded[bucket]
        idle = [self._step.state.idle] * (bucket - len(rows))
        recorded.rows.copy_(self._queue.upload(rows + idle))
        recorded.graph.replay()
        return recorded.packed[: len(rows)]

    def record(self) -> None:
        """Within a task: record all steps now, for which the device is waited for, and not when they are needed."""
        if self._graphs:
            for bucket in reversed(self._buckets):  # the largest first: the others fit into its memory
                self._recorded[bucket] = self._record(bucket)

    def forget(self) -> None:
        """Record anew: caches have moved."""
        self._recorded.clear()
        self._pool = None

    def _record(self, lanes: int) -> _Recorded:
        """Record a step of idle lanes, which changes nothing."""
        rows = torch.full((lanes,), self._step.state.idle, dtype=torch.int64, device=self._step.state.device)
        for _ in range(2):  # libraries and compilers make their choices now
            self._step(rows)
        graph, stream = torch.cuda.CUDAGraph(), self._queue.stream
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            packed = self._step(rows)
        return _Recorded(graph, rows, packed)
