"""Checkpoints of EAGLE-3 heads: ``config.json``, and ``model.safetensors`` or ``pytorch_model.bin``.

Tensors are ``midlayer.*``, ``fc.weight``, ``norm.weight`` and ``lm_head.weight``. If the draft vocabulary is a part of
the target's there is ``d2t`` (of each draft id the distance to the target's id: an offset, not an id), and mostly
``t2d`` (which of the target's tokens can be drafted). The embedding is the target's and is not stored.

Exporters differ: the layer is also called ``layers.0`` or ``model.layers.0``, everything may begin with ``model.``, an
embedding may be there all the same (and is then used), ``t2d`` may be missing, and both may be there although the
vocabularies are the same.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import DTYPES, assign_weights, check_names, read_json, read_weights
from .eagle3 import Eagle3, Eagle3Config
from .transformer import Transformer

_TORCH_FILE = "pytorch_model.bin"
_EMBEDDING = "embed_tokens.weight"


def is_eagle3(directory: str | Path) -> bool:
    """Whether a folder holds a head rather than a decoder, as far as its ``config.json`` tells."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        return False
    raw = read_json(path)
    return "draft_vocab_size" in raw or "Eagle3" in str(raw.get("architectures"))


def load_eagle3(directory: str | Path, target: Transformer, *, dtype: torch.dtype | None = None) -> Eagle3:
    """Load a head for inference, on the device of its target.

    Args:
        directory: a folder with a checkpoint.
        target: the model it was trained for; it lends its embedding.
        dtype: float32, bfloat16 or float16; None: that of the target.

    Returns:
        The head in evaluation mode, without gradients.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for an architecture that is not implemented, a missing, superfluous or misshapen tensor, a damaged
            file, a dtype that cannot be served, or a head of another target.
    """
    directory, embedding = Path(directory), target.model.embed_tokens
    dtype = embedding.weight.dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"load_eagle3: dtype must be float32, bfloat16 or float16, got {dtype}")
    config = Eagle3Config.from_dict(read_json(directory / "config.json"))
    _check_target(directory, config, target)
    weights = _rename(directory, _read(directory, embedding.weight.device))
    owns = _EMBEDDING in weights
    if not owns and config.layer.hidden_size != target.config.hidden_size:
        raise ValueError(
            f"{directory}: hidden_size must be that of the target, whose embedding is borrowed, "
            f"{target.config.hidden_size}, got {config.layer.hidden_size}"
        )
    d2t, t2d = weights.pop("d2t", None), weights.pop("t2d", None)
    with torch.device("meta"):
        head = Eagle3(config, target.config.num_layers, None if owns else embedding)
    check_names(directory, {name for name, _ in head.named_parameters()}, weights)
    assign_weights(directory, head, weights, dtype)
    head.d2t, head.t2d = _vocabulary(directory, config, d2t, t2d)
    return head.eval().requires_grad_(False)


def save_eagle3(head: Eagle3, raw_config: dict[str, Any], directory: str | Path, dtype: torch.dtype) -> None:
    """Write ``config.json`` and ``model.safetensors`` with weights in ``dtype``.

    Args:
        head: the weights, on any device.
        raw_config: the content of ``config.json``.
        directory: made if it does not exist.
        dtype: float32, bfloat16 or float16.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().to("cpu", dtype).contiguous() for name, p in head.named_parameters()}
    if head.d2t is not None and head.t2d is not None:
        weights |= {"d2t": head.d2t.cpu(), "t2d": head.t2d.cpu()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(raw_config, indent=2) + "\n")


def _check_target(directory: Path, config: Eagle3Config, target: Transformer) -> None:
    for key, ours, theirs in (
        ("vocab_size", config.layer.vocab_size, target.config.vocab_size),
        ("target_hidden_size", config.target_hidden_size, target.config.hidden_size),
    ):
        if ours != theirs:
            raise ValueError(f"{directory}: {key} must be that of the target, {theirs}, got {ours}")


def _read(directory: Path, device: torch.device) -> dict[str, Tensor]:
    path = directory / _TORCH_FILE
    if any(directory.glob("*.safetensors*")) or not path.is_file():
        return read_weights(directory, device)
    try:
        weights = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} must be a file of torch.save with tensors only, got: {reason[0]}") from None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(f"{path} must hold a dictionary of tensors, got {type(weights).__name__}")
    return weights


def _rename(directory: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the published checkpoints, whatever the exporter."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        plain = str(name).removeprefix("model.")
        if plain.startswith("layers.0."):
            plain = "midlayer." + plain.removeprefix("layers.0.")
        if plain.endswith("rotary_emb.inv_freq"):
            continue
        if plain in found:
            raise ValueError(f"{directory}: the checkpoint must hold {plain} once, got it under two names")
        found[plain] = weight
    return found


def _vocabulary(
    directory: Path, config: Eagle3Config, d2t: Tensor | None, t2d: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """``d2t`` and ``t2d``, checked; None if the vocabularies are the same."""
    count, vocab = config.draft_vocab_size, config.layer.vocab_size
    if d2t is None:
        if config.is_reduced:
            raise ValueError(f"{directory}: the checkpoint must hold d2t, got no such tensor")
        return None, None
    if list(d2t.shape) != [count] or d2t.is_floating_point():
        raise ValueError(f"{directory}: d2t must hold {count} integers, got {list(d2t.shape)} of {d2t.dtype}")
    d2t = d2t.long()
    ids = torch.arange(count, device=d2t.device) + d2t
    kept = torch.zeros(vocab, dtype=torch.bool, device=d2t.device)
    inside = bool(((ids >= 0) & (ids < vocab)).all())
    if inside:
        kept[ids] = True
    if not inside or int(kept.sum()) != count:
        raise ValueError(f"{directory}: d2t must lead to {count} different ids below {vocab}, got others")
    if t2d is not None and not (list(t2d.shape) == [vocab] and torch.equal(t2d.bool(), kept)):
        raise ValueError(f"{directory}: t2d must mark the {count} ids of d2t among {vocab}, got others")
    if not config.is_reduced:
        if bool(d2t.any()):
            raise ValueError(f"{directory}: d2t must be 0 where the vocabularies are the same, got a permutation")
        return None, None
    return d2t, kept
