"""Arguments of kernels that vary from call to call.

A kernel is not compiled anew because one of them is 1, or a multiple of 16. The strides of rows of logits and the
numbers of their columns are not among them: on these hangs how wide the loads are.
"""

from __future__ import annotations

_COUNTS = (
    "again allowed_height batch blocks capacity draft_allowed_height draft_height draft_order draft_words first_layer "
    "first_tile height last_tile levels mask_token max_depth max_n max_nodes max_positions min_n most num num_pages "
    "order parts pieces pool ranks share shortest slots slots_total table_columns table_height top total total_budget "
    "total_nodes total_rows width window words"
)

_STRIDES = (
    "active allowed allowed_rows budgets column column_of context_lens costs cu_nodes cu_queries depths draft_allowed "
    "draft_allowed_rows draft_min_p draft_rows draft_temperature draft_to_target draft_top_k draft_top_p drafts ends "
    "given given_parents given_tokens id_of key_head key_layer key_scale lengths log_probs_depth log_probs_rank "
    "log_probs_row lses_head lses_part lses_row max_entropy max_tokens min_confidence min_p node_slots nodes "
    "num_tokens parents path path_column pool_parents_column pool_parents_row pool_tokens_column pool_tokens_row "
    "positions positions_column query_nodes requests root_tokens rows scores_column scores_row seed sinks status "
    "table table_rows target_to_draft temperature token_ids_depth token_ids_rank token_ids_row tokens tokens_column "
    "top_k top_p tree_depths value_head value_layer value_scale"
)

#: For ``triton.jit(do_not_specialize=...)``.
VARYING: list[str] = _COUNTS.split() + [f"{name}_stride" for name in _STRIDES.split()]
