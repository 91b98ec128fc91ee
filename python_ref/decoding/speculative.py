"""Speculative decoding: a drafter guesses, one pass of the target judges all guesses at once.

One step, with ``n`` tokens in a request's text and the root at position ``n - 1``:

1. the drafter proposes tokens for positions ``n, n + 1, ...``: a chain, or a tree with several guesses for each;
2. the target computes the logits of root and drafts in one pass; node ``i`` of a tree attends to the context and to
   its ancestors, and is stored ``i`` positions behind the context;
3. verification decides straight from the logits: the accepted drafts, a path from the root, and one token of the
   target's own;
4. the path moves to the front, in all layers at once. The rest is forgotten: the committed length is all that
   counts. (Of a chain, and of the best path of a tree, nothing has to move.)

Source: Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318; trees: Miao et al. 2024
(SpecInfer), arXiv 2305.09781, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .attention import PagedAttention, Rows
from .batch import Step

if TYPE_CHECKING:
    from ..drafters.protocol import Proposal
    from .batch import Batch
    from .decoder import Decoder
    from .statistics import Statistics, Stopwatch

RULES = ("match", "greedy", "rejection", "block", "traversal", "greedy_plus_one")


class _Drafts(NamedTuple):
    """The tree of all rows of the batch, and what the host knows of it: live nodes and the depth of each request."""

    tree: Any
    lives: list[int]
    reach: list[int]


class _Pass(NamedTuple):
    """What the target said: logits of the live nodes, the row of each node among them (None: its own), and the
    features that the drafter asked for, in the same rows."""

    logits: Tensor
    rows: Tensor | None
    features: Tensor | None


def step(decoder: Decoder, clock: Stopwatch) -> Step:
    """Draft and verify for every live request; laps of the clock go to the statistics.

    Without a drafter the tree is the root alone, and the step is one of plain decoding.
    """
    batch, statistics = decoder.batch, decoder.statistics
    before = _seconds(statistics)
    remaining = [decoder.remaining(row) for row in range(batch.size)]
    proposal = None
    drafter = decoder.guesser
    if drafter is not None:
        limits = [max(0, min(decoder.num_draft, left - 1)) for left in remaining]
        proposal = drafter.propose(batch, limits, decoder.rule)
    drafts = _drafts(decoder, proposal)
    if drafter is not None:
        statistics.draft_seconds += clock.lap()

    context_lens = torch.tensor([max(len(text) - 1, 0) for text in batch.texts], device=batch.device)
    made = _target(decoder, drafts, context_lens)
    statistics.target_seconds += clock.lap()

    result, expected = _verify(decoder, drafts.tree, made, proposal, context_lens, remaining)
    if proposal is not None and proposal.tree is not None:
        buffers = decoder.ops.KvBuffers(decoder.cache.buffers())
        table = decoder.cache.table(batch.size)
        decoder.ops.kv.commit(buffers, table, context_lens, result.path, result.num_tokens)
    tokens, counts = result.tokens.tolist(), result.num_tokens.tolist()
    scores = None if result.logprobs is None else _cut(result.logprobs.tolist(), counts)
    statistics.verify_seconds += clock.lap()
    if made.features is not None:
        _absorb(decoder, drafts.tree, made, result)
        statistics.draft_seconds += clock.lap()
    if decoder.trace is not None:
        seconds = {name: spent - before[name] for name, spent in _seconds(statistics).items()}
        decoder.trace.step(drafts.tree, made.logits, made.rows, result, batch.texts, batch.serials, seconds)
        clock.lap()  # recording is no part of any phase
    drafted = [max(min(reach, left - 1), 0) for reach, left in zip(drafts.reach, remaining, strict=True)]
    return Step(_cut(tokens, counts), drafted, scores, expected)


def _seconds(statistics: Statistics) -> dict[str, float]:
    return {name: getattr(statistics, f"{name}_seconds") for name in ("draft", "target", "verify")}


def _cut(lines: list[list[Any]], counts: list[int]) -> list[list[Any]]:
    return [line[:count] for line, count in zip(lines, counts, strict=True)]


def _drafts(decoder: Decoder, proposal: Proposal | None) -> _Drafts:
    """The tree to verify."""
    if proposal is None or proposal.tree is None:
        lengths = _chain_lengths(decoder, proposal)
        chains = _chains(decoder.batch, proposal, lengths)
        tree = decoder.ops.tree.from_chains(chains, torch.tensor(lengths, device=decoder.batch.device))
        return _Drafts(tree, lengths, [max(length - 1, 0) for length in lengths])
    tree = proposal.tree
    first, ends, depths = tree.cu_nodes.tolist(), tree.ends.tolist(), tree.depths.tolist()
    lives = [
        ends[first[row]] if request is not None and first[row] < first[row + 1] else 0
        for row, request in enumerate(decoder.batch.requests)
    ]
    reach = [max(depths[begin : begin + live], default=0) for begin, live in zip(first, lives, strict=False)]
    return _Drafts(tree, lives, reach)


def _chain_lengths(decoder: Decoder, proposal: Proposal | None) -> list[int]:
    """Nodes of each request's chain: the root and those drafts whose positions the model has; 0 for idle rows."""
    lengths = []
    for row, request in enumerate(decoder.batch.requests):
        if request is None:
            lengths.append(0)
            continue
        drafts = 0 if proposal is None else proposal.counts[row]
        lengths.append(1 + max(0, min(drafts, decoder.max_positions - len(decoder.batch.texts[row]))))
    return lengths


def _chains(batch: Batch, proposal: Proposal | None, lengths: list[int]) -> Tensor:
    """Root and drafts of each request, ``[B, max(lengths)]``."""
    pairs = zip(batch.texts, lengths, strict=True)
    roots = torch.tensor([[text[-1] if n else -1] for text, n in pairs], device=batch.device)
    if proposal is None:
        return roots
    return torch.cat((roots, proposal.tokens[:, : max(lengths) - 1]), dim=1)


def _target(decoder: Decoder, drafts: _Drafts, context_lens: Tensor) -> _Pass:
    """One pass of the target over the live nodes; padding does not go through the model."""
    tree, lives, batch, model = drafts.tree, drafts.lives, decoder.batch, decoder.model
    first = tree.cu_nodes.tolist()
    for row, live in enumerate(lives):
        if live:
            decoder.cache.reserve(row, len(batch.texts[row]) - 1 + live)
    tokens, depths, rows = tree.tokens, tree.depths, None
    owners = [row for row, live in enumerate(lives) for _ in range(live)]
    whole = len(owners) == len(tokens)
    if not whole:
        live_rows = [begin + i for begin, live in zip(first, lives, strict=False) for i in range(live)]
        nodes = torch.tensor(live_rows, device=batch.device)
        rows = torch.zeros(len(tokens), dtype=torch.int64, device=batch.device)
        rows[nodes] = torch.arange(len(live_rows), device=batch.device)
        tokens, depths = tokens[nodes], depths[nodes]
    # A drafter may leave holes (-1), and draft beyond the last position: such nodes are never accepted, but their
    # rows need some embedding and some position.
    tokens = tokens.clamp(0, model.config.vocab_size - 1)
    positions = context_lens[torch.tensor(owners, device=batch.device)] + depths
    positions = positions.clamp(max=decoder.max_positions - 1)
    attend = PagedAttention(decoder.ops, decoder.cache, Rows.of_tree(tree, context_lens, None if whole else lives))
    if not decoder.features:
        return _Pass(model.logits(model(tokens, positions, attend)), rows, None)
    hidden, features = model(tokens, positions, attend, features=decoder.features)
    return _Pass(model.logits(hidden), rows, features)


def _verify(
    decoder: Decoder,
    tree: Any,
    made: _Pass,
    proposal: Proposal | None,
    context_lens: Tensor,
    remaining: list[int],
) -> tuple[Any, dict[str, list[float]]]:
    """The result, and per rule what each row had to expect of the step, if that was asked for."""
    batch, verify = decoder.batch, decoder.ops.verify
    # The op clamps what a drafter proposed beyond its limits.
    options = {
        "rows": made.rows,
        "active": torch.tensor(batch.active, device=batch.device),
        "max_tokens": torch.tensor(remaining, device=batch.device),
        "logprobs": decoder.logprobs,
    }
    if decoder.rule == "greedy":
        return verify.greedy(tree, made.logits, **options), {}
    if decoder.rule == "match":
        return verify.match(tree, made.logits, batch.sampling, context_lens, **options), {}
    draft_logits = draft_sampling = draft_rows = None
    drawn_again = True  # one draft per node: drawn with or without replacement is the same
    if proposal is not None and proposal.logits is not None:
        draft_logits, draft_sampling = proposal.logits, proposal.sampling
        draft_rows = _draft_rows(batch, proposal, tree.max_nodes) if proposal.tree is None else proposal.rows
        drawn_again = proposal.tree is None or proposal.replacement
        options |= {"draft_to_target": proposal.draft_to_target, "target_to_draft": proposal.target_to_draft}
    laws = (tree, made.logits, draft_logits, batch.sampling, draft_sampling)
    options |= {"replacement": drawn_again, "draft_rows": draft_rows}
    expected: dict[str, list[float]] = {}
    if decoder.expects:
        asked = {name: value for name, value in options.items() if name != "logprobs"}
        means = verify.expect(*laws, **asked)
        expected = {rule: getattr(means, rule).double().tolist() for rule in means._fields}
    rule = "token" if decoder.rule == "rejection" else decoder.rule
    return verify.rejection(*laws, context_lens, rule=rule, **options), expected


def _draft_rows(batch: Batch, proposal: Proposal, width: int) -> Tensor:
    """Row of the draft logits that the child of each node was drawn from; the last node of a chain has none."""
    assert proposal.rows is not None
    rows = torch.full((batch.size, width), -1, dtype=proposal.rows.dtype, device=batch.device)
    rows[:, :-1] = proposal.rows[:, : width - 1]
    return rows.reshape(-1)


def _absorb(decoder: Decoder, tree: Any, made: _Pass, result: Any) -> None:
    """Give the drafter the features of the path: row ``j`` of a request is that of position ``context + j``."""
    features = made.features
    assert features is not None
    if made.rows is not None:
        features = features[made.rows]
    accepted = decoder.ops.kv.gather(features, tree.cu_nodes, result.path, result.num_tokens)
    decoder.guesser.absorb(decoder.batch, accepted, result.num_tokens)  # type: ignore[union-attr]
