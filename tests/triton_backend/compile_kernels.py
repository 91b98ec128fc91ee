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
from attention_builds import BUILDS, Build
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specdec_kernels.triton import (
    arrivals,
    best_first,
    budget,
    draft,
    expect,
    inject,
    kv,
    law,
    sample,
    store,
    tree,
    tree_build,
    tree_export,
    verify,
)

ARCHITECTURES = (80, 90, 100)

_POINTERS = {
    "*bf16": "logits draft_logits",
    "fp32": "eps",
    "fp64": "first second",
    "*fp32": "temperature top_p min_p draft_temperature draft_top_p draft_min_p tops sums draft_tops draft_sums "
    "plain_tops plain_sums min_confidence max_entropy costs "
    "logprobs lse divergence given scores log_probs child_scores key_scale value_scale angles token_mean "
    "traversal_mean plus_one_mean bound",
    "*fp64": "masses draft_masses heads kept certainty",
    "*i32": "top_k draft_top_k cu_nodes parents depths ends nans plain_nans owners draft_nans status num_tokens path allowed "
    "draft_allowed counts names tree_slots candidates space live indptr paths num_paths beams cu_queries "
    "node_slots",
    "*i64": "seed positions rows draft_rows allowed_rows draft_allowed_rows requests nodes tree_depths out_tokens "
    "tokens drafts history lengths chains id_of column_of draft_to_target target_to_draft context_lens max_tokens "
    "scratch cuts draft_cuts given_tokens given_parents sources root_tokens pool_tokens pool_parents budgets token_ids "
    "keys first_child next_sibling retrieve_index table table_rows query_nodes data out_data data0 data1 data2 data3 "
    "data4 data5 data6 data7 ids roots flat_slots new_context_lens",
    "*i16": "new_key new_value projected norm key0 key1 key2 key3 key4 key5 key6 key7",
    "*u8": "active mask key_cache value_cache value0 value1 value2 value3 value4 value5 value6 value7",
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
_NO_LOSS = ["given", "kept", "divergence"]
_SETTINGS = ["temperature", "top_k", "top_p", "min_p", "seed", "context_lens", "cuts", "masses"]

_WIDE = {"TILE": 4096, "NB": 64}
_NARROW = {"TILE": 1024, "NB": 1}
_RULE = {"REPLACEMENT": False, "MODE": 1, "FILTERED": True, "DRAFT_FILTERED": False}

# Name, kernel, absent arguments, constants: a usual call and, where another code path exists, that one.
CASES: list[tuple[str, Any, list[str], dict[str, Any]]] = [
    ("from_chains", tree.from_chains_kernel, [], {"TILE": 256}),
    ("from_parents", tree_build.from_parents_kernel, [], {"TILE": 1024, "CHUNK": 4, "SEARCH": 256}),
    ("from_beams", tree_build.from_beams_kernel, [], {"POOL": 1024, "TILE": 64, "POOL_CHUNK": 4, "CHUNK": 64}),
    ("best_first, nodes", best_first.choose_kernel, [], {"TILE": 64, "RANKS": 64}),
    ("best_first, places", best_first.place_kernel, [],
     {"SHARED": True, "TILE": 64, "CHUNK": 64, "OTHERS": 64, "SEARCH": 256}),
    ("dense mask", tree_export.mask_kernel, [], {"BITS": 1, "ROWS": 64, "COLUMNS": 64}),
    ("packed mask", tree_export.mask_kernel, [], {"BITS": 8, "ROWS": 64, "COLUMNS": 8}),
    ("live nodes", tree_export.live_kernel, [], {}),
    ("full mask", tree_export.full_mask_kernel, [], {"BYTES": 256, "SEARCH": 256}),
    ("links", tree_export.links_kernel, [], {"NODES": 64}),
    ("paths", tree_export.paths_kernel, [], {"NODES": 64, "TILE": 4096}),
    ("children of beams", draft.children_kernel, [], {"NUM": 16, **_WIDE}),
    ("beams", draft.beams_kernel, [], {"TILE": 4096}),
    ("commit", kv.commit_kernel, [], {"PAGE": 16, "W": 8, "TILE": 256, "ONE_RUN": True}),
    ("commit of several runs", kv.commit_kernel, ["node_slots"], {"PAGE": 1, "W": 64, "TILE": 512, "ONE_RUN": False}),
    ("gather", kv.gather_kernel, [], {"TILE": 512, "ONE_RUN": True}),
    ("write", store.write_kernel, [],
     {"PAGE": 16, "KEY_IS_BFLOAT16": True, "VALUE_IS_BFLOAT16": True, "KEY_FORM": 3, "VALUE_FORM": 4, "KEY_TILE": 1024,
      "VALUE_TILE": 1024}),
    ("inject", inject.inject_kernel, [],
     {"PAGE": 16, "DIM": 128, "WIDTH": 128, "LEVELS": 7, "HEADS": 8, "INTERLEAVED": False, "IS_BFLOAT16": True,
      "NORM_IS_BFLOAT16": True, "ANGLES_ARE_BFLOAT16": False, "KEY_FORM": 2, "VALUE_FORM": 3}),
    ("inject, an odd head", inject.inject_kernel, ["positions", "key_scale", "value_scale"],
     {"PAGE": 1, "DIM": 80, "WIDTH": 128, "LEVELS": 7, "HEADS": 16, "INTERLEAVED": True, "IS_BFLOAT16": True,
      "NORM_IS_BFLOAT16": True, "ANGLES_ARE_BFLOAT16": False, "KEY_FORM": 2, "VALUE_FORM": 4}),
    ("next block", draft.block_kernel, [], {"PAGE": 16, "TILE": 16}),
    ("budget, places", budget.place_kernel, [], {"TILE": 128, "CHUNK": 64}),
    ("budget, best", budget.choose_kernel, [], {"SAMPLED": False, "TILE": 1024}),
    ("budget, first", budget.choose_kernel, ["active"], {"SAMPLED": True, "TILE": 1024}),
    ("budget, counts", budget.count_kernel, [], {"TILE": 64}),
    ("ngram_lookup", draft.ngram_lookup_kernel, [], {"TILE": 1024, "NUM": 8}),
    ("scan of rows", law.scan_kernel, [*_MASKED, *_MAPS, "rows", "cu_nodes", "parents", "ends"],
     {"OF_CHILDREN": False, "TEMPERATURE": 0.0, "TILE": 4096, "SEARCH": 64}),
    ("scan of mapped children", law.scan_kernel, ["requests"],
     {"OF_CHILDREN": True, "TEMPERATURE": 0.0, "TILE": 4096, "SEARCH": 64}),
    ("filters", law.law_kernel, _MAPS, _WIDE),
    ("sample", sample.sample_kernel, _MASKED, {"FILTERED": True, **_WIDE}),
    ("draft, arrivals", sample.draft_kernel, ["id_of"], {"MODE": 0, "FILTERED": True, "NUM": 8, **_WIDE}),
    ("certainty", sample.certainty_kernel, _MASKED, {"FILTERED": True, **_WIDE}),
    ("heads of arrivals", arrivals.heads_kernel, _MASKED, _WIDE),
    ("draft, mapped and coupled", sample.draft_kernel, _MASKED, {"MODE": 2, "FILTERED": True, "NUM": 8, **_WIDE}),
    ("greedy", verify.verify_kernel, [*_DRAFTS, *_SETTINGS, *_NO_LOSS],
     {**_RULE, "RULE": 0, "FILTERED": False, "MODE": 2, **_WIDE}),
    ("match", verify.verify_kernel, [*_DRAFTS, *_MASKED, *_NO_LOSS], {**_RULE, "RULE": 1, **_WIDE}),
    ("rejection", verify.verify_kernel, [*_DRAFT_MAPS, *_MASKED, *_NO_LOSS], {**_RULE, "RULE": 2, **_NARROW}),
    ("rejection, wide", verify.verify_kernel, [*_DRAFT_MAPS, *_MASKED, *_NO_LOSS], {**_RULE, "RULE": 2, **_WIDE}),
    ("bottom-up", verify.verify_kernel, [*_DRAFT_MAPS, *_MASKED, "given", "divergence"],
     {**_RULE, "RULE": 3, **_WIDE}),
    ("greedy plus one", verify.verify_kernel, [*_DRAFT_MAPS, *_MASKED, *_NO_LOSS], {**_RULE, "RULE": 4, **_WIDE}),
    ("expect", expect.expect_kernel, [*_DRAFT_MAPS, *_MASKED],
     {"REPLACEMENT": False, "FILTERED": True, "DRAFT_FILTERED": False, **_WIDE}),
    ("threshold", verify.verify_kernel, [*_DRAFTS, *_MASKED, "given", "kept"], {**_RULE, "RULE": 5, **_WIDE}),
    ("typical", verify.verify_kernel, [*_DRAFTS, *_MASKED, "given"], {**_RULE, "RULE": 6, **_WIDE}),
    ("relaxed", verify.verify_kernel, [*_DRAFTS, *_MASKED, *_SETTINGS, "kept"],
     {**_RULE, "RULE": 7, "FILTERED": False, **_WIDE}),
    ("synthetic", verify.verify_kernel, [*_DRAFTS, *_MASKED, "kept"], {**_RULE, "RULE": 8, **_WIDE}),
]  # fmt: skip

#: What must not fuse products and sums: results are the same bits everywhere.
EXACT = ("budget, best", "budget, first")

#: What is compiled for one architecture only, because it takes long or differs in its reads alone.
ONCE = (
    "filters",
    "draft, arrivals",
    "heads of arrivals",
    "certainty",
    "from_beams",
    "best_first, places",
    "from_parents",
    "children of beams",
    "rejection, wide",
    "bottom-up",
    "greedy plus one",
    "expect",
    "threshold",
    "typical",
    "relaxed",
    "synthetic",
    "match",
    "scan of mapped children",
    "draft, mapped and coupled",
    "commit of several runs",
    "gather",
    "inject, an odd head",
)


def _builds() -> list[Build]:
    """Everything, the slow ones first."""
    builds = list(BUILDS)
    for name, kernel, absent, constants in reversed(CASES):
        missing = [*absent, "scratch"] if constants.get("NB") == 1 else absent
        warps = 8 if constants.get("TILE", 0) >= 2048 or constants.get("POOL", 0) >= 1024 else 4
        builds += [
            Build(name, architecture, kernel, missing, constants, _TYPES, warps, fused=name not in EXACT)
            for architecture in ARCHITECTURES
            if architecture == 90 or name not in ONCE
        ]
    return builds


def _compile(number: int) -> dict[str, Any]:
    build = _builds()[number]
    names = build.kernel.arg_names
    constants = dict.fromkeys(name for name in build.absent if name in names)
    constants |= {name: value for name, value in build.constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else build.types.get(name, "i32") for name in names}
    even = [name for name in names if build.even and (name in build.even or signature[name].startswith("*"))]
    source = ASTSource(
        fn=build.kernel,
        signature=signature,
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in even},
    )
    made = triton.compile(
        source,
        target=GPUTarget("cuda", build.architecture, 32),
        options={"num_warps": build.warps, "num_stages": build.stages, "enable_fp_fusion": build.fused},
    )
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {key.lower(): int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "name": build.name,
        "architecture": build.architecture,
        "shared": made.metadata.shared,
        "ptx": len(made.asm["ptx"]),
        "fused": made.asm["ptx"].count("fma.rn.f64"),
        "copies": made.asm["ptx"].count("cp.async.cg"),
        **found,
    }


def main() -> None:
    """Compile everything."""
    with ProcessPoolExecutor(int(sys.argv[1]), mp_context=get_context("fork")) as pool:
        for made in pool.map(_compile, range(len(_builds()))):
            print(json.dumps(made))


if __name__ == "__main__":
    main()
