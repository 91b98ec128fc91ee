"""The Triton backend: kernels and their launchers.

It is imported where Triton is installed. A launcher takes the arguments of its op's schema in order, checked before by
the public function, writes into the outputs, and returns nothing. It runs on the device of its tensors: on a GPU
compiled, on the CPU interpreted (``TRITON_INTERPRET=1`` in the environment before the package is imported). It reads
nothing on the host and allocates by shapes alone, so that launches can be captured in CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable

from .attention import attention_merge_states, attention_tree_attention
from .best_first import tree_best_first
from .budget import draft_budget
from .draft import draft_block, draft_expand, draft_ngram_lookup
from .expect import verify_expect
from .inject import kv_inject
from .kv import kv_commit, kv_gather
from .sample import sample_draft, sample_sample
from .store import kv_write
from .tree import tree_from_chains
from .tree_build import tree_from_beams, tree_from_parents
from .tree_export import tree_to_dense_mask, tree_to_links, tree_to_packed_mask, tree_to_paths
from .verify import verify_greedy, verify_match, verify_rejection
from .verify_lossy import verify_relaxed, verify_synthetic, verify_threshold, verify_typical

#: Op -> launcher.
KERNELS: dict[str, Callable[..., None]] = {
    "tree_from_chains": tree_from_chains,
    "tree_from_parents": tree_from_parents,
    "tree_from_beams": tree_from_beams,
    "tree_best_first": tree_best_first,
    "tree_to_dense_mask": tree_to_dense_mask,
    "tree_to_packed_mask": tree_to_packed_mask,
    "tree_to_links": tree_to_links,
    "tree_to_paths": tree_to_paths,
    "sample_sample": sample_sample,
    "sample_draft": sample_draft,
    "verify_greedy": verify_greedy,
    "verify_match": verify_match,
    "verify_rejection": verify_rejection,
    "verify_expect": verify_expect,
    "verify_threshold": verify_threshold,
    "verify_typical": verify_typical,
    "verify_relaxed": verify_relaxed,
    "verify_synthetic": verify_synthetic,
    "draft_ngram_lookup": draft_ngram_lookup,
    "draft_expand": draft_expand,
    "draft_block": draft_block,
    "draft_budget": draft_budget,
    "kv_write": kv_write,
    "kv_commit": kv_commit,
    "kv_gather": kv_gather,
    "kv_inject": kv_inject,
    "attention_tree_attention": attention_tree_attention,
    "attention_merge_states": attention_merge_states,
}
