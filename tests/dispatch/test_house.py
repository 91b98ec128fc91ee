"""The rules of the house that a reader relies on: who imports whom, small files, kernels without torch, documented arguments."""

import ast
import inspect
import re
from pathlib import Path

import processes
import pytest

import specdec_kernels as sk
from specdec_kernels._schema import OPS

from .samples import function

ROOT = processes.ROOT
LINES = 500
SOURCES = {".py", ".h", ".cpp", ".cu", ".cuh", ".md", ".toml", ".txt", ".yaml", ".yml", ""}
NOT_OURS = {"build", "dist", "assets", "results", "__pycache__", "LICENSE"}


def files(folder=ROOT, suffixes=SOURCES):
    """Text files that belong to the project, below a folder of it."""
    found = []
    for path in sorted((ROOT / folder).iterdir()):
        hidden = path.name.startswith(".") and path.name != ".ci"
        if hidden or path.name in NOT_OURS or path.suffix == ".egg-info":
            continue
        if path.is_dir():
            found += files(path, suffixes)
        elif path.suffix in suffixes:
            found.append(path)
    return found


def test_no_file_is_longer_than_500_lines():
    long = {}
    for path in files():
        count = len(path.read_text().splitlines())
        if count > LINES:
            long[str(path.relative_to(ROOT))] = count
    assert not long


# ---- imports of Python ------------------------------------------------------------------------------------------------


def imports(path, package):
    """``(module, whether at the top level)`` of every import of a file, relative ones resolved."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for statement in tree.body:  # `if TYPE_CHECKING:` is for readers, not for the interpreter
        if isinstance(statement, ast.If) and "TYPE_CHECKING" not in ast.unparse(statement.test):
            top |= {id(node) for node in statement.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            found += [(f"{base}.{alias.name}", id(node) in top) for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "import_module":
            found += [(ast.unparse(argument).strip("f'\""), False) for argument in node.args]
    return found


def within(path):
    """The dotted name of the package that a file belongs to."""
    return ".".join(path.relative_to(ROOT).parent.parts)


def named(path, package):
    return {name for name, _ in imports(path, within(path)) if name == package or name.startswith(f"{package}.")}


def test_the_oracle_and_the_decoder_never_import_the_kernels():
    below = files("python_ref", suffixes={".py"})
    assert len(below) > 20
    for path in below:
        for stranger in ("specdec_kernels", "bench", "tests"):
            assert not named(path, stranger), path


def test_every_module_of_the_oracle_loads_without_the_kernels():
    program = """
import pathlib, importlib, sys
root = pathlib.Path(importlib.import_module("python_ref").__file__).parent
for path in sorted(root.rglob("*.py")):
    name = ".".join(("python_ref", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(sum(name.startswith("python_ref") for name in sys.modules), "specdec_kernels" in sys.modules)
"""
    count, kernels = processes.python(program).split()
    assert int(count) > 20 and kernels == "False"


def test_the_kernels_load_without_the_oracle():
    said = processes.python("import sys, specdec_kernels; print('python_ref' in sys.modules)")
    assert said.strip() == "False"


# What each module of the package may import from it; families see each other as little as they see the command line.
FAMILY = {"_backend", "_validate", "_schema", "types"}
MAY_IMPORT = {
    "_schema": set(),
    "_library": {"_schema", "triton"},
    "_fake": {"_library", "_schema"},
    "types": {"_schema"},
    "_validate": {"_schema", "types"},
    "_reference": {"_schema", "types"},
    "_backend": {"_library", "_schema", "_reference"},
    "_tree_exports": FAMILY,
    "_kv_inject": FAMILY,
    "_results": {"_validate", "types"},
    "_verify_lossy": FAMILY | {"_results"},
    "_verify_drafts": FAMILY,
    "_verify_expect": FAMILY | {"_verify_drafts"},
    "_planner": {"types"},
} | {op.family: FAMILY for op in OPS}
MAY_IMPORT["tree"] = FAMILY | {"_tree_exports", "_planner"}
MAY_IMPORT["kv"] = FAMILY | {"_kv_inject"}
MAY_IMPORT["verify"] = FAMILY | {"_results", "_verify_lossy", "_verify_drafts", "_verify_expect"}


def modules_of(names):
    """First part after the package of each dotted name; ``from . import x`` names ``x``."""
    return {name.split(".")[1] for name in names if "." in name}


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_go_one_way(module):
    path = ROOT / "specdec_kernels" / f"{module}.py"
    assert modules_of(named(path, "specdec_kernels")) <= MAY_IMPORT[module]


def test_the_schema_needs_the_standard_library_alone():
    """The build runs it before anything is installed."""
    path = ROOT / "specdec_kernels" / "_schema.py"
    processes.python(f"import sys, runpy\nsys.modules['torch'] = None\nrunpy.run_path({str(path)!r})")


def test_two_places_know_the_oracle_and_the_backend_only_when_asked():
    for path in files("specdec_kernels", suffixes={".py"}):
        if path.relative_to(ROOT).parts[1] == "cli":
            continue
        used = [top for name, top in imports(path, within(path)) if name.startswith("python_ref")]
        assert not any(used), f"{path} imports the oracle when it is loaded"
        assert not used or path.name == "_reference.py", path


def test_nobody_imports_the_command_line_or_the_benchmarks():
    for path in files("specdec_kernels", suffixes={".py"}):
        if path.relative_to(ROOT).parts[1] != "cli":
            assert "cli" not in modules_of(named(path, "specdec_kernels")), path
            assert not named(path, "bench"), path


# ---- kernels -----------------------------------------------------------------------------------------------------------

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
FRAMEWORK = ("torch", "ATen", "c10", "Python.h", "pybind11")


def included(path, seen=None):
    """Names of all headers that a file includes, those of the project followed."""
    seen = set() if seen is None else seen
    for kind, name in INCLUDE.findall(path.read_text()):
        near = (path.parent / name).resolve()
        if kind == '"' and near.exists():
            if near not in seen:
                seen.add(near)
                included(near, seen)
        else:
            seen.add(Path(name))
    return seen


def kernels():
    csrc = ROOT / "csrc"
    return [*csrc.rglob("*.cuh"), *(csrc / "common").rglob("*.h"), *(csrc / "cpu" / "kernels").iterdir()]


def test_kernels_see_no_framework():
    assert len(kernels()) > 5
    for path in kernels():
        strangers = [name for name in included(path) if name.parts[0] in FRAMEWORK]
        assert not strangers, f"{path}: {strangers}"


def test_cuda_kernels_do_not_print_allocate_or_wait():
    for path in (ROOT / "csrc").rglob("*.cuh"):
        code = re.sub(r"//[^\n]*", "", path.read_text())
        assert not re.findall(r"\b(printf|malloc|cudaMalloc\w*|cudaDeviceSynchronize|cudaStreamSynchronize)\b", code), (
            path
        )


# ---- documentation of arguments ---------------------------------------------------------------------------------------


def section(documentation, title):
    """The entries of a section of a docstring in Google's style: name -> text."""
    match = re.search(rf"^{title}:\n((?:[ ]{{4}}.*\n|\n)+)", inspect.cleandoc(documentation) + "\n\n", re.MULTILINE)
    assert match, f"no section {title}"
    entries, name = {}, None
    for line in match.group(1).splitlines():
        start = re.match(r"^ {4}(\w+): (.*)", line)
        if start:
            name = start.group(1)
            entries[name] = start.group(2)
        elif name and line.strip():
            entries[name] += " " + line.strip()
    return entries


@pytest.mark.parametrize("op", [op.name for op in OPS])
def test_every_argument_is_documented(op):
    made = function(op)
    parameters = list(inspect.signature(made).parameters)
    entries = section(made.__doc__, "Args")
    assert list(entries) == parameters
    assert all(len(text) > 10 for text in entries.values()), entries


@pytest.mark.parametrize("op", [op.name for op in OPS])
def test_every_function_says_what_it_raises_and_promises(op):
    documentation = inspect.cleandoc(function(op).__doc__)
    assert "\nRaises:\n" in documentation
    assert "Deterministic" in documentation


RECORDS = [
    sk.TokenTree,
    sk.Sampling,
    sk.VerifyResult,
    sk.Expectation,
    sk.KvGroup,
    sk.KvBuffers,
    sk.Links,
    sk.Expansion,
    sk.Block,
    sk.TreeShape,
]


@pytest.mark.parametrize("record", [*RECORDS, sk.linear.PackedLinear])
def test_every_field_of_a_record_is_documented(record):
    assert list(section(record.__doc__, "Attributes")) == list(record._fields)


def test_every_function_takes_a_backend_and_its_outputs():
    for op in OPS:
        parameters = inspect.signature(function(op.name)).parameters
        for name in ("backend", "out"):
            if name == "backend" or op.name not in (
                "linear_pack",
                "kv_write",
                "kv_commit",
                "kv_inject",
            ):  # packed once; in place
                assert parameters[name].default is None, op.name
                assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY, op.name
