"""Makefile, ``setup.py`` and requirements: what they would build, when they build it again, what they say. Nothing is built."""

import os
import re
import sys
from pathlib import Path

import processes
import pytest

from bench import suite
from specdec_kernels.cli import bench


def program(folder, name, text):
    """A shell script that is found before any other program of that name; the ``PATH`` for it."""
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def setup(*arguments, executable=sys.executable, **environment):
    """``setup.py``, run by an interpreter that believes to be ``executable``."""
    code = f"""
import runpy, sys
sys.executable, sys.argv = {str(executable)!r}, ["setup.py", *{[str(part) for part in arguments]!r}]
runpy.run_path("setup.py", run_name="__main__")
"""
    return processes.run([sys.executable, "-c", code], environment, processes.ROOT)


@pytest.fixture
def planned(tmp_path):
    """``planned("demo", gpu="9.0")``: what make would run, with stamps of its own, on a machine with this GPU."""

    def run(target, gpu="No devices were found", **environment):
        environment["PATH"] = program(tmp_path, "nvidia-smi", f"echo {gpu}; echo {gpu}")
        done = processes.run(
            ["make", "-n", target, f"VENV={tmp_path}"], environment | {"MAKEFLAGS": ""}, processes.ROOT
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize(
    ("gpu", "archs"), [("9.0", "90a"), ("10.0", "100a"), ("8.6", "86"), ("12.0", "120"), ("8.0", "80")]
)
def test_both_rules_build_for_the_gpu_of_the_machine(planned, gpu, archs):
    for target in ("demo", "test"):
        assert f"SPECDEC_CUDA=auto SPECDEC_CUDA_ARCHS='{archs}' " in planned(target, gpu)
        assert "SPECDEC_CUDA_ARCHS='80;ptx' " in planned(target, gpu, SPECDEC_CUDA_ARCHS="80;ptx")


def test_without_a_gpu_the_tests_build_for_one_architecture_and_the_demo_for_none(planned):
    assert "SPECDEC_CUDA=auto SPECDEC_CUDA_ARCHS='90a' " in planned("test")
    demo = planned("demo")
    assert "SPECDEC_CUDA=0 " in demo
    assert re.search(r"^rm -f \S+/\.specdec/test$", demo, re.MULTILINE)  # the tests want the module that is removed


def test_modules_are_built_again_for_another_gpu_and_after_clean(planned, tmp_path):
    stamps = tmp_path / ".specdec"
    stamps.mkdir()
    for name in ("venv", "for-gpu-90a", "demo", "test"):
        (stamps / name).touch()
    for target in ("demo", "test"):
        assert "pip install" not in planned(target, "9.0")
        assert "pip install" in planned(target, "8.6")
        assert "pip install" in planned(target)
    removed = re.search(r"^rm -rf (.*)$", planned("clean"), re.MULTILINE)[1].split()
    assert {str(stamps / name) for name in ("demo", "test", "for-*")} <= set(removed)


def test_without_cmake_one_sentence_says_what_is_needed(tmp_path):
    done = setup("build_ext", executable=tmp_path / "python", PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "specdec_kernels: cmake must be installed to build the modules, got none (pip install cmake ninja)"
    )
    assert "Traceback" not in done.stderr


def test_modules_of_an_earlier_build_are_removed(tmp_path):
    build, package = tmp_path / "build", tmp_path / "lib" / "specdec_kernels"
    for folder in (build, package):
        folder.mkdir(parents=True)
    for name in ("_C.abi3.so", "_C_cuda.abi3.so", "other.so"):
        (package / name).touch()
    path = program(
        tmp_path, "cmake", 'if [ "$1" = --install ]; then echo "$4/./_C.abi3.so" > "$2/install_manifest.txt"; fi'
    )
    done = setup("build_ext", "--build-lib", tmp_path / "lib", PATH=path, SPECDEC_BUILD_DIR=str(build))
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in package.iterdir()) == ["_C.abi3.so", "other.so"]


def test_the_makefile_asks_for_what_pyproject_asks_for():
    makefile = (processes.ROOT / "Makefile").read_text()
    project = (processes.ROOT / "pyproject.toml").read_text()
    installed = {
        name for line in re.findall(r"\$\(PIP\) (.*)", makefile) for name in re.findall(r'"([\w-]+[<>][^"]*)"', line)
    }
    wanted = set()
    for group in ("requires", "dependencies", "test", "lint"):
        wanted |= set(re.findall(r'"([\w-]+[<>][^"]*)"', re.search(rf"^{group} = (\[.*?\])", project, re.M | re.S)[1]))
    assert len(installed) > 10
    assert wanted - installed == {"torch>=2.11"}  # installed apart, or that of the system
    assert installed <= wanted


def test_another_package_of_the_name_bench_stops_only_bench(tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("raise RuntimeError('this is not ours')\n")
    code = """
import sys
from specdec_kernels.cli.main import app
for command in (["bench", "--help"], ["bench"]):
    try:
        app(command, prog_name="specdec")
    except SystemExit as error:
        print("code", error.code)
print("bench" in sys.modules)
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = processes.run([sys.executable, "-c", code], {"PYTHONPATH": path}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:][1:] == ["code 2", "False"] and "code 0" in done.stdout
    ours = Path(suite.__file__).parent
    assert done.stderr == (
        f"specdec bench: the package bench must be the one in {ours}, got {tmp_path}/bench/__init__.py "
        "(PYTHONPATH, or another installation)\n"
    )


def test_the_help_of_bench_agrees_with_the_suite():
    assert tuple(suite.FAMILIES) == bench.FAMILIES
    assert (bench.REPEATS, bench.QUICK_REPEATS) == (suite.REPEATS, suite.QUICK_REPEATS)
