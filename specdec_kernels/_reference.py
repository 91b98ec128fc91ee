"""The ``reference`` backend: the oracle in ``python_ref`` behind the arguments of an op's schema."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from ._schema import BY_NAME, FILTER_ORDERS, LOGPROBS, MASK_LAYOUTS, REJECTION_RULES, VISIBILITIES
from .types import Block, Expansion, Expectation, KvBuffers, KvGroup, Links, Sampling, TokenTree, VerifyResult

_TREE = ("cu_nodes", "tokens", "parents", "depths", "ends")
_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "seed")
_RESULT = ("out_tokens", "num_tokens", "path", "status", "logprobs", "lse")
_BUILDERS = ("tree_from_parents", "tree_from_beams", "tree_best_first")
_EXPANSION = ("tokens", "child_scores", "beams")
_BLOCK = ("roots", "ids", "positions", "slots", "new_context_lens")


def _take_sampling(given: dict[str, Any], prefix: str) -> Sampling | None:
    fields = {name: given.pop(prefix + name, None) for name in _SETTINGS}
    order = FILTER_ORDERS[given.pop(prefix + "filter_order")]
    if fields["temperature"] is None:
        return None
    return Sampling(**fields, filter_order=order)


def _take_new_tree(op: str, given: dict[str, Any]) -> None:
    """The arguments of a builder, and the tree that it writes."""
    fields = {name: given.pop(name) for name in (*_TREE, "status")}
    width = given["max_nodes"]
    if op == "tree_from_parents":
        given["tokens"], given["parents"] = given.pop("given_tokens"), given.pop("given_parents")
        given["cu_nodes"] = fields["cu_nodes"]
        places = given["slots"]
        given["slots"] = places is not None
        tree = TokenTree(**fields, slots=places, max_nodes=width, max_depth=given["max_depth"])
        given["out"] = tree, given.pop("order")
        return
    budgets = given.pop("budgets")
    given["budget"] = width if budgets is None else budgets
    given["max_nodes"] = None if budgets is None else width
    if op == "tree_from_beams":
        given["tokens"], given["parents"] = given.pop("pool_tokens"), given.pop("pool_parents")
        given["out"] = TokenTree(**fields, max_nodes=width, max_depth=given["max_depth"]), given.pop("order")
        return
    shared = given.pop("total_budget")
    given["total_budget"] = None if shared < 0 else shared
    given["out"] = TokenTree(**fields, max_nodes=width, max_depth=given["log_probs"].shape[1])


def _take_export(op: str, given: dict[str, Any]) -> None:
    """The tree of an export, and the outputs; of the room in a full mask follows the bound of the context."""
    fields = {name: given.pop(name) for name in _TREE}
    depth = fields["tokens"].shape[0]
    if op == "tree_to_dense_mask":
        given["out"] = given.pop("mask")
        size = given["out"].shape[1]
    elif op == "tree_to_links":
        given["out"] = Links(*(given.pop(name) for name in Links._fields))
        given["dtype"] = given["out"].first_child.dtype
        size = given["out"].first_child.shape[1]
    elif op == "tree_to_paths":
        given["out"] = given.pop("paths"), given.pop("num_paths")
        size, depth = given["out"][0].shape[1], given["out"][0].shape[2] - 1
    else:
        size = given.pop("max_nodes")
        given["out"] = given.pop("mask"), given.pop("indptr")
        given["layout"] = MASK_LAYOUTS[given["layout"]]
        if given["layout"] == "full":
            share = given["out"][0].shape[0] // max(fields["cu_nodes"].shape[0] - 1, 1)
            given["max_context"] = max(8 * share // size - size, 0) if size else 0
    given["tree"] = TokenTree(**fields, max_nodes=size, max_depth=depth)


def _take_nodes(given: dict[str, Any]) -> None:
    """The tree of an op over a paged cache."""
    names = (*_TREE, "slots", "max_nodes", "max_depth")
    given["tree"] = TokenTree(**{name: given.pop(name) for name in names})


def _take_buffers(given: dict[str, Any]) -> KvBuffers:
    """The lists of an op that moves rows as groups, each with all fields of its own."""
    tensors, groups = iter(given.pop("buffers")), []
    tables = zip(*(given.pop(name) for name in ("block_tables", "context_lens", "slots", "table_rows")), strict=True)
    for size, (table, lengths, slots, rows) in zip(given.pop("group_sizes"), tables, strict=True):
        own = tuple(next(tensors) for _ in range(size))
        groups.append(KvGroup(own, table, None, lengths, slots, rows))
    given["block_table"] = given["context_lens"] = None
    return KvBuffers(tuple(groups))


def _call(op: str, function: Callable[..., Any], given: dict[str, Any]) -> None:
    """Regroup the flat arguments of the schema into the oracle's records, and call it."""
    if "filter_order" in given:
        given["sampling"] = _take_sampling(given, "")
    if "draft_filter_order" in given:
        given["draft_sampling"] = _take_sampling(given, "draft_")
    if "logprobs_mode" in given:  # the verify family
        result = VerifyResult(*(given.pop(name) for name in _RESULT))
        fields = {name: given.pop(name) for name in _TREE}
        depth = result.path.shape[1] - 1
        given["tree"] = TokenTree(**fields, max_nodes=fields["tokens"].shape[0], max_depth=depth)
        given["logprobs"] = LOGPROBS[given.pop("logprobs_mode")]
        given["out"] = result
        if "rule" in given:
            given["rule"] = REJECTION_RULES[given["rule"]]
    elif op == "verify_expect":
        given["out"] = Expectation(*(given.pop(name) for name in Expectation._fields))
        fields = {name: given.pop(name) for name in _TREE}
        given["tree"] = TokenTree(**fields, max_nodes=fields["tokens"].shape[0], max_depth=given.pop("max_depth"))
    elif op == "tree_from_chains":
        fields = {name: given.pop(name) for name in (*_TREE, "status")}
        width = given["chains"].shape[1]
        given["out"] = TokenTree(**fields, max_nodes=width, max_depth=max(width - 1, 0))
        given["tokens"] = given.pop("chains")
    elif op in _BUILDERS:
        _take_new_tree(op, given)
    elif op.startswith("tree_to_"):
        _take_export(op, given)
    elif op in ("sample_sample", "sample_draft"):
        given["out"] = given.pop("out_tokens" if op == "sample_sample" else "drafts")
        if op == "sample_draft":
            given["num"] = given["out"].shape[1]
    elif op == "draft_ngram_lookup":
        given["num"] = given["drafts"].shape[1]
        given["out"] = (given.pop("drafts"), given.pop("counts"))
    elif op == "attention_tree_attention":
        _take_nodes(given)
        given["visibility"] = VISIBILITIES[given["visibility"]]
        given["out"] = given.pop("out"), given.pop("lse")
    elif op == "attention_merge_states":
        given["out"] = given.pop("out"), given.pop("lse")
    elif op == "kv_commit":
        given["buffers"] = _take_buffers(given)
    elif op == "kv_write":
        _take_nodes(given)
    elif op in ("kv_gather", "kv_inject"):
        pass
    elif op == "draft_block":
        given["page_size"] = given["page_size"] or None
        given["out"] = Block(*(given.pop(name) for name in _BLOCK))
        given["block_size"] = given["out"].ids.shape[1]
    elif op == "draft_budget":
        given["out"] = given.pop("counts")
    elif op == "draft_expand":
        given["out"] = Expansion(*(given.pop(name) for name in _EXPANSION))
        given["beams"] = given["out"].beams.shape[1]
    else:
        raise AssertionError(f"no adapter for {op}")
    function(**given)


def _pack(weight: Any, packed: Any, scales: Any) -> None:
    """The oracle's rows ``[N, K]`` as panels ``[ceil(N/P), K, P]``."""
    made = importlib.import_module("python_ref.ops.linear").pack(weight, packed.dtype)
    panels, inputs, width = packed.shape
    rows = packed.new_zeros((panels * width, inputs))
    rows[: weight.shape[0]] = made.data
    packed.copy_(rows.view(panels, width, inputs).transpose(1, 2))
    if scales is not None:
        scales.copy_(made.scales)


def _skinny(x: Any, packed: Any, scales: Any, bias: Any, out: Any) -> None:
    oracle = importlib.import_module("python_ref.ops.linear")
    outputs, inputs = out.shape[1], x.shape[1]
    rows = packed.transpose(1, 2).reshape(packed.shape[0] * packed.shape[2], inputs)[:outputs]
    out.copy_(oracle.skinny(x, oracle.PackedLinear(rows, scales, bias, (outputs, inputs))))


def race() -> Any:
    """The module through which the oracle draws every random decision."""
    return importlib.import_module("python_ref.ops.race")


@cache
def adapt(op: str) -> Callable[..., None]:
    """A function that takes the arguments of the schema and lets the oracle compute."""
    if op == "linear_pack":
        return _pack
    if op == "linear_skinny":
        return _skinny
    module = importlib.import_module(f"python_ref.ops.{BY_NAME[op].family}")
    function: Callable[..., Any] = getattr(module, BY_NAME[op].function)
    names = [argument.name for argument in BY_NAME[op].arguments]

    def run(*arguments: Any) -> None:
        _call(op, function, dict(zip(names, arguments, strict=True)))

    return run
