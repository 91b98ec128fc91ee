"""A record of a generation: every tree, what the target thought of its nodes, what was accepted, what was emitted.

The decoder calls a :class:`Recorder` if it is given one; ``specdec trace`` makes a page of what it wrote. The format is
that of ``docs/trace.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.nodes import Nodes
from .request import Output, Request

FORMAT, VERSION = "specdec-trace", 1

_SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed")


class Recorder:
    """Records the steps of a decoder.

    The decoder calls :meth:`request` when a request takes a row, :meth:`step` after each verification and
    :meth:`finish` when a request leaves; :meth:`to_dict` then gives all of it, ready for JSON. Requests are numbered
    in the order in which they came. One recorder may serve several runs, and its requests then follow each other.

    Recording copies to the host what it keeps, and so waits for the device at every step; it changes nothing that it
    is given. Its own time should lie outside of the phases that are told to it.
    """

    def __init__(self) -> None:
        self._requests: list[dict[str, Any]] = []
        self._by_serial: dict[int, dict[str, Any]] = {}
        self._seconds: dict[str, list[float]] = {}
        self._steps = 0

    def request(self, serial: int, request: Request) -> None:
        """A request takes a row.

        Args:
            serial: its number among all requests of the process (``Batch.serials``), until :meth:`finish`.
            request: its prompt and settings.

        Raises:
            ValueError: if a request of that number has not finished yet.
        """
        if serial in self._by_serial:
            raise ValueError(f"Recorder.request: serial must be of a new request, got {serial} again")
        self._by_serial[serial] = record = {
            "prompt": list(request.prompt),
            "settings": {name: getattr(request, name) for name in _SETTINGS},
            "finish_reason": "",
            "steps": [],
        }
        self._requests.append(record)

    def step(
        self,
        tree: Any,
        logits: Tensor | None,
        rows: Tensor | None,
        result: Any,
        texts: Sequence[Sequence[int]],
        serials: Sequence[int],
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        """One step has been verified, and its tokens are not in the texts yet.

        Args:
            tree: ``TokenTree`` of ``B`` requests: tensors ``cu_nodes [B+1]``, ``tokens``, ``parents``, ``depths`` and
                ``ends`` ``[T]``, and ``max_depth``. A malformed tree is recorded as what it counts as, its root alone.
            logits: ``[R, V]``, any floating dtype: the target's, raw. None: no probabilities are recorded.
            rows: ``[T]`` integers, the row of ``logits`` that belongs to each node; None: its own, and ``R == T``.
            result: ``VerifyResult``: ``tokens`` and ``path`` ``[B, W]``, ``num_tokens [B]``.
            texts: ``B`` texts, prompt and output so far; the last token of a live one is the root of its tree.
            serials: ``B`` numbers of requests that :meth:`request` told of, -1 for an idle row. A live row whose tree has
                no nodes did nothing, and nothing is recorded.
            seconds: what each phase of this step took for all requests together, by the name of the phase. None, or a
                phase that is not named: 0.

        Raises:
            ValueError: if a serial is of no request.
        """
        counts = result.num_tokens.tolist()
        emitted, paths = result.tokens.tolist(), result.path.tolist()
        for b, serial in enumerate(serials):
            if serial < 0:
                continue
            if serial not in self._by_serial:
                raise ValueError(f"Recorder.step: serials must be of requests that were told of, got {serial}")
            nodes = Nodes(tree, b)
            if not nodes.count:
                continue
            path = paths[b][: counts[b]]
            tokens = [token for token in emitted[b][: counts[b]] if token >= 0]  # -1: a dead end, always the last
            known, own = _probabilities(logits, rows, nodes, path[: len(tokens)], tokens)
            self._by_serial[serial]["steps"].append(
                {
                    "step": self._steps,
                    "context": len(texts[b]) - 1,
                    "tokens": nodes.tokens[: nodes.count],
                    "parents": nodes.parents[: nodes.count],
                    "probabilities": known,
                    "path": path,
                    "emitted": tokens,
                    "emitted_probabilities": own,
                }
            )
        for name in {**self._seconds, **(seconds or {})}:
            series = self._seconds.setdefault(name, [0.0] * self._steps)
            series.append(round((seconds or {}).get(name, 0.0), 7))
        self._steps += 1

    def finish(self, serial: int, output: Output) -> None:
        """A request has left.

        What its last step emitted beyond the end of the text (behind a stop token) is cut off, and the path with it.

        Args:
            serial: its number.
            output: its tokens and why they ended.

        Raises:
            ValueError: if the serial is of no request.
        """
        if serial not in self._by_serial:
            raise ValueError(f"Recorder.finish: serial must be of a request that was told of, got {serial}")
        record = self._by_serial.pop(serial)
        record["finish_reason"] = output.finish_reason
        beyond = sum(len(step["emitted"]) for step in record["steps"]) - len(output.tokens)
        if record["steps"] and beyond > 0:
            last = record["steps"][-1]
            kept = max(len(last["emitted"]) - beyond, 0)
            last["emitted"] = last["emitted"][:kept]
            last["emitted_probabilities"] = last["emitted_probabilities"][:kept]
            last["path"] = last["path"][: kept + 1]

    def to_dict(
        self, token: Callable[[int], bytes], info: Mapping[str, str | int | float] | None = None
    ) -> dict[str, Any]:
        """The record, in the format of ``docs/trace.md``.

        Args:
            token: the bytes of a token, which need not be whole characters.
            info: what is to be known of the run, by name: model, drafter, rule and the like.
        """
        ids = sorted({i for record in self._requests for i in _ids(record) if i >= 0})
        return {
            "format": FORMAT,
            "version": VERSION,
            "info": dict(info or {}),
            "tokens": {"ids": ids, "texts": [_text(token(i)) for i in ids]},
            "seconds": self._seconds,
            "requests": self._requests,
        }


def _ids(record: dict[str, Any]) -> Iterable[int]:
    yield from record["prompt"]
    for step in record["steps"]:
        yield from step["tokens"]
        yield from step["emitted"]


def _text(data: bytes) -> str | list[int]:
    """Characters, or the bytes of what is none: a token may end within a character."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


def _probabilities(
    logits: Tensor | None, rows: Tensor | None, nodes: Nodes, path: list[int], tokens: list[int]
) -> tuple[list[float | None], list[float | None]]:
    """The target's probability of each node's token, and of each emitted one, behind the node that stands before it."""
    drafts = nodes.count - 1
    wanted = nodes.tokens[1 : nodes.count] + tokens
    if logits is None:
        return [None] * nodes.count, [None] * len(tokens)
    device, vocab = logits.device, logits.shape[1]
    mine = torch.arange(nodes.first, nodes.first + nodes.count, device=device)
    before = torch.tensor(nodes.parents[1 : nodes.count] + path, dtype=torch.int64, device=device)
    judges = (mine if rows is None else rows[mine].long())[before]
    judged = ((judges >= 0) & (judges < len(logits))).tolist()
    used, law = torch.unique(judges.clamp(0, len(logits) - 1), return_inverse=True)
    # As the ops read them: NaN is -inf, and +inf the largest finite.
    largest = torch.finfo(torch.float32).max
    raw = torch.nan_to_num(logits[used].float(), nan=-torch.inf, posinf=largest, neginf=-torch.inf)
    column = torch.tensor(wanted, dtype=torch.int64, device=device)
    values = torch.log_softmax(raw, dim=1)[law, column.clamp(0, vocab - 1)].exp().nan_to_num(nan=0.0).tolist()
    known = [
        _brief(value) if 0 <= token < vocab and there else None
        for value, token, there in zip(values, wanted, judged, strict=True)
    ]
    return [None, *known[:drafts]], known[drafts:]


def _brief(value: float) -> float:
    return float(f"{value:.4g}")
