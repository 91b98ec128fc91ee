"""What the native modules register, against the schema; and what a wrong C++ signature gives."""

import ctypes
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import processes
import pytest
import torch

import specdec_kernels as sk
from specdec_kernels import _library
from specdec_kernels._schema import BY_NAME, OPS, cpp_header

TYPES = {op.name: "(" + ", ".join(argument.type for argument in op.arguments) + ")" for op in OPS}


def signatures(module):
    """Op -> types of its C++ parameters, as the module was compiled."""
    path = _library.module_path(module)
    assert path is not None, f"{module}: {_library.MODULES[module]}"
    table = getattr(ctypes.CDLL(path), f"specdec_signatures{module}")
    table.restype = ctypes.c_char_p
    lines = table().decode().splitlines()
    assert len(lines) == len({line.split("(")[0] for line in lines}), "an op is registered twice"
    return {line[: line.index("(")]: line[line.index("(") :] for line in lines}


def test_the_cpu_module_registers_every_op_with_the_types_of_the_schema():
    assert signatures("_C") == {op.name: TYPES[op.name] for op in OPS if "cpu" in op.backends}
    assert all(_library.has_kernel(op.name, "CPU") for op in OPS if "cpu" in op.backends)


def test_the_cuda_module_loads_with_any_torch_or_says_why_it_is_missing():
    if importlib.util.find_spec("specdec_kernels._C_cuda") is None:  # then there was no compiler for it
        assert shutil.which("nvcc") is None or os.environ.get("SPECDEC_CUDA") == "0"
        assert _library.MODULES["_C_cuda"] == "not built"
        assert sk.available_backends("verify_greedy")["cuda"] == "module specdec_kernels._C_cuda is not built"
        return
    assert _library.MODULES["_C_cuda"] is None
    registered = signatures("_C_cuda")
    assert "verify_greedy" in registered
    assert registered == {op: TYPES[op] for op in registered}
    for op in OPS:
        assert _library.has_kernel(op.name, "CUDA") == (op.name in registered)
    if not torch.cuda.is_available():
        reason = "no CUDA device, or torch was built without CUDA"
        assert sk.available_backends("verify_greedy")["cuda"] == reason


WITHOUT = """
import importlib.util
find_spec, import_module = importlib.util.find_spec, importlib.import_module
def find(name, *rest):
    return None if name == {module!r} and {hidden} else find_spec(name, *rest)
def load(name, *rest):
    if name == {module!r}:
        raise ImportError("undefined symbol: boom")
    return import_module(name, *rest)
import torch
importlib.util.find_spec, importlib.import_module = find, load
import specdec_kernels as sk
print(sk.available_backends("verify_greedy")[{backend!r}])
tokens = torch.zeros((1, 3), dtype=torch.int64)
print(sk.tree.from_chains(tokens).ends.tolist())
try:
    sk.tree.from_chains(tokens, backend={backend!r})
except sk.BackendUnavailableError as error:
    print(error)
"""
REASONS = {
    "not built": (True, lambda module: f"module specdec_kernels.{module} is not built"),
    "broken": (False, lambda module: f"module specdec_kernels.{module} is not loadable: undefined symbol: boom"),
}


@pytest.mark.parametrize(
    ("module", "backend", "how"),
    [("_C", "cpu", "not built"), ("_C_cuda", "cuda", "not built"), ("_C_cuda", "cuda", "broken")],
)
def test_a_missing_module_is_named_and_only_the_automatic_choice_goes_on(module, backend, how):
    if how == "broken" and importlib.util.find_spec(f"specdec_kernels.{module}") is None:
        how = "not built"  # what was never built cannot be broken
    hidden, text = REASONS[how]
    program = WITHOUT.format(module=f"specdec_kernels.{module}", hidden=hidden, backend=backend)
    reason, ends, error = processes.python(program).splitlines()
    assert reason == text(module)
    assert ends == "[3, 3, 3]"
    assert error == f"tree.from_chains: backend must be available, got '{backend}': {reason}"


# ---- compile-time checks ----------------------------------------------------------------------------------------------

HEAD = """#include "register.h"
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
"""
KERNEL = "void kernel{number}({parameters}) {{}}"
REGISTRATION = (
    "STABLE_TORCH_LIBRARY_IMPL(specdec{number}, CPU, library) {{ SPECDEC_IMPL(library, {op}, kernel{number}); }}"
)
SENTENCE = "the C++ parameters differ from the schema in specdec_kernels/_schema.py"
LOOKUP = "Tensor, Tensor, int64_t, int64_t, Optional, Tensor, Tensor"
RIGHT = [
    ("draft_ngram_lookup", LOOKUP),
    ("draft_ngram_lookup", LOOKUP.replace("Tensor", "const Tensor&").replace("Optional", "const Optional&")),
    ("linear_pack", "Tensor, Tensor, Optional"),
]
WRONG = [
    ("draft_ngram_lookup", LOOKUP.replace("int64_t", "double")),
    ("draft_ngram_lookup", LOOKUP.replace("int64_t", "int32_t")),
    ("draft_ngram_lookup", LOOKUP.replace("int64_t, int64_t", "int64_t")),
    ("draft_ngram_lookup", LOOKUP.replace("Optional", "Tensor")),
    ("draft_ngram_lookup", LOOKUP.replace("Optional", "int64_t")),
    ("linear_pack", "Tensor, Optional, Tensor"),
]


def compile_registrations(folder, registrations):
    """Run the compiler over kernels and their registrations, without making code; its result, and what it says."""
    (folder / "specdec_schema.h").write_text(cpp_header())
    lines = [HEAD]
    for number, (op, parameters) in enumerate(registrations):
        lines.append(KERNEL.format(number=number, parameters=parameters))
        lines.append(f'#line 1 "registration{number}"')
        lines.append(REGISTRATION.format(number=number, op=op))
    source = folder / "snippet.cpp"
    source.write_text("\n".join(lines) + "\n")
    torch_folder = Path(torch.__file__).parent
    includes = [folder, processes.ROOT / "csrc" / "binding"]
    system = [torch_folder / "include", sysconfig.get_path("include")]
    flags = ["-std=gnu++20", "-fsyntax-only", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    flags += [f"-I{path}" for path in includes] + [f"-isystem{path}" for path in system]
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    done = processes.run([compiler, *flags, str(source)])
    return done.returncode, done.stderr


def test_registrations_that_fit_the_schema_compile(tmp_path):
    code, said = compile_registrations(tmp_path, RIGHT)
    assert code == 0, said


def test_registrations_that_differ_from_the_schema_do_not_compile(tmp_path):
    code, said = compile_registrations(tmp_path, WRONG)
    assert code != 0
    assert said.count(SENTENCE) >= len(WRONG), said
    for number, registration in enumerate(WRONG):
        assert f"registration{number}:1" in said, registration


def test_the_generated_header_declares_every_op():
    lines = [line for line in cpp_header().splitlines() if line.startswith("using ")]
    assert [line.split()[1] for line in lines] == list(BY_NAME)
    tensor = "torch::stable::Tensor"
    assert f"using linear_pack = void({tensor}, {tensor}, std::optional<{tensor}>);" in lines
