"""The same work by other packages, where they are installed: FlashInfer and transformers.

They draw noise of their own, so what they must give is not known; their gate looks at the form of the result: accepted drafts,
then one token, then -1. Their filters read all rows, and so does their softmax, whatever is accepted.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import baselines
from .measured import FLASHINFER, TRANSFORMERS
from .runner import Variant


def load(module: str = "flashinfer.sampling") -> Any:
    """A module of a peer, None if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except Exception:  # whatever a foreign package raises when the machine does not suit it
        return None


class Peer(NamedTuple):
    """FlashInfer, and how it is called here.

    Attributes:
        library: its sampling functions.
        settings: of ``Sampling.of``.
        temperature: ``[rows]``, one for each row of the target.
        widen: whether its softmax wants float32 logits.
    """

    library: Any
    settings: dict[str, Any]
    temperature: Tensor
    widen: bool

    @classmethod
    def of(cls, library: Any, logits: Tensor, settings: dict[str, Any]) -> Peer:
        """Ask its softmax whether it takes such logits: that differs between versions."""
        temperature = torch.full((logits.shape[0],), settings["temperature"], device=logits.device)
        try:
            widen = library.softmax(logits[:1], temperature=temperature[:1]).dtype != torch.float32
        except Exception:
            widen = True
        return cls(library, settings, temperature, widen)

    def probabilities(self, logits: Tensor) -> Tensor:
        """``[rows, V]`` float32."""
        heat = self.temperature[: logits.shape[0]]
        found: Tensor = self.library.softmax(logits.float() if self.widen else logits, temperature=heat)
        return found

    def law(self, logits: Tensor) -> Tensor:
        """Renormalised probabilities under top-k, then top-p."""
        probs = self.probabilities(logits)
        if self.settings.get("top_k"):
            probs = self.library.top_k_renorm_probs(probs, self.settings["top_k"])
        if self.settings.get("top_p", 1.0) < 1.0:
            probs = self.library.top_p_renorm_probs(probs, self.settings["top_p"])
        return probs

    def draw(self, logits: Tensor) -> Tensor:
        """``[rows]``: a token of each row, by its function for these filters."""
        probs = self.probabilities(logits)
        if self.settings.get("top_k"):
            drawn: Tensor = self.library.top_k_sampling_from_probs(probs, self.settings["top_k"])
        elif self.settings.get("top_p", 1.0) < 1.0:
            drawn = self.library.top_p_sampling_from_probs(probs, self.settings["top_p"])
        else:
            drawn = self.library.sampling_from_probs(probs)
        return drawn


def rejection(peer: Peer, logits: Tensor, draft_logits: Tensor, drafts: Tensor) -> tuple[Tensor, Tensor]:
    """Chains of ``drafts [B, N-1]`` int32; logits ``[B * N, V]`` of the target, ``[B * (N-1), V]`` of the draft."""
    target, draft = (peer.law(rows).view(drafts.shape[0], -1, rows.shape[-1]) for rows in (logits, draft_logits))
    tokens = peer.library.chain_speculative_sampling(draft, drafts, target)[0]
    return tokens, (tokens >= 0).sum(1)


def match(peer: Peer, logits: Tensor, drafts: Tensor) -> tuple[Tensor, Tensor]:
    """A token of every row, then a walk over ``drafts [B, N-1]``."""
    return baselines.walk(peer.draw(logits).long().view(drafts.shape[0], -1), drafts)


def form(drafts: Tensor, vocab: int) -> Callable[[Any], str | None]:
    """The gate: accepted drafts, one token, -1, and their number."""

    def check(result: Any) -> str | None:
        tokens, number = (part.cpu().long() for part in result)
        batch, count = drafts.shape
        if list(tokens.shape) != [batch, count + 1]:
            return f"tokens must have shape [{batch}, {count + 1}], got {list(tokens.shape)}"
        held = drafts.cpu().long()
        for b, (row, n) in enumerate(zip(tokens.tolist(), number.tolist(), strict=True)):
            if not 1 <= n <= count + 1 or not 0 <= row[n - 1] < vocab or set(row[n:]) - {-1}:
                return f"request {b} must have some tokens, then -1, got {row}"
            if row[: n - 1] != held[b, : n - 1].tolist():
                return f"request {b} must begin with its drafts {held[b].tolist()}, got {row}"
        return None

    return check


def variants(op: str, logits: Tensor, draft_logits: Tensor, drafts: Tensor, settings: dict[str, Any]) -> list[Variant]:
    """FlashInfer's part in a case of ``verify_match`` or ``verify_rejection``; none where it is not installed.

    Args:
        op: of the verify family.
        logits: ``[B * N, V]``.
        draft_logits: of the same shape; the last row of a request is not used.
        drafts: ``[B, N-1]``.
        settings: of ``Sampling.of``.
    """
    library = load() if op in ("verify_match", "verify_rejection") else None
    if library is None or (op == "verify_rejection" and drafts.shape[1] == 0):
        return []
    peer, check = Peer.of(library, logits, settings), form(drafts, logits.shape[-1])
    if op == "verify_match":
        return [Variant(FLASHINFER, partial(match, peer, logits, drafts), check)]
    # An engine has the draft's rows without a gap.
    rows = draft_logits.view(drafts.shape[0], -1, logits.shape[-1])[:, :-1].flatten(0, 1).contiguous()
    return [Variant(FLASHINFER, partial(rejection, peer, logits, rows, drafts.int()), check)]


def assisted(
    library: Any, logits: Tensor, draft_logits: Tensor, drafts: Tensor, settings: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Chains by transformers' assisted generation: its warpers, then its function, which takes one request at a time."""
    batch, count = drafts.shape
    warpers = [library.TemperatureLogitsWarper(settings["temperature"])]
    if settings.get("top_p", 1.0) < 1.0:
        warpers.append(library.TopPLogitsWarper(settings["top_p"]))
    target, draft = (rows.view(batch, -1, rows.shape[-1]) for rows in (logits, draft_logits))
    tokens, number = drafts.new_full((batch, count + 1), -1), drafts.new_ones(batch)
    for b in range(batch):
        p, q = target[b].float(), draft[b, :count].float()
        for warper in warpers:
            p, q = warper(None, p), warper(None, q)
        made, matches = library._speculative_sampling(drafts[b : b + 1], q.unsqueeze(0), count, p.unsqueeze(0))
        tokens[b, : made.shape[1]] = made[0]
        number[b] = matches + 1
    return tokens, number


def assistant(logits: Tensor, draft_logits: Tensor, drafts: Tensor, settings: dict[str, Any]) -> list[Variant]:
    """The part of transformers in a case of rule ``token`` on chains, as :func:`variants` has it.

    Args:
        logits: ``[B * N, V]``.
        draft_logits: of the same shape; the last row of a request is not used.
        drafts: ``[B, N-1]``.
        settings: of ``Sampling.of``, with a temperature above 0 and no filter but ``top_p``.
    """
    library = load("transformers.generation.utils")
    if library is None:
        return []
    call = partial(assisted, library, logits, draft_logits, drafts, settings)
    return [Variant(TRANSFORMERS, call, form(drafts, logits.shape[-1]))]
