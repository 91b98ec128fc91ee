"""Calls CMake; everything else is in pyproject.toml and CMakeLists.txt."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Builds all native modules with one CMake call and installs them into the package."""

    def run(self) -> None:
        """Configure, build, install. The build folder is kept between calls."""
        build = Path(os.environ.get("SPECDEC_BUILD_DIR", ROOT / "build" / "modules"))
        package = ROOT if self.inplace else Path(self.build_lib).resolve()
        arguments = [
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DSPECDEC_CUDA={os.environ.get('SPECDEC_CUDA', 'auto')}",
        ]
        if "SPECDEC_CUDA_ARCHS" in os.environ:
            arguments.append(f"-DSPECDEC_CUDA_ARCHS={os.environ['SPECDEC_CUDA_ARCHS']}")
        if shutil.which("ninja") and not (build / "Makefile").exists():
            arguments += ["-G", "Ninja"]
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), *arguments], check=True)
        subprocess.run(["cmake", "--build", str(build), "-j", jobs], check=True)
        target = package / "specdec_kernels"
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(target)], check=True)

    def get_ext_filename(self, fullname: str) -> str:
        """The stable-ABI file name that CMake gives its modules."""
        return fullname.replace(".", os.sep) + ".abi3.so"


setup(
    ext_modules=[Extension("specdec_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
