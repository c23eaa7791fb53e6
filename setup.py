"""Build the compiled part by CMakeLists.txt; metadata is in pyproject.toml.

Without a C++ compiler the package still installs and computes by its references; `dori-fast doctor`
reads the reason from dori_fast/_build_error.txt. Environment: DORI_WITH_CUDA=AUTO|ON|OFF (AUTO: if
nvcc is found), DORI_REQUIRE_EXTENSION=1 (a failed build is fatal).
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
REQUIRED = os.environ.get("DORI_REQUIRE_EXTENSION") == "1"


def torch_root() -> str:
    """Return the directory of the torch package without the seconds that importing it costs."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise CompileError("torch is not installed in the build environment")
    return spec.submodule_search_locations[0]


class CMakeBuild(build_ext):
    """Build all extensions in one CMake build, in parallel."""

    def run(self) -> None:
        # known only here: setuptools builds in-place extensions elsewhere and copies them
        self.record = Path(self.get_ext_fullpath("dori_fast._C")).parent / "_build_error.txt"
        self.record.unlink(missing_ok=True)
        super().run()

    def build_extensions(self) -> None:
        try:
            self.build_all(Path(self.get_ext_fullpath("dori_fast._C")).resolve().parent)
        except (CompileError, ImportError, OSError) as error:
            if REQUIRED:
                raise
            self.record.parent.mkdir(parents=True, exist_ok=True)
            self.record.write_text(f"{error}\n")
            self.warn(f"dori_fast is installed WITHOUT its compiled kernels: {error}")
            self.extensions = []

    def build_all(self, package: Path) -> None:
        import pybind11

        # a cache from pip's isolated environment names tools that no longer exist
        Path(self.build_temp, "CMakeCache.txt").unlink(missing_ok=True)
        self.cmake(
            *("-S", str(ROOT), "-B", self.build_temp, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={package}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDORI_TORCH_ROOT={torch_root()}",
            f"-DDORI_VERSION={self.distribution.get_version()}",
            f"-DDORI_WITH_CUDA={os.environ.get('DORI_WITH_CUDA', 'AUTO')}",
        )
        self.cmake("--build", self.build_temp)

    def cmake(self, *arguments: str) -> None:
        # pip puts cmake and ninja beside the interpreter, which need not be on PATH
        path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
        done = subprocess.run(
            ["cmake", *arguments], capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
        print(done.stdout, done.stderr, sep="\n", flush=True)
        if done.returncode:
            raise CompileError(f"cmake failed: {first_error(done)}")


def first_error(done: subprocess.CompletedProcess[str]) -> str:
    """Return the line that names the first error and the few after it, as one line."""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if "rror" in line), 0)
    return " ".join(lines[start : start + 4]) or "no message"


setup(
    ext_modules=[
        Extension("dori_fast._C", sources=[], py_limited_api=True),
        Extension("dori_fast._info", sources=[]),
    ],
    cmdclass={"build_ext": CMakeBuild},
    # _C serves every later Python; _info is optional and found by the one that built it alone
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
