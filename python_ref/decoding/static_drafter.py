"""What a drafter is whose work has one shape, and never waits for the host."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from .step_state import Lanes, StepState


class Drafts(NamedTuple):
    """The drafts of one step, behind the roots.

    Attributes:
        tokens: ``[B, width - 1]`` int64, chains: draft ``i`` is a guess for position ``n + i``.
        counts: ``[B]`` int32 or int64, drafts of each lane; more than ``lanes.limits`` are cut off.
        tree: a ``TokenTree`` with ``width`` rows for each lane, roots (``lanes.roots``) included, in place of the above.
            Deeper nodes than ``lanes.limits`` are never accepted.
    """

    tokens: Tensor | None = None
    counts: Tensor | None = None
    tree: Any = None


class StaticDrafter(Protocol):
    """Guesses what the target will say, in tensors that stay on the device.

    Drafts are deterministic functions of the text, or (rule ``match``) coupled to the target's noise. For each step the
    loop calls :meth:`draft`, the target, :meth:`absorb`; between steps, when requests come in, :meth:`join` and
    :meth:`prime`. All of these run in the order of the device's queue, on the thread of the device, and must not wait for
    it: no ``.item()``, ``.tolist()``, ``nonzero``, no ``if`` on a tensor, and all shapes follow from the number of lanes.
    :meth:`draft` and :meth:`absorb` are recorded as a CUDA graph: tensors that outlive a step are made in
    :meth:`attach` and written in place.

    State of a request is kept by row: ``[rows + 1, ...]``, read by ``lanes.rows`` and written back to them. Several
    lanes may be the idle row.

    A cache of the drafter's own is made by ``state.cache`` and shares the block table: position ``t`` is in the page where
    the target has its position ``t``, and nobody has to reserve or free anything.

    Attributes:
        width: nodes of a lane's tree, its root included.
        depth: most drafts in a row.
        extent: positions from ``n - 1`` on that a step may write in the drafter's own cache; 0 without one.
        features: ids of the target's layers whose outputs are read, () for none.
    """

    width: int
    depth: int
    extent: int
    features: tuple[int, ...]

    def attach(self, state: StepState, *, greedy: bool, compact: bool) -> None:
        """Make the tensors of all rows.

        Args:
            state: what the device knows of the requests.
            greedy: whether the best tokens are wanted (rule ``greedy``), rather than coupled draws.
            compact: whether passes may leave padding out; see :class:`~python_ref.decoding.static_rows.StaticRows`.
        """
        ...

    def join(self, row: int) -> None:
        """Forget what the row held; its prompt is in ``state.history``."""
        ...

    def prime(self, row: int, start: int, tokens: Tensor, features: Tensor | None) -> None:
        """Learn a piece of a prompt, which the target has just read; the root, its last token, is no part of it.

        Args:
            row: the row that has joined.
            start: position of the first token.
            tokens: ``[n]`` int64, at positions ``start`` to ``start + n - 1``. What follows is in ``state.history``.
            features: ``[n, F * hidden]`` of these tokens; None if none were asked for.
        """
        ...

    def draft(self, lanes: Lanes) -> Drafts:
        """Guess what follows the roots."""
        ...

    def absorb(self, lanes: Lanes, features: Tensor | None, result: Any) -> None:
        """Learn what a step has decided; the texts do not hold the new tokens yet.

        Args:
            lanes: as :meth:`draft` saw them.
            features: ``[B, W, F * hidden]``; row ``j`` is of the token at position ``n - 1 + j`` (``j = 0``: the root), 0
                beyond ``result.num_tokens``. None if none were asked for.
            result: ``VerifyResult``: ``tokens [B, W]`` are those of positions ``n``, ``n + 1``, ...
        """
        ...


def static_of(drafter: Any, num_draft: int) -> StaticDrafter | None:
    """The static form of a drafter: what its method ``static(num_draft)`` makes, or itself if it has that form already.

    Raises:
        ValueError: for one that has no such form.
    """
    if drafter is None or num_draft == 0:
        return None
    if hasattr(drafter, "static"):
        return drafter.static(num_draft)  # type: ignore[no-any-return]
    if all(hasattr(drafter, name) for name in ("width", "depth", "extent", "features", "attach", "draft", "absorb")):
        return drafter  # type: ignore[no-any-return]
    raise ValueError(f"OverlappedDecoder: drafter must have a static form, got {type(drafter).__name__}")
