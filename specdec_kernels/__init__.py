"""specdec_kernels: the kernel library for speculative decoding.

Everything between "the drafter has guessed" and "the tokens are committed" as fused, lossless,
engine-neutral ops: :mod:`tree` builds draft trees, :mod:`verify` decides straight from logits,
:mod:`sample` draws, :mod:`draft` guesses, and :mod:`linear` multiplies few rows on the CPU.
"""

from . import _fake, attention, draft, kv, linear, sample, tree, verify
from ._backend import BACKENDS, BackendUnavailableError, available_backends, use_backend
from .types import (
    Block,
    Expansion,
    Expectation,
    KvBuffers,
    KvGroup,
    Links,
    Sampling,
    Status,
    TokenTree,
    TreeShape,
    VerifyResult,
)

__version__ = "0.1.0"

__all__ = [
    "BACKENDS",
    "BackendUnavailableError",
    "Block",
    "Expansion",
    "Expectation",
    "KvBuffers",
    "KvGroup",
    "Links",
    "Sampling",
    "Status",
    "TokenTree",
    "TreeShape",
    "VerifyResult",
    "attention",
    "available_backends",
    "draft",
    "kv",
    "linear",
    "sample",
    "tree",
    "use_backend",
    "verify",
]

del _fake
