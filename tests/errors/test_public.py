"""The exact text of every check of the public functions, and that no check is forgotten."""

import ast
import re
from pathlib import Path

import pytest
from dispatch.samples import function, sample

import specdec_kernels
from specdec_kernels._schema import BY_NAME, OPS

from . import table

CASES = table.cases()
PACKAGE = Path(specdec_kernels.__file__).parent
CHECKED = (
    "_validate.py",
    "_tree_exports.py",
    "_kv_inject.py",
    "_verify_drafts.py",
    "_verify_expect.py",
    "_verify_lossy.py",
    *sorted({f"{op.family}.py" for op in OPS}),
)


@pytest.mark.parametrize("case", CASES, ids=[table.identity(case[3]) for case in CASES])
def test_exact_text(case):
    op, call, error, text = case
    with pytest.raises((ValueError, TypeError)) as raised:
        function(op)(**call)
    assert type(raised.value) is error
    assert str(raised.value) == text


def test_messages_keep_the_grammar():
    for op, _, _, text in CASES:
        assert re.fullmatch(rf"{op.replace('_', '.', 1)}: [\w.\[\]]+ must .+, got .+", text), text


def tensors(name, value):
    """Names of the tensors of an argument: those of records have the names of fields, those of tuples an index."""
    if hasattr(value, "dtype"):
        return {name}
    if not isinstance(value, tuple):
        return set()
    fields = getattr(value, "_fields", None)
    names = [f"{name}[{i}]" for i in range(len(value))] if fields is None else [f"{name}.{field}" for field in fields]
    return set().union(*map(tensors, names, value))


#: What is not looked at.
UNREAD = {
    "verify_rejection": {"draft_sampling.seed"},
    "verify_expect": {"sampling.seed", "draft_sampling.seed"},
    "tree_from_parents": {"out[0].cu_nodes"},
}


def test_the_table_names_every_tensor_of_every_function():
    for op in BY_NAME:
        named = set().union(*(tensors(name, value) for name, value in sample(op, full=True).items()))
        named = {name for name in named if not name.startswith("buffers.")}  # kv_table.py has those by hand
        assert named - UNREAD.get(op, set()) == set(table.ARGUMENTS[op]), op


def raises():
    """Where the checks raise: ``(file, line)`` of every ``raise`` with an exception, status checks excepted."""
    found = set()
    for name in CHECKED:
        tree = ast.parse((PACKAGE / name).read_text())
        for body in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            if body.name != "raise_on_bad_data":
                found |= {(name, node.lineno) for node in ast.walk(body) if isinstance(node, ast.Raise)}
    return found


def test_every_check_is_in_the_table():
    met = set()
    for op, call, _, _ in CASES:
        try:
            function(op)(**call)
        except (ValueError, TypeError, AttributeError) as error:
            frame = error.__traceback__
            while frame.tb_next is not None:
                frame = frame.tb_next
            met.add((Path(frame.tb_frame.f_code.co_filename).name, frame.tb_lineno))
    assert len(raises()) > 20
    assert raises() <= met
