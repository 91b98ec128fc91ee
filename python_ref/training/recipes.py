"""The recipes of the shipped models: shapes, budgets, optimiser settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VOCAB_SIZE = 2048
CONTEXT = 1024


@dataclass(frozen=True)
class Recipe:
    """One model of the Qwen3 family.

    ``tokens`` is the whole budget, so that the schedule does not know the clock. The learning rate rises over
    ``warmup`` steps, is flat, and falls linearly to zero over the last ``decay`` of the steps. Windows have ``window``
    tokens, and ``CONTEXT`` in the last ``long`` of the steps; a step has ``step_tokens`` always.

    With a ``teacher`` the loss is mostly the cross-entropy against the teacher's law, and the data are the corpus and
    ``generated`` tokens that the teacher wrote.
    """

    name: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    tokens: int
    head_dim: int = 64
    step_tokens: int = 4096
    window: int = 256
    long: float = 0.3
    warmup: int = 100
    decay: float = 0.5
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    matrix_decay: float = 0.05
    teacher: str | None = None
    generated: int = 0
    vocab_size: int = VOCAB_SIZE

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole budget."""
        return self.tokens // self.step_tokens

    def rate(self, step: int) -> float:
        """The factor on the learning rates at ``step``."""
        return min(1.0, (step + 1) / self.warmup, (1 - step / self.steps) / self.decay)

    def window_at(self, step: int) -> int:
        """Tokens per window at ``step``."""
        return CONTEXT if step >= (1 - self.long) * self.steps else self.window

    def config(self) -> dict[str, Any]:
        """The ``config.json`` of the model."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "use_sliding_window": False,
            "bos_token_id": None,
            "eos_token_id": 0,
            "torch_dtype": "float16",
        }


@dataclass(frozen=True)
class Eagle3Recipe(Recipe):
    """An EAGLE-3 head for ``teacher``: ``layers`` is 1, and the other sizes are those of its one layer.

    Half of each step's windows are of the corpus, half of the ``generated`` tokens. The loss is that of ``unrolled``
    drafts in a row (:mod:`python_ref.training.eagle3`). It can draft the ``draft_vocab_size`` most frequent tokens.
    """

    draft_vocab_size: int = VOCAB_SIZE
    unrolled: int = 5

    def config(self) -> dict[str, Any]:
        """The ``config.json`` of the head."""
        return {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "draft_vocab_size": self.draft_vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            # Drafts, and the rows of a window that train them, lie ahead of the last token of the target.
            "max_position_embeddings": 2 * CONTEXT,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "bos_token_id": None,
            "eos_token_id": 0,
            "torch_dtype": "float16",
        }


@dataclass(frozen=True)
class DFlashRecipe(Recipe):
    """A DFlash drafter for ``teacher``, whose text alone it learns from.

    Blocks have ``block_size`` rows; ``window`` tokens have ``anchors`` of them. Row ``o`` of a block weighs
    ``exp(-(o - 1) / block_decay)`` (:mod:`python_ref.training.dflash`).
    """

    block_size: int = 8
    anchors: int = 64
    block_decay: float = 4.0
    target_layers: int = 8
    target_layer_ids: tuple[int, ...] = ()
    # A token that text seldom has.
    mask_token_id: int = VOCAB_SIZE - 1

    def config(self) -> dict[str, Any]:
        """The ``config.json`` of the drafter."""
        options: dict[str, Any] = {"mask_token_id": self.mask_token_id}
        if self.target_layer_ids:
            options["target_layer_ids"] = list(self.target_layer_ids)
        return {
            **super().config(),
            "architectures": ["DFlashDraftModel"],
            "num_target_layers": self.target_layers,
            "block_size": self.block_size,
            "dflash_config": options,
            "layer_types": ["full_attention"] * self.layers,
            "sliding_window": None,
            # Blocks lie ahead of the last token of the target.
            "max_position_embeddings": CONTEXT + 64,
            "tie_word_embeddings": False,
        }


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("pystdlib-target", 256, 8, 4, 2, 768, tokens=3_200_000),
        Recipe(
            "pystdlib-draft",
            192,
            2,
            3,
            1,
            576,
            tokens=2_000_000,
            teacher="pystdlib-target",
            generated=300_000,
        ),
        Eagle3Recipe(
            "pystdlib-eagle3",
            256,
            1,
            4,
            2,
            768,
            tokens=900_000,
            step_tokens=1024,
            matrix_rate=0.03,
            teacher="pystdlib-target",
            generated=300_000,
            long=0.1,
            warmup=50,
            draft_vocab_size=1536,
        ),
        DFlashRecipe(
            "pystdlib-dflash",
            256,
            3,
            4,
            2,
            768,
            tokens=4_400_000,
            step_tokens=2048,
            window=512,
            long=0.2,
            teacher="pystdlib-target",
            generated=4_400_000,
            target_layer_ids=(1, 3, 5, 6),
        ),
    )
}
