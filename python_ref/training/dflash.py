"""Training of a DFlash drafter: many blocks at once behind one pass of the target.

Anchors are drawn in every window; each is the root of a block. A block sees the target's features strictly before its
anchor, and itself, as it will when it drafts; row ``o`` of it is to predict the token at anchor ``+ o``. Rows far behind
their anchor count less: they are only of use where all before them were accepted.

The label is half the token that the target wrote, half the target's law of it behind the true text, which is the same
on average and less noisy.

Source: Chen, Liang and Liu 2026, DFlash, arXiv 2602.06036, section 3 and appendix.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..models.dflash import DFlash, DFlashConfig
from ..models.dflash_checkpoint import save_dflash
from ..models.rotary import rotate
from ..models.transformer import Transformer, causal
from ..ops.tree import best_first
from .data import Encoded
from .recipes import DFlashRecipe

# Seeds of the order of the pieces and of the anchors.
_ORDER, _ANCHORS = 1 << 21, 1 << 22
# The share of a label that is the token itself.
_HARD = 0.5


def build(recipe: DFlashRecipe, teacher: Transformer) -> DFlash:
    """A drafter at the beginning of its training, on the CPU."""
    drafter = DFlash(DFlashConfig.from_dict(recipe.config()), teacher)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in drafter.named_parameters():
            if parameter.ndim < 2:
                torch.nn.init.ones_(parameter)
                continue
            deviation = parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                deviation /= (2 * recipe.layers) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
        drafter.norm.weight.copy_(teacher.model.norm.weight)
    return drafter


class BlockAttention:
    """The ``attend`` of ``anchors`` blocks per window: to the context before the anchor, and to the block itself."""

    def __init__(self, drafter: DFlash, context: Tensor, anchors: Tensor) -> None:
        """Compute keys and values of the context.

        Args:
            drafter: the drafter.
            context: ``[N, W, H]``, :meth:`DFlash.fuse` of the features at positions ``0`` to ``W - 1``.
            anchors: ``[N, A]`` int64, position of the root of each block.
        """
        count, width = context.shape[:2]
        places = torch.arange(width, device=context.device)
        cosine, sine = drafter.prepare()[places.repeat(count)].unbind(1)
        sides = drafter.project(context.flatten(0, 1))
        self._keys, self._values = [], []
        for i, block in enumerate(drafter.layers):
            key = rotate(block.self_attn.k_norm(sides[:, i, 0]), cosine, sine)
            self._keys.append(key.view(count, width, *key.shape[1:]).transpose(1, 2))
            self._values.append(sides[:, i, 1].view(count, width, *key.shape[1:]).transpose(1, 2))
        size = drafter.block_size
        offsets = torch.arange(size, device=context.device)
        own = (anchors.unsqueeze(-1) + offsets).unsqueeze(-1)  # [N, A, size, 1]
        self._unseen, self._ahead = [], []
        for is_causal, window in zip(drafter.config.causal, drafter.config.windows, strict=True):
            unseen = (places >= anchors[..., None, None]).expand(-1, -1, size, -1)
            ahead = torch.zeros((size, size), dtype=torch.bool, device=context.device)
            if window:
                unseen = unseen | (own - places >= window)
                ahead = ahead | (offsets.unsqueeze(-1) - offsets >= window)
            if is_causal:
                ahead = ahead | (offsets > offsets.unsqueeze(-1))
            self._unseen.append(unseen.unsqueeze(1))  # [N, 1, A, size, W]
            self._ahead.append(ahead)
        self._shape = (*anchors.shape, size)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``[N * A * size, Hq, D]`` of a layer."""
        count, anchors, size = self._shape
        heads, dim = query.shape[1:]
        group = heads // key.shape[1]

        def blocks(x: Tensor) -> Tensor:  # [N, heads, A, size, D]
            return x.view(count, anchors, size, x.shape[1], dim).permute(0, 3, 1, 2, 4)

        def wide(x: Tensor) -> Tensor:
            return x.repeat_interleave(group, dim=1)

        asked, own = blocks(query) * dim**-0.5, wide(blocks(key))
        keys, values = wide(self._keys[layer]), wide(self._values[layer])
        far = (asked.flatten(2, 3) @ keys.transpose(-1, -2)).view(count, heads, anchors, size, -1)
        near = asked @ own.transpose(-1, -2)
        scores = torch.cat(
            (far.masked_fill(self._unseen[layer], -torch.inf), near.masked_fill(self._ahead[layer], -torch.inf)), dim=-1
        )
        shares = scores.softmax(-1)
        width = far.shape[-1]
        mixed = (shares[..., :width].flatten(2, 3) @ values).view(count, heads, anchors, size, dim)
        mixed = mixed + shares[..., width:] @ wide(blocks(value))
        return mixed.permute(0, 2, 3, 1, 4).reshape(-1, heads, dim)


def blocks(drafter: DFlash, features: Tensor, tokens: Tensor, anchors: Tensor) -> Tensor:
    """The hidden states of all blocks, ``[N, A, block size, H]``.

    Args:
        drafter: the drafter.
        features: ``[N, W, F * target hidden]`` of tokens ``0`` to ``W - 1``.
        tokens: ``[N, M]`` int64, the text from position 0 on.
        anchors: ``[N, A]`` int64, below ``M``: positions of the roots.
    """
    size = drafter.block_size
    context = drafter.fuse(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    ids = torch.full((*anchors.shape, size), drafter.config.mask_token_id, device=tokens.device)
    ids[..., 0] = tokens.gather(1, anchors)
    positions = anchors.unsqueeze(-1) + torch.arange(size, device=tokens.device)
    hidden = drafter(ids.flatten(), positions.flatten(), BlockAttention(drafter, context, anchors))
    return hidden.view(*anchors.shape, size, -1)


def loss_of(drafter: DFlash, windows: Tensor, anchors: Tensor, teacher: Transformer, decay: float) -> Tensor:
    """The weighted cross-entropy of the rows behind the anchors.

    Args:
        drafter: the drafter.
        windows: ``[N, W]`` int64.
        anchors: ``[N, A]`` int64, at least one token before the end of the window.
        teacher: the target.
        decay: rows ``o`` weigh ``exp(-(o - 1) / decay)``; those behind the window do not count.
    """
    count, width = windows.shape
    with torch.no_grad():
        places = torch.arange(width, device=windows.device).repeat(count)
        hidden, features = teacher(windows.flatten(), places, causal(count), features=drafter.features)
        law = teacher.logits(hidden).float().softmax(-1).view(count, width, -1)
    size = drafter.block_size
    offsets = torch.arange(1, size, device=windows.device)
    labels = anchors.unsqueeze(-1) + offsets
    weights = torch.exp(-(offsets - 1) / decay) * (labels < width)
    labels = labels.clamp(max=width - 1).flatten(1)  # [N, A (size - 1)]
    tokens = windows.gather(1, labels).flatten()
    wanted = (1 - _HARD) * law.flatten(0, 1)[
        (labels - 1 + torch.arange(count, device=labels.device).unsqueeze(1) * width).flatten()
    ]
    states = blocks(drafter, features.view(count, width, -1), windows, anchors)[:, :, 1:]
    chances = drafter.logits(states.flatten(0, 2)).float().log_softmax(-1)
    entropy = -(wanted * chances).sum(-1) - _HARD * chances.gather(1, tokens.unsqueeze(1))[:, 0]
    return (weights.flatten() * entropy).sum() / weights.sum()


def _drafted(
    drafter: DFlash, teacher: Transformer, text: Tensor, begin: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Root tokens ``[n]``, logits ``[n, block size - 1, V]`` and the tokens that follow, ``[n, block size - 1]``.

    ``text [M]`` int64; the roots are those behind which a whole block has text: ``begin`` to ``M - block size``, some at
    a time.
    """
    size, device = drafter.block_size, teacher.model.embed_tokens.weight.device
    text = text.to(device)
    _, features = teacher(text[:-1], torch.arange(len(text) - 1, device=device), causal(1), features=drafter.features)
    for roots in torch.arange(begin, len(text) - size + 1, device=device).split(128):
        states = blocks(drafter, features[None], text[None], roots[None])[0, :, 1:]
        logits = drafter.logits(states.flatten(0, 1)).view(len(roots), size - 1, -1)
        yield text[roots], logits, text[roots.unsqueeze(1) + torch.arange(1, size, device=device)]


@torch.no_grad()
def agreement(drafter: DFlash, teacher: Transformer, text: Tensor, begin: int) -> Tensor:
    """``[N, block size - 1]`` bool: of every root from ``begin`` on, which drafts are the text that follows it.

    ``text [M]`` int64; the ``N`` roots are those behind which a whole block has text: ``begin`` to ``M - block size``.
    """
    drafted = _drafted(drafter, teacher, text, begin)
    return torch.cat([logits.argmax(-1) == labels for _, logits, labels in drafted])


@torch.no_grad()
def tree_agreement(drafter: DFlash, teacher: Transformer, text: Tensor, begin: int, nodes: int, ranks: int) -> Tensor:
    """As :func:`agreement`, of the best-first trees over the same laws: which of the tokens that follow a root are a path.

    Trees have ``nodes`` nodes with their root, and ``ranks`` tokens for a position behind the same node.
    """
    found = []
    for roots, logits, labels in _drafted(drafter, teacher, text, begin):
        scores, ids = logits.float().log_softmax(-1).topk(ranks, dim=-1)
        tree = best_first(roots.cpu(), scores.cpu(), ids.cpu(), nodes)
        flags = torch.zeros(labels.shape, dtype=torch.bool)
        columns = (tree.tokens, tree.parents, tree.depths)
        for row, wanted in enumerate(labels.tolist()):
            first = int(tree.cu_nodes[row])
            last = first + int(tree.ends[first])
            right = {0}
            places = zip(*(column[first:last].tolist() for column in columns), strict=True)
            for node, (token, parent, depth) in enumerate(places):
                if parent in right and token == wanted[depth - 1]:
                    right.add(node)
                    flags[row, depth - 1] = True
        found.append(flags)
    return torch.cat(found)


@lru_cache(maxsize=2)
def _order(count: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_ORDER + epoch))


class DFlashTask:
    """What :func:`python_ref.training.train.train` trains for a recipe of a drafter."""

    def __init__(self, recipe: DFlashRecipe, data: Encoded, teacher: Transformer, generated: Tensor) -> None:
        self._recipe, self._data, self._teacher, self._generated = recipe, data, teacher, generated

    def build(self) -> DFlash:
        """The model at step 0, on the CPU."""
        return build(self._recipe, self._teacher)

    def windows(self, step: int) -> Tensor:
        """``[N, W + A]`` int64: text that the target wrote, whole pieces of it, and behind it the anchors of each row."""
        recipe = self._recipe
        window = recipe.window_at(step)
        rows = self._generated[: len(self._generated) // window * window].view(-1, window)
        count, anchors = recipe.step_tokens // window, window * recipe.anchors // recipe.window
        picked = []
        for index in range(step * count, (step + 1) * count):
            epoch, within = divmod(index, len(rows))
            picked.append(rows[_order(len(rows), epoch)[within]])
        draw = torch.Generator().manual_seed(_ANCHORS + step)
        drawn = [(torch.randperm(window - 2, generator=draw)[:anchors] + 1).sort().values for _ in range(count)]
        return torch.cat((torch.stack(picked), torch.stack(drawn)), dim=1)

    def loss(self, model: DFlash, windows: Tensor) -> Tensor:
        """What is minimised."""
        recipe = self._recipe
        # A window and its anchors lie side by side: W + W anchors / window.
        width = windows.shape[1] * recipe.window // (recipe.window + recipe.anchors)
        return loss_of(model, windows[:, :width], windows[:, width:], self._teacher, recipe.block_decay)

    def score(self, model: DFlash, done: bool) -> dict[str, list[float]]:
        """Figures of the held-out files for the log: people's text, of which drafts are the beginning of what follows."""
        flags = [
            agreement(model, self._teacher, tokens[: 512 if done else 256], 1)
            for tokens, _ in self._data.held_out
            if len(tokens) > 2 * model.block_size
        ]
        right = torch.cat(flags).long().cumprod(1).float().mean(0)
        return {"held_out_accepted": [round(share, 4) for share in right.tolist()]}

    def save(self, model: DFlash, directory: Path) -> None:
        """Write the model as a checkpoint, in float16."""
        save_dflash(model, self._recipe.config(), directory, torch.float16)
