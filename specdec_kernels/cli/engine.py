"""From names on the command line to models and drafters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import python_ref
import specdec_kernels as ops
from python_ref.decoding import Decoder, Point, Request, calibration
from python_ref.drafters import DFlashDrafter, Eagle3Drafter, IndependentDrafter, IndependentTreeDrafter, NgramDrafter
from python_ref.models import load_config, load_eagle3, load_model, load_tokenizer
from python_ref.models.checkpoint import read_json
from python_ref.models.dflash_checkpoint import is_dflash, load_dflash
from python_ref.models.eagle3_checkpoint import is_eagle3

from .. import _backend
from .errors import UserError, user_errors
from .output import progress, working

ASSETS = Path(python_ref.__file__).parent / "assets"
TARGET, DRAFT, HEAD, BLOCKS = "pystdlib-target", "pystdlib-draft", "pystdlib-eagle3", "pystdlib-dflash"
DRAFTERS = ("none", "ngram", "independent", "independent-tree", "eagle3", "eagle3-tree", "dflash", "ddtree")
#: Of a drafter with a model: the shipped one, and the kind that it must be of.
MODELS = {
    "independent": (DRAFT, "decoder"),
    "independent-tree": (DRAFT, "decoder"),
    "eagle3": (HEAD, "eagle3"),
    "eagle3-tree": (HEAD, "eagle3"),
    "dflash": (BLOCKS, "dflash"),
    "ddtree": (BLOCKS, "dflash"),
}
# Width and nodes of the trees of `eagle3-tree`; those of `ddtree` have as many nodes.
_BEAMS, _NODES = 4, 16
_LIBRARY: Any = ops

# Name on the command line -> dtype of activations and cache, dtype of the packed weights of the CPU's linear layers.
_DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float32),
    "int8": (torch.float32, torch.int8),
}
DTYPES = tuple(_DTYPES)

#: Most prompts decoded together: far beyond what pays, and small enough to be allocated.
MAX_BATCH = 65536


@dataclass(frozen=True)
class Loaded:
    """A model ready to decode.

    Attributes:
        name: last part of its folder.
        model: ``python_ref.models.Transformer``.
        tokenizer: of ``tokenizers``.
        parameters: number of weights, a tied head counted once.
    """

    name: str
    directory: Path
    model: Any
    tokenizer: Any
    parameters: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds to one."""
        return list(self.tokenizer.encode(text).ids)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, without special ones."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def shipped_models(kind: str = "decoder") -> list[str]:
    """Names of the models of a kind that came with the package: ``decoder``, ``eagle3`` or ``dflash``."""
    folders = (path.parent for path in ASSETS.glob("*/config.json"))
    return sorted(folder.name for folder in folders if _kind_of(folder) == kind)


def _kind_of(folder: Path) -> str:
    return "eagle3" if is_eagle3(folder) else "dflash" if is_dflash(folder) else "decoder"


def find_model(option: str, value: str, kind: str = "decoder") -> Path:
    """The folder of a model of a kind that is named by its path, or by its name if it is a shipped one.

    Raises:
        UserError: if it is neither, has no configuration, or is of another kind.
    """
    folder = Path(value) if Path(value).is_dir() else ASSETS / value
    config = folder / "config.json"
    with user_errors():
        names = ", ".join(shipped_models(kind)) or "none"
        if not (Path(value).is_dir() or config.is_file()):
            raise UserError(f"{option} must name a folder with a model, or a shipped model ({names}), got {value!r}")
        if not config.is_file():
            raise UserError(f"{option}: config.json must exist in {folder}, got no such file")
        found = _kind_of(folder)
        # Some exporters give a head of EAGLE-3 the architecture of a decoder: its loader tells them apart.
        if found == kind or (kind == "eagle3" and "LlamaForCausalLM" in str(read_json(config).get("architectures"))):
            return folder
    raise UserError(
        f"{option} must name a model of the kind {kind} (shipped: {names}), got {value!r} of the kind {found}"
    )


def check_choice(option: str, value: str, known: tuple[str, ...]) -> str:
    """``value``, if it is known.

    Raises:
        UserError: if it is not.
    """
    if value not in known:
        raise UserError(f"{option} must be one of {', '.join(known)}, got {value!r}")
    return value


def find_device(value: str) -> torch.device:
    """A device that torch can use.

    Raises:
        UserError: if there is none of that name.
    """
    if value == "cpu":
        return torch.device(value)
    parts = re.fullmatch(r"cuda(?::([0-9]{1,3}))?", value)
    if parts is None:
        raise UserError(f"--device must be cpu, cuda or cuda:<number>, got {value!r}")
    index = int(parts[1] or 0)
    if index >= torch.cuda.device_count():
        raise UserError(
            f"--device must be available, got {value!r}: torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return torch.device("cuda") if parts[1] is None else torch.device("cuda", index)


@contextmanager
def find_backend(value: str | None, used: Sequence[str], device: str) -> Iterator[dict[str, list[str]]]:
    """The block inside which all ops run on a backend; None: each on the best there is.

    Args:
        value: name of the backend.
        used: the ops that the block needs. What cannot be served is refused before anything is loaded.
        device: type of the device that holds the tensors.

    Yields:
        As :func:`serving` returns it.

    Raises:
        UserError: if there is no backend of that name, or it cannot serve one of the ops.
    """
    chosen = nullcontext() if value is None else ops.use_backend(check_choice("--backend", value, ops.BACKENDS))
    with chosen:
        yield serving(used, device)


def check_max_batch(value: int) -> None:
    """Refuse a number of prompts that no cache has rows for.

    Raises:
        UserError: if it is out of range.
    """
    if not 1 <= value <= MAX_BATCH:
        raise UserError(f"--max-batch must be from 1 to {MAX_BATCH}, got {value}")


def serving(used: Sequence[str], device: str) -> dict[str, list[str]]:
    """Which backend serves which of these ops here and now, the block of :func:`find_backend` and the environment heeded.

    Returns:
        The ops by their backend, the fastest backend first.

    Raises:
        UserError: if the backend that was asked for cannot serve one of them.
    """
    with user_errors():
        # The rule by which every call chooses, and not a copy of it.
        chosen = {op: _backend._choose(op, None, device) for op in used}
    backends = sorted(set(chosen.values()), key=ops.BACKENDS.index)
    return {backend: [op for op in used if chosen[op] == backend] for backend in backends}


def load(directory: Path, dtype: str, device: torch.device) -> Loaded:
    """Read a model and its tokenizer; on the CPU its linear layers become ``linear.skinny``.

    Raises:
        UserError: if a file is missing or damaged, or the model is of an unknown architecture.
    """
    activations, weights = _DTYPES[dtype]
    if device.type != "cpu" and dtype == "int8":
        raise UserError(f"--dtype must be float32, bfloat16 or float16 on {device.type}, got 'int8'")
    with user_errors(), working(f"loading {directory.name}"):
        load_config(directory)  # an unknown architecture is the clearest of all possible complaints
        tokenizer = load_tokenizer(directory)
        model = load_model(directory, dtype=activations, device=device)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        if device.type == "cpu":
            model.use_linear(_LIBRARY.linear, weights)
    return Loaded(directory.name, directory, model, tokenizer, parameters)


def calibrated(decoder: Decoder, requests: Sequence[Request]) -> list[Point]:
    """Give a decoder the number of drafts, and its trees the nodes, that decode the first tokens of requests the fastest.

    Returns:
        What was measured, the chosen one first.

    Raises:
        UserError: if the models and their caches do not fit the memory.
    """
    total = calibration.generations(decoder.drafter)
    with user_errors(), progress("choosing the number of drafts, in texts", total) as report:
        return calibration.calibrate(decoder, requests, report=report)


def find_drafter(spec: str) -> tuple[str, Path | None]:
    """The kind of a drafter, a name in :data:`DRAFTERS`, and the folder of its model; None where it has no model.

    Commands ask before they load the target: nothing is loaded here.

    Args:
        spec: the kind, and behind all but the first two also ``:<model>``.

    Raises:
        UserError: if there is no such drafter, or no such model.
    """
    kind, colon, model = spec.partition(":")
    if kind not in DRAFTERS or (colon and not (model and kind in MODELS)):
        known, named = ", ".join(DRAFTERS), " or ".join(f"{name}:<model>" for name in MODELS)
        raise UserError(f"--drafter must be one of {known}, or {named}, got {spec!r}")
    if kind not in MODELS:
        return kind, None
    usual, wanted = MODELS[kind]
    return kind, find_model(f"--drafter {kind}", model or usual, wanted)


def make_drafter(
    spec: str,
    target: Loaded,
    dtype: str,
    replacement: bool = False,
    min_confidence: float = 0.0,
    max_entropy: float = math.inf,
) -> Any:
    """The drafter of a name as in :func:`find_drafter`; None for plain decoding. ``replacement`` is that of the siblings of
    ``independent-tree``; ``min_confidence`` and ``max_entropy`` say where ``independent`` stops.

    Raises:
        UserError: if there is no such drafter, its model cannot be loaded, or it has another vocabulary.
    """
    kind, directory = find_drafter(spec)
    if directory is None:
        return None if kind == "none" else NgramDrafter(_LIBRARY)
    if kind.startswith("eagle3"):
        return _make_eagle3(kind, directory, target, dtype)
    if kind in ("dflash", "ddtree"):
        return _make_dflash(kind, directory, target, dtype)
    draft = load(directory, dtype, target.model.model.embed_tokens.weight.device)
    if draft.tokenizer.get_vocab() != target.tokenizer.get_vocab():
        raise UserError(f"--drafter must have the vocabulary of {target.name}, got that of {draft.name}")
    ours, theirs = draft.model.config.vocab_size, target.model.config.vocab_size
    if ours != theirs:
        raise UserError(f"--drafter must have logits for {theirs} tokens as {target.name}, got {ours} of {draft.name}")
    if kind == "independent-tree":
        return IndependentTreeDrafter(draft.model, _LIBRARY, replacement=replacement)
    return IndependentDrafter(draft.model, _LIBRARY, min_confidence=min_confidence, max_entropy=max_entropy)


def _make_eagle3(kind: str, directory: Path, target: Loaded, dtype: str) -> Eagle3Drafter:
    activations, weights = _DTYPES[dtype]
    with user_errors(), working(f"loading {directory.name}"):
        head = load_eagle3(directory, target.model, dtype=activations)
        if head.weight.device.type == "cpu":
            head.use_linear(_LIBRARY.linear, weights)
    options = {"beams": _BEAMS, "nodes": _NODES} if kind.endswith("tree") else {}
    return Eagle3Drafter(head, _LIBRARY, **options)


def _make_dflash(kind: str, directory: Path, target: Loaded, dtype: str) -> DFlashDrafter:
    activations, weights = _DTYPES[dtype]
    with user_errors(), working(f"loading {directory.name}"):
        drafter = load_dflash(directory, target.model, dtype=activations)
        if drafter.weight.device.type == "cpu":
            drafter.use_linear(_LIBRARY.linear, weights)
    return DFlashDrafter(drafter, _LIBRARY, nodes=_NODES if kind == "ddtree" else 0)
