# mypy: disable-error-code="import-untyped, import-not-found"
"""The launchers of the rules that do not keep the target's law; ``lossy.py`` has what they decide."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .launch import Settings, flags, mask_of, on_device_of
from .verify import RELAXED, SYNTHETIC, THRESHOLD, TYPICAL, launch


def verify_threshold(
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seed: Tensor,
    filter_order: int,
    context_lens: Tensor,
    single: float,
    accumulated: float,
    rows: Tensor | None,
    allowed: Tensor | None,
    allowed_rows: Tensor | None,
    *options: Any,
) -> None:
    """The launcher of ``verify.threshold``."""
    if cu_nodes.shape[0] == 1:
        return
    tree, mask = (cu_nodes, tokens, parents, depths, ends), mask_of(allowed, allowed_rows)
    settings = Settings(temperature, top_k, top_p, min_p, filter_order)
    with on_device_of(logits):
        launch(
            *(THRESHOLD, tree, logits, settings, seed, context_lens, rows, mask, options),
            numbers=(single, accumulated),
        )


def verify_typical(
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seed: Tensor,
    filter_order: int,
    context_lens: Tensor,
    epsilon: float,
    delta: float,
    rows: Tensor | None,
    allowed: Tensor | None,
    allowed_rows: Tensor | None,
    *options: Any,
) -> None:
    """The launcher of ``verify.typical``."""
    if cu_nodes.shape[0] == 1:
        return
    tree, mask = (cu_nodes, tokens, parents, depths, ends), mask_of(allowed, allowed_rows)
    settings = Settings(temperature, top_k, top_p, min_p, filter_order)
    with on_device_of(logits):
        launch(
            *(TYPICAL, tree, logits, settings, seed, context_lens, rows, mask, options),
            numbers=(epsilon, delta),
        )


def verify_relaxed(
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    logits: Tensor,
    top_k: int,
    delta: float,
    rows: Tensor | None,
    allowed: Tensor | None,
    allowed_rows: Tensor | None,
    relax: Tensor | None,
    *options: Any,
) -> None:
    """The launcher of ``verify.relaxed``."""
    if cu_nodes.shape[0] == 1:
        return
    tree, mask = (cu_nodes, tokens, parents, depths, ends), mask_of(allowed, allowed_rows)
    with on_device_of(logits):
        launch(
            *(RELAXED, tree, logits, Settings(), None, None, rows, mask, options),
            numbers=(float(top_k), delta),
            given=flags(relax),
        )


def verify_synthetic(
    cu_nodes: Tensor,
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    ends: Tensor,
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seed: Tensor,
    filter_order: int,
    context_lens: Tensor,
    rates: Tensor,
    rows: Tensor | None,
    allowed: Tensor | None,
    allowed_rows: Tensor | None,
    *options: Any,
) -> None:
    """The launcher of ``verify.synthetic``."""
    if cu_nodes.shape[0] == 1:
        return
    tree, mask = (cu_nodes, tokens, parents, depths, ends), mask_of(allowed, allowed_rows)
    settings = Settings(temperature, top_k, top_p, min_p, filter_order)
    with on_device_of(logits):
        launch(*(SYNTHETIC, tree, logits, settings, seed, context_lens, rows, mask, options), given=rates)
