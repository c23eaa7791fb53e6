"""Statistics of each column over all rows: partial statistics per chunk of rows, then their merge."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import ACCUMULATE, CompileCase, block_of

_BLOCK_ROWS = 32
_BLOCK_NEURONS = 64
# Enough chunks to fill a GPU, few enough that merging them costs nothing.
_MAX_CHUNKS = 256


@triton.jit
def _merge(done, total, m2, rows, other_total, other_m2):
    # Chan, Golub and LeVeque (1979); all in float64. The mean is kept as a sum, so that an infinity
    # stays one.
    shift = other_total / tl.maximum(rows, 1.0) - total / tl.maximum(done, 1.0)
    weight = done * (rows / (done + rows))
    return done + rows, total + other_total, m2 + other_m2 + shift * shift * weight


@triton.jit
def _activation_stats_kernel(
    x_ptr,
    partial_ptr,
    R,
    N,
    x_stride_r,
    CHUNK,
    ACC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # One program per chunk of rows and block of neurons; partial is [chunks, 5, N] float64.
    chunk = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = n < N
    done = tl.zeros([], tl.float64)
    total = tl.zeros([BLOCK_N], tl.float64)
    m2 = tl.zeros([BLOCK_N], tl.float64)
    abs_sum = tl.zeros([BLOCK_N], tl.float64)
    abs_max = tl.zeros([BLOCK_N], ACC)
    sum_sq = tl.zeros([BLOCK_N], tl.float64)
    for step in range(0, CHUNK, BLOCK_R):
        first = chunk * CHUNK + step
        r = first + tl.arange(0, BLOCK_R)
        inside = (r < R)[:, None] & column[None, :]
        x_block = x_ptr + r[:, None] * x_stride_r + n[None, :]
        x = tl.load(x_block, mask=inside, other=0.0).to(ACC)
        rows = tl.minimum(tl.maximum(R - first, 0), BLOCK_R).to(tl.float64)
        # The mean only has to be near: what rounding took from it is in the deviations' sum.
        block_sum = tl.sum(x, 0)
        mean = block_sum / tl.maximum(rows, 1.0).to(ACC)
        deviation = tl.where(inside, x - mean[None, :], 0.0)
        rest = tl.sum(deviation, 0).to(tl.float64)
        block_m2 = tl.sum(deviation * deviation, 0).to(tl.float64)
        block_m2 -= rest * rest / tl.maximum(rows, 1.0)
        block_m2 = tl.where(block_m2 < 0, 0.0, block_m2)
        block_total = mean.to(tl.float64) * rows + rest
        # Deviations from an infinity are NaN, the sum need not be.
        block_total = tl.where(rest != rest, block_sum.to(tl.float64), block_total)
        done, total, m2 = _merge(done, total, m2, rows, block_total, block_m2)
        abs_sum += tl.sum(tl.abs(x), 0).to(tl.float64)
        abs_max = tl.maximum(abs_max, tl.max(tl.abs(x), 0))
        sum_sq += tl.sum(x * x, 0).to(tl.float64)
    to = partial_ptr + chunk * 5 * N + n
    tl.store(to, total, mask=column)
    tl.store(to + N, m2, mask=column)
    tl.store(to + 2 * N, abs_sum, mask=column)
    tl.store(to + 3 * N, abs_max.to(tl.float64), mask=column)
    tl.store(to + 4 * N, sum_sq, mask=column)


@triton.jit
def _activation_stats_merge_kernel(
    partial_ptr, stats_ptr, R, N, CHUNK, CHUNKS, BLOCK_N: tl.constexpr
):
    # One program per block of neurons, merging chunks in their order.
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = n < N
    done = tl.zeros([], tl.float64)
    total = tl.zeros([BLOCK_N], tl.float64)
    m2 = tl.zeros([BLOCK_N], tl.float64)
    abs_sum = tl.zeros([BLOCK_N], tl.float64)
    abs_max = tl.zeros([BLOCK_N], tl.float64)
    sum_sq = tl.zeros([BLOCK_N], tl.float64)
    for chunk in range(0, CHUNKS):
        before = tl.zeros([], tl.int64) + chunk
        at = partial_ptr + before * 5 * N + n
        rows = tl.minimum(R - before * CHUNK, CHUNK).to(tl.float64)
        chunk_total = tl.load(at, mask=column, other=0.0)
        chunk_m2 = tl.load(at + N, mask=column, other=0.0)
        done, total, m2 = _merge(done, total, m2, rows, chunk_total, chunk_m2)
        abs_sum += tl.load(at + 2 * N, mask=column, other=0.0)
        abs_max = tl.maximum(abs_max, tl.load(at + 3 * N, mask=column, other=0.0))
        sum_sq += tl.load(at + 4 * N, mask=column, other=0.0)
    # A maximum skips a NaN; the sum does not.
    abs_max = tl.where(abs_sum != abs_sum, abs_sum, abs_max)
    to = stats_ptr + n
    tl.store(to, total / done, mask=column)
    tl.store(to + N, m2, mask=column)
    tl.store(to + 2 * N, abs_sum / done, mask=column)
    tl.store(to + 3 * N, abs_max, mask=column)
    tl.store(to + 4 * N, sum_sq, mask=column)


def activation_stats_triton(x: Tensor) -> Tensor:
    """Launch the kernels; arguments and result as in `activation_stats_reference`."""
    rows, neurons = x.shape
    stats = torch.zeros(5, neurons, dtype=torch.float64, device=x.device)
    if x.numel() == 0:
        return stats
    x = x if x.stride(1) == 1 else x.contiguous()
    chunk = triton.cdiv(triton.cdiv(rows, _MAX_CHUNKS), _BLOCK_ROWS) * _BLOCK_ROWS
    chunks = triton.cdiv(rows, chunk)
    block = block_of(neurons, _BLOCK_NEURONS)
    blocks = triton.cdiv(neurons, block)
    partial = torch.empty(chunks, 5, neurons, dtype=torch.float64, device=x.device)
    _activation_stats_kernel[(chunks, blocks)](
        x,
        partial,
        rows,
        neurons,
        x.stride(0),
        chunk,
        ACC=ACCUMULATE[x.dtype],
        BLOCK_R=_BLOCK_ROWS,
        BLOCK_N=block,
    )
    _activation_stats_merge_kernel[(blocks,)](
        partial, stats, rows, neurons, chunk, chunks, BLOCK_N=block, num_warps=2
    )
    return stats


def _compile_case(element: str, aligned: bool) -> CompileCase:
    pointers = {"x_ptr": f"*{element}", "partial_ptr": "*fp64"}
    return CompileCase(
        name=f"activation_stats-{element}-{'aligned' if aligned else 'any'}",
        kernel=_activation_stats_kernel,
        signature={
            **pointers,
            "R": "i32",
            "N": "i32",
            "x_stride_r": "i64",
            "CHUNK": "i32",
            **dict.fromkeys(("ACC", "BLOCK_R", "BLOCK_N"), "constexpr"),
        },
        constexprs={
            "ACC": tl.float64 if element == "fp64" else tl.float32,
            "BLOCK_R": _BLOCK_ROWS,
            "BLOCK_N": _BLOCK_NEURONS,
        },
        aligned=(*pointers, "N", "x_stride_r", "CHUNK") if aligned else (),
        vector_loads=aligned,
    )


COMPILE_CASES = (
    *(_compile_case(e, aligned) for e in ("fp32", "bf16", "fp16", "fp64") for aligned in (True, False)),
    CompileCase(
        name="activation_stats-merge",
        kernel=_activation_stats_merge_kernel,
        signature={
            **dict.fromkeys(("partial_ptr", "stats_ptr"), "*fp64"),
            **dict.fromkeys(("R", "N", "CHUNK", "CHUNKS"), "i32"),
            "BLOCK_N": "constexpr",
        },
        constexprs={"BLOCK_N": _BLOCK_NEURONS},
        num_warps=2,
        vector_loads=False,
    ),
)
