"""The built library serves several versions of torch, Python, CPU and GPU."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dori_fast
from dori_fast import _extension
from dori_fast._library import OPS
from tests.ops.contract import IN_CUDA, NOT_IN_CPP

ROOT = Path(__file__).resolve().parent.parent
BUILT = _extension.LIBRARY


def tool(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_only_stable_symbols_of_torch_are_used() -> None:
    lines = tool("nm", "-D", "-C", "--undefined-only", str(BUILT)).splitlines()
    names = [line.split(maxsplit=1)[1] for line in lines]
    torch_names = [name for name in names if re.match(r"(aoti_)?torch", name)]
    assert len(torch_names) > 20
    assert not [name for name in names if re.search(r"\b(at|c10|torch)::|\bPy[A-Z_]", name)]


def test_the_symbol_that_a_cpu_torch_lacks_is_weak() -> None:
    lines = tool("nm", "-D", str(BUILT)).splitlines()
    found = [line.split() for line in lines if "aoti_torch_get_current_cuda_stream" in line]
    if "cuda" not in OPS["neuron_mask"].compiled_for:
        pytest.skip("built without CUDA")
    assert found == [["w", "aoti_torch_get_current_cuda_stream"]]


def test_no_path_of_the_build_machine_is_searched_at_load_time() -> None:
    dynamic = tool("readelf", "-d", str(BUILT))
    assert "libtorch_cpu.so" in dynamic
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    assert "libgomp" not in dynamic, "a second OpenMP beside torch's"


def test_operators_are_compiled() -> None:
    for op in OPS.values():
        assert ("cpu" in op.compiled_for) == (op.name not in NOT_IN_CPP)
        built_with_cuda = bool(_extension.build_facts()["cuda_version"])
        assert ("cuda" in op.compiled_for) == (built_with_cuda and op.name in IN_CUDA)


def test_an_installed_package_has_every_file_that_a_checkout_has() -> None:
    root = ROOT / "dori_fast"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["dori_fast"]
    carried = {
        path for pattern in patterns for path in root.glob(re.sub(r"\*\*$", "**/*", pattern))
    }
    there = {path for path in root.rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert len(there) > 20
    assert sorted(path for path in there - carried if path.is_file()) == []


def test_versions_agree() -> None:
    versions = {
        dori_fast.__version__,
        _extension.build_facts()["version"],
        importlib.metadata.version("dori-fast"),
    }
    assert len(versions) == 1, f"rebuild with pip install -e . ({versions})"


def test_one_range_of_torch_is_declared_and_its_newest_version_is_tested() -> None:
    """CI installs the pinned version; the oldest of the range is that of the device's image."""
    texts = [(ROOT / name).read_text() for name in ("pyproject.toml", "Makefile", "README.md")]
    declared = [re.findall(r">=([\d.]+),<=([\d.]+)", text) for text in texts]
    assert all(declared) and len({bounds for found in declared for bounds in found}) == 1
    (newest,) = {most for _, most in declared[0]}
    pinned = (ROOT / "requirements" / "torch-cpu.txt").read_text()
    assert re.search(r"^torch==([\d.]+)", pinned, re.MULTILINE).group(1) == newest


def test_build_facts() -> None:
    facts = _extension.build_facts()
    assert facts["build_type"] == "Release"
    assert facts["cxx_standard"] >= 202002
    assert facts["simd_in_use"] in (*facts["simd_levels"], "baseline")
    if facts["cuda_version"]:
        assert facts["cuda_archs"]


@pytest.mark.skipif(not BUILT.exists(), reason="not built")
def test_the_library_holds_a_kernel_for_every_simd_level() -> None:
    names = tool("nm", "-C", str(BUILT))
    for level in _extension.build_facts()["simd_levels"]:
        suffix = "default" if level == "x86-64" else "arch_" + level.replace("-", "_")
        assert re.search(rf"sum_of_squares\(float const.*{suffix}", names), level


def test_the_library_holds_code_for_every_gpu_named() -> None:
    triton = pytest.importorskip("triton")
    archs = _extension.build_facts()["cuda_archs"]
    if not archs:
        pytest.skip("built without CUDA")
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    headers = tool(str(cuobjdump), str(BUILT))
    found = set(re.findall(r"Fatbin (elf|ptx) code:\n=+\narch = sm_(\w+)\n", headers))
    kinds = {"real": "elf", "virtual": "ptx"}
    assert found == {(kinds[kind], number) for number, kind in (a.split("-") for a in archs)}


def build(into: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py's build on a copy of the sources."""
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, into)
    shutil.copytree(ROOT / "csrc", into / "csrc")
    ignore = shutil.ignore_patterns("*.so", "demo", "__pycache__")
    shutil.copytree(ROOT / "dori_fast", into / "dori_fast", ignore=ignore)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("DORI_")}
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=into,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_without_a_compiler_the_build_succeeds_and_keeps_the_reason(tmp_path: Path) -> None:
    done = build(tmp_path, CXX="/nonexistent/c++")
    assert done.returncode == 0, done.stderr
    assert "installed WITHOUT its compiled kernels" in done.stdout + done.stderr
    assert "/nonexistent/c++" in (tmp_path / "dori_fast" / "_build_error.txt").read_text()
    assert not list((tmp_path / "dori_fast").glob("*.so"))


def test_a_required_extension_makes_the_failure_fatal(tmp_path: Path) -> None:
    done = build(tmp_path, CXX="/nonexistent/c++", DORI_REQUIRE_EXTENSION="1")
    assert done.returncode != 0
    assert "cmake failed" in done.stderr


def test_a_wheel_from_the_source_distribution_scores_with_its_own_kernels(tmp_path: Path) -> None:
    def run(*command: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**clean, **environment},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    clean = {k: v for k, v in os.environ.items() if not k.startswith("DORI_")}
    sdist = "from setuptools import build_meta as b; import os; os.chdir(%r); b.build_sdist(%r)"
    tree, installed = tmp_path / "tree", tmp_path / "installed"
    tracked = tool("git", "-C", str(ROOT), "ls-files", "-z").split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file() and not name.startswith(("docs/", "tests/", "benchmarks/")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    run("-c", sdist % (str(tree), str(tmp_path)))
    (archive,) = tmp_path.glob("*.tar.gz")
    pip = ("-m", "pip", "--disable-pip-version-check", "--no-input")
    build = ("wheel", "--quiet", "--no-build-isolation", "--no-deps", str(archive))
    run(*pip, *build, DORI_WITH_CUDA="OFF", DORI_REQUIRE_EXTENSION="1")
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    run(*pip, "install", "--quiet", "--no-deps", "--target", str(installed), str(wheel))
    library = installed / "dori_fast" / "_C.abi3.so"
    assert "cuda_stream" not in tool("nm", "-D", str(library))
    assert not (installed / "dori_fast" / "_build_error.txt").exists()
    code = (
        "import dori_fast as df, torch; from dori_fast import _extension, ops\n"
        "print(df.__file__, _extension.REASON, _extension.build_facts()['cuda_archs'])\n"
        "print(ops.noise_difference(torch.ones(1, 1, 4), torch.zeros(1, 4), backend='cpp').sum())\n"
        "print(df.detect.Wen(seeds=1).score(df.load('demo', device='cpu'), ['', 'a key']).tolist())"
    )
    first, norm, scores = run("-c", code, PYTHONPATH=str(installed)).splitlines()[-3:]
    assert first == f"{installed / 'dori_fast' / '__init__.py'} None ()"
    assert norm == "tensor(2.)"
    empty, prompt = json.loads(scores)
    assert empty == 0.0 < prompt
