"""Reference transformer of the Llama and Qwen families, and its checkpoints."""

from .checkpoint import load_config, load_model, load_tokenizer
from .config import ModelConfig
from .transformer import Transformer

__all__ = ["ModelConfig", "Transformer", "load_config", "load_model", "load_tokenizer"]
