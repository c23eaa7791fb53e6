"""A linear layer whose output neurons are scaled in its epilogue."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import ACCUMULATE, CompileCase

# Triton's interpreter multiplies matrices in bfloat16 wrongly, without saying so.
_INTERPRETING = bool(triton.knobs.runtime.interpret)


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
    # One program per tile of y [M, N], M = B * T; neighbors share their rows of x. A sum
    # runs over K in one order, whatever the batch.
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    x_at = x_ptr + m[:, None] * x_stride_m + k[None, :] * x_stride_k
    weight_at = (
        weight_ptr + n[None, :].to(tl.int64) * weight_stride_n + k[:, None] * weight_stride_k
    )
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for start in range(0, K, BLOCK_K):
        left = K - start
        x = tl.load(x_at, mask=(m[:, None] < M) & (k[None, :] < left), other=0.0)
        weight = tl.load(weight_at, mask=(n[None, :] < N) & (k[:, None] < left), other=0.0)
        if UPCAST:
            total += tl.dot(x.to(ACC), weight.to(ACC), input_precision="ieee", out_dtype=ACC)
        else:
            total = tl.dot(x, weight, total, input_precision="ieee", out_dtype=ACC)
        x_at += BLOCK_K * x_stride_k
        weight_at += BLOCK_K * weight_stride_k
    if HAS_BIAS:
        total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(ACC)[None, :]
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
            UPCAST=_INTERPRETING and x.dtype == torch.bfloat16,
            ACC=ACCUMULATE[x.dtype],
            **tile,
            num_warps=_warps(x.dtype.itemsize),
        )
    return y


def _tile(itemsize: int) -> dict[str, int]:
    """64 x 64, with 128 bytes of a row at a time; always, so that sums do not depend on sizes."""
    return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128 // itemsize}


def _warps(itemsize: int) -> int:
    """More where sums are not taken by tensor cores, which share them among the threads."""
    return 4 if itemsize == 2 else 8


def _compile_case(element: str, has_bias: bool) -> CompileCase:
    wide = element == "fp64"
    itemsize = {"fp64": 8, "fp32": 4}.get(element, 2)
    vectors = ("x_ptr", "weight_ptr", "bias_ptr", "y_ptr")
    constexprs = {
        "x_stride_k": 1,
        "weight_stride_k": 1,
        "HAS_BIAS": has_bias,
        "UPCAST": False,
        "ACC": tl.float64 if wide else tl.float32,
        **_tile(itemsize),
    }
    types = {
        **dict.fromkeys(vectors, f"*{element}"),
        "scale_ptr": "*fp64" if wide else "*fp32",
        **dict.fromkeys(("M", "T", "N", "K"), "i32"),
        **dict.fromkeys(("x_stride_m", "weight_stride_n", "scale_stride_b"), "i64"),
        **dict.fromkeys(constexprs, "constexpr"),
    }
    return CompileCase(
        name=f"masked_linear-{element}-{'bias' if has_bias else 'plain'}",
        kernel=_masked_linear_kernel,
        signature={name: types[name] for name in _masked_linear_kernel.arg_names},
        constexprs=constexprs,
        aligned=(
            *vectors,
            "scale_ptr",
            "N",
            "K",
            "x_stride_m",
            "weight_stride_n",
            "scale_stride_b",
        ),
        num_warps=_warps(itemsize),
        # Tiles go to shared memory by cp.async, 16 bytes at a time, not through registers.
        vector_loads=False,
    )


COMPILE_CASES = tuple(
    _compile_case(element, has_bias)
    for element in ("fp32", "bf16", "fp16", "fp64")
    for has_bias in (True, False)
)
