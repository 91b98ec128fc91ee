"""The Triton backend: kernels and their launchers.

It is imported where Triton is installed. A launcher takes the arguments of its op's schema in order, checked before by
the public function, writes into the outputs, and returns nothing. It runs on the device of its tensors: on a GPU
compiled, on the CPU interpreted (``TRITON_INTERPRET=1`` in the environment before the package is imported). It reads
nothing on the host and allocates by shapes alone, so that launches can be captured in CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable

from .draft import draft_ngram_lookup
from .sample import sample_draft, sample_sample
from .tree import tree_from_chains
from .verify import verify_greedy, verify_match, verify_rejection

#: Op -> launcher.
KERNELS: dict[str, Callable[..., None]] = {
    "tree_from_chains": tree_from_chains,
    "sample_sample": sample_sample,
    "sample_draft": sample_draft,
    "verify_greedy": verify_greedy,
    "verify_match": verify_match,
    "verify_rejection": verify_rejection,
    "draft_ngram_lookup": draft_ngram_lookup,
}
