"""Fused ops against the oracle: decisions are equal, except where the oracle's margin is below the tolerance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import python_ref.ops as oracle
import specdec_kernels as sk
from specdec_kernels._backend import device_of

#: A relative change of p, q or a cumulative mass that may change a decision.
TOLERANCE = 1e-5

#: Log-probabilities are float32; their error is relative to the log-sum-exp.
LOG_TOLERANCE = 1e-5

#: Rules that say how far off they are.
LOSSY = ("verify_threshold", "verify_typical", "verify_relaxed", "verify_synthetic")

#: Of all tests that have run, for the summary.
TALLIES: list[Tally] = []


class Tally:
    """What was compared in one test: requests, those within the margin, and those that differ."""

    def __init__(self, name: str) -> None:
        self.name, self.requests, self.near, self.different = name, 0, 0, 0
        TALLIES.append(self)

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.requests} requests, {self.near} within the margin of {TOLERANCE:g}, "
            f"{self.different} decided differently"
        )

    def close(self, near: float, different: float) -> None:
        """Bound the share of requests within the margin, and of those that differ."""
        assert self.requests > 0
        assert self.near <= near * self.requests, str(self)
        assert self.different <= different * self.requests, str(self)


def move(value: Any, device: str) -> Any:
    """A value with all its tensors on a device, strides and what lies between them included."""
    if isinstance(value, tuple):
        moved = [move(field, device) for field in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    if not isinstance(value, Tensor) or value.device.type == device:
        return value
    storage = torch.UntypedStorage(value.untyped_storage().nbytes(), device=device)
    storage.copy_(value.untyped_storage())
    return torch.empty(0, dtype=value.dtype, device=device).set_(
        storage, value.storage_offset(), value.shape, value.stride()
    )


def run(backend: str, op: str, arguments: dict[str, Any]) -> Any:
    """Call a public function on a backend with tensors of the CPU, and bring the results back."""
    family, function = op.split("_", 1)
    device = device_of(backend)
    call = getattr(getattr(sk, family), function)
    return move(call(**{name: move(value, device) for name, value in arguments.items()}, backend=backend), "cpu")


def same(actual: Tensor, expected: Tensor) -> bool:
    """Bit for bit, with the same shape and dtype; NaN equals NaN."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    if not actual.dtype.is_floating_point:
        return torch.equal(actual, expected)
    bits = {4: torch.int32, 2: torch.int16, 8: torch.int64}[actual.element_size()]
    return torch.equal(actual.contiguous().view(bits), expected.contiguous().view(bits))


def _show(op: str, arguments: dict[str, Any], b: int, actual: Any, expected: Any, margin: float) -> str:
    lines = [f"{op}, request {b}, margin {margin:g}"]
    for name, ours, theirs in zip(("tokens", "num_tokens", "path", "status"), actual, expected, strict=False):
        lines.append(f"  {name}: {ours[b].tolist()}, the oracle {theirs[b].tolist()}")
    lines += [f"  {name} = {value}" for name, value in arguments.items()]
    return "\n".join(lines)


def verify(
    backend: str, op: str, arguments: dict[str, Any], tally: Tally, options: dict[str, Any] | None = None
) -> Any:
    """Compare a rule of the verify family; returns the fused result. ``options`` go to the fused op only."""
    batch = arguments["tree"].cu_nodes.numel() - 1
    margin = torch.empty(batch, dtype=torch.float64)
    lossy, options = op in LOSSY, dict(options or {})
    distances = torch.full((2, batch, arguments["tree"].max_depth + 1), 77.0)
    asked = {"divergence": distances[0]} if lossy else {}
    expected = getattr(oracle.verify, op.split("_", 1)[1])(**arguments, **asked, margin=margin)
    if lossy:
        options["divergence"] = distances[1].to(device_of(backend))
    actual = run(backend, op, {**arguments, **options})
    if lossy:
        distances[1] = options["divergence"].cpu()
    decided = ("tokens", "num_tokens", "path", "status")
    for name in decided:
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
    for b in range(batch):
        equal = all(torch.equal(getattr(actual, name)[b], getattr(expected, name)[b]) for name in decided)
        within = float(margin[b]) < TOLERANCE
        tally.requests += 1
        tally.near += within
        tally.different += not equal
        assert equal or within, _show(op, arguments, b, actual, expected, float(margin[b]))
        if equal and not within and arguments.get("logprobs") is not None:
            _logprobs(actual, expected, b, lambda b=b: _show(op, arguments, b, actual, expected, float(margin[b])))
        if equal and not within:
            assert torch.allclose(distances[1, b], distances[0, b], rtol=0, atol=1e-5), f"{distances[:, b]}\n" + _show(
                op, arguments, b, actual, expected, float(margin[b])
            )
    return actual


def _logprobs(actual: Any, expected: Any, b: int, show: Any) -> None:
    scale = torch.maximum(expected.lse[b].abs(), expected.logprobs[b].abs()).clamp(min=1.0)
    for ours, theirs in ((actual.logprobs[b], expected.logprobs[b]), (actual.lse[b], expected.lse[b])):
        finite = torch.isfinite(theirs)
        message = f"logprobs {ours.tolist()}, the oracle {theirs.tolist()}"
        # NaN: a draft of logit -inf that was followed at an infinite temperature
        assert same(ours[~finite].nan_to_num(nan=7.0), theirs[~finite].nan_to_num(nan=7.0)), message + "\n" + show()
        error = (ours[finite].double() - theirs[finite].double()).abs()
        assert bool((error <= LOG_TOLERANCE * scale[finite]).all()), message + "\n" + show()


def draws(backend: str, op: str, arguments: dict[str, Any], tally: Tally) -> Tensor:
    """Compare ``sample.sample`` or ``sample.draft`` with its status; returns the fused tokens."""
    count = arguments["logits"].shape[0]
    margin = torch.empty(count, dtype=torch.float64)
    status = torch.full((count,), 99, dtype=torch.int32)
    device = device_of(backend)
    ours = torch.full((count,), 77, dtype=torch.int32, device=device)
    certain, options = torch.full((2, count, 2), 77.0), {"status": ours}
    asked = {"certainty": certain[0]} if "min_confidence" in arguments else {}  # with stops and without
    if asked:
        options["certainty"] = certain[1].to(device)
    expected = getattr(oracle.sample, op.split("_", 1)[1])(**arguments, **asked, status=status, margin=margin)
    actual = run(backend, op, {**arguments, **options})
    if asked:
        certain[1] = options["certainty"].cpu()
    assert actual.dtype == expected.dtype == torch.int64 and actual.shape == expected.shape
    flags = ours.cpu()
    for r in range(count):
        equal = torch.equal(actual[r], expected[r]) and int(flags[r]) == int(status[r])
        within = float(margin[r]) < TOLERANCE
        tally.requests += 1
        tally.near += within
        tally.different += not equal
        if not (equal or within):
            shown = "\n".join(f"  {name} = {value}" for name, value in arguments.items())
            raise AssertionError(
                f"{op}, row {r}, margin {float(margin[r]):g}: {actual[r].tolist()} status {int(flags[r])}, "
                f"the oracle {expected[r].tolist()} status {int(status[r])}\n{shown}"
            )
        if not within:
            error = (certain[1, r] - certain[0, r]).abs() / certain[0, r].clamp(min=1.0)
            assert bool((error <= 1e-5).all()), f"row {r}: certainty {certain[1, r]}, the oracle {certain[0, r]}"
    return actual
