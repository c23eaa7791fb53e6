"""Statistics of each column over all rows: those of blocks of rows, then their merge."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import ACCUMULATE, CompileCase, block_of

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
    # One program per block, held in registers, so that x is read once. Sums are in float64, which
    # hides behind the read; parts is [P, 5, N].
    part = tl.program_id(0).to(tl.int64)
    first = part * BLOCK_R
    r = first + tl.arange(0, BLOCK_R)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = n < N
    inside = (r < R)[:, None] & column[None, :]
    x_block = x_ptr + r[:, None] * x_stride_r + n[None, :]
    # By way of float32: see ACCUMULATE.
    x = tl.load(x_block, mask=inside, other=0.0).to(ACC).to(tl.float64)
    rows = tl.minimum(R - first, BLOCK_R).to(tl.float64)
    total = tl.sum(x, 0)
    # The mean only has to be near: what rounding took from it is in the sum of the deviations.
    mean = total / rows
    deviation = tl.where(inside, x - mean[None, :], 0.0)
    rest = tl.sum(deviation, 0)
    m2 = tl.sum(deviation * deviation, 0) - rest * rest / rows
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
    # One program per block of neurons; m2 = sum of the parts' m2 + rows * (part's mean - mean)^2.
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = n < N
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
    m2 = tl.zeros([BLOCK_P, BLOCK_N], tl.float64)
    for start in range(0, P, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        inside = (part < P)[:, None] & column[None, :]
        at = parts_ptr + part.to(tl.int64)[:, None] * 5 * N + n[None, :]
        part_rows = tl.minimum(R - part.to(tl.int64) * BLOCK_R, BLOCK_R).to(tl.float64)[:, None]
        shift = tl.load(at, mask=inside, other=0.0) / part_rows - mean[None, :]
        m2 += tl.load(at + N, mask=inside, other=0.0)
        m2 += tl.where(inside, shift * shift * part_rows, 0.0)
    to = stats_ptr + n
    tl.store(to, mean, mask=column)
    tl.store(to + N, tl.sum(m2, 0), mask=column)
    tl.store(to + 2 * N, abs_mean, mask=column)
    # A maximum skips a NaN; the mean does not.
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
    _activation_stats_kernel[(count, triton.cdiv(neurons, block))](
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
    _activation_stats_merge_kernel[(triton.cdiv(neurons, _MERGE_BLOCK_NEURONS),)](
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


def _compile_case(element: str, aligned: bool) -> CompileCase:
    pointers = {"x_ptr": f"*{element}", "parts_ptr": "*fp64"}
    return CompileCase(
        name=f"activation_stats-{element}-{'aligned' if aligned else 'any'}",
        kernel=_activation_stats_kernel,
        signature={
            **pointers,
            **dict.fromkeys(("R", "N"), "i32"),
            "x_stride_r": "i64",
            **dict.fromkeys(("ACC", "BLOCK_R", "BLOCK_N"), "constexpr"),
        },
        constexprs={
            "ACC": tl.float64 if element == "fp64" else tl.float32,
            "BLOCK_R": _BLOCK_ROWS,
            "BLOCK_N": _BLOCK_NEURONS,
        },
        aligned=(*pointers, "N", "x_stride_r") if aligned else (),
        num_warps=_WARPS,
        vector_loads=aligned,
    )


_MERGE_CASE = CompileCase(
    name="activation_stats-merge",
    kernel=_activation_stats_merge_kernel,
    signature={
        **dict.fromkeys(("parts_ptr", "stats_ptr"), "*fp64"),
        **dict.fromkeys(("R", "N", "P"), "i32"),
        **dict.fromkeys(("BLOCK_R", "BLOCK_P", "BLOCK_N"), "constexpr"),
    },
    constexprs={
        "BLOCK_R": _BLOCK_ROWS,
        "BLOCK_P": _MERGE_BLOCK_PARTS,
        "BLOCK_N": _MERGE_BLOCK_NEURONS,
    },
    vector_loads=False,
)

_ELEMENTS = ("fp32", "bf16", "fp16", "fp64")
COMPILE_CASES = (
    *(_compile_case(e, aligned) for e in _ELEMENTS for aligned in (True, False)),
    _MERGE_CASE,
)
