"""Warps that fit a multiprocessor (SM), from registers, warps and shared memory of a block.

The rules are those of NVIDIA's `cuda_occupancy.h`, which a test compares with.
"""

from __future__ import annotations

from dataclasses import dataclass

_KIB = 1024


@dataclass(frozen=True)
class Gpu:
    """Limits of a multiprocessor; shared memory in bytes."""

    shared_of_sm: int
    shared_of_block: int
    registers: int = 65_536
    warps: int = 64
    blocks: int = 32


GPUS = {
    80: Gpu(shared_of_sm=164 * _KIB, shared_of_block=163 * _KIB),
    90: Gpu(shared_of_sm=228 * _KIB, shared_of_block=227 * _KIB),
    100: Gpu(shared_of_sm=228 * _KIB, shared_of_block=227 * _KIB),
}
"""GPUs by compute capability: A100, H100 and H200, B200."""

GRID = (2**31 - 1, 65_535, 65_535)
"""Most blocks of a grid along x, y and z."""

# a warp gets registers in units of 256; warps come in fours, one for each part of the SM
_REGISTER_UNIT, _PARTS = 256, 4
# a block gets shared memory in units of 128 bytes, and the driver takes 1 KiB of it
_SHARED_UNIT, _SHARED_OF_DRIVER = 128, _KIB


def blocks_of_sm(capability: int, registers: int, warps: int, shared: int) -> int:
    """Return how many blocks run on an SM at once.

    Args:
        capability: compute capability, a key of GPUS.
        registers: registers of a thread.
        warps: warps of a block.
        shared: shared memory of a block in bytes.
    """
    gpu = GPUS[capability]
    if shared > gpu.shared_of_block:
        return 0
    of_warp = _up(registers * 32, _REGISTER_UNIT)
    # each part of the SM owns a quarter of the registers
    warps_by_registers = gpu.registers // _PARTS // of_warp * _PARTS
    of_block = _up(shared + _SHARED_OF_DRIVER, _SHARED_UNIT)
    return min(
        gpu.blocks,
        gpu.warps // warps,
        warps_by_registers // warps,
        gpu.shared_of_sm // of_block,
    )


def occupancy(capability: int, registers: int, warps: int, shared: int) -> float:
    """Return the share of an SM's warps that are resident, 0 to 1."""
    blocks = blocks_of_sm(capability, registers, warps, shared)
    return blocks * warps / GPUS[capability].warps


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
