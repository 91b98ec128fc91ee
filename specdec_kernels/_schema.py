"""The single source of every op's schema.

``torch.ops.specdec.*`` (and the namespaces of the other backends) are defined from :data:`OPS`; the
build generates the C++ header against which ``csrc/binding/register.h`` checks parameter types at
compile time (run this file with ``--header PATH``). It imports nothing outside the standard
library, so that the build can run it without the package.

Every op has one form: it writes into tensors that it is given and returns nothing. The names of
groups of arguments:

* tree: ``cu_nodes [B+1]``, ``tokens``, ``parents``, ``depths``, ``ends`` ``[T]`` of a
  ``TokenTree``;
* sampling: ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``seed`` ``[B]`` and the host integer
  ``filter_order`` (:data:`FILTER_ORDERS`);
* stops: ``min_confidence``, ``max_entropy`` ``[B]`` float32: where drafting ends;
* law: ``allowed [rows, ceil(V/32)]`` with ``allowed_rows``: which ids a row may emit;
* result: ``out_tokens``, ``num_tokens``, ``path``, ``status``, ``logprobs``, ``lse`` of a
  ``VerifyResult``; lossy rules add ``divergence [B, max_depth+1]``.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FILTER_ORDERS = ("top_k_first", "joint", "min_p_first")
LOGPROBS = (None, "processed", "raw")
REJECTION_RULES = ("token", "block", "traversal", "greedy_plus_one")
VISIBILITIES = ("tree", "block")
MASK_LAYOUTS = ("full", "query", "words")

_TREE = "Tensor cu_nodes, Tensor tokens, Tensor parents, Tensor depths, Tensor ends"
_NEW_TREE = (
    "Tensor(a!) cu_nodes, Tensor(b!) tokens, Tensor(c!) parents, Tensor(d!) depths, Tensor(e!) ends, Tensor(f!) status"
)
_PAGES = "Tensor block_table, Tensor? table_rows, Tensor context_lens"
_NODES = f"{_TREE}, Tensor? slots, int max_nodes, int max_depth, Tensor? query_nodes, Tensor? cu_queries"
_SAMPLING = "Tensor temperature, Tensor? top_k, Tensor? top_p, Tensor? min_p, Tensor seed, int filter_order"
_LAW = "Tensor? allowed, Tensor? allowed_rows"
_STOPS = "Tensor? min_confidence, Tensor? max_entropy"
_BATCH = "Tensor? active, Tensor? max_tokens, int logprobs_mode"
_RESULT = (
    "Tensor(a!) out_tokens, Tensor(b!) num_tokens, Tensor(c!) path, Tensor(d!) status, "
    "Tensor(e!)? logprobs, Tensor(f!)? lse"
)
_LOSSY_RESULT = f"{_RESULT}, Tensor(g!)? divergence"


@dataclass(frozen=True)
class Argument:
    """One argument of an op: its schema type without the alias annotation, and whether the op writes it."""

    name: str
    type: str
    mutable: bool


@dataclass(frozen=True)
class Op:
    """One op: ``name`` is ``<family>_<function>``; ``backends`` are those that can ever serve it."""

    name: str
    arguments_text: str
    backends: tuple[str, ...] = ("cuda", "triton", "cpu", "reference")

    @property
    def schema(self) -> str:
        """The full schema string, as ``torch.library.Library.define`` takes it."""
        return f"{self.name}({self.arguments_text}) -> ()"

    @property
    def family(self) -> str:
        """The module of the public function."""
        return self.name.split("_", 1)[0]

    @property
    def function(self) -> str:
        """The name of the public function in its module."""
        return self.name.split("_", 1)[1]

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """The arguments, parsed."""
        parsed = []
        for text in self.arguments_text.split(", "):
            type_text, name = text.rsplit(" ", 1)
            parsed.append(Argument(name, re.sub(r"\([a-z]!\)", "", type_text), "!" in type_text))
        return tuple(parsed)


OPS: tuple[Op, ...] = (
    Op(
        "tree_from_chains",
        "Tensor chains, Tensor? lengths, Tensor(a!) cu_nodes, Tensor(b!) tokens, "
        "Tensor(c!) parents, Tensor(d!) depths, Tensor(e!) ends, Tensor(f!) status",
    ),
    Op(
        "tree_from_parents",
        "Tensor given_tokens, Tensor given_parents, Tensor cu_nodes, Tensor? lengths, int max_nodes, int max_depth, "
        "Tensor(a!) tokens, Tensor(b!) parents, Tensor(c!) depths, Tensor(d!) ends, Tensor(e!)? slots, "
        "Tensor(f!) order, Tensor(g!) status",
    ),
    Op(
        "tree_from_beams",
        "Tensor root_tokens, Tensor pool_tokens, Tensor pool_parents, Tensor scores, Tensor? lengths, "
        f"Tensor? budgets, int max_nodes, int max_depth, {_NEW_TREE}, Tensor(g!) order",
    ),
    Op(
        "tree_best_first",
        "Tensor root_tokens, Tensor log_probs, Tensor token_ids, Tensor? budgets, int max_nodes, int total_budget, "
        f"{_NEW_TREE}, Tensor(g!)? scores",
    ),
    Op("tree_to_dense_mask", f"{_TREE}, Tensor(a!) mask"),
    Op(
        "tree_to_packed_mask",
        f"{_TREE}, Tensor? context_lens, int layout, int max_nodes, Tensor(a!) mask, Tensor(b!)? indptr",
    ),
    Op("tree_to_links", f"{_TREE}, Tensor(a!) first_child, Tensor(b!) next_sibling, Tensor(c!) retrieve_index"),
    Op("tree_to_paths", f"{_TREE}, Tensor(a!) paths, Tensor(b!) num_paths"),
    Op(
        "sample_sample",
        f"Tensor logits, {_SAMPLING}, Tensor positions, {_LAW}, Tensor? active, "
        "Tensor(a!) out_tokens, Tensor(b!) status",
    ),
    Op(
        "sample_draft",
        f"Tensor logits, {_SAMPLING}, Tensor positions, Tensor? requests, Tensor? depths, "
        f"Tensor? nodes, {_LAW}, Tensor? draft_to_target, {_STOPS}, bool replacement, int top, bool coupled, "
        "Tensor(a!) drafts, Tensor(b!) status, Tensor(c!)? certainty",
    ),
    Op("verify_greedy", f"{_TREE}, Tensor logits, Tensor? rows, {_LAW}, {_BATCH}, {_RESULT}"),
    Op(
        "verify_match",
        f"{_TREE}, Tensor logits, {_SAMPLING}, Tensor context_lens, Tensor? rows, {_LAW}, {_BATCH}, {_RESULT}",
    ),
    Op(
        "verify_rejection",
        f"{_TREE}, Tensor logits, Tensor? draft_logits, {_SAMPLING}, Tensor? draft_temperature, "
        "Tensor? draft_top_k, Tensor? draft_top_p, Tensor? draft_min_p, int draft_filter_order, "
        "Tensor context_lens, int rule, bool replacement, Tensor? rows, Tensor? draft_rows, "
        f"{_LAW}, Tensor? draft_allowed_rows, Tensor? draft_to_target, Tensor? target_to_draft, "
        f"{_BATCH}, {_RESULT}",
    ),
    Op(
        "verify_expect",
        f"{_TREE}, Tensor logits, Tensor? draft_logits, Tensor temperature, Tensor? top_k, Tensor? top_p, "
        "Tensor? min_p, int filter_order, Tensor? draft_temperature, Tensor? draft_top_k, Tensor? draft_top_p, "
        "Tensor? draft_min_p, int draft_filter_order, bool replacement, Tensor? rows, Tensor? draft_rows, "
        f"{_LAW}, Tensor? draft_allowed_rows, Tensor? draft_to_target, Tensor? target_to_draft, Tensor? active, "
        "Tensor? max_tokens, int max_depth, Tensor(a!) token, Tensor(b!) traversal, Tensor(c!) greedy_plus_one, "
        "Tensor(d!) bound",
    ),
    Op(
        "verify_threshold",
        f"{_TREE}, Tensor logits, {_SAMPLING}, Tensor context_lens, float single, float accumulated, Tensor? rows, "
        f"{_LAW}, {_BATCH}, {_LOSSY_RESULT}",
    ),
    Op(
        "verify_typical",
        f"{_TREE}, Tensor logits, {_SAMPLING}, Tensor context_lens, float epsilon, float delta, Tensor? rows, "
        f"{_LAW}, {_BATCH}, {_LOSSY_RESULT}",
    ),
    Op(
        "verify_relaxed",
        f"{_TREE}, Tensor logits, int top_k, float delta, Tensor? rows, {_LAW}, Tensor? relax, {_BATCH}, "
        f"{_LOSSY_RESULT}",
    ),
    Op(
        "verify_synthetic",
        f"{_TREE}, Tensor logits, {_SAMPLING}, Tensor context_lens, Tensor rates, Tensor? rows, {_LAW}, {_BATCH}, "
        f"{_LOSSY_RESULT}",
    ),
    Op(
        "draft_ngram_lookup",
        "Tensor history, Tensor lengths, int min_n, int max_n, Tensor? active, Tensor(a!) drafts, Tensor(b!) counts",
    ),
    Op(
        "draft_expand",
        f"Tensor logits, Tensor? scores, int num, Tensor? draft_to_target, {_STOPS}, "
        "Tensor(a!) tokens, Tensor(b!) child_scores, Tensor(c!) beams",
    ),
    Op(
        "draft_block",
        "Tensor tokens, Tensor num_tokens, Tensor context_lens, int mask_token, Tensor? block_table, "
        "Tensor? table_rows, int page_size, Tensor? active, Tensor(a!) roots, Tensor(b!) ids, Tensor(c!) positions, "
        "Tensor(d!)? slots, Tensor(e!) new_context_lens, Tensor(f!)? status",
    ),
    Op("draft_budget", "Tensor scores, Tensor costs, Tensor? active, bool sampled, Tensor(a!) counts"),
    Op(
        "attention_tree_attention",
        f"Tensor query, Tensor key_cache, Tensor value_cache, {_PAGES}, {_NODES}, float scale, float softcap, "
        "int window, Tensor? sinks, Tensor? key_scale, Tensor? value_scale, int visibility, Tensor? active, "
        "Tensor(a!) out, Tensor(b!) lse, Tensor(c!)? status",
    ),
    Op("attention_merge_states", "Tensor values, Tensor lses, Tensor(a!) out, Tensor(b!) lse"),
    Op(
        "kv_write",
        f"Tensor key, Tensor? value, {_PAGES}, {_NODES}, Tensor? key_scale, Tensor? value_scale, Tensor? active, "
        "Tensor(a!) key_cache, Tensor(b!)? value_cache, Tensor(c!)? status",
    ),
    Op(
        "kv_commit",
        "Tensor(a!)[] buffers, int[] group_sizes, Tensor[] block_tables, Tensor?[] table_rows, Tensor[] context_lens, "
        "Tensor?[] slots, Tensor? cu_nodes, Tensor path, Tensor num_tokens, Tensor? active, Tensor(b!)? status",
    ),
    Op("kv_gather", "Tensor values, Tensor cu_nodes, Tensor path, Tensor num_tokens, Tensor(a!) out"),
    Op(
        "kv_inject",
        f"Tensor projected, Tensor? key_norm, Tensor? cos_sin, Tensor? positions, {_PAGES}, Tensor num_tokens, "
        "float eps, bool interleaved, Tensor? key_scale, Tensor? value_scale, Tensor? active, "
        "Tensor(a!)[] key_caches, Tensor(b!)[] value_caches, Tensor(c!)? status",
    ),
    Op("linear_pack", "Tensor weight, Tensor(a!) packed, Tensor(b!)? scales", ("cpu", "reference")),
    Op(
        "linear_skinny",
        "Tensor x, Tensor packed, Tensor? scales, Tensor? bias, Tensor(a!) out",
        ("cpu", "reference"),
    ),
)

BY_NAME: dict[str, Op] = {op.name: op for op in OPS}

_CPP_TYPES = {
    "Tensor": "torch::stable::Tensor",
    "int": "int64_t",
    "float": "double",
    "bool": "bool",
    "str": "std::string",
}


def _cpp_type(schema_type: str) -> str:
    if schema_type.endswith("[]"):
        return f"std::vector<{_cpp_type(schema_type.removesuffix('[]'))}>"
    base = _CPP_TYPES[schema_type.removesuffix("?")]
    return f"std::optional<{base}>" if schema_type.endswith("?") else base


def cpp_header() -> str:
    """The generated header: for each op the function type that its C++ implementation must have."""
    lines = [
        "// Generated from specdec_kernels/_schema.py. Do not edit.",
        "#pragma once",
        "#include <cstdint>",
        "#include <optional>",
        "#include <string>",
        "#include <vector>",
        "#include <torch/csrc/stable/tensor.h>",
        "namespace specdec::schema {",
    ]
    for op in OPS:
        parameters = ", ".join(_cpp_type(argument.type) for argument in op.arguments)
        lines.append(f"using {op.name} = void({parameters});")
    lines.append("}  // namespace specdec::schema")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--header":
        sys.exit("usage: python _schema.py --header PATH")
    target = Path(sys.argv[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.read_text() != cpp_header():  # keep the time stamp: no needless rebuild
        target.write_text(cpp_header())
