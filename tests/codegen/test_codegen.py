"""Machine code for GPUs, compiled and checked without one: no spills, and loads of 16 bytes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.codegen.page import CAPABILITIES, PAGE, page, recorded, regressions
from tests.ops.contract import SPECS

ROOT = Path(__file__).resolve().parents[2]
CUDA_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
# beyond this, fewer than two blocks of 256 threads fit the 65,536 registers of an SM
MOST_REGISTERS = 128

pytestmark = pytest.mark.codegen


def _checked(capability: int) -> Any:
    """Mark all but the newest as nightly: compiling for each takes a minute."""
    older = capability != max(CAPABILITIES)
    marks = [pytest.mark.nightly] if older else []
    return pytest.param(capability, marks=marks, id=f"sm_{capability}")


@pytest.fixture(scope="module", params=map(_checked, CAPABILITIES))
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, list[dict[str, Any]]]:
    """A capability and the resources of every Triton kernel on it."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-m", "tests.codegen.compile_triton", "--json", "--capability"]
    done = subprocess.run(
        [*command, str(request.param)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return request.param, json.loads(done.stdout)[str(request.param)]


def test_triton_kernels_compile_without_spills_and_load_vectors(
    compiled: tuple[int, list[dict[str, Any]]],
) -> None:
    _, cases = compiled
    for case in cases:
        assert case["spills"] == 0, case
        assert case["registers"] <= case["most_registers"], case
        assert case["shared"] <= case["most_shared"], case
        if case["vector_loads"]:
            assert case["widest_load"] == 16, case
    assert any(not case["vector_loads"] for case in cases)


def test_roots_and_quotients_are_rounded(compiled: tuple[int, list[dict[str, Any]]]) -> None:
    """A plain `tl.sqrt` or `/` of float32 numbers is off by up to two units in the last place."""
    assert {case["name"]: case["approximations"] for case in compiled[1]} == {
        case["name"]: [] for case in compiled[1]
    }


def test_sums_over_rows_have_one_order_whatever_the_alignment(
    compiled: tuple[int, list[dict[str, Any]]],
) -> None:
    """`tl.sum` follows the layout of registers, and so the width of loads; two numbers have one
    sum in either order."""
    rows = ("noise_difference", "noise_cosine", "diffusion_loss", "ms_ssim-mean")
    found = {c["name"]: c["longest_sum"] for c in compiled[1] if c["name"].startswith(rows)}
    # the gradient of the loss sums nothing; the last step of every sum has one number left
    assert len(found) > 30 and set(found.values()) == {0, 2}, found
    # the measure sees a plain sum
    assert max(c["longest_sum"] for c in compiled[1] if c["name"].startswith("activation")) > 2


def test_no_triton_kernel_costs_more_than_recorded(
    compiled: tuple[int, list[dict[str, Any]]],
) -> None:
    capability, cases = compiled
    version, tables = recorded(PAGE.read_text())
    if version != importlib.metadata.version("triton"):
        pytest.skip(f"recorded with triton {version}")
    table, remedy = tables[capability], "run python -m tests.codegen.compile_triton --write"
    assert {case["name"] for case in cases} == set(table), f"{PAGE.name} is out of date: {remedy}"
    worse = {case["name"]: regressions(case, table[case["name"]]) for case in cases}
    assert not {name: changes for name, changes in worse.items() if changes}, (
        f"worse than recorded; make it better, or say in the change why not and {remedy}"
    )


def test_the_page_is_read_as_it_is_written() -> None:
    cases = [
        {"name": "a-fp32", "registers": 32, "spills": 0, "shared": 64, "widest_load": 16},
        {"name": "b_-bf16-any", "registers": 40, "spills": 8, "shared": 0, "widest_load": 2},
    ]
    version, tables = recorded(page({80: cases[:1], 90: cases}, "3.6.0"))
    assert version == "3.6.0" and {c: list(t) for c, t in tables.items()} == {
        80: ["a-fp32"],
        90: ["a-fp32", "b_-bf16-any"],
    }
    before = tables[90]["b_-bf16-any"]
    assert regressions(cases[1], before) == []
    assert regressions({**before, "registers": 41, "widest_load": 1}, before) == [
        "registers 40 -> 41",
        "widest_load 2 -> 1",
    ]
    assert regressions({**before, "spills": 0, "widest_load": 16}, before) == []


def test_every_operator_has_compile_cases(compiled: tuple[int, list[dict[str, Any]]]) -> None:
    assert {case["name"].split("-")[0] for case in compiled[1]} == set(SPECS)


def nvcc(source: Path, *flags: str, output: Path) -> str:
    """Compile with the flags of CMakeLists.txt; return the compiler's output."""
    command = ["nvcc", "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", *flags]
    done = subprocess.run(
        [*command, "-o", str(output), str(source)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("arch", ("sm_80", "sm_90a"))
@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda path: path.stem)
def test_cuda_kernels_compile_without_spills(source: Path, arch: str, tmp_path: Path) -> None:
    said = nvcc(source, "-cubin", f"-arch={arch}", "-Xptxas", "-v", output=tmp_path / "out.cubin")
    kernels = said.count("Compiling entry function")
    assert kernels >= 4
    assert re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", said) == (
        [("0", "0")] * kernels
    )
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", said)]
    assert len(registers) == kernels and max(registers) <= MOST_REGISTERS
    assert "warning" not in said.lower()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda path: path.stem)
def test_wide_cuda_kernels_load_vectors(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ptx"
    nvcc(source, "-ptx", "-arch=sm_90a", output=output)
    bodies = re.split(r"\.entry ", output.read_text())[1:]
    # mangled template arguments: a type, then the number of elements per vector
    wide = [body for body in bodies if re.search(r"Li[248]EEE", body.split("(")[0])]
    assert len(wide) == 4, "one per element type"
    for body in wide:
        loads = re.findall(r"ld\.global[\w.]*\.v(\d)\.[bfus](\d+)", body)
        assert any(int(count) * int(bits) == 128 for count, bits in loads), body[:200]
