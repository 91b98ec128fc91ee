"""EAGLE-3: a drafter of one layer that reads the target's hidden states.

Position ``i`` of the head joins what the target thought of token ``i`` with what came next: its input is the pair
(``g_i``, token ``i + 1``), its rotary position ``i``, and it predicts token ``i + 2``. ``g_i = fc(features of token i)``
is the hidden state that the head reads where the target has been; beyond, it reads its own output in the place of
``g_i``, and the pair of the draft one further on is (output of position ``i``, token ``i + 2``).

One layer, at every position::

    x = [input_layernorm(embedding of token i + 1), hidden_norm(g)]     2 H wide
    h = g + attention(x)                                               the stream is g itself, not normalised
    a = h + mlp(post_attention_layernorm(h))                           the output: the g of the next draft
    logits = lm_head(norm(a))                                          over the draft vocabulary

Source: Li et al. 2025, EAGLE-3, arXiv 2503.01840, section 3. Checkpoints: :mod:`python_ref.models.eagle3_checkpoint`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .config import ARCHITECTURES, ModelConfig, require
from .linear import Linear, Product, RMSNorm, pack_products
from .transformer import MLP, Attend, Attention

# What exporters call the architecture; the published heads say that of their target.
_ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "LlamaForCausalLM")
_NORM_VARIANTS = ("norm_before_residual", "norm_before_fc", "fc_norm")


def feature_layers(num_layers: int) -> tuple[int, int, int]:
    """The layers of the target that a head reads, low, middle and high: ids as in :meth:`Transformer.forward`.

    Those whose outputs enter the layers 2, ``L // 2`` and ``L - 3``, counted from 0. A target of fewer than 6 layers has
    not all of them; there each id goes to the nearest layer, and they stay in ascending order.
    """
    wanted = (1, num_layers // 2 - 1, num_layers - 4)
    low, middle, high = sorted(min(max(j, 0), num_layers - 1) for j in wanted)
    return low, middle, high


@dataclass(frozen=True)
class Eagle3Config:
    """Shape of a head.

    Attributes:
        layer: its one layer; ``vocab_size`` is that of the target.
        draft_vocab_size: tokens that it can draft.
        target_hidden_size: width of one feature.
        features: layers of the target that it reads; None: those of :func:`feature_layers`.
    """

    layer: ModelConfig
    draft_vocab_size: int
    target_hidden_size: int
    features: tuple[int, ...] | None = None

    @property
    def num_features(self) -> int:
        """Layers of the target that are read."""
        return 3 if self.features is None else len(self.features)

    @property
    def is_reduced(self) -> bool:
        """Whether the draft vocabulary is a part of the target's."""
        return self.draft_vocab_size != self.layer.vocab_size

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Eagle3Config:
        """Read the dictionary of a ``config.json``: that of a Llama of one layer, and ``draft_vocab_size``.

        Optional are ``target_hidden_size``, and ``eagle_config`` with ``eagle_aux_hidden_state_layer_ids``: layers of
        the target, counted from 0, whose outputs are read.

        Raises:
            ValueError: for what is not implemented, and for a missing or impossible value; one sentence.
        """
        names = raw.get("architectures")
        architecture = (names or ["nothing"])[0] if isinstance(names, list | None) else names
        known = architecture in _ARCHITECTURES
        require(known, "architectures", f"name one of {', '.join(_ARCHITECTURES)}", architecture)
        options = raw.get("eagle_config") or {}
        require(isinstance(options, dict), "eagle_config", "be an object", options)
        for key in _NORM_VARIANTS:
            wanted = raw.get(key) or options.get(key)
            require(not wanted, key, "be false", wanted)
        layer = ModelConfig.from_dict(
            {**raw, "architectures": [ARCHITECTURES[0]], "tie_word_embeddings": False, "eos_token_id": None}
        )
        require(layer.num_layers == 1, "num_hidden_layers", "be 1", layer.num_layers)
        vocab, size = raw.get("draft_vocab_size"), raw.get("target_hidden_size")
        vocab = layer.vocab_size if vocab is None else vocab
        size = layer.hidden_size if size is None else size
        for key, value in (("draft_vocab_size", vocab), ("target_hidden_size", size)):
            valid = isinstance(value, int) and not isinstance(value, bool) and value > 0
            require(valid, key, "be a positive integer", repr(value))
        require(vocab <= layer.vocab_size, "draft_vocab_size", f"be at most vocab_size {layer.vocab_size}", vocab)
        ids = options.get("eagle_aux_hidden_state_layer_ids")
        if ids is not None:
            valid = isinstance(ids, list) and len(ids) > 0 and all(type(j) is int and j >= 0 for j in ids)
            require(valid, "eagle_aux_hidden_state_layer_ids", "be a list of layers", ids)
        return cls(layer, vocab, size, None if ids is None else tuple(ids))


class Midlayer(nn.Module):
    """The one layer: attention over pairs of token and hidden state, and an MLP, added to the hidden state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.hidden_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, 0, 2 * config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, embedded: Tensor, hidden: Tensor, cosine: Tensor, sine: Tensor, attend: Attend) -> Tensor:
        """``embedded [T, H]`` of the next tokens and ``hidden [T, H]`` to ``[T, H]``."""
        pair = torch.cat((self.input_layernorm(embedded), self.hidden_norm(hidden)), dim=-1)
        hidden = hidden + self.self_attn(pair, cosine, sine, attend)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Eagle3(nn.Module):
    """A head for one target. Parameter names are those of the published checkpoints.

    Attributes:
        config: its shape.
        features: ids of the layers of the target that it reads.
        d2t: ``[draft vocabulary]`` int64, what is to be added to a draft id to get the target's id; None: the
            vocabulary is the target's.
        t2d: ``[vocabulary]`` bool, the target's tokens that can be drafted; None: all.
    """

    d2t: Tensor | None
    t2d: Tensor | None

    def __init__(self, config: Eagle3Config, target_layers: int, embedding: nn.Embedding | None = None) -> None:
        """Make a head.

        Args:
            config: its shape.
            target_layers: layers of the target.
            embedding: of the target, which the head borrows and does not store; None: it has its own.

        Raises:
            ValueError: if the head reads a layer that the target does not have.
        """
        super().__init__()
        layer = config.layer
        self.config = config
        self.features = feature_layers(target_layers) if config.features is None else config.features
        if max(self.features) >= target_layers:
            raise ValueError(
                f"eagle_aux_hidden_state_layer_ids must be below {target_layers}, the layers of the target, "
                f"got {max(self.features)}"
            )
        self.fc = Linear(config.num_features * config.target_hidden_size, layer.hidden_size)
        self.midlayer = Midlayer(layer)
        self.norm = RMSNorm(layer.hidden_size, layer.norm_eps)
        self.lm_head = Linear(layer.hidden_size, config.draft_vocab_size)
        self.register_buffer(
            "d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64) if config.is_reduced else None
        )
        self.register_buffer("t2d", torch.zeros(layer.vocab_size, dtype=torch.bool) if config.is_reduced else None)
        if embedding is None:
            self.embed_tokens = nn.Embedding(layer.vocab_size, layer.hidden_size)
        self._borrowed = embedding if embedding is None else (embedding,)  # in a tuple it is no parameter of ours
        self.fusion, self.head = Product(self.fc), Product(self.lm_head)
        self._angles: Tensor | None = None

    @property
    def max_positions(self) -> int:
        """Rotary positions that it has: pairs that a text may give."""
        return self.config.layer.max_positions

    @property
    def weight(self) -> Tensor:
        """A weight, for the dtype and the device of all."""
        return self.norm.weight

    def use_linear(self, linear: Any, dtype: torch.dtype) -> None:
        """Compute all products by ``linear = ops.linear`` from here on; see :meth:`Transformer.use_linear`."""
        pack_products(self, linear, dtype)

    def prepare(self) -> Tensor:
        """The rotary table; see :meth:`Transformer.prepare`."""
        known, like = self._angles, self.weight
        if known is None or known.device != like.device or known.dtype != like.dtype:
            self._angles = known = self.config.layer.rotary.table().to(like)
        return known

    def target_ids(self) -> Tensor | None:
        """``[draft vocabulary]`` int64, the target's id of each draft id (the ``draft_to_target`` of the ops).

        None if the vocabularies are the same.
        """
        return None if self.d2t is None else torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t

    def draft_ids(self) -> Tensor | None:
        """``[vocabulary]`` int64, the inverse of :meth:`target_ids`, -1 = none; None if the vocabularies are the same."""
        ids = self.target_ids()
        if ids is None or self.t2d is None:
            return None
        inverse = torch.full((len(self.t2d),), -1, device=ids.device)
        inverse[ids] = torch.arange(len(ids), device=ids.device)
        return inverse

    def fuse(self, features: Tensor) -> Tensor:
        """``g``: features of the target ``[T, F * target hidden]``, layer by layer, to ``[T, H]``."""
        return self.fusion(features.to(self.weight.dtype))

    def forward(self, hidden: Tensor, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The hidden states of the drafts.

        Args:
            hidden: ``[T, H]``, :meth:`fuse` of the target's features of token ``i``, or what an earlier call put out.
            token_ids: ``[T]`` int64 or int32, the tokens ``i + 1`` (ids of the target).
            positions: ``[T]`` int64, the rotary positions ``i``, below ``max_positions``.
            attend: see :data:`python_ref.models.transformer.Attend`; the only layer is 0.

        Returns:
            ``[T, H]``, not normalised. No host synchronisation on CUDA.
        """
        embed = self.embed_tokens if self._borrowed is None else self._borrowed[0]
        cosine, sine = self.prepare()[positions].unbind(1)
        moved: Tensor = self.midlayer(embed(token_ids).to(hidden.dtype), hidden, cosine, sine, attend)
        return moved

    def logits(self, hidden: Tensor) -> Tensor:
        """``[T, H]`` to ``[T, draft vocabulary]``: row of token ``i + 2``."""
        return self.head(self.norm(hidden))
