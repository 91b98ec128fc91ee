"""What a Hugging Face ``config.json`` says about a dense Llama, Qwen2 or Qwen3 decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .rotary import Rotary, number

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_LARGEST = 2**31 - 1
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a decoder. Sizes are in elements, lengths in tokens."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rotary: Rotary
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    stop_tokens: tuple[int, ...] = ()

    @property
    def max_positions(self) -> int:
        """Tokens that a sequence may have, prompt and drafts included."""
        return self.rotary.limit

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ModelConfig:
        """Read the dictionary of a ``config.json``.

        Raises:
            ValueError: for an architecture, activation, attention or rope scaling that is not
                implemented, and for a missing or impossible value; one sentence.
        """
        names = raw.get("architectures")
        architecture = (names or ["nothing"])[0] if isinstance(names, list | None) else names
        require(architecture in ARCHITECTURES, "architectures", _one_of(ARCHITECTURES), architecture)
        llama, qwen2 = architecture == ARCHITECTURES[0], architecture == ARCHITECTURES[1]
        activation = raw.get("hidden_act", "silu")
        require(activation == "silu", "hidden_act", "be silu", activation)
        layers = raw.get("layer_types") or []
        require(isinstance(layers, list), "layer_types", "be a list", layers)
        windowed = raw.get("use_sliding_window") or "sliding_attention" in layers
        require(not windowed, "use_sliding_window", "be false", "true")
        quantized = raw.get("quantization_config")
        require(not quantized, "quantization_config", "be absent", "a quantised checkpoint")
        sizes = {key: _positive(raw, key) for key in _REQUIRED}
        hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
        kv_heads = _positive(raw, "num_key_value_heads", heads)
        head_dim = _positive(raw, "head_dim", hidden // heads)
        require(heads % kv_heads == 0, "num_key_value_heads", f"divide {heads}", kv_heads)
        require(head_dim % 2 == 0, "head_dim", "be even", head_dim)
        attention_bias = _flag(raw, "attention_bias")
        return cls(
            architecture=architecture,
            vocab_size=sizes["vocab_size"],
            hidden_size=hidden,
            intermediate_size=sizes["intermediate_size"],
            num_layers=sizes["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=number(raw, "rms_norm_eps", 1e-6),
            rotary=Rotary.from_dict(raw, head_dim, _positive(raw, "max_position_embeddings", 2048)),
            tied=_flag(raw, "tie_word_embeddings"),
            qkv_bias=qwen2 or attention_bias,
            output_bias=not qwen2 and attention_bias,
            mlp_bias=llama and _flag(raw, "mlp_bias"),
            qk_norm=architecture == ARCHITECTURES[2],
            stop_tokens=stop_tokens(raw),
        )


def stop_tokens(raw: dict[str, Any], file: str = "config.json") -> tuple[int, ...]:
    """``eos_token_id`` of a ``config.json`` or ``generation_config.json``: none, one or several.

    Raises:
        ValueError: if it is anything else; one sentence.
    """
    value = raw.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool):
            raise ValueError(f"{file}: eos_token_id must be a token id or a list of them, got {str(value)[:80]}")
    return tuple(ids)


def require(holds: bool, key: str, requirement: str, actual: object) -> None:
    """Refuse a value of a ``config.json`` with a ValueError in one sentence."""
    if not holds:
        raise ValueError(f"config.json: {key} must {requirement}, got {str(actual)[:80]}")


def _flag(raw: dict[str, Any], key: str) -> bool:
    value = raw.get(key)
    require(isinstance(value, bool | None), key, "be true or false", repr(value))
    return bool(value)


def _one_of(names: tuple[str, ...]) -> str:
    return f"name one of {', '.join(names)}"


def _positive(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    valid = isinstance(value, int) and not isinstance(value, bool) and value > 0
    require(valid, key, "be a positive integer", "nothing" if value is None else repr(value))
    require(value <= _LARGEST, key, f"be at most {_LARGEST}", value)  # type: ignore[operator]
    return int(value)  # type: ignore[arg-type]
