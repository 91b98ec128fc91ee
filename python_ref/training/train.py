"""Training in slices: a call goes on where the last one stopped, and ends after a time or at the end of the budget."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.checkpoint import save_model
from ..models.config import ModelConfig
from ..models.transformer import Transformer, causal
from .data import Encoded, batch, generated_text
from .evaluate import bits_per_byte
from .optimizer import optimizers
from .recipes import CONTEXT, Recipe

_SAVE_SECONDS = 120.0


def initialize(model: Transformer, seed: int) -> None:
    """Normal weights of variance 1 / inputs; smaller for the embedding and for what is added to the stream."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            torch.nn.init.ones_(parameter)
            continue
        deviation = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            deviation /= (2 * model.config.num_layers) ** 0.5
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)


def loss_of(model: Transformer, windows: Tensor, teacher: Transformer | None) -> Tensor:
    """Mean cross-entropy per token of ``windows [count, width + 1]``; with a teacher, 0.7 of it against its law."""
    count, width = windows.shape[0], windows.shape[1] - 1
    positions = torch.arange(width, device=windows.device).repeat(count)
    inputs, targets = windows[:, :-1].reshape(-1), windows[:, 1:].reshape(-1)
    logits = model.logits(model(inputs, positions, causal(count))).float()
    loss = F.cross_entropy(logits, targets)
    if teacher is None:
        return loss
    with torch.no_grad():
        law = teacher.logits(teacher(inputs, positions, causal(count))).float().softmax(-1)
    return 0.3 * loss - 0.7 * (law * logits.log_softmax(-1)).sum(-1).mean()


class _State:
    """Weights, optimisers and the step, kept in one file that is replaced as a whole."""

    def __init__(self, recipe: Recipe, path: Path, device: str) -> None:
        self.model = Transformer(ModelConfig.from_dict(recipe.config()))
        initialize(self.model, seed=0)
        self.model.to(device).prepare()
        self.muon, self.adamw = optimizers(self.model, recipe.matrix_rate, recipe.other_rate, recipe.matrix_decay)
        self.path, self.step = path, 0
        if path.exists():
            known = torch.load(path, map_location=device, weights_only=True)
            self.model.load_state_dict(known["model"])
            self.muon.load_state_dict(known["muon"])
            self.adamw.load_state_dict(known["adamw"])
            self.step = known["step"]

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(self, name).state_dict() for name in ("model", "muon", "adamw")}
        fresh = self.path.with_suffix(".new")
        torch.save({**parts, "step": self.step}, fresh)
        fresh.replace(self.path)

    def update(self, factor: float) -> None:
        for optimizer in (self.muon, self.adamw):
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1


def exported_step(recipe: Recipe, folder: Path) -> int | None:
    """The step of the model in ``folder / recipe.name / "export"``; None if there is none, or half of one.

    The state can be further: it is saved more often, and before the model is scored.
    """
    path = _mark(recipe, folder)
    return int(path.read_text()) if path.exists() else None


def is_finished(recipe: Recipe, folder: Path) -> bool:
    """Whether the model in the folder has had the whole training."""
    return exported_step(recipe, folder) == recipe.steps


def _mark(recipe: Recipe, folder: Path) -> Path:
    return folder / recipe.name / "exported_step"


def train(
    recipe: Recipe,
    folder: Path,
    data: Encoded,
    *,
    minutes: float = float("inf"),
    steps: int | None = None,
    device: str = "cpu",
    compiled: bool = True,
    autocast: bool = True,
    teacher: Transformer | None = None,
    log: Callable[[str], None] = print,
) -> bool:
    """One slice of training.

    Under ``folder / recipe.name`` lie the state, ``log.jsonl`` and, after each slice, the model in Hugging Face layout
    in float16 (``export``). Learning rate and data depend on the step alone, so that slices and interruptions change
    nothing; an interruption loses the steps since the last save, two minutes at most.

    Args:
        recipe: what to train.
        folder: where state is kept.
        data: the encoded corpus.
        minutes: end of the slice.
        steps: the most steps in this slice; None for no limit.
        device: ``cpu`` or ``cuda``.
        compiled: use ``torch.compile``.
        autocast: multiply in bfloat16.
        teacher: float32 decoder on ``device``, for a recipe with a teacher.
        log: receives lines for people.

    Returns:
        Whether the budget is used up.
    """
    state = _State(recipe, folder / recipe.name / "state.pt", device)
    state.save()
    stream = data.stream
    if teacher is not None:
        teacher.prepare()
        path = folder / recipe.name / "generated.pt"
        stream = torch.cat((stream, generated_text(teacher, stream, recipe.generated, path, log)))
    objective: Any = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    last_step = recipe.steps if steps is None else min(recipe.steps, state.step + steps)
    began = saved = time.monotonic()
    first, losses = state.step, []
    with (folder / recipe.name / "log.jsonl").open("a") as records:

        def record(**values: Any) -> None:
            line = json.dumps({"step": state.step, "of": recipe.steps, **values})
            records.write(line + "\n")
            records.flush()
            log(f"{recipe.name}: {line}")

        while state.step < last_step and time.monotonic() - began < minutes * 60:
            window = recipe.window_at(state.step)
            windows = batch(stream, window, recipe.step_tokens // window, state.step).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                loss = objective(state.model, windows, teacher)
            loss.backward()
            losses.append(loss.item())
            state.update(recipe.rate(state.step))
            if state.step % 50 == 0:
                speed = (state.step - first) * recipe.step_tokens / (time.monotonic() - began)
                record(loss=round(sum(losses) / len(losses), 4), tokens_per_second=round(speed))
                losses = []
            if time.monotonic() - saved > _SAVE_SECONDS:
                state.save()
                saved = time.monotonic()
        state.save()
        done = state.step == recipe.steps
        state.model.eval()
        score = bits_per_byte(state.model, data.held_out, CONTEXT, limit=0 if done else 1000)
        record(held_out_bits_per_byte=round(score, 4), seconds=round(time.monotonic() - began))
    mark = _mark(recipe, folder)
    mark.unlink(missing_ok=True)
    save_model(state.model, recipe.config(), folder / recipe.name / "export", torch.float16)
    mark.write_text(str(state.step))
    return done
