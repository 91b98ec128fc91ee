"""The checks of the tree family and of ``draft.expand`` that the table does not make from shapes and dtypes."""

from __future__ import annotations

from typing import Any

import torch
from dispatch.samples import sample

Case = tuple[str, dict[str, Any], type, str]


def _case(op: str, error: type, text: str, *drop: str, plain: bool = False, **changes: Any) -> Case:
    call = sample(op, full=not plain) | changes
    return op, {k: v for k, v in call.items() if k not in drop}, error, f"{op.replace('_', '.', 1)}: {text}"


def _integers(op: str, name: str, low: int, high: int | None, plain: bool = False) -> list[Case]:
    """What is no host integer within bounds."""
    bounds = f"at least {low}" if high is None else f"between {low} and {high}"
    cases = [_case(op, ValueError, f"{name} must be {bounds}, got {low - 1}", plain=plain, **{name: low - 1})]
    if high is not None:
        cases.append(_case(op, ValueError, f"{name} must be {bounds}, got {high + 1}", plain=plain, **{name: high + 1}))
    cases.append(_case(op, TypeError, f"{name} must be an int, got float", plain=plain, **{name: 2.0}))
    cases.append(_case(op, TypeError, f"{name} must be an int, got bool", plain=plain, **{name: True}))
    return cases


def _outputs(op: str) -> list[Case]:
    """Pairs of a tree and its order."""
    tree, order = sample(op, full=True)["out"]
    pair = "out must be a pair of a TokenTree and a tensor, got"
    return [
        _case(op, TypeError, f"{pair} Tensor", out=order),
        _case(op, TypeError, f"{pair} tuple", out=(order,)),
        _case(op, TypeError, "out[0] must be a TokenTree, got Tensor", out=(order, order)),
        _case(op, ValueError, "out[0].status must be given, got None", out=(tree._replace(status=None), order)),
    ]


def _builders() -> list[Case]:
    op = "tree_from_parents"
    tree, order = sample(op, full=True)["out"]
    text = "cu_nodes must have at least one element, got shape [0]"
    cases = [_case(op, ValueError, text, cu_nodes=torch.zeros(0, dtype=torch.int32))]
    cases += _integers(op, "max_nodes", 0, 1024) + _integers(op, "max_depth", 0, None) + _outputs(op)
    text = "out[0].slots must be given with slots, got None"
    cases += [
        _case(op, ValueError, text, out=(tree._replace(slots=None), order)),
        _case(op, TypeError, "slots must be a bool, got int", slots=1),
    ]
    wide = torch.zeros((2, 4097), dtype=torch.int64)
    op = "tree_from_beams"
    cases += _integers(op, "max_depth", 0, None) + _outputs(op)
    cases.append(_case(op, ValueError, "tokens must have at most 4096 columns, got 4097", tokens=wide))
    for op in ("tree_from_beams", "tree_best_first"):
        cases += _integers(op, "budget", 0, 1024, plain=True) + _integers(op, "max_nodes", 0, 1024)
        text = "max_nodes must be None unless budget is a tensor, got 4"
        cases.append(_case(op, ValueError, text, budget=4))
    cases += _integers(op, "total_budget", 0, None)
    tree = sample(op, full=True)["out"]._replace(status=None)
    cases.append(_case(op, ValueError, "out.status must be given, got None", out=tree))
    return cases


def _exports() -> list[Case]:
    op = "tree_to_packed_mask"
    mask, indptr = sample(op, full=True)["out"]
    cases = [
        _case(op, ValueError, "layout must be one of 'full', 'query', 'words', got 'rows'", layout="rows"),
        _case(op, ValueError, "context_lens must be given with 'full', got None", "context_lens"),
        _case(op, ValueError, "max_context must be given with 'full', got None", "max_context"),
        _case(op, ValueError, "out[1] must be given with layout 'full', got None", out=(mask, None)),
        _case(op, TypeError, "out must be a pair of tensors, got Tensor", out=mask),
    ]
    for name, value in (("context_lens", torch.zeros(2)), ("max_context", 3)):
        text = f"{name} must be None unless the layout is 'full', got a value"
        cases.append(_case(op, ValueError, text, plain=True, **{name: value}))
    cases += _integers(op, "max_context", 0, None)
    text = "max_context must leave at most 2147483647 bytes, got 4294967300 bytes"
    cases.append(_case(op, ValueError, text, max_context=2**32))
    words = torch.zeros((2, 4, 1), dtype=torch.int32)
    for layout, given, text in (
        ("query", words, "out[0] must have dtype uint8, got int32"),
        ("words", words.to(torch.uint8), "out[0] must have dtype int32, got uint8"),
    ):
        cases.append(_case(op, TypeError, text, plain=True, layout=layout, out=(given, None)))
    for layout, dtype in (("query", torch.uint8), ("words", torch.int32)):
        wrong = torch.zeros((2, 4, 2), dtype=dtype)
        text = "out[0] must have shape [2, 4, 1], got [2, 4, 2]"
        cases.append(_case(op, ValueError, text, plain=True, layout=layout, out=(wrong, None)))
    op = "tree_to_links"
    cases += [
        _case(op, TypeError, "dtype must be int32 or int64, got int16", dtype=torch.int16),
        _case(op, TypeError, "out.first_child must have dtype int64, got int32", "dtype"),
        _case(op, TypeError, "out must be Links, got Tensor", out=indptr),
    ]
    cases.append(_case("tree_to_paths", TypeError, "out must be a pair of tensors, got Tensor", out=indptr))
    return cases


def special() -> list[Case]:
    """All of ``(op, keyword arguments, exception, text)``."""
    op = "draft_expand"
    cases = _integers(op, "num", 1, 64) + _integers(op, "beams", 1, 64)
    cases += [
        _case(
            op,
            ValueError,
            "logits must have unit stride in the last dimension, got 2",
            logits=torch.randn(4, 48)[:, ::2],
        ),
        _case(op, ValueError, "logits must have at least one column, got shape [4, 0]", logits=torch.randn(4, 0)),
        _case(op, ValueError, "logits must have 4 rows, got 3", logits=torch.randn(3, 24)),
        _case(op, ValueError, "scores must have at most 64 columns, got 65", scores=torch.zeros(2, 65)),
        _case(op, TypeError, "out must be an Expansion, got int", out=3),
    ]
    return _builders() + _exports() + cases
