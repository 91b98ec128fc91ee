"""The oracle: every op in plain PyTorch and float64, under the names of the public functions.

It reads values on the host and loops over requests: the mathematics is to be seen. Every function
takes tensors on any device and returns its results there. ``margin=`` of the functions that decide
receives, per request, how small a relative change of the inputs could change a decision
(:mod:`python_ref.ops.mass`).
"""

from ..types import KvBuffers, KvGroup, Sampling, TokenTree, VerifyResult
from . import attention, draft, kv, linear, sample, tree, verify

__all__ = [
    "KvBuffers",
    "KvGroup",
    "Sampling",
    "TokenTree",
    "VerifyResult",
    "attention",
    "draft",
    "kv",
    "linear",
    "sample",
    "tree",
    "verify",
]
