"""Every Triton kernel compiles for three generations of GPUs, within their limits."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("the package triton is not installed", allow_module_level=True)

#: Shared memory of a program in bytes: what every GPU from sm_80 on offers.
MOST_SHARED = 101376

#: Bytes per thread that may lie in memory for want of registers.
MOST_STACK = 512

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run(
        [sys.executable, str(script), str(min(os.cpu_count() or 1, 4))], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_for_every_architecture(compiled):
    assert {made["architecture"] for made in compiled} == {80, 90, 100}
    assert len({made["name"] for made in compiled}) == 53
    assert all(made["ptx"] > 0 for made in compiled)


def test_loads_of_attention_overlap_products(compiled):
    """Keys and values come by asynchronous copies, while earlier ones are multiplied."""
    found = {made["name"]: made["copies"] for made in compiled if made["name"].startswith("attention")}
    assert len(found) == 6
    assert [name for name, copies in found.items() if copies == 0 and name != "attention of float32"] == []


def test_exact_arithmetic_is_not_fused(compiled):
    found = {made["name"]: made["fused"] for made in compiled}
    assert found["budget, best"] == found["budget, first"] == 0
    assert any(found.values())


def test_shared_memory_fits(compiled):
    assert [made for made in compiled if made["shared"] > MOST_SHARED] == []


def test_registers_hardly_spill(compiled):
    assert [made for made in compiled if made["local"] > 0 or made["stack"] > MOST_STACK] == []
