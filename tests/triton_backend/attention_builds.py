"""What ``compile_kernels.py`` compiles of the attention family: the constants are those that the launcher passes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from specdec_kernels.triton import attend, attention, merge, plan

_POINTERS = {
    "*fp32": "sinks key_scale value_scale lse lses states",
    "*i32": "plan cu_nodes parents depths ends cu_queries node_slots status table",
    "*i64": "query_nodes table_rows context_lens",
    "*bf16": "values",
    "*u8": "active",
}
TYPES = {name: kind for kind, names in _POINTERS.items() for name in names.split()} | {
    "scale": "fp32",
    "softcap": "fp32",
}

_NAMES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}

_STRIDES = [f"{cache}_{step}_stride" for cache in ("key", "value") for step in ("page", "slot", "heads")]
#: Multiples of 16 in any cache of a usual model: how wide loads are hangs on them.
_EVEN = ("query_stride", "query_heads_stride", *_STRIDES)

_OPTIONAL = ["query_nodes", "table_rows", "node_slots", "sinks", "key_scale", "value_scale", "status"]


class Build(NamedTuple):
    """One kernel for one architecture."""

    name: str
    architecture: int
    kernel: Any
    absent: list[str]
    constants: dict[str, Any]
    types: dict[str, str]
    warps: int = 4
    stages: int = 3
    even: tuple[str, ...] = ()  # integers that are multiples of 16; all pointers are, too
    fused: bool = True


def _attention(
    name: str,
    architectures: tuple[int, ...],
    dim: int,
    value_dim: int,
    rows: int,
    query: torch.dtype = torch.bfloat16,
    cache: torch.dtype | None = None,
    absent: tuple[str, ...] = (),
    **options: Any,
) -> list[Build]:
    cache = cache or query
    kind = _NAMES.get(cache, "*u8")
    builds = []
    for architecture in architectures:
        tiling, constants = attention.constants_of(
            query,
            cache,
            cache,
            dim=dim,
            value_dim=value_dim,
            group=4,
            max_rows=-(-rows // 4),
            same_memory=dim == 576,
            capability=(architecture // 10, architecture % 10),
        )
        constants |= {"PAGE": 16, "BLOCK": False, "WINDOW": False, "CAPPED": False, "SEARCH": 64, **options}
        types = TYPES | {"query": _NAMES[query], "out": _NAMES[query], "key": kind, "value": kind}
        builds.append(
            Build(
                name,
                architecture,
                attend.attend_kernel,
                list(absent),
                constants,
                types,
                tiling.warps,
                tiling.stages,
                _EVEN,
            )
        )
    return builds


_ALL = (80, 90, 100)
_CUT = {"G": 4, "BM": 16, "BN": 64, "SEARCH": 64}

BUILDS = [
    Build("plan of attention", 90, plan.plan_kernel, [], {**_CUT, "ALL": False}, TYPES),
    *_attention("attention", _ALL, 128, 128, rows=16),
    *_attention("attention of many rows", _ALL, 128, 128, rows=64, absent=("states",), WINDOW=True, CAPPED=True),
    *_attention("attention to latent rows", (90,), 576, 512, rows=128, absent=("key_scale", "value_scale")),
    *_attention("attention of odd heads to float8", (80,), 80, 80, rows=16, cache=torch.float8_e4m3fn, PAGE=1),
    *_attention("attention to float8", (90,), 128, 128, rows=16, cache=torch.float8_e4m3fn, absent=tuple(_OPTIONAL[:4])),
    *_attention("attention of float32", (80,), 128, 128, rows=16, query=torch.float32, absent=tuple(_OPTIONAL)),
    Build(
        "splits together", 90, merge.combine_kernel, [], {**_CUT, "DV": 128, "V": 128, "ROWS": 4, "UNROLL": 8},
        TYPES | {"out": "*bf16"},
    ),
    Build("merged states", 90, merge.merge_states_kernel, [], {"V": 128}, TYPES | {"out": "*bf16"}),
]  # fmt: skip
