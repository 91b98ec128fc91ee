"""Compiles the Triton kernels for GPUs that need not be there, and prints what each costs as one line of JSON.

A program of its own: where kernels are interpreted, Triton compiles nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specdec_kernels.triton import arrivals, draft, law, sample, tree, verify

ARCHITECTURES = (80, 90, 100)

_POINTERS = {
    "*bf16": "logits draft_logits",
    "*fp32": "temperature top_p min_p draft_temperature draft_top_p draft_min_p tops sums draft_tops draft_sums "
    "logprobs lse",
    "*fp64": "masses draft_masses heads",
    "*i32": "top_k draft_top_k cu_nodes parents depths ends nans owners draft_nans status num_tokens path allowed "
    "draft_allowed counts",
    "*i64": "seed positions rows draft_rows allowed_rows draft_allowed_rows requests nodes tree_depths out_tokens "
    "tokens drafts history lengths chains id_of column_of draft_to_target target_to_draft context_lens max_tokens "
    "scratch cuts draft_cuts",
    "*u8": "active",
}
_TYPES = {name: kind for kind, names in _POINTERS.items() for name in names.split()}

_MASKED = ["allowed", "allowed_rows"]
_MAPS = ["id_of", "column_of"]
_DRAFTS = [
    name
    for name in verify.verify_kernel.arg_names
    if name in _TYPES and (name.startswith("draft_") or name == "target_to_draft")
]
_DRAFT_MAPS = ["draft_to_target", "target_to_draft", "draft_allowed", "draft_allowed_rows"]
_SETTINGS = ["temperature", "top_k", "top_p", "min_p", "seed", "context_lens", "cuts", "masses"]

_WIDE = {"TILE": 4096, "NB": 64}
_NARROW = {"TILE": 1024, "NB": 1}
_RULE = {"REPLACEMENT": False, "MODE": 1, "FILTERED": True, "DRAFT_FILTERED": False}

# Name, kernel, absent arguments, constants: a usual call and, where another code path exists, that one.
CASES: list[tuple[str, Any, list[str], dict[str, Any]]] = [
    ("from_chains", tree.from_chains_kernel, [], {"TILE": 256}),
    ("ngram_lookup", draft.ngram_lookup_kernel, [], {"TILE": 1024, "NUM": 8}),
    ("scan of rows", law.scan_kernel, [*_MASKED, *_MAPS, "rows", "cu_nodes", "parents", "ends"],
     {"OF_CHILDREN": False, "TILE": 4096, "SEARCH": 64}),
    ("scan of mapped children", law.scan_kernel, ["requests"], {"OF_CHILDREN": True, "TILE": 4096, "SEARCH": 64}),
    ("filters", law.law_kernel, _MAPS, _WIDE),
    ("sample", sample.sample_kernel, _MASKED, {"FILTERED": True, **_WIDE}),
    ("draft, arrivals", sample.draft_kernel, ["id_of"], {"MODE": 0, "FILTERED": True, "NUM": 8, **_WIDE}),
    ("heads of arrivals", arrivals.heads_kernel, _MASKED, _WIDE),
    ("draft, mapped and coupled", sample.draft_kernel, _MASKED, {"MODE": 2, "FILTERED": True, "NUM": 8, **_WIDE}),
    ("greedy", verify.verify_kernel, [*_DRAFTS, *_SETTINGS],
     {**_RULE, "RULE": 0, "FILTERED": False, "MODE": 2, **_WIDE}),
    ("match", verify.verify_kernel, [*_DRAFTS, *_MASKED], {**_RULE, "RULE": 1, **_WIDE}),
    ("rejection", verify.verify_kernel, [*_DRAFT_MAPS, *_MASKED], {**_RULE, "RULE": 2, **_NARROW}),
    ("rejection, wide", verify.verify_kernel, [*_DRAFT_MAPS, *_MASKED], {**_RULE, "RULE": 2, **_WIDE}),
]  # fmt: skip

#: What is compiled for one architecture only, because it takes long or differs in its reads alone.
ONCE = ("rejection, wide", "match", "scan of mapped children", "draft, mapped and coupled")


def _compile(case: int, architecture: int) -> dict[str, Any]:
    name, kernel, absent, constants = CASES[case]
    missing = dict.fromkeys(absent) | ({"scratch": None} if constants.get("NB") == 1 else {})
    constants = {name: value for name, value in (missing | constants).items() if name in kernel.arg_names}
    signature = {
        argument: "constexpr" if argument in constants else _TYPES.get(argument, "i32") for argument in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    warps = 8 if constants["TILE"] >= 2048 else 4
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {key.lower(): int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "name": name,
        "architecture": architecture,
        "shared": made.metadata.shared,
        "ptx": len(made.asm["ptx"]),
        **found,
    }


def main() -> None:
    """Compile everything, the slow ones first."""
    jobs = [
        (case, architecture)
        for case in reversed(range(len(CASES)))
        for architecture in ARCHITECTURES
        if architecture == 90 or CASES[case][0] not in ONCE
    ]
    with ProcessPoolExecutor(int(sys.argv[1]), mp_context=get_context("fork")) as pool:
        for made in pool.map(_compile, *zip(*jobs, strict=True)):
            print(json.dumps(made))


if __name__ == "__main__":
    main()
