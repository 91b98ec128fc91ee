"""The last line of defence: what the C++ launchers refuse when an op is called past its public function."""

import pytest
import torch
from dispatch.samples import arguments_of, sample

from specdec_kernels._schema import BY_NAME

from .table import ARGUMENTS, VERIFY, identity
from .verify_table import DRAFTED, DRAWN, FAMILY, LOSSY, NUMBERS

# Names of the arguments of a schema in messages, where they are not those of the schema.
_FIELDS = {name: f"tree.{name}" for name in ("cu_nodes", "tokens", "parents", "depths", "ends")}
_RESULT = {name: f"out.{name}" for name in ("num_tokens", "path", "status", "logprobs", "lse")}
_MEANS = ("token", "traversal", "greedy_plus_one", "bound")
_VERIFY = _FIELDS | _RESULT | {"out_tokens": "out.tokens"}
_PAIR = {name: f"out[0].{name}" for name in (*_FIELDS, "status", "slots")} | {"order": "out[1]"}
NAMES = {
    "tree_from_chains": {name: f"out.{name}" for name in (*_FIELDS, "status")} | {"chains": "tokens"},
    "tree_from_parents": _PAIR | {"given_tokens": "tokens", "given_parents": "parents", "cu_nodes": "cu_nodes"},
    "tree_from_beams": _PAIR | {"pool_tokens": "tokens", "pool_parents": "parents", "budgets": "budget"},
    "tree_best_first": {name: f"out.{name}" for name in (*_FIELDS, "status")} | {"budgets": "budget"},
    "tree_to_dense_mask": _FIELDS | {"mask": "out"},
    "tree_to_packed_mask": _FIELDS | {"mask": "out[0]", "indptr": "out[1]"},
    "tree_to_links": _FIELDS | {name: f"out.{name}" for name in ("first_child", "next_sibling", "retrieve_index")},
    "tree_to_paths": _FIELDS | {"paths": "out[0]", "num_paths": "out[1]"},
    "sample_sample": {"out_tokens": "out"},
    "sample_draft": {"drafts": "out"},
    **dict.fromkeys(VERIFY, _VERIFY),
    "verify_expect": _FIELDS | {name: f"out.{name}" for name in _MEANS},
    "draft_ngram_lookup": {"drafts": "out[0]", "counts": "out[1]"},
    "attention_tree_attention": _FIELDS | {"slots": "tree.slots", "out": "out[0]", "lse": "out[1]"},
    "attention_merge_states": {"out": "out[0]", "lse": "out[1]"},
    "draft_expand": {"tokens": "out.tokens", "child_scores": "out.scores", "beams": "out.beams"},
    "draft_block": {name: f"out.{name}" for name in ("roots", "ids", "positions", "slots")}
    | {"new_context_lens": "out.context_lens"},
    "draft_budget": {"counts": "out"},
    "kv_inject": {},
    "kv_write": _FIELDS | {"slots": "tree.slots"},
    "kv_commit": {},
    "kv_gather": {},
    "linear_pack": {"packed": "packed.data", "scales": "packed.scales"},
    "linear_skinny": {"packed": "packed.data", "scales": "packed.scales", "bias": "packed.bias"},
}
# What the table of the public functions does not say, or says otherwise.
_INDEX = "int32 or int64"
_PACKED = {"packed.data": ("[2, 7, 32]", "float32, bfloat16 or int8"), "packed.scales": ("[37]", "float32")}
_OUT = {
    "out.tokens": ("[2, 3]", _INDEX),
    "out.path": ("[B, 3]", "int32"),
}  # the number of requests is that of the paths
_DRAFTS = {f"draft_{name}": ("[2]", dtype) for name, dtype in (("temperature", "float32"), ("top_k", "int32"))}
_DRAFTS |= {f"draft_{name}": ("[2]", "float32") for name in ("top_p", "min_p")}
SHAPES = {
    "linear_pack": _PACKED,
    "linear_skinny": _PACKED | {"packed.bias": ("[37]", "float32"), "out": ("[T, N]", "float32, bfloat16 or float16")},
    "tree_from_chains": {"out.tokens": ("[8]", _INDEX)},
    "tree_from_parents": {"out[0].tokens": ("[8]", _INDEX)},
    "tree_from_beams": {"out[0].tokens": ("[8]", _INDEX), "tokens": ("[B, M]", _INDEX)},
    "tree_best_first": {"out.tokens": ("[8]", _INDEX), "log_probs": ("[2, 2, 3]", "float32")},
    "tree_to_dense_mask": {"out": ("[B, N, N]", "bool")},
    "tree_to_packed_mask": {"out[0]": ("[bytes]", "uint8")},
    "tree_to_links": {
        f"out.{name}": (shape, _INDEX)
        for name, shape in (("first_child", "[B, N]"), ("next_sibling", "[2, 4]"), ("retrieve_index", "[2, 4]"))
    },
    "tree_to_paths": {"out[0]": ("[B, N, depth]", "int32")},
    "attention_tree_attention": {
        "query": ("[Tq, Hq, D]", "float32, bfloat16 or float16"),
        "value_cache": ("[P, S, Hkv, Dv]", "float32, bfloat16, float16, float8_e4m3fn or float8_e5m2"),
    },
    "draft_expand": {"out.beams": ("[B, beams]", "int32")},
    "draft_block": {"out.roots": ("[2]", _INDEX), "out.ids": ("[2, 4]", _INDEX), "out.context_lens": ("[2]", _INDEX)},
    "kv_write": {name: ("[5, 3, D]", "float32, bfloat16 or float16") for name in ("key", "value")}
    | {"value_cache": ("[P, S, 3, 16]", "float32, bfloat16, float16, float8_e4m3fn or float8_e5m2")},
    "kv_gather": {"values": (), "out": ()},  # of any rank and dtype
    "draft_ngram_lookup": {"out[0]": ("[2, 2]", _INDEX)},
    "sample_sample": {"out": ("[2]", "int64")},
    "sample_draft": {"temperature": ("[B]", "float32")},
    **dict.fromkeys(VERIFY, _OUT),
    "verify_rejection": _OUT | _DRAFTS | {"draft_to_target": ("[24]", _INDEX)},
    "verify_expect": {"out.token": ("[B]", "float32"), "draft_to_target": ("[24]", _INDEX)} | _DRAFTS,
}


def expected(op, path):
    """Shape and dtypes of an argument."""
    for known in (SHAPES.get(op, {}), ARGUMENTS[op]):
        for name in (path, f"sampling.{path}"):
            if name in known:
                return known[name]
    raise KeyError(f"{op}: {path}")


def cases():
    """``(op, arguments, text)`` for every tensor of every op: another rank, another size, another dtype."""
    found = []
    for op, names in NAMES.items():
        arguments = arguments_of(op, sample(op, full=True))
        for i, (argument, value) in enumerate(zip(BY_NAME[op].arguments, arguments, strict=True)):
            if not isinstance(value, torch.Tensor):
                continue
            path = names.get(argument.name, argument.name)
            known = expected(op, path)
            if not known:
                continue
            shape, dtypes = known
            start = f"{op.replace('_', '.', 1)}: {path} must have "

            def broken(wrong, text, op=op, arguments=arguments, i=i, start=start):
                found.append((op, (*arguments[:i], wrong, *arguments[i + 1 :]), start + text))

            wide = value.unsqueeze(0)
            broken(wide, f"{value.dim()} dimensions, got shape {list(wide.shape)}")
            broken(value.to(torch.float64), f"dtype {dtypes}, got another dtype")
            if shape[1].isdigit():
                broken(value[:-1], f"shape {shape}, got {list(value[:-1].shape)}")
    return found


def spread(value):
    """The same values, every second element of a larger tensor."""
    return value.repeat_interleave(2, -1)[..., ::2]


def case(op, text, **changes):
    """A call of an op with some arguments replaced, or changed by a function."""
    names = [argument.name for argument in BY_NAME[op].arguments]
    arguments = list(arguments_of(op, sample(op, full=True)))
    for name, change in changes.items():
        i = names.index(name)
        arguments[i] = change(arguments[i]) if callable(change) else change
    return op, tuple(arguments), f"{op.replace('_', '.', 1)}: {text}"


def special():
    """What depends on other arguments, on strides, or on host integers."""
    found = []

    def add(op, text, **changes):
        found.append(case(op, text, **changes))

    for name in ("cu_nodes", "tokens", "parents", "depths", "ends", "status"):
        add("tree_from_chains", f"out.{name} must be contiguous, got stride 2", **{name: spread})
    add("draft_ngram_lookup", "history must have unit stride in the last dimension, got 2", history=spread)
    add("draft_ngram_lookup", "min_n must be at least 1, got 0", min_n=0)
    add("draft_ngram_lookup", "max_n must be at least 2, got 1", max_n=1)
    add("draft_ngram_lookup", "out[0] must have the dtype of history, got another dtype", drafts=torch.Tensor.int)
    add("draft_ngram_lookup", "out[0] must have unit stride in its last dimension, got stride 2", drafts=spread)
    add("draft_ngram_lookup", "out[1] must be contiguous, got stride 2", counts=spread)
    gap = torch.zeros((2, 3), dtype=torch.int64)[:, :2]
    add("draft_ngram_lookup", "out[0] must be contiguous, got row stride 3", drafts=gap)
    for name, path in (("weight", "weight"), ("x", "x"), ("out", "out")):
        op = "linear_pack" if name == "weight" else "linear_skinny"
        add(op, f"{path} must have unit stride in its last dimension, got stride 2", **{name: spread})
    for op in ("linear_pack", "linear_skinny"):
        add(op, "packed.data must be contiguous, got other strides", packed=spread)
        add(op, "packed.scales must be given for int8 weights, got None", scales=None)
        text = "packed.scales must be None unless the weights are int8, got a tensor"
        add(op, text, packed=torch.Tensor.float)
    for wrong in (torch.zeros(1, 37), torch.zeros((2, 37), dtype=torch.bfloat16)):
        add("linear_skinny", f"out must have the rows and the dtype of x, got shape {list(wrong.shape)}", out=wrong)
    found += _special_of_rules() + _special_of_lossy_rules() + _special_of_trees()
    return found


def _special_of_rules():
    found = []
    unit = "must have unit stride in its last dimension, got stride 2"
    for op in VERIFY:
        for name in ("tokens", "path", "logprobs", "lse"):
            argument = "out_tokens" if name == "tokens" else name
            found.append(case(op, f"out.{name} {unit}", **{argument: spread}))
            text = f"out.{name} must be contiguous, got row stride 6"
            found.append(case(op, text, **{argument: lambda value: value.repeat(1, 2)[:, :3]}))
        for name in ("num_tokens", "status"):
            found.append(case(op, f"out.{name} must be contiguous, got stride 2", **{name: spread}))
        for name in ("logprobs", "lse"):
            found.append(case(op, "out.logprobs must be given with logprobs, got None", **{name: None}))
        found.append(case(op, "out.path must have at least one column, got 0", path=lambda value: value[:, :0]))
        found.append(case(op, "logprobs must be 0, 1 or 2, got 3", logprobs_mode=3))
    for name in _MEANS:
        found.append(case("verify_expect", f"out.{name} must be contiguous, got stride 2", **{name: spread}))
    found.append(case("verify_expect", "tree.max_depth must be at least 0, got -1", max_depth=-1))
    for op in FAMILY:
        text = "logits must have at least 7 rows, got 6"
        found.append(case(op, text, rows=None, logits=lambda value: value[:6]))
    for op in (*FAMILY, "sample_sample", "sample_draft"):
        text = "logits must have between 1 and 2147483647 columns, got 0"
        found.append(case(op, text, logits=lambda value: value[:, :0]))
        found.append(case(op, f"logits {unit}", logits=spread))
        found.append(case(op, f"allowed {unit}", allowed=spread))
        found.append(case(op, "allowed must be given with allowed_rows, got None", allowed=None))
        count = 7 if op in FAMILY else 2
        text = f"allowed must have at least {count} rows, got 1"
        found.append(case(op, text, allowed=lambda value: value[:1], allowed_rows=None))
        if op != "sample_draft":  # where the number of target ids is not known
            found.append(case(op, "allowed must have shape [2, 2], got [2, 1]", allowed=lambda value: value[:, :1]))
    for op in ("sample_sample", "sample_draft", *DRAWN, "verify_expect"):
        for order in (-1, 3):
            found.append(case(op, f"filter_order must be 0, 1 or 2, got {order}", filter_order=order))
    for num in (0, 257):
        wide = torch.zeros((2, num), dtype=torch.int64)
        found.append(case("sample_draft", f"num must be between 1 and 256, got {num}", drafts=wide))
    for top in (-1, 4):
        found.append(case("sample_draft", f"top must be between 0 and 3, got {top}", top=top))
    found.append(case("sample_draft", f"out {unit}", drafts=spread))
    for rule in (-1, 4):
        found.append(case("verify_rejection", f"rule must be between 0 and 3, got {rule}", rule=rule))
    for op in DRAFTED:
        found.append(case(op, f"draft_logits {unit}", draft_logits=spread))
        text = "draft_logits must have at least 7 rows, got 6"
        found.append(case(op, text, draft_rows=None, draft_logits=lambda value: value[:6]))
        for name in ("draft_to_target", "target_to_draft"):
            found.append(case(op, f"{name} must be given together with its inverse, got None", **{name: None}))
        text = "draft_logits must have 40 columns, got 24"
        found.append(case(op, text, draft_to_target=None, target_to_draft=None))
    return found


def _special_of_lossy_rules():
    found = []
    for op, name, bounds, values in NUMBERS:
        for value in values:
            actual = f"{value:g}" if isinstance(value, float) else value
            found.append(case(op, f"{name} must be {bounds}, got {actual}", **{name: value}))
    for op in LOSSY:
        text = "divergence must have unit stride in its last dimension, got stride 2"
        found.append(case(op, text, divergence=spread))
        text = "divergence must be contiguous, got row stride 6"
        found.append(case(op, text, divergence=lambda value: value.repeat(1, 2)[:, :3]))
        found.append(case(op, "divergence must have shape [2, 3], got [2, 2]", divergence=lambda value: value[:, :2]))
    text = "rates must have at least 2 elements, got 1"
    found.append(case("verify_synthetic", text, rates=lambda value: value[:1]))
    return found


def _special_of_trees():
    found = []

    def add(op, text, **changes):
        found.append(case(op, text, **changes))

    for op, most in (("tree_from_parents", 1024), ("tree_from_beams", 1024), ("tree_best_first", 1024)):
        for wrong in (-1, most + 1):
            add(op, f"max_nodes must be between 0 and {most}, got {wrong}", max_nodes=wrong)
        name = "out" if op == "tree_best_first" else "out[0]"
        like = "tokens" if op == "tree_from_parents" else "root_tokens"
        add(op, f"{name}.tokens must have the dtype of {like}, got another dtype", tokens=torch.Tensor.int)
        for field in ("tokens", "parents", "depths", "ends", "status"):
            add(op, f"{name}.{field} must be contiguous, got stride 2", **{field: spread})
    for op in ("tree_from_parents", "tree_from_beams"):
        add(op, "max_depth must be at least 0, got -1", max_depth=-1)
        add(op, "out[1] must be contiguous, got stride 2", order=spread)
    text = "cu_nodes must have at least one element, got shape [0]"
    add("tree_from_parents", text, cu_nodes=lambda value: value[:0])
    add("tree_from_parents", "out[0].slots must be contiguous, got stride 2", slots=spread)
    wide = torch.zeros((2, 4097), dtype=torch.int64)
    add("tree_from_beams", "tokens must have at most 4096 columns, got 4097", pool_tokens=wide)
    add("tree_best_first", "total_budget must be at least -1, got -2", total_budget=-2)
    add("tree_best_first", "scores must be contiguous, got stride 2", scores=spread)
    gap = "must be contiguous, got stride {stride} in dimension {at}"
    cut = lambda value: value.repeat(1, 2, 1)[:, : value.shape[1]]  # noqa: E731
    add("tree_to_dense_mask", "out " + gap.format(stride=2, at=2), mask=spread)
    add("tree_to_dense_mask", "out " + gap.format(stride=32, at=0), mask=cut)
    add("tree_to_dense_mask", "out must have shape [2, 4, 4], got [2, 4, 3]", mask=lambda value: value[..., :3])
    op = "tree_to_packed_mask"
    for layout in (-1, 3):
        add(op, f"layout must be 0, 1 or 2, got {layout}", layout=layout)
    add(op, "tree.max_nodes must be at least 0, got -1", max_nodes=-1)
    add(op, "tree.cu_nodes must have at least one element, got shape [0]", cu_nodes=lambda value: value[:0])
    add(op, "context_lens must be given for this layout, got None", context_lens=None)
    add(op, "out[1] must be given for this layout, got None", indptr=None)
    add(op, "out[1] must be contiguous, got stride 2", indptr=spread)
    add(op, "out[0] must be contiguous, got stride 2", mask=spread)
    huge = torch.zeros(1, dtype=torch.uint8).expand(2**31)
    add(op, "out[0] must have at most 2147483647 bytes, got 2147483648", mask=huge)
    for layout, dtype, name in ((1, torch.uint8, "uint8"), (2, torch.int32, "int32")):
        flat, wrong = torch.zeros((2, 4, 1), dtype=torch.int64), torch.zeros((2, 4, 2), dtype=dtype)
        add(op, f"out[0] must have dtype {name}, got another dtype", layout=layout, mask=flat)
        add(op, "out[0] must have shape [2, 4, 1], got [2, 4, 2]", layout=layout, mask=wrong)
    op, unit = "tree_to_links", "must have unit stride in its last dimension, got stride 2"
    for name in ("first_child", "next_sibling", "retrieve_index"):
        add(op, f"out.{name} {unit}", **{name: spread})
        add(op, f"out.{name} must be contiguous, got row stride 8", **{name: lambda value: value.repeat(1, 2)[:, :4]})
    text = "out.retrieve_index must have the dtype of out.first_child, got another dtype"
    add(op, text, retrieve_index=torch.Tensor.long)
    op = "tree_to_paths"
    add(op, "out[0] must have at least one column, got 0", paths=lambda value: value[..., :0])
    add(op, "out[0] " + gap.format(stride=2, at=2), paths=spread)
    add(op, "out[1] must be contiguous, got stride 2", num_paths=spread)
    op = "draft_expand"
    add(op, f"logits {unit}", logits=spread)
    text = "logits must have between 1 and 2147483647 columns, got 0"
    add(op, text, logits=lambda value: value[:, :0])
    add(op, "scores must have at most 64 columns, got 65", scores=torch.zeros(2, 65))
    add(op, "logits must have 6 rows, got 4", scores=torch.zeros(2, 3))
    for num in (0, 65):
        add(op, f"num must be between 1 and 64, got {num}", num=num)
        beams = torch.zeros((2, num), dtype=torch.int32)
        add(op, f"beams must be between 1 and 64, got {num}", beams=beams)
    for name, path in (("tokens", "tokens"), ("child_scores", "scores"), ("beams", "beams")):
        add(op, f"out.{path} {unit}", **{name: spread})
    return found


def of_kv():
    """The lists of ``kv_commit``, and what is special of its family."""
    found = []

    def add(op, text, **changes):
        found.append(case(op, text, **changes))

    unit = "must have unit stride in its last dimension, got stride 2"
    for name in ("key", "value", "key_cache", "value_cache"):
        add("kv_write", f"{name} {unit}", **{name: spread})
    for name in ("key_cache", "value_cache"):
        text = f"{name} must have a page size that is a power of two, got 3"
        add("kv_write", text, **{name: lambda value: value[:, :3]})
    add("kv_write", "value_cache must have the pages of key_cache, got [11, 4, 3, 16]", value_cache=lambda v: v[1:])
    add("kv_write", "key_cache must have shape [P, S, 3, 8], got [12, 4, 2, 8]", key_cache=lambda v: v[:, :, :2])
    for name in ("value", "value_cache"):
        add("kv_write", f"{name} must be given together with the other, got None", **{name: None})
    add("kv_write", "value_scale must be None without values, got a tensor", value=None, value_cache=None)
    for name in ("query_nodes", "cu_queries"):
        add("kv_write", f"{name} must be given together with the other, got None", **{name: None})
    text = "block_table must have 2 rows, got 3"
    add("kv_write", text, table_rows=None, block_table=lambda value: value[[0, 1, 0]])
    add("kv_write", "tree.cu_nodes must have at least one element, got none", cu_nodes=lambda value: value[:0])

    def nth(i, change):
        return lambda values: [change(value) if j == i else value for j, value in enumerate(values)]

    def replace(name, i, change, text):
        add("kv_commit", text, **{name: nth(i, change)})

    replace("buffers", 1, lambda v: v[0, 0], "buffers[1] must have at least 2 dimensions, got shape []")
    replace("buffers", 1, lambda v: v[:, :2], "buffers[1] must have the page size of its group, 4, got 2")
    replace("buffers", 2, lambda v: v[:, :3], "buffers[2] must have a page size that is a power of two, got 3")
    replace("buffers", 2, lambda v: v[:, :0], "buffers[2] must have a page size that is a power of two, got 0")
    huge = torch.zeros(1).expand(2, 4, 2**29)
    replace("buffers", 2, lambda v: huge, "buffers[2] must have rows of less than 2 GiB, got 2147483648 bytes")
    text = "buffers[1] must not be in the memory of another, got that of buffers[0]"
    add("kv_commit", text, buffers=lambda values: [values[0], values[0][..., :1], values[2]])
    replace("block_tables", 1, lambda v: v[0], "block_table must have 2 dimensions, got shape [6]")
    replace("block_tables", 0, torch.Tensor.float, "block_table must have dtype int32 or int64, got another dtype")
    rows = {"table_rows": [None, None]}
    add("kv_commit", "block_table must have 2 rows, got 3", block_tables=nth(1, lambda v: v[[0, 1, 0]]), **rows)
    replace("table_rows", 0, lambda v: v[:1], "table_rows must have shape [2], got [1]")
    replace("context_lens", 1, lambda v: v[:1], "context_lens must have shape [2], got [1]")
    replace("context_lens", 1, torch.Tensor.double, "context_lens must have dtype int32 or int64, got another dtype")
    replace("slots", 1, torch.Tensor.long, "slots must have dtype int32, got another dtype")
    replace("slots", 0, lambda v: v[None], "slots must have 1 dimensions, got shape [1, 8]")
    add("kv_commit", "cu_nodes must be given with slots, got None", cu_nodes=None)
    add("kv_commit", "status must be contiguous, got stride 2", status=spread)
    for sizes, text in (([2, 2], "2 for group 1"), ([-1, 4], "-1 for group 0"), ([1, 1], "2 of 3")):
        add("kv_commit", f"group_sizes must count the buffers, got {text}", group_sizes=sizes)
    text = "block_tables must have 3 elements, as all lists of groups, got 2"
    add("kv_commit", text, group_sizes=[1, 1, 1])

    add("kv_gather", "values must have at least 1 dimension, got shape []", values=torch.tensor(1.0))
    text = "out must have shape [2, 3, ...] with the rows of values, got "
    add("kv_gather", text + "[2, 3, 4]", values=torch.zeros(7, 5))
    add("kv_gather", text + "[2, 3]", out=torch.zeros(2, 3))
    add("kv_gather", "out must have the dtype of values, got another dtype", out=torch.Tensor.double)
    add("kv_gather", "out must be contiguous, got other strides", out=spread)
    add("kv_gather", "values must have rows of less than 2 GiB, got 2147483648 bytes", values=huge[0])
    return found


def of_blocks():
    """The lists of ``kv_inject``, and what is special of it, of ``draft_block`` and of ``draft_budget``."""
    found = []

    def add(op, text, **changes):
        found.append(case(op, text, **changes))

    unit = "must have unit stride in its last dimension, got stride 2"
    op = "kv_inject"
    for name in ("projected", "key_norm", "cos_sin"):
        add(op, f"{name} {unit}", **{name: spread})
    start = "projected must have shape [B, W, L, 2, Hkv, D] with at least one layer, got "
    add(op, start + "[2, 3, 0, 2, 3, 8]", projected=lambda v: v[:, :, :0])
    add(op, start + "[2, 3, 2, 1, 3, 8]", projected=lambda v: v[:, :, :, :1])
    for dim in (0, 1025):
        wide = torch.zeros(2, 3, 2, 2, 3, dim)
        add(op, f"projected must have between 1 and 1024 elements in its last dimension, got {dim}", projected=wide)
    odd = {"projected": lambda v: v[..., :7], "key_norm": None, "cos_sin": lambda v: v[..., :7]}
    add(op, "projected must have an even last dimension to be turned, got 7", **odd)
    add(op, "cos_sin must be given with positions, got None", cos_sin=None)
    add(op, "cos_sin must have shape [max_positions, 2, 8], got [20, 1, 8]", cos_sin=lambda v: v[:, :1])
    add(op, "eps must be at least 0, got -1", eps=-1.0)
    add(op, "key_scale must have shape [3], got [2]", key_scale=torch.ones(2))
    add(op, "value_scale must have shape [2, 3], got [2, 2]", value_scale=torch.ones(2, 2))
    add(op, "status must be contiguous, got stride 2", status=spread)
    for name in ("key_caches", "value_caches"):
        for change, text in (
            (lambda v: v[0], "have 4 dimensions, got shape [4, 3, 8]"),
            (lambda v: v[:, :, :2], "have shape [P, S, 3, 8], got [12, 4, 2, 8]"),
            (spread, f"{unit.removeprefix('must ')}"),
            (lambda v: v[:, :3], "have a page size that is a power of two, got 3"),
            (lambda v: v[:11], "have the shape, strides and dtype of the first, got shape [11, 4, 3, 8]"),
            (torch.Tensor.bfloat16, "have the shape, strides and dtype of the first, got shape [12, 4, 3, 8]"),
        ):
            add(op, f"{name}[1] must {text}", **{name: lambda v, change=change: [v[0], change(v[1])]})
        add(op, f"{name} must have 2 elements, one for each layer, got 1", **{name: lambda v: v[:1]})
    text = "value_caches[0] must have the pages of key_caches[0], got [11, 4, 3, 8]"
    add(op, text, value_caches=lambda values: [value[:11] for value in values])
    text = "key_caches[1] must not be in the memory of another, got that of key_caches[0]"
    add(op, text, key_caches=lambda values: [values[0]] * 2)
    op = "draft_block"
    for wrong in (-1, 2**31):
        add(op, f"mask_token must be between 0 and 2147483647, got {wrong}", mask_token=wrong)
    for wrong in (0, 3):
        add(op, f"page_size must be a power of two, got {wrong}", page_size=wrong)
    add(op, "out.slots must be given with block_table, got None", slots=None)
    add(op, "out.slots must be None without block_table, got a tensor", block_table=None)
    none = {"block_table": None, "slots": None}
    add(op, "block_table must be given with table_rows, got None", **none)
    add(op, "block_table must be given with page_size, got None", **none, table_rows=None)
    add(op, "block_size must be at least 1, got 0", ids=lambda v: v[:, :0])
    for name in ("ids", "roots"):
        add(op, f"out.{name} must have the dtype of tokens, got another dtype", **{name: torch.Tensor.int})
    text = "out.context_lens must have the dtype of context_lens, got another dtype"
    add(op, text, new_context_lens=torch.Tensor.int)
    for name, path in (("roots", "roots"), ("new_context_lens", "context_lens")):
        add(op, f"out.{path} must be contiguous, got stride 2", **{name: spread})
    op, one = "draft_budget", torch.zeros(1)
    add(op, "scores must have at most 4194304 rows, got 4194305", scores=one.expand(2**22 + 1, 1))
    text = "scores must have at most 2147483647 elements, got shape [2, 1073741824]"
    add(op, text, scores=one.expand(2, 2**30))
    for wrong in (one[:0], one.expand(2**22 + 1)):
        add(op, f"costs must have between 1 and 4194304 elements, got {len(wrong)}", costs=wrong)
    add(op, "out must be contiguous, got stride 2", counts=spread)
    return found


CASES = cases() + special() + of_kv() + of_blocks()


@pytest.mark.parametrize("case", CASES, ids=[identity(case[2]) for case in CASES])
def test_exact_text(case):
    op, arguments, text = case
    with pytest.raises(RuntimeError) as raised:
        getattr(torch.ops.specdec, op)(*arguments)
    assert str(raised.value) == text
