"""What the table of errors says of the verify family; some of it is shared with other families that take trees."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

INDEX, FLOAT = "int32 or int64", "float32, bfloat16 or float16"

# Sizes of the samples: 2 requests with 7 nodes, 40 ids (2 words of mask), 24 draft ids, chains of 4, histories of 9.
TREE = {
    "tree.tokens": ("[T]", INDEX),
    "tree.cu_nodes": ("[B+1]", "int32"),
    "tree.parents": ("[7]", "int32"),
    "tree.depths": ("[7]", "int32"),
    "tree.ends": ("[7]", "int32"),
}
_MASK = {"allowed": ("[rows, 2]", "int32"), "allowed_rows": ("[7]", INDEX)}
_BATCH = {"active": ("[2]", "bool"), "max_tokens": ("[2]", INDEX)}
_RESULT = {
    "out.tokens": ("[2, 3]", "int64"),
    "out.num_tokens": ("[2]", "int32"),
    "out.path": ("[2, 3]", "int32"),
    "out.status": ("[2]", "int32"),
    "out.logprobs": ("[2, 3]", "float32"),
    "out.lse": ("[2, 3]", "float32"),
}


def settings(name: str, *, seed: bool = True) -> dict[str, tuple[str, str]]:
    """The fields of a ``Sampling`` of two requests."""
    fields = {"temperature": "float32", "top_k": "int32", "top_p": "float32", "min_p": "float32", "seed": "int64"}
    return {f"{name}.{field}": ("[2]", dtype) for field, dtype in fields.items() if seed or field != "seed"}


_VERIFY = TREE | {"logits": ("[T, V]", FLOAT), "rows": ("[7]", INDEX)} | _MASK | _BATCH | _RESULT
_MATCH = _VERIFY | settings("sampling") | {"context_lens": ("[2]", INDEX)}
_DIVERGENCE = {"divergence": ("[2, 3]", "float32")}
_REJECTION = (
    _MATCH
    | settings("draft_sampling", seed=False)
    | {"draft_logits": ("[rows, 24]", FLOAT), "draft_rows": ("[7]", INDEX), "draft_allowed_rows": ("[7]", INDEX)}
    | {"draft_to_target": ("[V_draft]", INDEX), "target_to_draft": ("[40]", INDEX)}
)
_EXPECT = {name: known for name, known in _REJECTION.items() if name not in (*_RESULT, "sampling.seed", "context_lens")}
_EXPECT |= {f"out.{name}": ("[2]", "float32") for name in ("token", "traversal", "greedy_plus_one", "bound")}

#: op -> argument -> (shape, dtypes); the first one says on which device all others must be.
ARGUMENTS: dict[str, dict[str, tuple[str, str]]] = {
    "verify_greedy": _VERIFY,
    "verify_match": _MATCH,
    "verify_rejection": _REJECTION,
    "verify_expect": _EXPECT,
    "verify_threshold": _MATCH | _DIVERGENCE,
    "verify_typical": _MATCH | _DIVERGENCE,
    "verify_relaxed": _VERIFY | _DIVERGENCE | {"relax": ("[2]", "bool")},
    "verify_synthetic": _MATCH | _DIVERGENCE | {"rates": ("[n]", "float32")},
}
FAMILY = tuple(ARGUMENTS)
#: Those that emit tokens.
VERIFY = tuple(op for op in FAMILY if op != "verify_expect")
#: Those that take settings and lengths.
DRAWN = tuple(op for op in VERIFY if op not in ("verify_greedy", "verify_relaxed"))
#: Those that take the laws of drafts.
DRAFTED = ("verify_rejection", "verify_expect")
LOSSY = ("verify_threshold", "verify_typical", "verify_relaxed", "verify_synthetic")


def special(add: Callable[..., None]) -> None:
    """Add calls that are refused; ``add(op, error, text, *dropped arguments, **changed arguments)``."""
    spread = torch.randn(7, 80)[:, ::2]
    for op in FAMILY:
        add(op, ValueError, "logits must have unit stride in the last dimension, got 2", logits=spread)
        add(op, ValueError, "logits must have at least one column, got shape [7, 0]", logits=torch.randn(7, 0))
        add(op, ValueError, "logits must have at least 7 rows, got 6", "rows", logits=torch.randn(6, 40))
    for op in VERIFY:
        add(op, ValueError, "logprobs must be one of None, 'processed', 'raw', got 'log'", logprobs="log")
        add(op, ValueError, "out.logprobs must be given with logprobs, got None", out__logprobs=None)
        add(op, ValueError, "out.lse must be given with logprobs, got None", out__lse=None)
    rules = "'token', 'block', 'traversal', 'greedy_plus_one'"
    for wrong in ("strict", None, 1):
        add("verify_rejection", ValueError, f"rule must be one of {rules}, got {wrong!r}", rule=wrong)
    add("verify_expect", TypeError, "out must be an Expectation, got int", out=3)
    for op in DRAFTED:
        _drafted(op, add)
    _lossy(add)


def _drafted(op: str, add: Callable[..., None]) -> None:
    text = "draft_sampling.filter_order must be one of 'top_k_first', 'joint', 'min_p_first', got 'top_p_first'"
    add(op, ValueError, text, draft_sampling__filter_order="top_p_first")
    for name in ("draft_to_target", "target_to_draft"):
        add(op, ValueError, f"{name} must be given together with its inverse, got None", name)
    add(op, ValueError, "draft_sampling must be given with draft_logits, got None", draft_sampling=None)
    text = "draft_logits must have at least 7 rows, got 6"
    add(op, ValueError, text, "draft_rows", draft_logits=torch.randn(6, 24))
    text = "draft_logits must have shape [rows, 40], got [7, 24]"
    add(op, ValueError, text, "draft_to_target", "target_to_draft")
    text = "draft_logits must have unit stride in the last dimension, got 2"
    add(op, ValueError, text, draft_logits=torch.randn(7, 48)[:, ::2])
    text = "draft_logits must have at least one column, got shape [7, 0]"
    empty = torch.zeros(0, dtype=torch.int64)
    add(op, ValueError, text, draft_to_target=empty, draft_logits=torch.randn(7, 0))
    text = "allowed must be given with draft_allowed_rows, got None"
    add(op, ValueError, text, "allowed_rows", allowed=None)
    for value, kind in ((None, "NoneType"), ("yes", "str")):
        add(op, TypeError, f"replacement must be a bool, got {kind}", replacement=value)


#: Host numbers of the lossy rules: op, name, bounds in words, values outside.
NUMBERS = (
    ("verify_threshold", "single", "between 0 and 1", (-0.25, 1.5, math.nan)),
    ("verify_threshold", "accumulated", "above 0 and at most 1", (-1.0, 0.0, 1.5, math.nan)),
    ("verify_typical", "epsilon", "between 0 and 1", (-0.25, 1.5, math.nan)),
    ("verify_typical", "delta", "at least 0", (-0.5, -math.inf, math.nan)),
    ("verify_typical", "delta", "a finite float32", (math.inf, 1e39)),
    ("verify_relaxed", "delta", "between 0 and 1", (-0.25, 1.5, math.nan)),
    ("verify_relaxed", "top_k", "between 1 and 2147483647", (0, -3, 2**31)),
)


def _lossy(add: Callable[..., None]) -> None:
    for op, name, bounds, values in NUMBERS:
        for value in values:
            add(op, ValueError, f"{name} must be {bounds}, got {value}", **{name: value})
        kind = "an int" if name == "top_k" else "a float"
        wrong = [("1", "str"), (None, "NoneType"), (True, "bool"), (torch.tensor(1), "Tensor")]
        for value, actual in [*wrong, *[(1.0, "float")] * (name == "top_k")]:
            add(op, TypeError, f"{name} must be {kind}, got {actual}", **{name: value})
    text = "rates must have at least 2 elements, got 1"
    add("verify_synthetic", ValueError, text, rates=torch.ones(1))
