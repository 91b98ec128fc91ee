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
* law: ``allowed [rows, ceil(V/32)]`` with ``allowed_rows``: which ids a row may emit;
* result: ``out_tokens``, ``num_tokens``, ``path``, ``status``, ``logprobs``, ``lse`` of a
  ``VerifyResult``.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FILTER_ORDERS = ("top_k_first", "joint", "min_p_first")
LOGPROBS = (None, "processed", "raw")
REJECTION_RULES = ("token",)

_TREE = "Tensor cu_nodes, Tensor tokens, Tensor parents, Tensor depths, Tensor ends"
_SAMPLING = "Tensor temperature, Tensor? top_k, Tensor? top_p, Tensor? min_p, Tensor seed, int filter_order"
_LAW = "Tensor? allowed, Tensor? allowed_rows"
_BATCH = "Tensor? active, Tensor? max_tokens, int logprobs_mode"
_RESULT = (
    "Tensor(a!) out_tokens, Tensor(b!) num_tokens, Tensor(c!) path, Tensor(d!) status, "
    "Tensor(e!)? logprobs, Tensor(f!)? lse"
)


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
        "sample_sample",
        f"Tensor logits, {_SAMPLING}, Tensor positions, {_LAW}, Tensor? active, "
        "Tensor(a!) out_tokens, Tensor(b!) status",
    ),
    Op(
        "sample_draft",
        f"Tensor logits, {_SAMPLING}, Tensor positions, Tensor? requests, Tensor? depths, "
        f"Tensor? nodes, {_LAW}, Tensor? draft_to_target, bool replacement, int top, bool coupled, "
        "Tensor(a!) drafts, Tensor(b!) status",
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
        "draft_ngram_lookup",
        "Tensor history, Tensor lengths, int min_n, int max_n, Tensor? active, Tensor(a!) drafts, Tensor(b!) counts",
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
