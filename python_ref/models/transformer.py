"""A dense decoder of the Llama, Qwen2 or Qwen3 family that reads as a page of the paper.

All rows are flat: ``[T, ...]`` with a position each. Who belongs to which request, and where keys
and values live, is the business of ``attend``, which the caller gives: training passes dense causal
attention, decoding a paged cache.

With packed products on the CPU the bits of a row of hidden states or logits depend on that row
alone, not on the number of rows in the call or of threads: products promise it, norms are per row,
additions and multiplications round each element by itself, the rotary angles come from a table, and
:func:`silu` keeps clear of the places where torch computes the exponential in another way.

Sources: Llama (arXiv 2302.13971) section 2.2, Qwen2 (2407.10671) and Qwen3 (2505.09388) section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ModelConfig
from .linear import HeadNorms, Linear, Product, RMSNorm, pack_products
from .rotary import rotate

#: ``attend(layer, query [T, Hq, D], key [T, Hkv, D], value [T, Hkv, D]) -> [T, Hq, D]``
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

# From this many elements on, torch splits elementwise work over threads.
_THREADED = 32768
# The longest vector step of torch's elementwise loops, in elements: two AVX-512 registers of
# 16-bit numbers. What is left over at the end of a loop goes through another exponential.
_VECTOR = 64


def silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)`` of ``[T, size]``; on the CPU the bits of a row depend on that row alone."""
    rows, size = x.shape
    if x.device.type != "cpu" or x.requires_grad:
        return F.silu(x)
    if size >= _THREADED:
        return torch.cat([silu(part) for part in x.split(_THREADED // 2, dim=1)], dim=1)
    # A row that does not fill its vectors goes alone: its remainder is then always at its end.
    together = 1 if size % _VECTOR else (_THREADED - 1) // size
    if rows <= together:
        return F.silu(x)
    return torch.cat([F.silu(part) for part in x.split(together)])


class Attention(nn.Module):
    """Grouped-query attention; scores and cache are ``attend``'s.

    Biases on queries, keys and values are Qwen2's, norms of queries and keys are Qwen3's. ``inputs`` is the width of
    what queries, keys and values are made of; None: that of the model.
    """

    def __init__(self, config: ModelConfig, layer: int, inputs: int | None = None) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        inputs = inputs or config.hidden_size
        self.q_proj = Linear(inputs, queries, config.qkv_bias)
        self.k_proj = Linear(inputs, keys, config.qkv_bias)
        self.v_proj = Linear(inputs, keys, config.qkv_bias)
        self.o_proj = Linear(queries, config.hidden_size, config.output_bias)
        self.head_norms: HeadNorms | None = None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.head_norms = HeadNorms(self.q_norm, self.k_norm, config.num_heads, config.num_kv_heads)
        self.qkv = Product(self.q_proj, self.k_proj, self.v_proj)
        self.output = Product(self.o_proj)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, attend: Attend) -> Tensor:
        """``[T, inputs]`` to ``[T, hidden]``."""
        heads = self.qkv(x).view(x.shape[0], -1, self.head_dim)
        turning, value = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        if self.head_norms is not None:
            turning = self.head_norms(turning)
        turning = rotate(turning, cosine, sine)
        query, key = turning.split((self.num_heads, self.num_kv_heads), dim=1)
        return self.output(attend(self.layer, query, key, value).reshape(x.shape[0], -1))


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(hidden, inner, config.mlp_bias)
        self.up_proj = Linear(hidden, inner, config.mlp_bias)
        self.down_proj = Linear(inner, hidden, config.mlp_bias)
        self.gate_up = Product(self.gate_proj, self.up_proj)
        self.down = Product(self.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, hidden]`` to ``[T, hidden]``."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(silu(gate) * up)


class Block(nn.Module):
    """Attention and MLP, each on the normalised stream and added to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, attend: Attend) -> Tensor:
        """``[T, hidden]`` to ``[T, hidden]``."""
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, blocks and the final norm (the ``model.`` part of a checkpoint)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class Transformer(nn.Module):
    """The decoder with its head. Parameter names are those of Hugging Face checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.head = Product(self.lm_head)
        self._angles: Tensor | None = None

    def use_linear(self, linear: Any, dtype: torch.dtype) -> None:
        """Compute all products by ``linear = ops.linear`` from here on, with packed weights.

        Args:
            linear: a namespace with ``pack(weight, dtype, bias=)`` and ``skinny(x, packed)``.
            dtype: of the packed weights: float32, bfloat16 or int8. Later changes of the
                parameters have no effect.
        """
        pack_products(self, linear, dtype)

    def prepare(self) -> Tensor:
        """The rotary table ``[max_positions, 2, 1, D]`` in the dtype and on the device of the model.

        Made at the first use; call it before a CUDA graph or a compiler records the model.
        """
        like = self.model.embed_tokens.weight
        known = self._angles
        if known is None or known.device != like.device or known.dtype != like.dtype:
            self._angles = known = self.config.rotary.table().to(like)
        return known

    def forward(
        self, token_ids: Tensor, positions: Tensor, attend: Attend, *, features: Sequence[int] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Hidden states after the final norm, and on request what the layers put out on the way.

        Args:
            token_ids: ``[T]`` int64 or int32.
            positions: ``[T]`` int64, rotary position of each row, below ``config.max_positions``.
            attend: see :data:`Attend`; queries and keys arrive normalised and rotated.
            features: ids of layers, from 0 to ``num_layers - 1``, in any order, also repeated. Id ``j`` is the output of
                layer ``j``, counted from 0: the residual stream behind it, which enters layer ``j + 1``, or of the last
                layer the final norm (``hidden_states[j + 1]`` of ``transformers``, but for the last one).

        Returns:
            ``[T, hidden]`` in the dtype of the weights; with ``features`` also ``[T, len(features) * hidden]``, layer by
            layer in the order of the ids. No host synchronisation on CUDA.
        """
        x = self.model.embed_tokens(token_ids)
        cosine, sine = self.prepare()[positions].unbind(1)
        outputs = {}
        for j, layer in enumerate(self.model.layers):
            x = layer(x, cosine, sine, attend)
            if features is not None and j in features:
                outputs[j] = x
        normed: Tensor = self.model.norm(x)
        if features is None:
            return normed
        return normed, torch.cat([outputs[j] for j in features], dim=-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[T, hidden]`` to ``[T, vocab]``, in the dtype of the hidden states."""
        return self.head(hidden)


def causal(batch: int) -> Attend:
    """Dense causal attention over ``batch`` sequences of equal length, one after the other."""

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.view(batch, -1, x.shape[1], x.shape[2]).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            heads(query),
            heads(key),
            heads(value),
            is_causal=True,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return mixed.transpose(1, 2).reshape(query.shape)

    return attend
