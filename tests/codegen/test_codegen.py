"""Machine code of the CUDA kernels, compiled without a GPU: no spills, and loads of 16 bytes.

`tests/launches` compiles the Triton kernels.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CUDA_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
# beyond this, fewer than two blocks of 256 threads fit the 65,536 registers of an SM
MOST_REGISTERS = 128
# kernels that divide 64-bit numbers: about 100 instructions, here once per block
DIVIDING = {"noise_difference"}

pytestmark = pytest.mark.codegen


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
def test_wide_cuda_kernels_load_vectors_and_masks_divide_32_bits(
    source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.ptx"
    nvcc(source, "-ptx", "-arch=sm_90a", output=output)
    ptx = output.read_text()
    assert bool(re.search(r"\b(?:div|rem)\.[su]64", ptx)) == (source.stem in DIVIDING)
    bodies = re.split(r"\.entry ", ptx)[1:]
    # mangled template arguments: a type, then the number of elements per vector
    wide = [body for body in bodies if re.search(r"Li[248]EEE", body.split("(")[0])]
    assert len(wide) == 4, "one per element type"
    for body in wide:
        loads = re.findall(r"ld\.global[\w.]*\.v(\d)\.[bfus](\d+)", body)
        assert any(int(count) * int(bits) == 128 for count, bits in loads), body[:200]
