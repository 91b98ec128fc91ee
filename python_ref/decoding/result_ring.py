"""Results of steps on their way to the host, which reads them while the next step runs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LaneResult(NamedTuple):
    """What a step gave one request.

    Attributes:
        tokens: the new tokens; -1, always the last, where the model left no token to choose.
        drafted: drafts in a row that were proposed.
    """

    tokens: list[int]
    drafted: int


class ResultRing:
    """Places for the results of ``depth`` steps; step ``i`` has place ``i % depth``.

    A place is written by the device (on a GPU: a copy into pinned memory, in the order of its stream) and read by the
    host behind an event; it is written again only after it has been read.
    """

    def __init__(self, depth: int, lanes: int, width: int, device: torch.device) -> None:
        """Make a ring.

        Args:
            depth: steps that may be in flight.
            lanes: most requests of a step.
            width: most tokens of a request in a step.
            device: where steps run.
        """
        pinned = device.type == "cuda"
        self._places = [torch.zeros((lanes, width + 2), dtype=torch.int64, pin_memory=pinned) for _ in range(depth)]

    @staticmethod
    def pack(tokens: Tensor, num_tokens: Tensor, drafted: Tensor) -> Tensor:
        """``[B, W + 2]`` int64 of ``tokens [B, W]``, their number ``[B]`` and that of the drafts ``[B]``: one copy."""
        return torch.cat((tokens.long(), num_tokens.long().unsqueeze(1), drafted.long().unsqueeze(1)), dim=1)

    def write(self, step: int, packed: Tensor) -> None:
        """On the device: send the result of a step; nobody waits."""
        self._places[step % len(self._places)][: len(packed)].copy_(packed, non_blocking=True)

    def read(self, step: int, lanes: int) -> list[LaneResult]:
        """On the host, once the device has ended the step: the results of the first ``lanes`` requests."""
        lines = self._places[step % len(self._places)][:lanes].tolist()
        return [LaneResult(line[: line[-2]], line[-1]) for line in lines]
