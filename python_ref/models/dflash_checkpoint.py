"""Checkpoints of DFlash drafters: ``config.json`` and ``model.safetensors``.

Tensors are ``layers.*``, ``fc.weight``, ``hidden_norm.weight`` and ``norm.weight``; exporters may put ``model.`` before
all of them. There is no embedding and no head: both are the target's. Some releases have an embedding of their own for
masks, in a file beside the weights.
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
from .dflash import DFlash, DFlashConfig
from .transformer import Transformer

_MASK_FILE = "mask_embedding.pt"


def is_dflash(directory: str | Path) -> bool:
    """Whether a folder holds a DFlash drafter, as far as its ``config.json`` tells."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        return False
    raw = read_json(path)
    return "dflash_config" in raw or "DFlash" in str(raw.get("architectures"))


def load_dflash(directory: str | Path, target: Transformer, *, dtype: torch.dtype | None = None) -> DFlash:
    """Load a drafter for inference, on the device of its target.

    Args:
        directory: a folder with a checkpoint.
        target: the model it was trained for; it lends embedding and head.
        dtype: float32, bfloat16 or float16; None: that of the target.

    Returns:
        The drafter in evaluation mode, without gradients.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for an architecture that is not implemented, a missing, superfluous or misshapen tensor, a damaged
            file, a dtype that cannot be served, or a drafter of another target.
    """
    directory, like = Path(directory), target.model.embed_tokens.weight
    dtype = like.dtype if dtype is None else dtype
    if dtype not in DTYPES:
        raise ValueError(f"load_dflash: dtype must be float32, bfloat16 or float16, got {dtype}")
    raw = read_json(directory / "config.json")
    config = DFlashConfig.from_dict(raw)
    for key, ours, theirs in (
        ("vocab_size", config.layer.vocab_size, target.config.vocab_size),
        ("hidden_size", config.layer.hidden_size, target.config.hidden_size),
        ("target_hidden_size", config.target_hidden_size, target.config.hidden_size),
        ("num_target_layers", raw.get("num_target_layers", target.config.num_layers), target.config.num_layers),
    ):
        if ours != theirs:
            raise ValueError(f"{directory}: {key} must be that of the target, {theirs}, got {ours}")
    weights = _rename(directory, read_weights(directory, like.device))
    with torch.device("meta"):
        drafter = DFlash(config, target)
    check_names(directory, {name for name, _ in drafter.named_parameters()}, weights)
    assign_weights(directory, drafter, weights, dtype)
    drafter.mask_embedding = _mask_embedding(directory, config, like.device, dtype)
    return drafter.eval().requires_grad_(False)


def save_dflash(drafter: DFlash, raw_config: dict[str, Any], directory: str | Path, dtype: torch.dtype) -> None:
    """Write ``config.json`` and ``model.safetensors`` with weights in ``dtype``.

    Args:
        drafter: the weights, on any device; its mask has no embedding of its own.
        raw_config: the content of ``config.json``.
        directory: made if it does not exist.
        dtype: float32, bfloat16 or float16.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().to("cpu", dtype).contiguous() for name, p in drafter.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(raw_config, indent=2) + "\n")


def _rename(directory: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        plain = name.removeprefix("model.")
        if plain in found:
            raise ValueError(f"{directory}: the checkpoint must hold {plain} once, got it under two names")
        found[plain] = weight
    return found


def _mask_embedding(directory: Path, config: DFlashConfig, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    path, size = directory / _MASK_FILE, config.layer.hidden_size
    if not path.is_file():
        return None
    try:
        mask = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} must be a tensor of torch.save, got: {reason[0]}") from None
    if isinstance(mask, dict) and len(mask) == 1:
        mask = next(iter(mask.values()))
    if not isinstance(mask, Tensor) or mask.numel() != size or not mask.is_floating_point():
        got = f"{list(mask.shape)} of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{path} must hold {size} floating-point numbers, got {got}")
    return mask.reshape(size).to(dtype)
