"""Reference transformer of the Llama and Qwen families, EAGLE-3 heads, and their checkpoints."""

from .checkpoint import load_config, load_model, load_tokenizer
from .config import ModelConfig
from .eagle3 import Eagle3
from .eagle3_checkpoint import load_eagle3
from .transformer import Transformer

__all__ = ["Eagle3", "ModelConfig", "Transformer", "load_config", "load_eagle3", "load_model", "load_tokenizer"]
