"""DFlash: a small decoder that drafts a whole block in one pass, from the target's hidden states.

Of a text whose root is at position ``S`` the drafter gets a block of ``block_size`` rows: the root's token, then masks.
Row ``j`` stands at position ``S + j`` and predicts the token *of its own position*; row 0 predicts nothing. The block
has no history of its own: every layer attends to keys and values that are made of the target's features at the
positions ``0`` to ``S - 1`` (the root's own features do not exist yet), and to the block itself::

    context = hidden_norm(fc(features of the target))       once, for all layers
    keys    = k_norm(Wk [context, x]), values = Wv [context, x]      x: the normalised rows of the block
    logits  = head of the target(norm(h))

Keys and values of the context do not depend on the drafts: :meth:`DFlash.project` computes them for all layers in one
product as soon as the features are there, and ``ops.kv.inject`` stores them.

Layers of full attention see the whole block, also ahead; those of sliding attention are causal inside of it, and see the
last ``window`` positions.

Embedding and head are the target's. Source: Chen, Liang and Liu 2026, DFlash, arXiv 2602.06036, section 3. Checkpoints:
:mod:`python_ref.models.dflash_checkpoint`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .config import ARCHITECTURES, ModelConfig, require
from .linear import Linear, Product, RMSNorm, pack_products
from .transformer import Attend, Block, Transformer

_ARCHITECTURE = "DFlashDraftModel"
# Options of exporters that are not implemented, and the value that each may have all the same.
_UNSUPPORTED: dict[str, Any] = {
    "attention_sink_bias": False,
    "use_aux_hidden_state": True,
    "is_neox_style": True,
    "noise_embed_scale": 1.0,
}


def feature_layers(draft_layers: int, target_layers: int) -> tuple[int, ...]:
    """The layers of the target that a drafter reads if its configuration does not say: one for each of its own.

    Ids as in :meth:`Transformer.forward`, evenly spaced from the second layer to the fourth from the end; of a drafter
    of one layer the middle one.
    """
    if draft_layers == 1:
        return (target_layers // 2,)
    step = (target_layers - 4) / (draft_layers - 1)
    return tuple(min(max(round(1 + i * step), 0), target_layers - 1) for i in range(draft_layers))


@dataclass(frozen=True)
class DFlashConfig:
    """Shape of a drafter.

    Attributes:
        layer: its layers; ``vocab_size`` is that of the target.
        block_size: rows of a block, the root's included: it drafts ``block_size - 1`` tokens.
        mask_token_id: what the rows behind the root are embedded as.
        target_hidden_size: width of one feature.
        features: layers of the target that it reads; None: those of :func:`feature_layers`.
        causal: per layer, whether a row sees only what is before it in the block.
        windows: per layer the positions that a row sees, its own included; 0: all.
        logit_scale: what logits are multiplied by.
    """

    layer: ModelConfig
    block_size: int
    mask_token_id: int
    target_hidden_size: int
    features: tuple[int, ...] | None
    causal: tuple[bool, ...]
    windows: tuple[int, ...]
    logit_scale: float = 1.0

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> DFlashConfig:
        """Read the dictionary of a ``config.json``: that of a Qwen3, ``block_size`` and ``dflash_config``.

        ``dflash_config`` holds ``mask_token_id``, and mostly ``target_layer_ids``; ``causal`` and ``is_causal`` overrule
        what follows from ``layer_types``; with ``use_swa`` all layers have a window of ``swa_window_size``, and see all
        of the block.

        Raises:
            ValueError: for what is not implemented, and for a missing or impossible value; one sentence.
        """
        names = raw.get("architectures")
        known = isinstance(names, list) and names[:1] == [_ARCHITECTURE]
        require(known, "architectures", f"name {_ARCHITECTURE}", names)
        options = raw.get("dflash_config")
        require(isinstance(options, dict), "dflash_config", "be an object", options)
        assert isinstance(options, dict)
        for key, only in _UNSUPPORTED.items():
            for value in (raw.get(key), options.get(key)):
                require(value is None or value == only, key, f"be {str(only).lower()}", value)
        layer = ModelConfig.from_dict(
            {
                **raw,
                "architectures": [ARCHITECTURES[2]],
                "layer_types": None,
                "use_sliding_window": False,
                "tie_word_embeddings": False,
                "eos_token_id": None,
            }
        )

        def count(key: str, value: Any, least: int = 1) -> int:
            valid = isinstance(value, int) and not isinstance(value, bool) and value >= least
            require(valid, key, f"be an integer of at least {least}", value)
            return int(value)

        vocab = raw.get("draft_vocab_size")
        require(vocab in (None, layer.vocab_size), "draft_vocab_size", f"be vocab_size {layer.vocab_size}", vocab)
        mask = count("mask_token_id", options.get("mask_token_id", raw.get("mask_token_id")), 0)
        require(mask < layer.vocab_size, "mask_token_id", f"be below vocab_size {layer.vocab_size}", mask)
        ids = options.get("target_layer_ids")
        if ids is not None:
            valid = isinstance(ids, list) and len(ids) > 0 and all(type(j) is int and j >= 0 for j in ids)
            require(valid, "target_layer_ids", "be a list of layers", ids)
        size = raw.get("target_hidden_size")
        scale = raw.get("logit_scale", options.get("logit_scale"))
        require(scale is None or (type(scale) in (int, float) and scale > 0), "logit_scale", "be above 0", scale)
        causal, windows = _visibility(raw, options, layer.num_layers)
        return cls(
            layer=layer,
            block_size=count("block_size", raw.get("block_size", options.get("block_size")), 2),
            mask_token_id=mask,
            target_hidden_size=layer.hidden_size if size is None else count("target_hidden_size", size),
            features=None if ids is None else tuple(ids),
            causal=causal,
            windows=windows,
            logit_scale=1.0 if scale is None else float(scale),
        )


def _visibility(raw: dict[str, Any], options: dict[str, Any], layers: int) -> tuple[tuple[bool, ...], tuple[int, ...]]:
    """Of each layer whether it is causal inside a block, and its window."""
    kinds = raw.get("layer_types") or ["full_attention"] * layers
    known = isinstance(kinds, list) and len(kinds) == layers
    known = known and all(kind in ("full_attention", "sliding_attention") for kind in kinds)
    require(known, "layer_types", f"name full_attention or sliding_attention for {layers} layers", kinds)
    sliding = [kind == "sliding_attention" for kind in kinds]
    causal, window = list(sliding), raw.get("sliding_window")
    if options.get("use_swa"):
        # Nothing ahead in a block is farther away than a window that is at least as long.
        sliding, causal, window = [True] * layers, [False] * layers, options.get("swa_window_size", window)
    if any(sliding):
        valid = isinstance(window, int) and not isinstance(window, bool) and window > 0
        require(valid, "sliding_window", "be a positive integer", window)
    for key, value in (("causal", options.get("causal")), ("is_causal", raw.get("is_causal"))):
        require(isinstance(value, bool | None), key, "be true or false", value)
        if value is not None:
            causal = [value] * layers
    return tuple(causal), tuple(int(window) if slides and window is not None else 0 for slides in sliding)


class DFlash(nn.Module):
    """A drafter for one target. Parameter names are those of the published checkpoints.

    Attributes:
        config: its shape.
        features: ids of the layers of the target that it reads.
        mask_embedding: ``[H]``, what masks are embedded as; None: as ``mask_token_id``.
    """

    mask_embedding: Tensor | None

    def __init__(self, config: DFlashConfig, target: Transformer) -> None:
        """Make a drafter.

        Args:
            config: its shape.
            target: lends embedding and head.

        Raises:
            ValueError: if the drafter reads a layer that the target does not have.
        """
        super().__init__()
        layer, target_layers = config.layer, target.config.num_layers
        self.config = config
        self.features = feature_layers(layer.num_layers, target_layers) if config.features is None else config.features
        if max(self.features) >= target_layers:
            raise ValueError(
                f"target_layer_ids must be below {target_layers}, the layers of the target, got {max(self.features)}"
            )
        self.fc = Linear(len(self.features) * config.target_hidden_size, layer.hidden_size)
        self.hidden_norm = RMSNorm(layer.hidden_size, layer.norm_eps)
        self.layers = nn.ModuleList(Block(layer, i) for i in range(layer.num_layers))
        self.norm = RMSNorm(layer.hidden_size, layer.norm_eps)
        self.register_buffer("mask_embedding", None)
        self._target = (target,)  # in a tuple it is no part of ours
        self.fusion = Product(self.fc)
        sides = [getattr(block.self_attn, name) for block in self.layers for name in ("k_proj", "v_proj")]
        self.injection = Product(*sides)
        self._angles: Tensor | None = None

    @property
    def block_size(self) -> int:
        """Rows of a block."""
        return self.config.block_size

    @property
    def max_positions(self) -> int:
        """Rotary positions that it has."""
        return self.config.layer.max_positions

    @property
    def weight(self) -> Tensor:
        """A weight, for the dtype and the device of all."""
        return self.norm.weight

    def use_linear(self, linear: Any, dtype: torch.dtype) -> None:
        """Compute all products by ``linear = ops.linear`` from here on; see :meth:`Transformer.use_linear`."""
        pack_products(self, linear, dtype)

    def prepare(self) -> Tensor:
        """The rotary table; see :meth:`Transformer.prepare`. Its angles are the drafter's, not the target's."""
        known, like = self._angles, self.weight
        if known is None or known.device != like.device or known.dtype != like.dtype:
            self._angles = known = self.config.layer.rotary.table().to(like)
        return known

    def key_norms(self) -> Tensor:
        """``[layers, D]``, weights of the norm of keys of each layer."""
        return torch.stack([block.self_attn.k_norm.weight for block in self.layers])

    def fuse(self, features: Tensor) -> Tensor:
        """The context: features of the target ``[T, F * target hidden]``, layer by layer, to ``[T, H]``."""
        context: Tensor = self.hidden_norm(self.fusion(features.to(self.weight.dtype)))
        return context

    def project(self, context: Tensor) -> Tensor:
        """Keys and values of all layers: ``[T, H]`` to ``[T, layers, 2, Hkv, D]``, neither normalised nor rotated."""
        layer = self.config.layer
        return self.injection(context).view(-1, layer.num_layers, 2, layer.num_kv_heads, layer.head_dim)

    def embed(self, token_ids: Tensor) -> Tensor:
        """``[T]`` to ``[T, H]``."""
        embedded = self._target[0].model.embed_tokens(token_ids).to(self.weight.dtype)
        if self.mask_embedding is None:
            return embedded
        return torch.where((token_ids == self.config.mask_token_id).unsqueeze(-1), self.mask_embedding, embedded)

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The hidden states of blocks, after the final norm.

        Args:
            token_ids: ``[T]`` int64 or int32, of each block the root's and then masks.
            positions: ``[T]`` int64, the rotary positions, below ``max_positions``.
            attend: see :data:`python_ref.models.transformer.Attend`; its keys and values are those of the block, which
                see the context as well.

        Returns:
            ``[T, H]``. No host synchronisation on CUDA.
        """
        hidden = self.embed(token_ids)
        cosine, sine = self.prepare()[positions].unbind(1)
        for block in self.layers:
            hidden = block(hidden, cosine, sine, attend)
        normed: Tensor = self.norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """``[T, H]`` to ``[T, vocabulary]``: of the token at each row's own position."""
        target = self._target[0]
        logits = target.logits(hidden.to(target.lm_head.weight.dtype))
        return logits if self.config.logit_scale == 1.0 else logits * self.config.logit_scale
