"""Occupancy equals that of NVIDIA's header, where a CUDA toolkit has it."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from tests.cuda_headers import CUDA_INCLUDE, WHY_NOT
from tests.launches.occupancy import GPUS, blocks_of_sm, occupancy

BLOCKS = list(
    itertools.product(
        (16, 24, 32, 33, 40, 56, 62, 64, 72, 96, 100, 126, 128, 160, 168, 228, 255),
        (1, 2, 4, 8, 16, 32),
        (0, 32, 1024, 8192, 36_864, 49_152, 65_536, 116_736, 163_840, 166_912, 232_448),
    )
)

_PROGRAM = """
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
  int major, shared_of_sm, shared_of_block, registers, warps, shared;
  while (std::scanf("%d %d %d %d %d %d", &major, &shared_of_sm, &shared_of_block, &registers,
                    &warps, &shared) == 6) {
    cudaOccDeviceProp gpu;
    gpu.computeMajor = major;
    gpu.computeMinor = 0;
    gpu.maxThreadsPerBlock = 1024;
    gpu.maxThreadsPerMultiprocessor = 2048;
    gpu.regsPerBlock = gpu.regsPerMultiprocessor = 65536;
    gpu.warpSize = 32;
    gpu.sharedMemPerBlock = 49152;
    gpu.sharedMemPerMultiprocessor = shared_of_sm;
    gpu.numSms = 132;
    gpu.sharedMemPerBlockOptin = shared_of_block;
    gpu.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = shared_of_block;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult result;
    const auto error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &gpu, &kernel, &state,
                                                              warps * 32, shared);
    std::printf("%d\\n", error ? -error : result.activeBlocksPerMultiprocessor);
  }
}
"""


@pytest.mark.skipif(CUDA_INCLUDE is None, reason=WHY_NOT)
def test_equal_to_nvidias_header(tmp_path: Path) -> None:
    source, program = tmp_path / "occupancy.cpp", tmp_path / "occupancy"
    source.write_text(_PROGRAM)
    subprocess.run(["g++", "-w", f"-I{CUDA_INCLUDE}", source, "-o", program], check=True)
    asked = [(capability, *block) for capability in GPUS for block in BLOCKS]
    lines = (
        f"{c // 10} {GPUS[c].shared_of_sm} {GPUS[c].shared_of_block} {' '.join(map(str, block))}"
        for c, *block in asked
    )
    said = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True)
    theirs = dict(zip(asked, map(int, said.stdout.split()), strict=True))
    assert theirs == {block: blocks_of_sm(*block) for block in asked}


def test_known_blocks() -> None:
    # activation_stats: 16 warps with 100 registers, of which 64 warps get 32
    assert occupancy(90, 100, 16, 8192) == 0.25
    # 128 threads with 36 KiB: six blocks by memory, three by registers
    assert blocks_of_sm(90, 160, 4, 36_864) == 3
    assert blocks_of_sm(90, 24, 4, 36_864) == 6
    assert occupancy(90, 32, 8, 0) == 1.0
    # one warp a block: 32 blocks are the most
    assert occupancy(90, 16, 1, 0) == 0.5
    assert blocks_of_sm(90, 32, 4, 232_449) == 0
