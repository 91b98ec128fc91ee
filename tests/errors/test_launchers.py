"""The last line of defence: what the C++ launchers refuse when an op is called past its public function."""

import pytest
import torch
from dispatch.samples import arguments_of, sample

from specdec_kernels._schema import BY_NAME

from .table import ARGUMENTS, VERIFY, identity

# Names of the arguments of a schema in messages, where they are not those of the schema.
_FIELDS = {name: f"tree.{name}" for name in ("cu_nodes", "tokens", "parents", "depths", "ends")}
_RESULT = {name: f"out.{name}" for name in ("num_tokens", "path", "status", "logprobs", "lse")}
_VERIFY = _FIELDS | _RESULT | {"out_tokens": "out.tokens"}
NAMES = {
    "tree_from_chains": {name: f"out.{name}" for name in (*_FIELDS, "status")} | {"chains": "tokens"},
    "sample_sample": {"out_tokens": "out"},
    "sample_draft": {"drafts": "out"},
    "verify_greedy": _VERIFY,
    "verify_match": _VERIFY,
    "verify_rejection": _VERIFY,
    "draft_ngram_lookup": {"drafts": "out[0]", "counts": "out[1]"},
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
    "draft_ngram_lookup": {"out[0]": ("[2, 2]", _INDEX)},
    "sample_sample": {"out": ("[2]", "int64")},
    "sample_draft": {"temperature": ("[B]", "float32")},
    "verify_greedy": _OUT,
    "verify_match": _OUT,
    "verify_rejection": _OUT | _DRAFTS | {"draft_to_target": ("[24]", _INDEX)},
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
            shape, dtypes = expected(op, path)
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
    found += _special_of_rules()
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
        text = "logits must have at least 7 rows, got 6"
        found.append(case(op, text, rows=None, logits=lambda value: value[:6]))
    for op in (*VERIFY, "sample_sample", "sample_draft"):
        text = "logits must have between 1 and 2147483647 columns, got 0"
        found.append(case(op, text, logits=lambda value: value[:, :0]))
        found.append(case(op, f"logits {unit}", logits=spread))
        found.append(case(op, f"allowed {unit}", allowed=spread))
        found.append(case(op, "allowed must be given with allowed_rows, got None", allowed=None))
        count = 7 if op in VERIFY else 2
        text = f"allowed must have at least {count} rows, got 1"
        found.append(case(op, text, allowed=lambda value: value[:1], allowed_rows=None))
        if op != "sample_draft":  # where the number of target ids is not known
            found.append(case(op, "allowed must have shape [2, 2], got [2, 1]", allowed=lambda value: value[:, :1]))
    for op in ("sample_sample", "sample_draft", "verify_match", "verify_rejection"):
        for order in (-1, 3):
            found.append(case(op, f"filter_order must be 0, 1 or 2, got {order}", filter_order=order))
    for num in (0, 257):
        wide = torch.zeros((2, num), dtype=torch.int64)
        found.append(case("sample_draft", f"num must be between 1 and 256, got {num}", drafts=wide))
    for top in (-1, 4):
        found.append(case("sample_draft", f"top must be between 0 and 3, got {top}", top=top))
    found.append(case("sample_draft", f"out {unit}", drafts=spread))
    op = "verify_rejection"
    found.append(case(op, "rule must be 0, got 1", rule=1))
    found.append(case(op, f"draft_logits {unit}", draft_logits=spread))
    text = "draft_logits must have at least 7 rows, got 6"
    found.append(case(op, text, draft_rows=None, draft_logits=lambda value: value[:6]))
    for name in ("draft_to_target", "target_to_draft"):
        found.append(case(op, f"{name} must be given together with its inverse, got None", **{name: None}))
    text = "draft_logits must have 40 columns, got 24"
    found.append(case(op, text, draft_to_target=None, target_to_draft=None))
    return found


CASES = cases() + special()


@pytest.mark.parametrize("case", CASES, ids=[identity(case[2]) for case in CASES])
def test_exact_text(case):
    op, arguments, text = case
    with pytest.raises(RuntimeError) as raised:
        getattr(torch.ops.specdec, op)(*arguments)
    assert str(raised.value) == text
