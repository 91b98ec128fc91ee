"""The rules of ``verify.rejection`` on chains and on trees, and ``verify.expect``, on a real vocabulary.

Units, caches and data are those of :mod:`bench.verify`. A chain has a row of the draft's logits for each node, a tree for each
node with children: as many come from a drafter. Half of the drafts on a path are accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from . import contest, peers, rules_cases
from .cases import Case, Laws
from .data import NORMAL, RECORDED, Logits, MissingData, Sizes, normal, recorded
from .measured import Setting, add_note, judge, refused
from .rows import Goal, Row
from .rules_cases import GREEDY_PLUS_ONE, Batch
from .runner import Variant
from .static_tree import CHAIN, TREE, StaticTree, chain
from .verify import DTYPES, EXTRA_BYTES, HALF, SETTINGS, measured

FAMILY = "rules"
REQUESTS, VOCAB = 8, 151_936

#: The shapes: 7 drafts in a row, and 15 in a tree.
SHAPES = (chain(8), TREE)
LABELS = ("T=1", "T=1, top-p 0.9")


class Part(NamedTuple):
    """A rule on a shape.

    Attributes:
        rule: of ``verify.rejection``; None: ``verify.expect``, for drafts that rule ``token`` was given.
        tree: the shape.
        limit: the goal in units, None if there is none.
    """

    rule: str | None
    tree: StaticTree
    limit: float | None = None

    @property
    def label(self) -> str:
        """What the column ``case`` begins with."""
        return f"{self.rule or 'expect'}, {self.tree.name}"

    @property
    def goals(self) -> list[Goal]:
        """Of the rows of backends."""
        return [] if self.limit is None else [Goal("units", self.limit), EXTRA_BYTES]


PARTS = (
    Part("token", SHAPES[0], 3.0),
    Part("block", SHAPES[0], 5.0),
    Part(None, SHAPES[0]),
    Part("token", TREE, 6.0),
    Part("traversal", TREE, 8.0),
    Part(GREEDY_PLUS_ONE, TREE),
    Part(None, TREE),
)


def count(setting: Setting) -> int:
    """How many groups :func:`groups` gives."""
    return len(PARTS) * len(LABELS) * len(DTYPES) * (1 if setting.quick else 2)


def groups(setting: Setting, requests: int = REQUESTS, vocab: int = VOCAB) -> Iterator[list[Row]]:
    """The rows of one case after the other.

    A quick suite measures the recorded logits, or the random ones where there are none, without ``torch.compile``.

    Args:
        setting: how and where.
        requests: of each batch.
        vocab: columns of the logits.
    """
    missing: str | None = None
    for kind in (RECORDED, NORMAL):
        try:
            made = [logits(kind, tree, Sizes(requests, tree.nodes, vocab)) for tree in SHAPES]
        except MissingData as error:
            missing = str(error)
            if not setting.quick:
                yield from _absent(setting, requests, vocab, missing)
            continue
        note = f"normal instead of recorded logits: {missing}" if setting.quick and missing else None
        for dtype in DTYPES:
            for tree, of_shape in zip(SHAPES, made, strict=True):
                for label in LABELS:
                    yield from _of_batch(setting, tree, of_shape, dtype, label, requests, note)
        if setting.quick:
            return


def logits(kind: str, tree: StaticTree, sizes: Sizes) -> Logits:
    """Target rows of all nodes of a shape, and draft rows of those that have one.

    Raises:
        MissingData: if there are no recorded ones.
    """
    if kind == NORMAL:
        found = normal(sizes)
    elif tree.name == CHAIN:
        found = recorded(sizes)
    else:
        found = recorded(sizes, branching={v: len(tree.children[v]) for v in tree.inner})
    kept = [v for v in range(tree.nodes) if tree.draft_row[v] >= 0]
    draft = found.draft.view(sizes.requests, tree.nodes, -1)[:, kept].flatten(0, 1)
    return found._replace(draft=draft)


def columns_of(part: Part, label: str, dtype: str, data: str, sizes: Sizes) -> dict[str, Any]:
    """What all rows of a case have in common."""
    op = "verify_expect" if part.rule is None else "verify_rejection"
    named = {"family": FAMILY, "op": op, "case": f"{part.label}, {label}", "dtype": dtype, "data": data}
    return named | {"accepted": None if part.rule is None else HALF, "shape": str(sizes)}


def _absent(setting: Setting, requests: int, vocab: int, reason: str) -> Iterator[list[Row]]:
    for dtype in DTYPES:
        for part in PARTS:
            for label in LABELS:
                sizes = Sizes(requests, part.tree.nodes, vocab)
                yield refused(setting, columns_of(part, label, dtype, RECORDED, sizes), reason)


def _of_batch(
    setting: Setting, tree: StaticTree, of_shape: Logits, dtype: str, label: str, requests: int, note: str | None
) -> Iterator[list[Row]]:
    rounded = of_shape.to(DTYPES[dtype])
    batch = Batch(rounded, Laws(rounded, SETTINGS[label]), tree, requests)
    sizes = Sizes(requests, tree.nodes, rounded.target.shape[1])
    known: dict[str, Case] = {}
    for part in (part for part in PARTS if part.tree is tree):
        columns = columns_of(part, label, dtype, rounded.data, sizes)
        setting.tick()
        try:
            case = _case(part, batch, known)
            setting.tick()
            others = _others(part, batch, case, compiled=not setting.quick)
            rows = measured(setting, case, (rounded.target, rounded.draft), others, columns)
        except RuntimeError as error:  # the data do not allow such an outcome
            rows = refused(setting, columns, f"not measured: {error}")
        judge(rows, setting, part.goals)
        for row in rows if note else []:
            add_note(row, str(note))
        yield rows


def _case(part: Part, batch: Batch, known: dict[str, Case]) -> Case:
    """The call to be measured; drafts of rule ``token`` are kept for ``verify.expect``."""
    if part.rule is not None:
        case = rules_cases.rejection(batch, part.rule)
        known[part.rule] = case
        return case
    drafted = known.get("token") or rules_cases.rejection(batch, "token")
    return rules_cases.expect(batch, drafted)


def _others(part: Part, batch: Batch, case: Case, compiled: bool) -> list[Variant]:
    made = [] if part.rule is None else contest.rule(case, batch, part.rule)
    found = contest.variants(made, compiled)
    if part.rule == "token" and part.tree.name == CHAIN:
        found += peers.assistant(batch.logits.target, batch.logits.draft, made[0].given[2], batch.laws.settings)
    return found
