"""Checkpoints in Hugging Face layout: ``config.json``, ``*.safetensors``, ``tokenizer.json``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from .config import ModelConfig, stop_tokens
from .transformer import Transformer

_INDEX = "model.safetensors.index.json"
#: Dtypes that weights may have.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_config(directory: str | Path) -> ModelConfig:
    """Read ``config.json``, and the stop tokens of ``generation_config.json`` where it exists.

    Raises:
        FileNotFoundError: if there is no ``config.json``.
        ValueError: if it describes a model that is not implemented.
    """
    directory = Path(directory)
    config = ModelConfig.from_dict(read_json(directory / "config.json"))
    generation = directory / "generation_config.json"
    if generation.is_file():
        ids = dict.fromkeys((*config.stop_tokens, *stop_tokens(read_json(generation), generation.name)))
        config = dataclasses.replace(config, stop_tokens=tuple(ids))
    return config


def load_model(
    directory: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Transformer:
    """Load a Llama, Qwen2 or Qwen3 checkpoint for inference.

    Args:
        directory: a folder in Hugging Face layout, with one safetensors file or an index of shards.
        dtype: float32, bfloat16 or float16; None: that of the checkpoint.
        device: where the weights go.

    Returns:
        The model in evaluation mode, without gradients.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for an unknown architecture, a missing, superfluous or misshapen tensor, a
            damaged file, or a device or dtype that cannot be served.
    """
    directory, device = Path(directory), torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"load_model: device must be available, got {device}")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"load_model: dtype must be float32, bfloat16 or float16, got {dtype}")
    config = load_config(directory)
    with torch.device("meta"):
        model = Transformer(config)
    names = {name for name, _ in model.named_parameters()}
    weights = read_weights(directory, device)
    if config.tied:
        weights.pop("lm_head.weight", None)
    check_names(directory, names, weights)
    dtype = dtype or weights["model.embed_tokens.weight"].dtype
    if dtype not in DTYPES:
        raise ValueError(f"{directory}: weights must be float32, bfloat16 or float16, got {dtype}")
    assign_weights(directory, model, weights, dtype)
    if config.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval().requires_grad_(False)


def save_model(model: Transformer, raw_config: dict[str, Any], directory: str | Path, dtype: torch.dtype) -> None:
    """Write ``config.json`` and ``model.safetensors`` with weights in ``dtype``; a tied head once.

    Args:
        model: the weights, on any device.
        raw_config: the content of ``config.json``.
        directory: made if it does not exist.
        dtype: float32, bfloat16 or float16.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {n: p.detach().to("cpu", dtype).contiguous() for n, p in model.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(raw_config, indent=2) + "\n")


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of ``tokenizer.json``.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged.
    """
    path = Path(directory) / "tokenizer.json"
    _require_file(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} must be a tokenizer of `tokenizers`, got: {error}") from None


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} must exist in {path.parent}, got no such file")


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; FileNotFoundError or ValueError in one sentence where there is none."""
    _require_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} must be JSON that can be read, got brackets nested too deeply") from None
    except ValueError as error:  # also wrong bytes, and numbers of more digits than Python reads
        raise ValueError(f"{path} must be JSON, got: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object, got {type(content).__name__}")
    return content


def _shards(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if not index.is_file():
        return [directory / "model.safetensors"]
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} must hold a weight_map, got {str(places)[:80]}")
    for name, place in places.items():
        if not isinstance(place, str):
            raise ValueError(f"{index}: weight_map must name a file for {name}, got {str(place)[:80]}")
    return [directory / name for name in sorted(set(places.values()))]


def read_weights(directory: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors files, by name; FileNotFoundError or ValueError in one sentence."""
    weights: dict[str, torch.Tensor] = {}
    for shard in _shards(directory):
        _require_file(shard)
        try:
            with safe_open(shard, framework="pt", device=str(device)) as file:
                weights.update((name, file.get_tensor(name)) for name in list(file.keys()))
        except SafetensorError as error:
            raise ValueError(f"{shard} must be a safetensors file, got: {error}") from None
    # Old Llama checkpoints store the rotary frequencies, which follow from the configuration.
    return {n: w for n, w in weights.items() if not n.endswith("rotary_emb.inv_freq")}


def assign_weights(directory: Path, model: nn.Module, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Make the tensors of a checkpoint, which has those of all parameters, the parameters of a model, in ``dtype``.

    Raises:
        ValueError: if a tensor has another shape, or holds no floating-point numbers; one sentence.
    """
    for name, parameter in model.named_parameters():
        weight, wanted = weights[name], list(parameter.shape)
        if wanted != list(weight.shape):
            raise ValueError(f"{directory}: {name} must have shape {wanted}, got {list(weight.shape)}")
        if not weight.is_floating_point():
            raise ValueError(f"{directory}: {name} must hold floating-point numbers, got {weight.dtype}")
        weights[name] = weight.to(dtype)
    model.load_state_dict(weights, strict=False, assign=True)


def check_names(directory: Path, wanted: set[str], weights: dict[str, torch.Tensor]) -> None:
    """Refuse a checkpoint that lacks a tensor or has one too many, with a ValueError in one sentence."""
    for name in sorted(wanted - set(weights)):
        raise ValueError(f"{directory}: the checkpoint must hold {name}, got no such tensor")
    for name in sorted(set(weights) - wanted):
        raise ValueError(f"{directory}: the checkpoint must hold known tensors only, got {name}")
