"""Arguments of kernels that vary from call to call.

A kernel is not compiled anew because one of them is 1, or a multiple of 16. The strides of rows of logits and the
numbers of their columns are not among them: on these hangs how wide the loads are.
"""

from __future__ import annotations

_COUNTS = (
    "allowed_height batch blocks draft_allowed_height draft_height draft_order draft_words height max_depth max_n min_n "
    "num order slots top total total_nodes width words"
)

_STRIDES = (
    "active allowed allowed_rows column column_of context_lens cu_nodes depths draft_allowed draft_allowed_rows "
    "draft_min_p draft_rows draft_temperature draft_to_target draft_top_k draft_top_p drafts ends id_of lengths "
    "max_tokens min_p nodes parents positions requests rows seed status target_to_draft temperature tokens top_k top_p "
    "tree_depths"
)

#: For ``triton.jit(do_not_specialize=...)``.
VARYING: list[str] = _COUNTS.split() + [f"{name}_stride" for name in _STRIDES.split()]
