"""What a drafter is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..decoding.batch import Batch


class Proposal(NamedTuple):
    """The drafts of one step: a chain of tokens behind the root of each request.

    Attributes:
        tokens: ``[B, K]`` int64, draft ``i`` of request row ``b`` is a guess for position ``n + i`` of a text of
            ``n`` tokens. A token outside the vocabulary (-1) is a hole: it and what follows is never accepted.
        counts: drafts of each row, 0 to ``K``; what is in ``tokens`` beyond them is not looked at.
        logits: ``[R, V]`` the logits that the drafts were drawn from, for the rule ``rejection``; None: the drafts
            are deterministic (a pure function of the text), which every rule takes.
        rows: ``[B, K]`` int64, the row of ``logits`` that each draft was drawn from, -1 = that draft is
            deterministic; given with ``logits``.
        sampling: settings ``[B]`` (``ops.Sampling``) that the drafts were drawn with; given with ``logits``.
    """

    tokens: Tensor
    counts: Sequence[int]
    logits: Tensor | None = None
    rows: Tensor | None = None
    sampling: Any = None


class Drafter(Protocol):
    """Guesses what the target will say.

    The decoder calls, for every step, ``propose`` before the target's pass and ``observe`` when the texts have
    grown; and ``observe`` once more whenever requests have joined or the run has ended. A drafter may keep whatever
    it likes per row; it tells from ``batch.serials`` that a row has another request than before, or none (-1).

    Under the rules ``match`` and ``greedy`` the text does not depend on the drafter at all. Under ``rejection`` the
    law of the text does not, if drafts that were drawn are given with the law they were drawn from, and with noise
    that nothing else uses: ``ops.sample.draft`` with ``coupled=False`` and the position, depth and node of each
    draft.
    """

    def propose(self, batch: Batch, limits: Sequence[int], rule: str) -> Proposal:
        """Guess the next tokens of every live request.

        Args:
            batch: the requests; row ``b`` has text ``batch.texts[b]``, whose last token is the root.
            limits: per row the most drafts of any use, 0 for idle rows. More are cut off.
            rule: ``"match"``, ``"greedy"`` or ``"rejection"``: what will judge the drafts.

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
