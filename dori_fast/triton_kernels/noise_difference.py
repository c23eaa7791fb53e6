"""Norm of the difference between conditional and unconditional noise prediction."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import ACCUMULATE, CompileCase, block_of

_LARGEST_BLOCK = 2048


@triton.jit
def _noise_difference_kernel(
    cond_ptr,
    uncond_ptr,
    norm_ptr,
    S,
    L,
    cond_stride_p,
    cond_stride_s,
    uncond_stride_p,
    uncond_stride_s,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per (prompt, seed), always summed in the same order.
    row = tl.program_id(0).to(tl.int64)
    p = row // S
    s = row % S
    cond_row = cond_ptr + p * cond_stride_p + s * cond_stride_s
    uncond_row = uncond_ptr + p * uncond_stride_p + s * uncond_stride_s
    squares = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < L
        cond = tl.load(cond_row + i, mask=inside, other=0.0).to(ACC)
        uncond = tl.load(uncond_row + i, mask=inside, other=0.0).to(ACC)
        squares += (cond - uncond) * (cond - uncond)
    tl.store(norm_ptr + row, tl.sqrt(tl.sum(squares)))


def _rows(x: Tensor) -> Tensor:
    """x [P, S, *] as [P, S, L] with adjacent elements in a row."""
    flat = x.unsqueeze(-1).flatten(2)
    return flat if flat.stride(2) == 1 else flat.contiguous()


def noise_difference_triton(eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
    """Launch the kernel; arguments and result as in `noise_difference_reference`."""
    shared = eps_uncond.dim() < eps_cond.dim()
    cond = _rows(eps_cond)
    prompts, seeds, length = cond.shape
    uncond = _rows(eps_uncond[None] if shared else eps_uncond)
    dtype = torch.float64 if cond.dtype == torch.float64 else torch.float32
    norm = torch.empty(prompts, seeds, dtype=dtype, device=cond.device)
    if norm.numel() == 0:
        return norm
    with torch.cuda.device_of(cond):
        _noise_difference_kernel[(prompts * seeds,)](
            cond,
            uncond,
            norm,
            seeds,
            length,
            cond.stride(0),
            cond.stride(1),
            0 if shared else uncond.stride(0),
            uncond.stride(1),
            ACC=ACCUMULATE[cond.dtype],
            BLOCK=block_of(length, _LARGEST_BLOCK),
            num_warps=8 if length >= _LARGEST_BLOCK else 4,
        )
    return norm


def _compile_case(element: str, aligned: bool) -> CompileCase:
    strides = ("cond_stride_p", "cond_stride_s", "uncond_stride_p", "uncond_stride_s")
    pointers = {"cond_ptr": f"*{element}", "uncond_ptr": f"*{element}"}
    acc = tl.float64 if element == "fp64" else tl.float32
    return CompileCase(
        name=f"noise_difference-{element}-{'aligned' if aligned else 'any'}",
        kernel=_noise_difference_kernel,
        signature={
            **pointers,
            "norm_ptr": "*fp64" if element == "fp64" else "*fp32",
            "S": "i32",
            "L": "i32",
            **dict.fromkeys(strides, "i64"),
            "ACC": "constexpr",
            "BLOCK": "constexpr",
        },
        constexprs={"ACC": acc, "BLOCK": _LARGEST_BLOCK},
        aligned=(*pointers, "L", *strides) if aligned else (),
        num_warps=8,
        vector_loads=aligned,
    )


COMPILE_CASES = tuple(
    _compile_case(element, aligned)
    for element in ("fp32", "bf16", "fp16", "fp64")
    for aligned in (True, False)
)
