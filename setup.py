"""Calls CMake; everything else is in pyproject.toml and CMakeLists.txt."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def _tool(name: str) -> str | None:
    """A program on the PATH, or of this interpreter's environment, which need not be activated."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


class CMakeBuild(build_ext):
    """Builds all native modules with one CMake call and installs them into the package."""

    def run(self) -> None:
        """Configure, build, install. The build folder is kept between calls."""
        cmake, ninja = _tool("cmake"), _tool("ninja")
        if cmake is None:
            sys.exit(
                "specdec_kernels: cmake must be installed to build the modules, got none (pip install cmake ninja)"
            )
        build = Path(os.environ.get("SPECDEC_BUILD_DIR", ROOT / "build" / "modules"))
        package = ROOT if self.inplace else Path(self.build_lib).resolve()
        arguments = [
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DSPECDEC_CUDA={os.environ.get('SPECDEC_CUDA', 'auto')}",
            f"-DSPECDEC_EMULATOR={os.environ.get('SPECDEC_EMULATOR', '0')}",
        ]
        if "SPECDEC_CUDA_ARCHS" in os.environ:
            arguments.append(f"-DSPECDEC_CUDA_ARCHS={os.environ['SPECDEC_CUDA_ARCHS']}")
        if ninja and not (build / "Makefile").exists():
            arguments += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(build), *arguments], check=True)
        subprocess.run([cmake, "--build", str(build), "-j", jobs], check=True)
        target = package / "specdec_kernels"
        subprocess.run([cmake, "--install", str(build), "--prefix", str(target)], check=True)
        # What an earlier build left and this one did not make would be loaded as if it were new.
        made = {Path(line).name for line in (build / "install_manifest.txt").read_text().splitlines()}
        for module in target.glob("_C*.abi3.so"):
            if module.name not in made:
                module.unlink()

    def get_ext_filename(self, fullname: str) -> str:
        """The stable-ABI file name that CMake gives its modules."""
        return fullname.replace(".", os.sep) + ".abi3.so"


setup(
    ext_modules=[Extension("specdec_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
