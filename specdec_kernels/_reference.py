"""The ``reference`` backend: the oracle in ``python_ref`` behind the arguments of an op's schema."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from ._schema import BY_NAME, FILTER_ORDERS, LOGPROBS, REJECTION_RULES
from .types import Sampling, TokenTree, VerifyResult

_TREE = ("cu_nodes", "tokens", "parents", "depths", "ends")
_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "seed")
_RESULT = ("out_tokens", "num_tokens", "path", "status", "logprobs", "lse")


def _take_sampling(given: dict[str, Any], prefix: str) -> Sampling | None:
    fields = {name: given.pop(prefix + name, None) for name in _SETTINGS}
    order = FILTER_ORDERS[given.pop(prefix + "filter_order")]
    if fields["temperature"] is None:
        return None
    return Sampling(**fields, filter_order=order)


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
    elif op == "tree_from_chains":
        fields = {name: given.pop(name) for name in (*_TREE, "status")}
        width = given["chains"].shape[1]
        given["out"] = TokenTree(**fields, max_nodes=width, max_depth=max(width - 1, 0))
        given["tokens"] = given.pop("chains")
    elif op in ("sample_sample", "sample_draft"):
        given["out"] = given.pop("out_tokens" if op == "sample_sample" else "drafts")
        if op == "sample_draft":
            given["num"] = given["out"].shape[1]
    elif op == "draft_ngram_lookup":
        given["num"] = given["drafts"].shape[1]
        given["out"] = (given.pop("drafts"), given.pop("counts"))
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
