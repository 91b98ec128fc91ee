"""Rotary position embedding and its scalings to longer contexts."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# The keys that each scaling needs.
_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
# Keys that a scaling may have; 0 is the default, as in `transformers`.
_OPTIONAL = (
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
)
# Tables of more would not fit the memory of the machines that hold the model; known models stay below.
_MOST_POSITIONS = 2**23
# Positions per block of the table; a block of any head size is small enough for torch to compute
# on one thread, so that its bits do not depend on the number of threads.
_BLOCK = 64


@dataclass(frozen=True)
class Rotary:
    """Angles of the rotary embedding: ``position * frequency`` radians for each pair of elements.

    Sources: RoFormer (arXiv 2104.09864) section 3.4; linear: position interpolation (2306.15595)
    section 3.2; dynamic: NTK-aware scaling of the base; llama3: Llama 3.1; yarn: YaRN (2309.00071)
    sections 3.2 and 3.4.
    """

    dim: int
    theta: float
    trained: int
    kind: str = "default"
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], head_dim: int, max_positions: int) -> Rotary:
        """Read ``rope_parameters`` or ``rope_scaling`` and ``rope_theta`` of a ``config.json``.

        Raises:
            ValueError: for an unknown scaling, a missing key or an impossible value.
        """
        name = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
        given = raw.get(name) or {}
        if not isinstance(given, dict):
            raise ValueError(f"config.json: {name} must be an object, got {str(given)[:80]}")
        options = dict(given)
        kind = str(options.get("rope_type", options.get("type", "default")))
        if kind not in _KINDS:
            known = ", ".join(_KINDS)
            raise ValueError(f"config.json: rope_type must be one of {known}, got {kind[:80]}")
        _check_options(kind, options)
        partial = options.get("partial_rotary_factor", raw.get("partial_rotary_factor")) or 1.0
        if partial != 1.0:
            raise ValueError(f"config.json: partial_rotary_factor must be 1, got {str(partial)[:80]}")
        theta = number(options if options.get("rope_theta") else raw, "rope_theta", 10000.0)
        if theta <= 1:
            raise ValueError(f"config.json: rope_theta must be above 1, got {theta}")
        found = cls(head_dim, theta, max_positions, kind, options)
        if found.limit > _MOST_POSITIONS:
            means = "max_position_embeddings" + (" times factor" if kind == "dynamic" else "")
            raise ValueError(f"config.json: {means} must be at most {_MOST_POSITIONS}, got {found.limit:.7g}")
        return found

    @property
    def limit(self) -> int:
        """Positions that the embedding serves."""
        stretch = float(self.options["factor"]) if self.kind == "dynamic" else 1.0
        return int(min(self.trained * max(stretch, 1.0), sys.float_info.max))

    def table(self) -> Tensor:
        """Cosines and signed sines ``[limit, 2, 1, dim]`` float32 of every position.

        The angle is rounded to float32 as in training frameworks, its cosine and sine are computed
        in float64 and rounded once. An entry depends on nothing but its position.
        """
        factor = self._attention_factor()
        fixed = self.frequencies()
        blocks = []
        for start in range(0, self.limit, _BLOCK):
            positions = torch.arange(start, start + _BLOCK)
            inverse = fixed
            if self.kind == "dynamic" and start + _BLOCK > self.trained:
                inverse = torch.stack([self.frequencies(int(p) + 1) for p in positions])
            angles = (positions.float().unsqueeze(1) * inverse).double()
            cosine, sine = angles.cos() * factor, angles.sin() * factor
            both = torch.stack((torch.cat((cosine, cosine), 1), torch.cat((-sine, sine), 1)), 1)
            blocks.append(both.float())
        return torch.cat(blocks)[: self.limit].unsqueeze(2).contiguous()

    def frequencies(self, length: int = 0) -> Tensor:
        """``[dim / 2]`` float32, radians per token, for a sequence of ``length`` tokens.

        Only ``dynamic`` depends on the length, beyond the trained one. Token by token it is that of
        the position itself, plus one: a row then does not depend on the rows computed with it.
        """
        exponents = torch.arange(0, self.dim, 2).float() / self.dim
        if self.kind == "dynamic":
            ratio = max(length, self.trained) / self.trained
            grown = self.options["factor"] * ratio - (self.options["factor"] - 1)
            base = self.theta * grown ** (self.dim / (self.dim - 2)) if self.dim > 2 else self.theta
            return 1.0 / base**exponents
        plain = 1.0 / self.theta**exponents
        if self.kind == "default":
            return plain
        slow = plain / self.options["factor"]
        if self.kind == "linear":
            return slow
        keep = self._llama3_share(plain) if self.kind == "llama3" else self._yarn_share()
        return slow * (1 - keep) + plain * keep

    def _original(self) -> int:
        return int(self.options.get("original_max_position_embeddings") or self.trained)

    def _llama3_share(self, plain: Tensor) -> Tensor:
        """How much of each frequency stays: by its turns in the original context."""
        low, high = self.options["low_freq_factor"], self.options["high_freq_factor"]
        turns = self._original() * plain / (2 * math.pi)
        return ((turns - low) / (high - low)).clamp(0.0, 1.0)

    def _yarn_share(self) -> Tensor:
        """How much of each frequency stays: a ramp over the index between two numbers of turns."""

        def index(turns: float) -> float:
            wavelengths = math.log(self._original() / (turns * 2 * math.pi))
            return self.dim * wavelengths / (2 * math.log(self.theta))

        first = index(self.options.get("beta_fast") or 32.0)
        last = index(self.options.get("beta_slow") or 1.0)
        if self.options.get("truncate", True):
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, self.dim - 1)
        ramp = (torch.arange(self.dim // 2).float() - first) / ((last - first) or 1e-3)
        return 1 - ramp.clamp(0.0, 1.0)

    def _attention_factor(self) -> float:
        """The factor of YaRN on cosine and sine, squared in the scores."""
        if self.kind != "yarn":
            return 1.0
        if self.options.get("attention_factor") is not None:
            return float(self.options["attention_factor"])

        def temperature(weight: float) -> float:
            factor = float(self.options["factor"])
            return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

        weight, weight_all = self.options.get("mscale"), self.options.get("mscale_all_dim")
        if weight and weight_all:
            return temperature(float(weight)) / temperature(float(weight_all))
        return temperature(1.0)


def number(raw: dict[str, Any], key: str, default: float | None = None) -> float:
    """A number of a ``config.json``; nothing and null are the default.

    Raises:
        ValueError: if it is none, or not finite.
    """
    value = raw.get(key)
    value = default if value is None else value
    most = sys.float_info.max  # beyond it are infinity and integers that are no float
    if not isinstance(value, int | float) or isinstance(value, bool) or not -most <= value <= most:
        raise ValueError(f"config.json: {key} must be a number, got {str(value)[:80]}")
    return float(value)


def _check_options(kind: str, options: dict[str, Any]) -> None:
    """Refuse options of a scaling that are no numbers, or that it would divide by or take the logarithm of."""
    needed = _KINDS[kind]
    for key in needed:
        if number(options, key) <= 0:
            raise ValueError(f"config.json: {key} must be above 0, got {options[key]}")
    optional = {"llama3": _OPTIONAL[:1], "yarn": _OPTIONAL}.get(kind, ())
    for key in optional:
        if number(options, key, 1.0) < 0:
            raise ValueError(f"config.json: {key} must be at least 0, got {options[key]}")
    if kind == "llama3" and options["low_freq_factor"] >= options["high_freq_factor"]:
        low, high = options["low_freq_factor"], options["high_freq_factor"]
        raise ValueError(f"config.json: high_freq_factor must be above low_freq_factor {low}, got {high}")


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn ``[T, H, D]`` by ``cosine``, ``sine [T, 1, D]``; the halves of a head are the pairs.

    ``sine`` carries the sign of the first half, so that the halves need only be swapped.
    """
    return x * cosine + x.roll(x.shape[-1] // 2, -1) * sine
