"""Speculative decoding: a drafter guesses, one pass of the target judges all guesses at once.

One step, with ``n`` tokens in a request's text and the root at position ``n - 1``:

1. the drafter proposes up to ``k`` tokens for positions ``n, n + 1, ...``;
2. root and drafts become a chain, and the target computes the logits of its nodes in one pass;
3. verification decides straight from the logits: the accepted drafts, and one token of the target's own;
4. what was accepted is in the cache already, in its place. The rest is forgotten: the committed length is all that
   moves.

Source: Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .attention import Group, PagedAttention
from .batch import Step

if TYPE_CHECKING:
    from ..drafters.protocol import Proposal
    from .batch import Batch
    from .decoder import Decoder
    from .statistics import Stopwatch

RULES = ("match", "greedy", "rejection")


def step(decoder: Decoder, clock: Stopwatch) -> Step:
    """Draft and verify for every live request; laps of the clock go to the statistics.

    Without a drafter the chain is the root alone, and the step is one of plain decoding.
    """
    batch, statistics = decoder.batch, decoder.statistics
    remaining = [decoder.remaining(row) for row in range(batch.size)]
    proposal = None
    if decoder.drafter is not None:
        limits = [max(0, min(decoder.num_draft, left - 1)) for left in remaining]
        proposal = decoder.drafter.propose(batch, limits, decoder.rule)
        statistics.draft_seconds += clock.lap()

    lengths = _chain_lengths(decoder, proposal)
    chains = _chains(batch, proposal, lengths)
    logits, rows = _target(decoder, chains, lengths)
    statistics.target_seconds += clock.lap()

    tree = decoder.ops.tree.from_chains(chains, torch.tensor(lengths, device=batch.device))
    result = _verify(decoder, tree, logits, rows, proposal, remaining)
    tokens, counts = result.tokens.tolist(), result.num_tokens.tolist()
    scores = None if result.logprobs is None else _cut(result.logprobs.tolist(), counts)
    statistics.verify_seconds += clock.lap()
    drafted = [max(min(n, left) - 1, 0) for n, left in zip(lengths, remaining, strict=True)]
    return Step(_cut(tokens, counts), drafted, scores)


def _cut(lines: list[list[Any]], counts: list[int]) -> list[list[Any]]:
    return [line[:count] for line, count in zip(lines, counts, strict=True)]


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


def _target(decoder: Decoder, chains: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor | None]:
    """Logits of all live nodes, and the row of each node in them (None: its own)."""
    batch, width = decoder.batch, chains.shape[1]
    groups, positions = [], []
    for row, count in enumerate(lengths):
        if count:
            context = len(batch.texts[row]) - 1
            groups.append(Group.chain(row, context, count))
            positions += range(context, context + count)
    flat, rows = chains.reshape(-1), None
    if len(positions) < len(flat):  # padding does not go through the model
        live = [row * width + i for row, count in enumerate(lengths) for i in range(count)]
        nodes = torch.tensor(live, device=batch.device)
        rows = torch.zeros(len(flat), dtype=torch.int64, device=batch.device)
        rows[nodes] = torch.arange(len(live), device=batch.device)
        flat = flat[nodes]
    # A drafter may leave holes (-1): such a node counts as absent, but its row needs some embedding.
    flat = flat.clamp(0, decoder.model.config.vocab_size - 1)
    attend = PagedAttention(decoder.cache, groups)
    hidden = decoder.model(flat, torch.tensor(positions, device=batch.device), attend)
    return decoder.model.logits(hidden), rows


def _verify(
    decoder: Decoder,
    tree: Any,
    logits: Tensor,
    rows: Tensor | None,
    proposal: Proposal | None,
    remaining: list[int],
) -> Any:
    batch, verify = decoder.batch, decoder.ops.verify
    # The op clamps what a drafter proposed beyond its limits.
    options = {
        "rows": rows,
        "active": torch.tensor(batch.active, device=batch.device),
        "max_tokens": torch.tensor(remaining, device=batch.device),
        "logprobs": decoder.logprobs,
    }
    if decoder.rule == "greedy":
        return verify.greedy(tree, logits, **options)
    context_lens = torch.tensor([max(len(text) - 1, 0) for text in batch.texts], device=batch.device)
    if decoder.rule == "match":
        return verify.match(tree, logits, batch.sampling, context_lens, **options)
    draft_logits = draft_sampling = draft_rows = None
    if proposal is not None and proposal.logits is not None:
        draft_logits, draft_sampling = proposal.logits, proposal.sampling
        draft_rows = _draft_rows(batch, proposal, tree.max_nodes)
    return verify.rejection(
        tree,
        logits,
        draft_logits,
        batch.sampling,
        draft_sampling,
        context_lens,
        replacement=True,  # one draft per node: drawn with or without is the same
        draft_rows=draft_rows,
        **options,
    )


def _draft_rows(batch: Batch, proposal: Proposal, width: int) -> Tensor:
    """Row of the draft logits that the child of each node was drawn from; the last node of a chain has none."""
    assert proposal.rows is not None
    rows = torch.full((batch.size, width), -1, dtype=proposal.rows.dtype, device=batch.device)
    rows[:, :-1] = proposal.rows[:, : width - 1]
    return rows.reshape(-1)
