"""The rules of verification beside each other: what they accept of sampled drafts, measured and in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.table import Table

from python_ref.decoding import Decoder
from python_ref.drafters import IndependentDrafter, IndependentTreeDrafter

from .comparison import request

#: Of all of them: a temperature at which drafts are sampled.
TEMPERATURE = 0.8

_NUM_DRAFT = 4
_BRANCHING = (3, 2, 1, 1)


class Entry(NamedTuple):
    """A rule and the drafts that it judges.

    Attributes:
        drafter: ``independent`` or ``independent-tree``.
        rule: of the decoder.
        replacement: how siblings are drawn.
        mean: the field of ``verify.expect`` that is its closed form.
    """

    drafter: str
    rule: str
    replacement: bool
    mean: str


ENTRIES = (
    Entry("independent", "rejection", False, "token"),
    Entry("independent", "block", False, "traversal"),
    Entry("independent-tree", "rejection", True, "token"),
    Entry("independent-tree", "traversal", True, "traversal"),
    Entry("independent-tree", "rejection", False, "token"),
    Entry("independent-tree", "traversal", False, "traversal"),
    Entry("independent-tree", "greedy_plus_one", False, "greedy_plus_one"),
)


@dataclass(frozen=True)
class RuleRow:
    """What a rule accepted. The fields are those of the JSON file.

    Attributes:
        drafter: as in :class:`Entry`, and so are ``rule`` and ``replacement``.
        temperature: of the target and of the drafts.
        num_draft: most drafts in a row.
        nodes: nodes of a tree, its root included; 0: a chain.
        mean_tokens_per_step: tokens that a request gained in a step.
        expected_tokens_per_step: the same in closed form, of the same steps: without the luck of the coins.
        token_tokens_per_step: what the rule ``token`` (on chains that of Leviathan et al., on trees recursive rejection) had
            to expect of the same steps; None of drafts that were not drawn for it.
        traversal_tokens_per_step: the same of ``traversal`` (on chains ``block``).
        first_draft_bound: the probability to accept a draft of the root that no rule exceeds, on average.
        prompts: texts that were continued.
        new_tokens: tokens of all continuations.
    """

    drafter: str
    rule: str
    replacement: bool
    temperature: float
    num_draft: int
    nodes: int
    mean_tokens_per_step: float
    expected_tokens_per_step: float
    token_tokens_per_step: float | None
    traversal_tokens_per_step: float | None
    first_draft_bound: float
    prompts: int
    new_tokens: int


def measure(
    model: Any,
    draft: Any,
    ops: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    max_batch: int,
    report: Callable[[int], None],
) -> list[RuleRow]:
    """Continue all prompts under every entry.

    Args:
        model: the target.
        draft: the drafter's model.
        ops: the package of the ops.
        prompts: token ids.
        new_tokens: length of every continuation.
        max_batch: prompts decoded together.
        report: is told how many texts there are by now.
    """
    rows = []
    for i, entry in enumerate(ENTRIES):
        drafter: Any = IndependentDrafter(draft, ops)
        if entry.drafter == "independent-tree":
            drafter = IndependentTreeDrafter(draft, ops, _BRANCHING, replacement=entry.replacement)
        decoder = Decoder(
            model, ops=ops, drafter=drafter, rule=entry.rule, num_draft=_NUM_DRAFT, max_batch=max_batch, expects=True
        )
        requests = [request(prompt, new_tokens, TEMPERATURE, j, None) for j, prompt in enumerate(prompts)]
        outputs = decoder.generate(requests)
        statistics = decoder.statistics
        plain = entry.rule != "greedy_plus_one"
        rows.append(
            RuleRow(
                drafter=entry.drafter,
                rule=entry.rule,
                replacement=entry.replacement,
                temperature=TEMPERATURE,
                num_draft=_NUM_DRAFT,
                nodes=0 if entry.drafter == "independent" else len(drafter.shapes[-1].parents),
                mean_tokens_per_step=statistics.mean_tokens_per_step,
                expected_tokens_per_step=statistics.expected_tokens_per_step(entry.mean),
                token_tokens_per_step=statistics.expected_tokens_per_step("token") if plain else None,
                traversal_tokens_per_step=statistics.expected_tokens_per_step("traversal") if plain else None,
                first_draft_bound=statistics.expected_tokens_per_step("bound"),
                prompts=len(prompts),
                new_tokens=sum(len(output.tokens) for output in outputs),
            )
        )
        report((i + 1) * len(prompts))
    return rows


def table(rows: Sequence[RuleRow]) -> Table:
    """The rows for a reader."""
    made = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("drafter", "rule", "siblings\ndrawn"):
        made.add_column(name, no_wrap=True)
    for name in ("drafts", "tokens\n/step", "closed\nform", "by\ntoken", "by tra-\nversal"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        chain = row.drafter == "independent"
        made.add_row(
            row.drafter,
            row.rule,
            "" if chain else "again" if row.replacement else "once",
            str(row.num_draft) if chain else f"{row.num_draft}/{row.nodes}",
            f"{row.mean_tokens_per_step:.2f}",
            f"{row.expected_tokens_per_step:.2f}",
            _figure(row.token_tokens_per_step),
            _figure(row.traversal_tokens_per_step),
        )
    return made


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
