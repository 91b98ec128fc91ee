"""Source distribution and wheel: built from a copy of the checkout, installed and tested far away from it."""

import os
import shutil
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import processes
import pytest

pytestmark = pytest.mark.package

NOT_COPIED = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "shared", "*.log", "results"
)
PACKAGES = ("specdec_kernels", "python_ref", "bench")
MINUTES = 60


def run(command, folder, minutes=15, **environment):
    """Run a command; what it prints if it ends well."""
    done = processes.run([str(part) for part in command], environment, folder, timeout=minutes * MINUTES)
    assert done.returncode == 0, f"{command}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The checkout without what was built in it."""
    folder = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(processes.ROOT, folder, ignore=NOT_COPIED)
    return folder


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-c", f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"], source)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the source distribution as a user would: a wheel of the checkout has the same files."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, "."]
    path = os.pathsep.join(
        (str(Path(sys.executable).parent), os.environ["PATH"])
    )  # cmake and ninja of this environment
    run(command, sdist, SPECDEC_CUDA="auto", SPECDEC_CUDA_ARCHS="90a", PATH=path)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """``bin`` of an environment with the wheel in it and the libraries of this one, and an empty folder to work in."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True, system_site_packages=True)
    binaries = folder / "venv" / "bin"
    command = [binaries / "python", "-m", "pip", "install", "--no-index", "--no-deps", "--ignore-installed", wheel]
    run(command, folder)
    libraries = binaries.parent / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    # A path file adds folders and not their path files: an editable installation in this environment stays out.
    (libraries / "libraries.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    outside = folder / "outside"
    shutil.copytree(processes.ROOT / "tests", outside / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    return binaries, outside


def shipped(source):
    """What every installation has: the packages' Python files, the models, and the parts of the page of a trace."""
    found = [path for folder in PACKAGES for path in (source / folder).rglob("*.py")]
    found += (source / "specdec_kernels" / "cli" / "page").iterdir()
    return found + [path for path in (source / "python_ref" / "assets").rglob("*") if path.is_file()]


def test_the_source_distribution_is_complete(source, sdist):
    for name in ("CMakeLists.txt", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        assert (sdist / name).exists(), name
    needed = [path for path in (source / "csrc").rglob("*") if path.is_file()]
    needed += shipped(source)
    assert len(needed) > 100
    for path in needed:
        assert (sdist / path.relative_to(source)).exists(), path.relative_to(source)
    assert not list(sdist.rglob("*.so"))


def test_the_wheel_holds_the_packages_and_the_modules_and_nothing_else(source, wheel):
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    assert {"specdec_kernels/_C.abi3.so", "specdec_kernels/py.typed", "specdec_kernels/triton/verify.py"} <= names
    assert "specdec_kernels/_C_emulated.abi3.so" not in names  # for development alone
    if shutil.which("nvcc"):
        assert "specdec_kernels/_C_cuda.abi3.so" in names
    assert {str(path.relative_to(source)) for path in shipped(source)} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)


def test_the_package_works_far_from_the_checkout(installed):
    binaries, outside = installed
    program = """
import torch, specdec_kernels as sk, python_ref.ops as oracle
tree = sk.tree.from_chains(torch.tensor([[0, 3, 2]]))
result = sk.verify.greedy(tree, torch.eye(4)[[3, 2, 1]], backend="cpu")
print(sk.__file__, result.tokens.tolist(), oracle.verify.greedy(tree, torch.eye(4)[[3, 2, 1]]).tokens.tolist())
"""
    where, *tokens = run([binaries / "python", "-c", program], outside).split(maxsplit=1)
    assert Path(where).is_relative_to(binaries.parent)
    assert tokens[0].strip() == "[[3, 2, 1]] [[3, 2, 1]]"


def test_the_command_is_installed(installed):
    binaries, outside = installed
    assert "verify.match" in run([binaries / "specdec", "info"], outside)


@pytest.mark.parametrize("folder", ["oracle", "agreement", "errors", "decoding"])
def test_the_tests_pass_far_from_the_checkout(installed, folder):
    binaries, outside = installed
    said = run([binaries / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{folder}"], outside)
    assert " passed" in said and "failed" not in said
