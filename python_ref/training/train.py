"""Training in slices: a call goes on where the last one stopped, and ends after a time or at the end of the budget."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.checkpoint import save_model
from ..models.config import ModelConfig
from ..models.transformer import Transformer, causal
from .data import Encoded, batch, generated_text
from .dflash import DFlashTask
from .eagle3 import Eagle3Task
from .evaluate import bits_per_byte
from .optimizer import optimizers
from .recipes import CONTEXT, DFlashRecipe, Eagle3Recipe, Recipe

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


class Task(Protocol):
    """What there is to learn: a model, its data, its loss and its scores."""

    def build(self) -> Any:
        """The model at step 0, on the CPU."""
        ...

    def windows(self, step: int) -> Tensor:
        """What a step learns from, int64: ``[N, W + 1]`` tokens, or as the task has it; a pure function of the step."""
        ...

    def loss(self, model: Any, windows: Tensor) -> Tensor:
        """What is minimised."""
        ...

    def score(self, model: Any, done: bool) -> dict[str, Any]:
        """Figures of the held-out files for the log; short of all of them before the model is ``done``."""
        ...

    def save(self, model: Any, directory: Path) -> None:
        """Write the model as a checkpoint, in float16."""
        ...


class _DecoderTask:
    """A decoder that learns a text, and from its teacher if it has one."""

    def __init__(self, recipe: Recipe, data: Encoded, teacher: Transformer | None, stream: Tensor) -> None:
        self._recipe, self._data, self._teacher, self._stream = recipe, data, teacher, stream

    def build(self) -> Transformer:
        model = Transformer(ModelConfig.from_dict(self._recipe.config()))
        initialize(model, seed=0)
        return model

    def windows(self, step: int) -> Tensor:
        window = self._recipe.window_at(step)
        return batch(self._stream, window, self._recipe.step_tokens // window, step)

    def loss(self, model: Transformer, windows: Tensor) -> Tensor:
        return loss_of(model, windows, self._teacher)

    def score(self, model: Transformer, done: bool) -> dict[str, Any]:
        score = bits_per_byte(model, self._data.held_out, CONTEXT, limit=0 if done else 1000)
        return {"held_out_bits_per_byte": round(score, 4)}

    def save(self, model: Transformer, directory: Path) -> None:
        save_model(model, self._recipe.config(), directory, torch.float16)


class _State:
    """Weights, optimisers and the step, kept in one file that is replaced as a whole."""

    def __init__(self, recipe: Recipe, task: Task, path: Path, device: str) -> None:
        self.model: Any = task.build()
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
    task = _task(recipe, folder, data, teacher, log)
    state = _State(recipe, task, folder / recipe.name / "state.pt", device)
    state.save()
    objective: Any = torch.compile(task.loss, dynamic=False) if compiled else task.loss
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
            windows = task.windows(state.step).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                loss = objective(state.model, windows)
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
        scores = task.score(state.model, done)
        # What the time depends on, for the card.
        how = {"device": device, "threads": torch.get_num_threads(), "autocast": autocast, "compiled": compiled}
        record(**scores, seconds=round(time.monotonic() - began), **how)
    mark = _mark(recipe, folder)
    mark.unlink(missing_ok=True)
    task.save(state.model, folder / recipe.name / "export")
    mark.write_text(str(state.step))
    return done


def _task(recipe: Recipe, folder: Path, data: Encoded, teacher: Transformer | None, log: Callable[[str], None]) -> Task:
    if teacher is None:
        return _DecoderTask(recipe, data, None, data.stream)
    teacher.prepare()
    path = folder / recipe.name / "generated.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    generated = generated_text(teacher, data.stream, recipe.generated, path, log)
    if isinstance(recipe, Eagle3Recipe):
        return Eagle3Task(recipe, data, teacher, generated)
    if isinstance(recipe, DFlashRecipe):
        return DFlashTask(recipe, data, teacher, generated)
    return _DecoderTask(recipe, data, teacher, torch.cat((data.stream, generated)))
