"""What a drafter is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..decoding.batch import Batch

#: Rules that accept drawn drafts by the ratio of the laws: they need the law that a draft was drawn from.
RATIO_RULES = ("rejection", "block", "traversal", "greedy_plus_one")


class Proposal(NamedTuple):
    """The drafts of one step behind the root of each request: a chain of tokens, or a tree.

    Attributes:
        tokens: ``[B, K]`` int64, draft ``i`` of request row ``b`` is a guess for position ``n + i`` of a text of
            ``n`` tokens. A token outside the vocabulary (-1) is a hole: it and what follows is never accepted.
        counts: drafts of each row, 0 to ``K``; what is in ``tokens`` beyond them is not looked at.
        logits: ``[R, V]`` the logits that the drafts were drawn from, for :data:`RATIO_RULES`; None: the drafts
            are deterministic (a pure function of the text), which every rule takes.
        rows: ``[B, K]`` int64, the row of ``logits`` that each draft was drawn from, -1 = that draft is
            deterministic; given with ``logits``.
        sampling: settings ``[B]`` (``ops.Sampling``) that the drafts were drawn with; given with ``logits``.
        draft_to_target: ``[V_draft]``, target id of each column of ``logits``, if these are of another vocabulary.
        target_to_draft: ``[V]``, its inverse, -1 = none; given together.
        tree: a ``TokenTree`` for all rows of the batch, roots included (``ops.tree``); an idle row has no live nodes.
            It stands in place of ``tokens`` and ``counts``; with ``logits``, ``rows [T]`` are those that the children of
            each node were drawn from.
        replacement: whether the siblings of a tree were drawn with replacement.
    """

    tokens: Tensor | None = None
    counts: Sequence[int] = ()
    logits: Tensor | None = None
    rows: Tensor | None = None
    sampling: Any = None
    draft_to_target: Tensor | None = None
    target_to_draft: Tensor | None = None
    tree: Any = None
    replacement: bool = False


class Drafter(Protocol):
    """Guesses what the target will say.

    The decoder calls, for every step, ``propose`` before the target's pass and ``observe`` when the texts have
    grown; and ``observe`` once more whenever requests have joined or the run has ended. A drafter may keep whatever
    it likes per row; it tells from ``batch.serials`` that a row has another request than before, or none (-1).

    Under the rules ``match`` and ``greedy`` the text does not depend on the drafter at all. Under :data:`RATIO_RULES` the
    law of the text does not, if drafts that were drawn are given with the law they were drawn from, and with noise
    that nothing else uses: ``ops.sample.draft`` with ``coupled=False`` and the position, depth and node of each
    draft.

    Two attributes are heeded by :func:`python_ref.decoding.calibrate`, if they are there: ``most_drafts``, the most drafts in
    a row that it has; and ``is_tree`` with ``nodes``, which may be set between generations: nodes of its trees.

    A method ``static(num_draft)`` makes its form for :class:`python_ref.decoding.OverlappedDecoder`, if it has one: a
    :class:`~python_ref.decoding.static_drafter.StaticDrafter`.

    A drafter that reads the target's hidden states names the layers in an attribute ``features`` (a tuple of ids; the
    output of layer ``i``, counted from 0, has the id ``i``) and has two more methods, see
    :class:`FeatureDrafter`.
    """

    def propose(self, batch: Batch, limits: Sequence[int], rule: str) -> Proposal:
        """Guess the next tokens of every live request.

        Args:
            batch: the requests; row ``b`` has text ``batch.texts[b]``, whose last token is the root.
            limits: per row the most drafts of any use, 0 for idle rows. More are cut off.
            rule: ``"match"``, ``"greedy"`` or one of :data:`RATIO_RULES`: what will judge the drafts.

        Returns:
            The drafts, in the rows of the batch. Fewer than the limit, or none, are welcome.
        """
        ...

    def observe(self, batch: Batch, committed: Sequence[int]) -> None:
        """Learn how the texts have changed.

        Args:
            batch: as it will be in the next ``propose``: texts with their new tokens, finished requests gone.
            committed: per row the tokens that the last step added (accepted drafts and the target's own token),
                also of a request that finished with it; all 0 if requests have joined or the run has ended.
        """
        ...


class FeatureDrafter(Drafter, Protocol):
    """A drafter that reads hidden states of the target.

    Attributes:
        features: ids of the layers whose outputs it reads, in the order in which they are put side by side.
    """

    features: tuple[int, ...]

    def prime(self, batch: Batch, row: int, features: Tensor, start: int) -> None:
        """Learn the features of a prompt, chunk by chunk, before the request's first step.

        Args:
            batch: the requests.
            row: the row that has joined.
            features: ``[n, F * hidden]``, of the tokens at positions ``start`` to ``start + n - 1``.
            start: position of the first of them.
        """
        ...

    def absorb(self, batch: Batch, features: Tensor, num_tokens: Tensor) -> None:
        """Learn the features of the tokens that a step has committed to the cache, before ``observe``.

        Args:
            batch: the requests; the texts do not hold the new tokens yet.
            features: ``[B, W, F * hidden]``; row ``j`` of a request is of the token at position ``n - 1 + j`` of a text
                of ``n`` tokens (``j = 0``: the root), 0 beyond ``num_tokens``.
            num_tokens: ``[B]`` int32, rows of each request.
        """
        ...
