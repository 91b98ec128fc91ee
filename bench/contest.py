"""Who takes part in one case of the sampling ops: the op on each backend, the unit, and the baselines, each with its gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import specdec_kernels as sk

from . import aims, baselines, gates, rules_baselines, static_tree
from .baselines import Settings
from .cases import Case, Laws
from .data import Logits, Sizes, one_thread
from .measured import COMPILE, EAGER
from .rules_cases import Batch
from .runner import Refused, Variant
from .static_tree import CHAIN

#: The unit that times are counted in: one read of all rows by ``torch.amax``.
UNIT = "amax"

#: The baseline for top-k where one ``k`` is known to the host, so that no row need be sorted.
EAGER_TOPK = "eager topk"


def backends(case: Case, names: tuple[str, ...]) -> list[Variant]:
    """The op on each backend, which must decide as the oracle does."""
    return [Variant(name, case.call(name), gates.of_case(case)) for name in names]


def unavailable(op: str, names: Sequence[str]) -> dict[str, Refused]:
    """The backends among ``names`` that do not serve an op here: nothing is wrong with them, and nothing can be timed."""
    reasons = sk.available_backends(op)
    return {name: Refused(f"not available: {reasons[name]}") for name in names if reasons[name] is not None}


def unit(*logits: Tensor) -> Variant:
    """``torch.amax`` over all rows."""
    return Variant(UNIT, partial(baselines.unit, *logits), gates.maxima(*logits))


class Baseline(NamedTuple):
    """A computation in PyTorch whose result is known.

    Attributes:
        name: of the variant.
        function: what is called.
        given: its arguments; those that are tensors have the requests, or their nodes, in the first dimension.
        expected: the tensor or tensors that it must give.
        compiles: whether it takes part through ``torch.compile``, too.
    """

    name: str
    function: Callable[..., Any]
    given: tuple[Any, ...]
    expected: Any
    compiles: bool = True


def _here(value: Any) -> Any:
    return value


def variants(made: Sequence[Baseline], compiled: bool, place: Callable[[Any], Any] = _here) -> list[Variant]:
    """Baselines as they take part.

    Args:
        made: the baselines.
        compiled: whether through ``torch.compile``, too.
        place: brings arguments and results to where they are computed; see :mod:`bench.placing`.
    """
    found = []
    for each in made:
        given, expected = place(each.given), place(each.expected)
        right = gates.parts(*expected) if isinstance(expected, tuple) else gates.equal("tokens", expected)
        found.append(Variant(each.name, partial(each.function, *given), right))
        if compiled and each.compiles:
            found.append(Variant(COMPILE, partial(baselines.compiled(each.function), *given), right))
    return found


def greedy(target: Tensor, decided: Tensor, which: str, sizes: Sizes) -> list[Baseline]:
    """Baselines of ``verify.greedy``, whose tokens are known beforehand."""
    drafts, tokens, num_tokens = aims.walk(decided, which, sizes)
    return [Baseline(EAGER, baselines.greedy, (target, drafts), (tokens, num_tokens))]


def match(target: Tensor, laws: Laws, which: str, sizes: Sizes) -> list[Baseline]:
    """Baselines of ``verify.match``."""
    with one_thread():
        aimed = aims.match(laws, sizes, which)
    right = (aimed.tokens, aimed.num_tokens)
    made = [Baseline(EAGER, baselines.match, (target, aimed.drafts, aimed.settings, aimed.noise), right)]
    if most := laws.settings.get("top_k"):
        with one_thread():
            noise = aims.noise_by_rank(laws, aims.telling_ids(laws, sizes.rows)).view_as(aimed.noise)
        given = (target, aimed.drafts, aimed.settings.temperature, noise, most)
        made.append(Baseline(EAGER_TOPK, baselines.match_best, given, right, compiles=False))
    return made


def rejection(case: Case, logits: Logits, laws: Laws, sizes: Sizes) -> list[Baseline]:
    """Baselines of ``verify.rejection``; none without drafts."""
    if sizes.nodes < 2:
        return []
    with one_thread():
        aimed = aims.rejection(case, laws, sizes)
    given = (logits.target, logits.draft, aimed.drafts, aimed.settings, aimed.coins, aimed.noise)
    return [Baseline(EAGER, baselines.rejection, given, (aimed.tokens, aimed.num_tokens))]


_ON_CHAINS = {"token": baselines.rejection, "block": rules_baselines.block}
_ON_TREES = {"token": rules_baselines.token, "traversal": rules_baselines.traversal}


def rule(case: Case, batch: Batch, name: str) -> list[Baseline]:
    """Baselines of a rule of ``verify.rejection`` on a static tree; none of a rule that has none."""
    on_chain = batch.tree.name == CHAIN
    function: Callable[..., Any] | None = (_ON_CHAINS if on_chain else _ON_TREES).get(name)
    if function is None:
        return []
    with one_thread():
        aimed = aims.rule(case, batch, name)
    first = 1 if on_chain else 0  # chains come without their roots
    drafts, coins = (each[:, first:].contiguous() for each in (aimed.drafts, aimed.coins))
    tables = () if on_chain else (static_tree.tables(batch.tree),)
    given = (batch.logits.target, batch.logits.draft, drafts, aimed.settings, coins, aimed.noise, *tables)
    return [Baseline(EAGER, function, given, (aimed.tokens, aimed.num_tokens))]


def sample(rows: Tensor, laws: Laws) -> list[Baseline]:
    """Baselines of ``sample.sample``, and of ``sample.draft`` of one token."""
    with one_thread():
        ids = aims.telling_ids(laws, rows.shape[0])
        noise = aims.noise_for(laws, ids)
    settings = Settings.of(rows.shape[0], **laws.settings)
    made = [Baseline(EAGER, baselines.sample, (rows, settings, noise), ids)]
    if most := laws.settings.get("top_k"):
        given = (rows, settings.temperature, aims.noise_by_rank(laws, ids), most)
        made.append(Baseline(EAGER_TOPK, baselines.sample_best, given, ids, compiles=False))
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
