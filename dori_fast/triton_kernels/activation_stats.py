"""Statistics of each column: kernels for blocks of rows and for the merge of the blocks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import ACCUMULATE, block_of, launch, row_and_block

_BLOCK_ROWS = 128
_BLOCK_NEURONS = 64
_WARPS = 16
_MERGE_BLOCK_PARTS = 64
_MERGE_BLOCK_NEURONS = 16


@triton.jit
def _activation_stats_kernel(
    x_ptr,
    parts_ptr,
    R,
    N,
    x_stride_r,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # One program per block of 128 rows and 64 neurons. 16 warps hold it in registers, 16 elements
    # a thread, so that x is read once although deviations need the mean first.
    part, block = row_and_block(N, BLOCK_N)
    part = part.to(tl.int64)
    first = part * BLOCK_R
    r = first + tl.arange(0, BLOCK_R)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    column = n < N
    # rows beyond R and neurons beyond N are loaded as 0, which adds nothing to any sum
    inside = (r < R)[:, None] & column[None, :]
    x_block = x_ptr + r[:, None] * x_stride_r + n[None, :]
    # by way of float32, see ACCUMULATE; then all sums are in float64
    x = tl.load(x_block, mask=inside, other=0.0).to(ACC).to(tl.float64)
    # the last block may hold fewer rows
    rows = tl.minimum(R - first, BLOCK_R).to(tl.float64)
    total = tl.sum(x, 0)
    # The mean need only be near: the sum of the deviations holds what rounding took from it, and
    # the last term of m2 removes it. Rows beyond R have no deviation.
    mean = total / rows
    deviation = tl.where(inside, x - mean[None, :], 0.0)
    rest = tl.sum(deviation, 0)
    m2 = tl.sum(deviation * deviation, 0) - rest * rest / rows
    # parts is [P, 5, N]: sum, m2, sum of magnitudes, largest magnitude, sum of squares
    to = parts_ptr + part * 5 * N + n
    tl.store(to, total, mask=column)
    tl.store(to + N, tl.where(m2 < 0, 0.0, m2), mask=column)
    tl.store(to + 2 * N, tl.sum(tl.abs(x), 0), mask=column)
    tl.store(to + 3 * N, tl.max(tl.abs(x), 0), mask=column)
    tl.store(to + 4 * N, tl.sum(x * x, 0), mask=column)


@triton.jit
def _activation_stats_merge_kernel(
    parts_ptr,
    stats_ptr,
    R,
    N,
    P,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # One program per 16 neurons, which reads all parts twice, 64 at a time: the parts' m2 can only
    # be merged around the mean of all rows.
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = n < N
    # first pass; a lane sums every 64th part, and the lanes are summed after the loop
    total = tl.zeros([BLOCK_P, BLOCK_N], tl.float64)
    abs_sum = tl.zeros([BLOCK_P, BLOCK_N], tl.float64)
    abs_max = tl.zeros([BLOCK_P, BLOCK_N], tl.float64)
    sum_sq = tl.zeros([BLOCK_P, BLOCK_N], tl.float64)
    for start in range(0, P, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        inside = (part < P)[:, None] & column[None, :]
        at = parts_ptr + part.to(tl.int64)[:, None] * 5 * N + n[None, :]
        total += tl.load(at, mask=inside, other=0.0)
        abs_sum += tl.load(at + 2 * N, mask=inside, other=0.0)
        abs_max = tl.maximum(abs_max, tl.load(at + 3 * N, mask=inside, other=0.0))
        sum_sq += tl.load(at + 4 * N, mask=inside, other=0.0)
    rows = tl.zeros([], tl.float64) + R
    mean = tl.sum(total, 0) / rows
    abs_mean = tl.sum(abs_sum, 0) / rows
    # second pass: m2 = sum over parts of m2 + rows * (part's mean - mean)^2
    m2 = tl.zeros([BLOCK_P, BLOCK_N], tl.float64)
    for start in range(0, P, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        inside = (part < P)[:, None] & column[None, :]
        at = parts_ptr + part.to(tl.int64)[:, None] * 5 * N + n[None, :]
        # all parts have 128 rows but the last one
        part_rows = tl.minimum(R - part.to(tl.int64) * BLOCK_R, BLOCK_R).to(tl.float64)[:, None]
        shift = tl.load(at, mask=inside, other=0.0) / part_rows - mean[None, :]
        m2 += tl.load(at + N, mask=inside, other=0.0)
        # parts beyond P would shift by the whole mean
        m2 += tl.where(inside, shift * shift * part_rows, 0.0)
    # stats is [5, N]: mean, m2, mean of magnitudes, largest magnitude, sum of squares
    to = stats_ptr + n
    tl.store(to, mean, mask=column)
    tl.store(to + N, tl.sum(m2, 0), mask=column)
    tl.store(to + 2 * N, abs_mean, mask=column)
    # a maximum skips a NaN; the mean does not
    tl.store(to + 3 * N, tl.where(abs_mean != abs_mean, abs_mean, tl.max(abs_max, 0)), mask=column)
    tl.store(to + 4 * N, tl.sum(sum_sq, 0), mask=column)


def activation_stats_triton(x: Tensor) -> Tensor:
    """Launch the kernels; arguments and result as in `activation_stats_reference`."""
    rows, neurons = x.shape
    stats = torch.zeros(5, neurons, dtype=torch.float64, device=x.device)
    if x.numel() == 0:
        return stats
    x = x if x.stride(1) == 1 else x.contiguous()
    count = triton.cdiv(rows, _BLOCK_ROWS)
    parts = torch.empty(count, 5, neurons, dtype=torch.float64, device=x.device)
    block = block_of(neurons, _BLOCK_NEURONS)
    launch(
        _activation_stats_kernel,
        count * triton.cdiv(neurons, block),
        x,
        x,
        parts,
        rows,
        neurons,
        x.stride(0),
        ACC=ACCUMULATE[x.dtype],
        BLOCK_R=_BLOCK_ROWS,
        BLOCK_N=block,
        num_warps=_WARPS,
    )
    launch(
        _activation_stats_merge_kernel,
        triton.cdiv(neurons, _MERGE_BLOCK_NEURONS),
        x,
        parts,
        stats,
        rows,
        neurons,
        count,
        BLOCK_R=_BLOCK_ROWS,
        BLOCK_P=_MERGE_BLOCK_PARTS,
        BLOCK_N=_MERGE_BLOCK_NEURONS,
    )
    return stats
