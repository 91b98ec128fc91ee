"""Exact enumeration (``specdec_kernels.certify.exact``), and models that fit in one tensor."""

import torch

from specdec_kernels.certify.exact import Enumerator, World, law_of_text, noise_of

__all__ = ["Enumerator", "World", "law_of_text", "noise_of", "random_table"]


def random_table(vocab, seed, scale=1.0):
    """Logits ``[V, V]`` after each last token: a language model that fits in one tensor."""
    return torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed)) * scale
