"""Every check of the public arguments: a call, the exception, and its exact text.

``ARGUMENTS`` says of each tensor which shape and dtypes it must have; calls that break them are made from it. What is
left over stands in ``SPECIAL``.
"""

from __future__ import annotations

from typing import Any

import torch
from dispatch.samples import sample

from . import attention_table, inject_table, kv_table, tree_table, verify_table
from .verify_table import DRAFTED, FAMILY, FLOAT, INDEX, TREE, VERIFY, settings

WEIGHT = "float32, bfloat16 or int8"
CACHE = "float32, bfloat16, float16, float8_e4m3fn or float8_e5m2"

STOPS = {name: ("[2]", "float32") for name in ("min_confidence", "max_entropy")}
_ROWS = {"allowed": ("[rows, 2]", "int32"), "allowed_rows": ("[2]", INDEX)}


def _new_tree(name: str, count: int, *also: str) -> dict[str, tuple[str, str]]:
    """A tree of 2 requests that is written."""
    columns = {f"{name}.{field}": (f"[{count}]", "int32") for field in ("parents", "depths", "ends", *also)}
    return columns | {f"{name}.tokens": (f"[{count}]", "int64"), f"{name}.status": ("[2]", "int32")}


#: op -> argument -> (shape, dtypes); the first one says on which device all others must be.
ARGUMENTS: dict[str, dict[str, tuple[str, str]]] = {
    "tree_from_chains": {
        "tokens": ("[B, N]", INDEX),
        "lengths": ("[2]", INDEX),
        "out.cu_nodes": ("[3]", "int32"),
        "out.tokens": ("[8]", "int64"),
        "out.parents": ("[8]", "int32"),
        "out.depths": ("[8]", "int32"),
        "out.ends": ("[8]", "int32"),
        "out.status": ("[2]", "int32"),
    },
    "tree_from_parents": {
        "tokens": ("[T]", INDEX),
        "parents": ("[8]", INDEX),
        "cu_nodes": ("[B+1]", "int32"),
        "lengths": ("[2]", INDEX),
        "out[1]": ("[8]", "int64"),
    }
    | _new_tree("out[0]", 8, "slots"),
    "tree_from_beams": {
        "root_tokens": ("[B]", INDEX),
        "tokens": ("[2, M]", INDEX),
        "parents": ("[2, 5]", INDEX),
        "scores": ("[2, 5]", "float32"),
        "budget": ("[2]", INDEX),
        "lengths": ("[2]", INDEX),
        "out[0].cu_nodes": ("[3]", "int32"),
        "out[1]": ("[8]", "int32"),
    }
    | _new_tree("out[0]", 8),
    "tree_best_first": {
        "root_tokens": ("[B]", INDEX),
        "log_probs": ("[2, D, K]", "float32"),
        "token_ids": ("[2, 2, 3]", INDEX),
        "budget": ("[2]", INDEX),
        "scores": ("[8]", "float32"),
        "out.cu_nodes": ("[3]", "int32"),
    }
    | _new_tree("out", 8),
    "tree_to_dense_mask": TREE | {"out": ("[2, 4, 4]", "bool")},
    "tree_to_packed_mask": TREE
    | {"context_lens": ("[2]", INDEX), "out[0]": ("[12]", "uint8"), "out[1]": ("[3]", "int32")},
    "tree_to_links": TREE
    | {f"out.{name}": ("[2, 4]", "int32") for name in ("first_child", "next_sibling", "retrieve_index")},
    "tree_to_paths": TREE | {"out[0]": ("[2, 4, 3]", "int32"), "out[1]": ("[2]", "int32")},
    "sample_sample": {"logits": ("[B, V]", FLOAT), "positions": ("[2]", INDEX), "active": ("[2]", "bool")}
    | {"status": ("[2]", "int32"), "out": ("[2]", "int64")}
    | settings("sampling")
    | _ROWS,
    "sample_draft": {"logits": ("[R, V]", FLOAT)}
    | {name: ("[2]", INDEX) for name in ("positions", "requests", "depths", "nodes")}
    | {"draft_to_target": ("[24]", INDEX), "status": ("[2]", "int32"), "out": ("[2, 3]", "int64")}
    | STOPS
    | {"certainty": ("[2, 2]", "float32")}
    | settings("sampling")
    | {"allowed": ("[rows, words]", "int32"), "allowed_rows": ("[2]", INDEX)},
    **verify_table.ARGUMENTS,
    "draft_ngram_lookup": {
        "history": ("[B, L]", INDEX),
        "lengths": ("[2]", INDEX),
        "active": ("[2]", "bool"),
        "out[0]": ("[2, 2]", "int64"),
        "out[1]": ("[2]", "int32"),
    },
    "draft_expand": {
        "logits": ("[R, V]", FLOAT),
        "scores": ("[B, W]", "float32"),
        "draft_to_target": ("[24]", INDEX),
        **STOPS,
        "out.tokens": ("[2, 6]", "int64"),
        "out.scores": ("[2, 6]", "float32"),
        "out.beams": ("[2, 4]", "int32"),
    },
    "draft_block": {
        "tokens": ("[B, W]", INDEX),
        "num_tokens": ("[2]", "int32"),
        "context_lens": ("[2]", INDEX),
        "block_table": ("[rows, max_pages]", INDEX),
        "table_rows": ("[2]", INDEX),
        "active": ("[2]", "bool"),
        "status": ("[2]", "int32"),
        "out.roots": ("[2]", "int64"),
        "out.ids": ("[2, 4]", "int64"),
        "out.positions": ("[2, 4]", "int64"),
        "out.slots": ("[2, 4]", "int64"),
        "out.context_lens": ("[2]", "int64"),
    },
    "draft_budget": {
        "scores": ("[B, N]", "float32"),
        "costs": ("[C]", "float32"),
        "active": ("[2]", "bool"),
        "out": ("[2]", "int32"),
    },
    "attention_tree_attention": TREE
    | {
        "query": ("[5, Hq, D]", FLOAT),
        "key_cache": ("[P, S, Hkv, 8]", CACHE),
        "value_cache": ("[12, 4, 3, Dv]", CACHE),
        "block_table": ("[rows, max_pages]", INDEX),
        "table_rows": ("[2]", INDEX),
        "context_lens": ("[2]", INDEX),
        "tree.slots": ("[7]", "int32"),
        "query_nodes": ("[Tq]", INDEX),
        "cu_queries": ("[3]", "int32"),
        "sinks": ("[6]", "float32"),
        "key_scale": ("[3]", "float32"),
        "value_scale": ("[3]", "float32"),
        "active": ("[2]", "bool"),
        "status": ("[2]", "int32"),
        "out[0]": ("[5, 6, 16]", "float32"),
        "out[1]": ("[5, 6]", "float32"),
    },
    "attention_merge_states": {
        "values": ("[T, S, H, D]", FLOAT),
        "lses": ("[2, 3, 2]", "float32"),
        "out[0]": ("[2, 2, 8]", "float32"),
        "out[1]": ("[2, 2]", "float32"),
    },
    "kv_write": TREE
    | {
        "key": ("[5, Hkv, D]", FLOAT),
        "value": ("[5, 3, Dv]", FLOAT),
        "key_cache": ("[P, S, 3, 8]", CACHE),
        "value_cache": ("[12, 4, 3, 16]", CACHE),
        "block_table": ("[rows, max_pages]", INDEX),
        "table_rows": ("[2]", INDEX),
        "context_lens": ("[2]", INDEX),
        "tree.slots": ("[7]", "int32"),
        "query_nodes": ("[Tq]", INDEX),
        "cu_queries": ("[3]", "int32"),
        "key_scale": ("[3]", "float32"),
        "value_scale": ("[3]", "float32"),
        "active": ("[2]", "bool"),
        "status": ("[2]", "int32"),
    },
    "kv_commit": {
        "path": ("[B, W]", "int32"),
        "num_tokens": ("[2]", "int32"),
        "block_table": ("[rows, max_pages]", INDEX),
        "table_rows": ("[2]", INDEX),
        "context_lens": ("[2]", INDEX),
        "cu_nodes": ("[3]", "int32"),
        "slots": ("[T]", "int32"),
        "active": ("[2]", "bool"),
        "status": ("[2]", "int32"),
    },
    "kv_gather": {
        "values": ("[T, ...]", "any of float64, int32, int64"),
        "cu_nodes": ("[3]", "int32"),
        "path": ("[B, W]", "int32"),
        "num_tokens": ("[2]", "int32"),
        "out": ("[2, 3, 4]", "float32"),
    },
    "kv_inject": {
        "projected": ("[B, W, L, 2, Hkv, D]", FLOAT),
        "key_norm": ("[2, 8]", FLOAT),
        "cos_sin": ("[max_positions, 2, 8]", FLOAT),
        "positions": ("[2, 3]", INDEX),
        "key_scale": ("[2, 3]", "float32"),
        "value_scale": ("[2, 3]", "float32"),
        "block_table": ("[rows, max_pages]", INDEX),
        "table_rows": ("[2]", INDEX),
        "context_lens": ("[2]", INDEX),
        "num_tokens": ("[2]", "int32"),
        "active": ("[2]", "bool"),
        "status": ("[2]", "int32"),
    },
    "linear_pack": {"weight": ("[N, K]", FLOAT), "bias": ("[37]", "float32")},
    "linear_skinny": {"x": ("[T, 7]", FLOAT), "packed.data": ("[2, 7, 32]", WEIGHT), "out": ("[2, 37]", "float32")}
    | {"packed.scales": ("[37]", "float32"), "packed.bias": ("[37]", "float32")},
}

EXPORTS = ("tree_to_dense_mask", "tree_to_packed_mask", "tree_to_links", "tree_to_paths")
DRAWN = ("sample_sample", "sample_draft", *verify_table.DRAWN)


def identity(text: str) -> str:
    """A message as the name of a test."""
    return text.translate({ord(" "): "_", ord("["): "(", ord("]"): ")"})


def read(call: dict[str, Any], path: str) -> Any:
    """The argument of a call that a message calls ``record.field``, ``record[i]`` or ``record[i].field``."""
    name, _, field = path.partition(".")
    value = call[name[:-3]][int(name[-2])] if "[" in name else call[name]
    return getattr(value, field) if field else value


def changed(call: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The call with one argument replaced."""
    name, _, field = path.partition(".")
    if field:
        value = read(call, name)._replace(**{field: value})
    if "[" in name:
        name, i = name[:-3], int(name[-2])
        value = tuple(value if j == i else old for j, old in enumerate(call[name]))
    return call | {name: value}


def _of_tensors() -> list[tuple[str, dict[str, Any], type, str]]:
    cases = []
    for op, arguments in ARGUMENTS.items():
        call, public = sample(op, full=True), op.replace("_", ".", 1)
        for i, (path, (shape, dtypes)) in enumerate(arguments.items()):
            value, start = read(call, path), f"{public}: {path} must "
            kind = "an int" if path == "budget" else "a tensor"
            cases.append((op, changed(call, path, "text"), TypeError, f"{start}be {kind}, got str"))
            for dtype in (torch.float64, torch.int32, torch.int64):
                name = str(dtype).removeprefix("torch.")
                if name not in dtypes.replace(",", "").split():
                    sentence = f"{start}have dtype {dtypes}, got {name}"
                    cases.append((op, changed(call, path, value.to(dtype)), TypeError, sentence))
            wrong = value.unsqueeze(0)
            sentence = f"{start}have shape {shape}, got {list(wrong.shape)}"
            if (op, path) == ("sample_draft", "sampling.temperature"):  # with `requests` it says how many there are
                sentence = sentence.replace("[2]", "[B]")
            if "..." not in shape:
                cases.append((op, changed(call, path, wrong), ValueError, sentence))
            if shape[1].isdigit() and (op, path) != ("sample_draft", "sampling.temperature"):
                wrong = value[:-1]
                sentence = f"{start}have shape {shape}, got {list(wrong.shape)}"
                cases.append((op, changed(call, path, wrong), ValueError, sentence))
            if i:
                cases.append((op, changed(call, path, value.to("meta")), ValueError, f"{start}be on cpu, got meta"))
    return cases


def _special() -> list[tuple[str, dict[str, Any], type, str]]:
    cases = []

    def add(op: str, error: type, text: str, *drop: str, plain: bool = False, **changes: Any) -> None:
        call = sample(op, full=not plain)
        for path, value in changes.items():
            call = changed(call, path.replace("__", "."), value)
        cases.append(
            (op, {k: v for k, v in call.items() if k not in drop}, error, f"{op.replace('_', '.', 1)}: {text}")
        )

    for op in (*FAMILY, *EXPORTS):
        text = "tree.cu_nodes must have at least one element, got shape [0]"
        add(op, ValueError, text, tree__cu_nodes=torch.zeros(0, dtype=torch.int32))
        for bound in ("max_nodes", "max_depth"):
            add(op, TypeError, f"tree.{bound} must be an int, got str", **{f"tree__{bound}": "7"})
            add(op, TypeError, f"tree.{bound} must be an int, got bool", **{f"tree__{bound}": True})
            add(op, ValueError, f"tree.{bound} must be at least 0, got -1", **{f"tree__{bound}": -1})
    for op in (*FAMILY, "sample_sample"):
        count = 7 if op in FAMILY else 2
        text = f"allowed must have at least {count} rows, got 1"
        add(op, ValueError, text, "allowed_rows", allowed=torch.zeros((1, 2), dtype=torch.int32))
    for op in (*FAMILY, "sample_sample", "sample_draft"):
        drop = ("draft_allowed_rows",) if op in DRAFTED else ()
        add(op, ValueError, "allowed must be given with allowed_rows, got None", *drop, allowed=None)
        wide = torch.zeros((7, 4), dtype=torch.int32)[:, ::2]
        add(op, ValueError, "allowed must have unit stride in the last dimension, got 2", allowed=wide)
    text = "allowed must have at least 2 rows, got 1"
    add("sample_draft", ValueError, text, "allowed_rows", allowed=torch.zeros((1, 2), dtype=torch.int32))
    text = "allowed must have shape [rows, 1], got [2, 2]"
    add("sample_draft", ValueError, text, plain=True, allowed=torch.zeros((2, 2), dtype=torch.int32))
    for op in ("sample_sample", "sample_draft"):
        narrow = torch.randn(2, 80)[:, ::2] if op == "sample_sample" else torch.randn(2, 48)[:, ::2]
        add(op, ValueError, "logits must have unit stride in the last dimension, got 2", logits=narrow)
        add(op, ValueError, "logits must have at least one column, got shape [2, 0]", logits=torch.randn(2, 0))
    for op in DRAWN:
        add(op, ValueError, "sampling.seed must be given, got None", sampling__seed=None)
    for op in (*DRAWN, "verify_expect"):
        text = "must be one of 'top_k_first', 'joint', 'min_p_first', got 'top_p_first'"
        add(op, ValueError, f"sampling.filter_order {text}", sampling__filter_order="top_p_first")
    for value, error, text in (
        (0, ValueError, "num must be between 1 and 256, got 0"),
        (257, ValueError, "num must be between 1 and 256, got 257"),
        (2.0, TypeError, "num must be an int, got float"),
        (True, TypeError, "num must be an int, got bool"),
    ):
        add("sample_draft", error, text, num=value)
    add("sample_draft", ValueError, "top must be between 0 and 3, got 4", top=4)
    add("sample_draft", ValueError, "top must be between 0 and 3, got -1", top=-1)
    add("sample_draft", TypeError, "top must be an int, got NoneType", top=None)
    text = "sampling.temperature must have shape [2], got [3]"
    add("sample_draft", ValueError, text, "requests", sampling__temperature=torch.zeros(3))
    for name in ("replacement", "coupled"):
        add("sample_draft", TypeError, f"{name} must be a bool, got NoneType", **{name: None})
        add("sample_draft", TypeError, f"{name} must be a bool, got str", **{name: "yes"})
    add("sample_draft", TypeError, "top must be an int, got bool", top=True)
    for name in ("min_n", "max_n"):
        add("draft_ngram_lookup", TypeError, f"{name} must be an int, got bool", **{name: True})
    same = torch.zeros(1, 3, dtype=torch.int64).expand(2, 3)
    add("sample_draft", ValueError, "out must have rows that do not overlap, got row stride 0", out=same)
    room = torch.zeros(100)
    overlapping = {"x": room[:14].view(2, 7), "out": room[10:84].view(2, 37)}
    add("linear_skinny", ValueError, "out must not overlap x, got memory of both", **overlapping)
    gaps = torch.zeros((2, 6), dtype=torch.int64)[:, ::2]
    add("sample_draft", ValueError, "out must have unit stride in the last dimension, got 2", out=gaps)
    text = "sampling.temperature must have shape [2], got [3]"
    add("sample_draft", ValueError, text, "requests", sampling=sample("sample_draft", True, 3)["sampling"])
    add("tree_from_chains", ValueError, "out.status must be given, got None", out__status=None)
    text = "history must have unit stride in the last dimension, got 2"
    add("draft_ngram_lookup", ValueError, text, history=torch.zeros((2, 18), dtype=torch.int64)[:, ::2])
    add("draft_ngram_lookup", ValueError, "min_n must be at least 1, got 0", min_n=0)
    add("draft_ngram_lookup", ValueError, "max_n must be at least 2, got 1", max_n=1)
    add("draft_ngram_lookup", ValueError, "num must be at least 1, got 0", num=0)
    for name in ("min_n", "max_n", "num"):
        add("draft_ngram_lookup", TypeError, f"{name} must be an int, got float", **{name: 2.0})
    add("linear_pack", TypeError, "dtype must be float32, bfloat16 or int8, got float16", dtype=torch.float16)
    text = "packed.scales must be given for int8 weights, got None"
    add("linear_skinny", ValueError, text, packed__scales=None)
    text = "packed.scales must be None unless there are int8 weights, got a tensor"
    add("linear_skinny", ValueError, text, packed__data=torch.zeros(2, 7, 32))
    verify_table.special(add)
    attention_table.special(add)
    kv_table.special(add)
    inject_table.special(add)
    return cases + tree_table.special() + _records() + _written()


def _records() -> list[tuple[str, dict[str, Any], type, str]]:
    """Something else where a record of tensors belongs."""
    cases = []
    kinds = {"tree": "TokenTree", "sampling": "Sampling", "draft_sampling": "Sampling", "packed": "PackedLinear"}
    for op in ARGUMENTS:
        call, public = sample(op, full=True), op.replace("_", ".", 1)
        wanted = kinds | ({"out": "VerifyResult"} if op in VERIFY else {})
        wanted |= {"out": "TokenTree"} if op in ("tree_from_chains", "tree_best_first") else {}
        for name in (name for name in wanted if name in call):
            sentence = f"{public}: {name} must be a {wanted[name]}, got int"
            cases.append((op, changed(call, name, 3), TypeError, sentence))
    op = "draft_ngram_lookup"
    text = "draft.ngram_lookup: out must be a pair of tensors, got Tensor"
    cases.append((op, changed(sample(op, full=True), "out", torch.zeros(2, 2)), TypeError, text))
    return cases


def _written() -> list[tuple[str, dict[str, Any], type, str]]:
    """Outputs with gaps."""
    cases = []
    for op, arguments in ARGUMENTS.items():
        call, public = sample(op, full=True), op.replace("_", ".", 1)
        for path in arguments:
            written = path.startswith("out") or path in ("divergence", "certainty")
            if written and op not in ("sample_sample", "sample_draft"):  # which write to any stride
                wrong = read(call, path).repeat_interleave(2, -1)[..., ::2]
                sentence = f"{public}: {path} must be contiguous, got strides {list(wrong.stride())}"
                cases.append((op, changed(call, path, wrong), ValueError, sentence))
    return cases


def cases() -> list[tuple[str, dict[str, Any], type, str]]:
    """All of ``(op, keyword arguments, exception, text)``."""
    torch.manual_seed(0)
    return _of_tensors() + _special()
