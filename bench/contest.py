"""Who takes part in one case of the sampling ops: the op on each backend, the unit, and the baselines, each with its gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import aims, baselines, gates
from .baselines import Settings
from .cases import Case, Laws
from .data import Logits, Sizes, one_thread
from .measured import COMPILE, EAGER
from .runner import Variant

#: The unit that times are counted in: one read of all rows by ``torch.amax``.
UNIT = "amax"

#: The baseline for top-k where one ``k`` is known to the host, so that no row need be sorted.
EAGER_TOPK = "eager topk"


def backends(case: Case, names: tuple[str, ...]) -> list[Variant]:
    """The op on each backend, which must decide as the oracle does."""
    return [Variant(name, case.call(name), gates.of_case(case)) for name in names]


def unit(*logits: Tensor) -> Variant:
    """``torch.amax`` over all rows."""
    return Variant(UNIT, partial(baselines.unit, *logits), gates.maxima(*logits))


def greedy(target: Tensor, decided: Tensor, which: str, sizes: Sizes, compiled: bool) -> list[Variant]:
    """Baselines of ``verify.greedy``, whose tokens are known beforehand."""
    drafts, tokens, num_tokens = aims.walk(decided, which, sizes)
    return _both(baselines.greedy, (target, drafts), gates.parts(tokens, num_tokens), compiled)


def match(target: Tensor, laws: Laws, which: str, sizes: Sizes, compiled: bool) -> list[Variant]:
    """Baselines of ``verify.match``."""
    with one_thread():
        aimed = aims.match(laws, sizes, which)
    right = gates.parts(aimed.tokens, aimed.num_tokens)
    made = _both(baselines.match, (target, aimed.drafts, aimed.settings, aimed.noise), right, compiled)
    if most := laws.settings.get("top_k"):
        with one_thread():
            noise = aims.noise_by_rank(laws, aims.telling_ids(laws, sizes.rows)).view_as(aimed.noise)
        given = (target, aimed.drafts, aimed.settings.temperature, noise, most)
        made.append(Variant(EAGER_TOPK, partial(baselines.match_best, *given), right))
    return made


def rejection(case: Case, logits: Logits, laws: Laws, sizes: Sizes, compiled: bool) -> list[Variant]:
    """Baselines of ``verify.rejection``."""
    with one_thread():
        aimed = aims.rejection(case, laws, sizes)
    given = (logits.target, logits.draft, aimed.drafts, aimed.settings, aimed.coins, aimed.noise)
    return _both(baselines.rejection, given, gates.parts(aimed.tokens, aimed.num_tokens), compiled)


def sample(rows: Tensor, laws: Laws, compiled: bool) -> list[Variant]:
    """Baselines of ``sample.sample``, and of ``sample.draft`` of one token."""
    with one_thread():
        ids = aims.telling_ids(laws, rows.shape[0])
        noise = aims.noise_for(laws, ids)
    settings = Settings.of(rows.shape[0], **laws.settings)
    made = _both(baselines.sample, (rows, settings, noise), gates.equal("tokens", ids), compiled)
    if most := laws.settings.get("top_k"):
        given = (rows, settings.temperature, aims.noise_by_rank(laws, ids), most)
        made.append(Variant(EAGER_TOPK, partial(baselines.sample_best, *given), gates.equal("tokens", ids)))
    return made


def draft(rows: Tensor, laws: Laws, num: int, compiled: bool) -> list[Variant]:
    """Baselines of ``sample.draft`` of several tokens: the random numbers for every id are part of the work."""
    settings = Settings.of(rows.shape[0], **laws.settings)
    noise = torch.empty(rows.shape)
    generator = torch.Generator()

    def renew() -> Tensor:
        return noise.exponential_(generator=generator.manual_seed(0))

    renew()
    with one_thread():
        scores = torch.stack([laws("target", row) for row in range(rows.shape[0])]) / noise.double()
    right = gates.equal("tokens", scores.topk(num, dim=-1).indices)

    def race(function: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: function(rows, settings, renew(), num)

    made = [Variant(EAGER, race(baselines.race), right)]
    if compiled:
        made.append(Variant(COMPILE, race(baselines.compiled(baselines.race)), right))
    return made


def _both(function: Callable[..., Any], given: tuple[Any, ...], right: gates.Check, compiled: bool) -> list[Variant]:
    made = [Variant(EAGER, partial(function, *given), right)]
    if compiled:
        made.append(Variant(COMPILE, partial(baselines.compiled(function), *given), right))
    return made
