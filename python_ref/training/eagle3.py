"""Training-time test of an EAGLE-3 head: it learns from its own outputs, as it will have to draft with them.

A row ``i`` of a window stands for one draft chain. Step 0 pairs the target's features of token ``i`` with token
``i + 1``; step ``s`` pairs the output of step ``s - 1`` of the same row with token ``i + 1 + s``, at rotary position
``i + s``. It sees the pairs of step 0 up to row ``i``, and those of the steps 1 to ``s`` of its own row, just as a draft
``s`` tokens ahead sees the committed text and the drafts before it. Its label is the target's law of token
``i + 2 + s``.

Source: Li et al. 2025, EAGLE-3, arXiv 2503.01840, section 3.2 and figure 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.eagle3 import Eagle3, Eagle3Config
from ..models.eagle3_checkpoint import save_eagle3
from ..models.transformer import Transformer, causal
from .data import Encoded, batch
from .recipes import Eagle3Recipe

#: What the loss of a step weighs, against that of the step before.
DECAY = 0.8


def draft_vocabulary(text: Tensor, vocab_size: int, count: int) -> Tensor:
    """The ``count`` most frequent tokens of a text ``[N]``, ascending, int64; of two as frequent the lower id."""
    frequency = torch.bincount(text, minlength=vocab_size)
    return frequency.argsort(descending=True, stable=True)[:count].sort().values


def build(recipe: Eagle3Recipe, teacher: Transformer, text: Tensor) -> Eagle3:
    """A head at the beginning of its training, on the CPU.

    It starts from what is known: ``fc`` brings the features to unit size and hands the highest one on, final norm and
    head are the target's, so that an untrained layer drafts what the target would have said some layers earlier.
    """
    config = Eagle3Config.from_dict(recipe.config())
    head = Eagle3(config, teacher.config.num_layers, teacher.model.embed_tokens)
    if head.d2t is not None and head.t2d is not None:
        kept = draft_vocabulary(text, config.layer.vocab_size, config.draft_vocab_size)
        head.d2t.copy_(kept - torch.arange(len(kept)))
        head.t2d[kept] = True
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if parameter.ndim < 2:
                torch.nn.init.ones_(parameter)
                continue
            deviation = parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "fc.weight")):
                deviation /= 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
        size = config.target_hidden_size
        head.fc.weight[:, -size:] += torch.eye(config.layer.hidden_size, size)
        device = teacher.model.embed_tokens.weight.device
        features = labels(head.to(device), teacher, text[None, :257].to(device))[0].cpu()
        scale = features.view(-1, config.num_features, size).pow(2).mean((0, 2)).sqrt()
        head.cpu().fc.weight /= scale.repeat_interleave(size)
        ids = head.target_ids()
        weight = teacher.lm_head.weight.cpu()
        head.lm_head.weight.copy_(weight if ids is None else weight[ids])
        head.norm.weight.copy_(teacher.model.norm.weight)
    return head


class _UnrolledAttention:
    """The ``attend`` of step after step, of ``rows`` windows of equal length.

    Step 0 is causal. A row of a later step sees the keys of step 0 up to its own place, and of every step since, its
    own included, the key at its own place.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``[rows * W, Hq, D]`` of the next step."""
        rows, heads, size = self._rows, query.shape[1], query.shape[2]

        def split(x: Tensor) -> Tensor:  # [rows, Hkv, heads of one, W, D]
            return x.view(rows, -1, key.shape[1], x.shape[1] // key.shape[1], size).permute(0, 2, 3, 1, 4)

        asked = split(query) * size**-0.5
        self._keys.append(split(key))
        self._values.append(split(value))
        width = asked.shape[3]
        first = asked @ self._keys[0].transpose(-1, -2)
        later = torch.ones(width, width, dtype=torch.bool, device=query.device).triu(1)
        scores = [first.masked_fill(later, -torch.inf)]
        scores += [(asked * own).sum(-1, keepdim=True) for own in self._keys[1:]]
        shares = torch.cat(scores, dim=-1).softmax(-1)
        mixed = shares[..., :width] @ self._values[0]
        for s, own in enumerate(self._values[1:]):
            mixed = mixed + shares[..., width + s, None] * own
        return mixed.permute(0, 3, 1, 2, 4).reshape(-1, heads, size)


def unrolled(head: Eagle3, features: Tensor, tokens: Tensor, steps: int) -> Iterator[Tensor]:
    """The hidden states of every step, one after the other: ``[N * W, H]``.

    Args:
        head: the head.
        features: ``[N, W, F * target hidden]`` of tokens ``0`` to ``W - 1``.
        tokens: ``[N, M]`` int64, ``M > W``: the tokens ``0`` to ``M - 1``. A row of step ``s`` that would need one
            beyond takes another instead; what comes out there is of no use.
        steps: how many.
    """
    rows, width = features.shape[:2]
    places = torch.arange(width, device=tokens.device)
    attend = _UnrolledAttention(rows)
    hidden = head.fuse(features.flatten(0, 1))
    for s in range(steps):
        paired = tokens[:, (places + 1 + s).clamp(max=tokens.shape[1] - 1)]
        hidden = head(hidden, paired.flatten(), (places + s).repeat(rows), attend)
        yield hidden


def labels(head: Eagle3, teacher: Transformer, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the target says of ``windows [N, W + 1]``.

    Returns:
        Of the first ``W`` tokens: its features ``[N, W, F * hidden]``; its law ``[N, W, V_draft]`` over the draft
        vocabulary of the token behind each; and ``[N, W]`` bool, whether its best token can be drafted.
    """
    windows = windows[:, :-1]
    rows, length = windows.shape
    with torch.no_grad():
        positions = torch.arange(length, device=windows.device).repeat(rows)
        hidden, features = teacher(windows.flatten(), positions, causal(rows), features=head.features)
        logits = teacher.logits(hidden).float()
        ids = head.target_ids()
        known = torch.ones(len(logits), dtype=torch.bool, device=windows.device)
        if ids is not None and head.t2d is not None:
            known, logits = head.t2d[logits.argmax(-1)], logits[:, ids]
        law = logits.softmax(-1).view(rows, length, -1)
        return features.view(rows, length, -1), law, known.view(rows, length)


def loss_of(head: Eagle3, windows: Tensor, teacher: Transformer, steps: int) -> Tensor:
    """The sum over the steps of ``DECAY^s`` times the mean cross-entropy against the law of the target.

    ``windows [N, W + 1]``. Rows whose label lies behind the window, or where the target's best token cannot be drafted,
    do not count.
    """
    features, law, known = labels(head, teacher, windows)
    rows, width = features.shape[:2]
    places = torch.arange(width, device=windows.device)
    total = features.new_zeros(())
    for s, hidden in enumerate(unrolled(head, features, windows, steps)):
        label = (places + 1 + s).clamp(max=width - 1)
        counted = (known[:, label] & (places + 1 + s < width)).flatten().float()
        logits = head.logits(hidden).float()
        entropy = F.cross_entropy(logits, law[:, label].flatten(0, 1), reduction="none")
        total = total + DECAY**s * (entropy * counted).sum() / counted.sum().clamp(min=1)
    return total


@torch.no_grad()
def agreement(
    head: Eagle3, teacher: Transformer, files: list[tuple[Tensor, int]], window: int, steps: int
) -> list[float]:
    """Per step, the share of places of held-out files where head and target have the same best token.

    Only the first window of a file is looked at; a token that cannot be drafted counts as a miss.
    """
    same, counts = torch.zeros(steps), torch.zeros(steps)
    device = teacher.model.embed_tokens.weight.device
    for tokens, _ in files:
        piece = tokens[None, : window + 1].to(device)
        features, law, known = labels(head, teacher, piece)
        width = features.shape[1]
        for s, hidden in enumerate(unrolled(head, features, piece, min(steps, width - 1))):
            best = head.logits(hidden).argmax(-1)[: width - 1 - s]
            wanted = law[0, 1 + s :].argmax(-1)
            same[s] += ((best == wanted) & known[0, 1 + s :]).sum().cpu()
            counts[s] += width - 1 - s
    return (same / counts.clamp(min=1)).tolist()


class Eagle3Task:
    """What :func:`python_ref.training.train.train` trains for a recipe of a head."""

    def __init__(self, recipe: Eagle3Recipe, data: Encoded, teacher: Transformer, generated: Tensor) -> None:
        self._recipe, self._data, self._teacher, self._generated = recipe, data, teacher, generated

    def build(self) -> Eagle3:
        """The model at step 0, on the CPU."""
        return build(self._recipe, self._teacher, torch.cat((self._data.stream, self._generated)))

    def windows(self, step: int) -> Tensor:
        """``[N, W + 1]`` int64: half of them people's text, half of them the target's; in turns where there is one."""
        window = self._recipe.window_at(step)
        count = self._recipe.step_tokens // window
        people = (count + step % 2) // 2
        parts = ((self._data.stream, people), (self._generated, count - people))
        return torch.cat([batch(stream, window, share, step) for stream, share in parts if share])

    def loss(self, model: Eagle3, windows: Tensor) -> Tensor:
        """What is minimised."""
        return loss_of(model, windows, self._teacher, self._recipe.unrolled)

    def score(self, model: Eagle3, done: bool) -> dict[str, list[float]]:
        """Figures of the held-out files for the log."""
        found = agreement(model, self._teacher, self._data.held_out, 512 if done else 256, self._recipe.unrolled)
        return {"held_out_agreement": [round(share, 4) for share in found]}

    def save(self, model: Eagle3, directory: Path) -> None:
        """Write the model as a checkpoint, in float16."""
        save_eagle3(model, self._recipe.config(), directory, torch.float16)
