"""Logits to verify: random normal ones, and rows recorded from the shipped model, stretched to a real vocabulary.

Real rows decide what a filter costs: a few ids hold nearly all of their mass, whereas a normal row is so flat that top-p keeps
most of the vocabulary. The shipped model has a small vocabulary, so :func:`stretch` adds ids to its rows, and the label of the
data says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import python_ref

ASSETS = Path(python_ref.__file__).resolve().parent / "assets"
TARGET, DRAFT = "pystdlib-target", "pystdlib-draft"

NORMAL, RECORDED = "normal", "recorded"

#: How close the draft's normal logits are to the target's.
_CORRELATION = 0.8

# The smallest probability with which a recorded row must be able to accept, or to reject.
_POSSIBLE = 0.02
_TOP_P = 0.9


class Sizes(NamedTuple):
    """A batch of chains.

    Attributes:
        requests: number of chains.
        nodes: of a chain: the root and its drafts.
        vocab: columns of the logits.
    """

    requests: int = 8
    nodes: int = 8
    vocab: int = 151_936

    @property
    def rows(self) -> int:
        """Rows of the logits, one per node."""
        return self.requests * self.nodes

    def __str__(self) -> str:
        """Such as ``8 requests x 8 nodes, V=151,936``."""
        return f"{self.requests} requests x {self.nodes} nodes, V={self.vocab:,}"


#: What happens to the drafts.
ACCEPTED = ("none", "half", "all")


def accepted_drafts(which: str, sizes: Sizes) -> list[int]:
    """Accepted drafts of each request: of an odd number, half is alternately rounded down and up."""
    drafts = sizes.nodes - 1
    if which == "half":
        return [(drafts + b % 2) // 2 for b in range(sizes.requests)]
    return [{"none": 0, "all": drafts}[which]] * sizes.requests


class Logits(NamedTuple):
    """Rows of a target and of its drafter.

    Attributes:
        data: what they are, for the column of that name.
        target: ``[requests * nodes, V]``.
        draft: of the same shape and dtype; row ``v`` is the law that the child of node ``v`` is drawn from.
    """

    data: str
    target: Tensor
    draft: Tensor

    def to(self, dtype: torch.dtype) -> Logits:
        """The same rows, rounded to a dtype."""
        return Logits(self.data, self.target.to(dtype), self.draft.to(dtype))


@contextmanager
def one_thread() -> Iterator[None]:
    """Small tensors, row by row: a second thread gains little there, and costs much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class MissingData(Exception):
    """Data that are not on this machine; the message says which, and how to get them."""


def normal(sizes: Sizes, seed: int = 0) -> Logits:
    """Independent standard normal logits; the draft's are correlated with them by 0.8."""
    generator = torch.Generator().manual_seed(seed)
    shape = (sizes.rows, sizes.vocab)
    target = torch.randn(shape, generator=generator)
    draft = (
        torch.randn(shape, generator=generator).mul_(math.sqrt(1 - _CORRELATION**2)).add_(target, alpha=_CORRELATION)
    )
    return Logits(NORMAL, target, draft)


def recorded(sizes: Sizes, assets: Path = ASSETS, branching: Mapping[int, int] | None = None) -> Logits:
    """Rows of the shipped target and drafter at ``nodes`` successive tokens of held-out prompts.

    Which tokens: see :func:`_window`; ``branching`` tells how many children each inner node of a tree has. The rows are stretched
    to ``sizes.vocab`` where the models have fewer ids (:func:`stretch`), and then labelled so.

    Raises:
        MissingData: if the models or prompts are not there, or are too few, too short or too large.
    """
    for name in (f"{TARGET}/config.json", f"{DRAFT}/config.json", "prompts.json"):
        if not (assets / name).is_file():
            raise MissingData(
                f"no recorded logits: python_ref/assets/{name} is not there; `python -m python_ref.training all` makes it"
            )
    try:  # what reads the files is not needed for anything else
        from python_ref.models import load_model, load_tokenizer
        from python_ref.models.transformer import causal
    except ImportError as error:
        raise MissingData(f"no recorded logits: {error}") from None
    tokenizer = load_tokenizer(assets / TARGET)
    models = [load_model(assets / name, dtype=torch.float32) for name in (TARGET, DRAFT)]
    prompts = json.loads((assets / "prompts.json").read_text(encoding="utf-8"))
    windows: list[tuple[Tensor, ...]] = []
    with one_thread():
        for prompt in prompts:
            tokens = torch.tensor(tokenizer.encode(prompt["prompt"]).ids)
            rows = [model.logits(model(tokens, torch.arange(len(tokens)), causal(1))).float() for model in models]
            start = _window(rows[0], rows[1], sizes, branching)
            if start is not None:
                windows.append(tuple(part[start : start + sizes.nodes] for part in rows))
            if len(windows) == sizes.requests:
                break
    if len(windows) < sizes.requests:
        raise MissingData(f"no recorded logits: {sizes.requests} prompts are needed, got {len(windows)} that fit")
    target, draft = (torch.cat(parts) for parts in zip(*windows, strict=True))
    width = target.shape[1]
    if width > sizes.vocab:
        raise MissingData(f"no recorded logits: at most {sizes.vocab} ids are wanted, got {width}")
    if width == sizes.vocab:
        return Logits(RECORDED, target, draft)
    with one_thread():
        target, draft = (stretch(part, sizes.vocab) for part in (target, draft))
    return Logits(f"{RECORDED} V={width}, tail extrapolated", target, draft)


def _window(target: Tensor, draft: Tensor, sizes: Sizes, branching: Mapping[int, int] | None = None) -> int | None:
    """Where the last ``nodes`` successive rows begin that can be verified with any outcome; None if there are none.

    A draft can only be rejected where the two laws differ, and only be accepted where they overlap. Under top-p many rows of a
    real model have a single id left, so a chain is taken where each draft can be accepted, and where one can be rejected at
    the nodes at which requests are to stop; and where rounding does not decide which ids top-p keeps. In a tree all inner nodes
    must allow both, and have as many ids to draw from as they have children.
    """
    drawn_from = _nucleus(draft)
    overlap = torch.minimum(_nucleus(target), drawn_from).sum(-1)
    clear = _cut_is_clear(target) & _cut_is_clear(draft)
    can_accept, can_reject = overlap >= _POSSIBLE, overlap <= 1 - _POSSIBLE
    if branching is None:
        children = dict.fromkeys(range(sizes.nodes - 1), 1)
        stops = {n for which in ACCEPTED for n in accepted_drafts(which, sizes) if n in children}
    else:
        children, stops = dict(branching), set(branching)
    ids = (drawn_from > 0).sum(-1)
    for start in range(len(target) - sizes.nodes, -1, -1):
        decided = bool(clear[start : start + sizes.nodes].all())
        enough = all(bool(can_accept[start + n]) and int(ids[start + n]) >= k for n, k in children.items())
        if decided and enough and all(bool(can_reject[start + n]) for n in stops):
            return start
    return None


def _cut_is_clear(rows: Tensor) -> Tensor:
    """``[P]``: whether a relative change of 1e-4 in the masses decides about no heavy id, in bfloat16 neither."""
    clear = torch.ones(rows.shape[0], dtype=torch.bool)
    for rounded in (rows, rows.bfloat16()):
        falling = rounded.double().softmax(-1).sort(dim=-1, descending=True).values
        before = falling.cumsum(-1) - falling
        clear &= (((before / _TOP_P - 1).abs() > 1e-4) | (falling < 2e-3)).all(-1)
    return clear


def _nucleus(rows: Tensor) -> Tensor:
    """The laws of rows under top-p 0.9 in float64."""
    falling, ids = rows.double().softmax(-1).sort(dim=-1, descending=True)
    kept = falling.masked_fill(falling.cumsum(-1) - falling >= _TOP_P, 0.0)
    return torch.zeros_like(kept).scatter(-1, ids, kept / kept.sum(-1, keepdim=True))


def stretch(rows: Tensor, vocab: int, seed: int = 0) -> Tensor:
    """Rows ``[T, V0]`` of a small vocabulary as rows ``[T, vocab]`` of a larger one.

    The recorded ids keep their logits, and so the head of the law is as it was recorded; they are spread over the new vocabulary
    at random, to the same places in every row. The new ids continue the row downwards: sorted logits fall about linearly with
    the logarithm of the rank (Zipf's law), so the line is fitted to the ranks ``V0/16`` to ``V0/2`` of each row and continued
    from the lowest recorded logit. (The last half is not fitted: at its end a row drops much faster, for want of ids.)
    Half of the order of the new ids is common to all rows, half is a row's own.

    Raises:
        ValueError: if ``vocab`` is smaller than ``V0``, or ``V0`` smaller than 32.
    """
    count, width = rows.shape
    if width < 32 or vocab < width:
        raise ValueError(f"stretch: vocab must be at least V0, and V0 at least 32, got {vocab} and {width}")
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(vocab, generator=generator)
    extra = vocab - width
    common = torch.randn(extra, generator=generator)
    log_ranks = torch.arange(width + 1, vocab + 1, dtype=torch.float64).log() - math.log(width)
    out = torch.empty((count, vocab))
    for row, wide in zip(rows.float(), out, strict=True):
        falling = row.sort(descending=True).values
        tail = float(falling[-1]) - _slope(falling) * log_ranks
        order = (common + torch.randn(extra, generator=generator)).argsort()
        wide[places[:width]] = row
        wide[places[width:][order]] = tail.float()
    return out


def _slope(falling: Tensor) -> float:
    """By how much sorted logits fall per unit of the logarithm of the rank, between 1/16 and 1/2 of all ranks."""
    width = falling.numel()
    middle = slice(width // 16, width // 2)
    x = torch.arange(1, width + 1, dtype=torch.float64).log()[middle]
    y = falling.double()[middle]
    x = x - x.mean()
    return max(0.0, -float((x * (y - y.mean())).sum() / (x * x).sum()))
