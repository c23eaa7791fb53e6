"""A linear layer that scales its output neurons in its epilogue."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import (
    ACCUMULATE,
    ELEMENTS,
    INTERPRETING,
    CompileCase,
    accumulator,
    named,
    signature,
)


@triton.jit
def _masked_linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    y_ptr,
    M,
    T,
    N,
    K,
    x_stride_m,
    x_stride_k,
    weight_stride_n,
    weight_stride_k,
    scale_stride_b,
    HAS_BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # One program per 64 x 64 tile of y [M, N], M = B * T; neighboring programs share their rows of
    # x. K is walked 128 bytes at a time in one order, so a sum does not depend on the batch.
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    x_at = x_ptr + m[:, None] * x_stride_m + k[None, :] * x_stride_k
    weight_at = (
        weight_ptr + n[None, :].to(tl.int64) * weight_stride_n + k[:, None] * weight_stride_k
    )
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for start in range(0, K, BLOCK_K):
        # columns beyond K are 0 in both factors and add nothing
        left = K - start
        x = tl.load(x_at, mask=(m[:, None] < M) & (k[None, :] < left), other=0.0)
        weight = tl.load(weight_at, mask=(n[None, :] < N) & (k[:, None] < left), other=0.0)
        # "ieee": float32 products are not rounded to TF32
        if UPCAST:
            total += tl.dot(x.to(ACC), weight.to(ACC), input_precision="ieee", out_dtype=ACC)
        else:
            total = tl.dot(x, weight, total, input_precision="ieee", out_dtype=ACC)
        x_at += BLOCK_K * x_stride_k
        weight_at += BLOCK_K * weight_stride_k
    if HAS_BIAS:
        total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(ACC)[None, :]
    # epilogue: each row of the tile takes the scale of its own sample
    inside = (m[:, None] < M) & (n[None, :] < N)
    b = m // T
    scale = tl.load(scale_ptr + b[:, None] * scale_stride_b + n[None, :], mask=inside, other=0.0)
    y = (total * scale.to(ACC)).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + m[:, None] * N + n[None, :], y, mask=inside)


def masked_linear_triton(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
    """Launch the kernel; arguments and result as in `masked_linear_reference`."""
    batch, tokens, inputs = x.shape
    outputs = weight.shape[0]
    y = torch.empty(batch, tokens, outputs, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    rows = x.reshape(batch * tokens, inputs)
    scale = scale if scale.stride(-1) == 1 else scale.contiguous()
    tile = _tile(x.dtype.itemsize)
    grid = (triton.cdiv(outputs, tile["BLOCK_N"]), triton.cdiv(batch * tokens, tile["BLOCK_M"]))
    with torch.cuda.device_of(x):
        _masked_linear_kernel[grid](
            rows,
            weight,
            weight if bias is None else bias.contiguous(),
            scale,
            y,
            batch * tokens,
            tokens,
            outputs,
            inputs,
            *rows.stride(),
            *weight.stride(),
            scale.stride(0) if scale.dim() == 2 else 0,
            HAS_BIAS=bias is not None,
            UPCAST=INTERPRETING and x.dtype == torch.bfloat16,
            ACC=ACCUMULATE[x.dtype],
            **tile,
            num_warps=_warps(x.dtype.itemsize),
        )
    return y


def _tile(itemsize: int) -> dict[str, int]:
    """Return a tile of 64 x 64, with 128 bytes of K; one for all sizes keeps the order of sums."""
    return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128 // itemsize}


def _warps(itemsize: int) -> int:
    """Return 4 warps for tensor cores; 8 elsewhere, where each thread holds its own sums."""
    return 4 if itemsize == 2 else 8


def _compile_case(element: str, has_bias: bool) -> CompileCase:
    kernel = _masked_linear_kernel
    itemsize = {"fp64": 8, "fp32": 4}.get(element, 2)
    constexprs = {
        # a launch takes a stride of 1 for a constant
        "x_stride_k": 1,
        "weight_stride_k": 1,
        "HAS_BIAS": has_bias,
        "UPCAST": False,
        "ACC": accumulator(element),
        **_tile(itemsize),
    }
    aligned = [name for name in named(kernel, "_ptr", "stride") if name not in constexprs]
    return CompileCase(
        name=f"masked_linear-{element}-{'bias' if has_bias else 'plain'}",
        kernel=kernel,
        signature=signature(kernel, element, constexprs, scale_ptr="*"),
        constexprs=constexprs,
        aligned=(*aligned, "N", "K"),
        num_warps=_warps(itemsize),
        # tiles go to shared memory by cp.async, 16 bytes at a time, not through registers
        vector_loads=False,
    )


COMPILE_CASES = tuple(
    _compile_case(element, has_bias) for element in ELEMENTS for has_bias in (True, False)
)
