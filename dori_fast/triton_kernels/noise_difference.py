"""What the difference of conditional and unconditional noise prediction tells."""

from __future__ import annotations

import math
from typing import Any

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


@triton.jit
def _noise_difference_step_kernel(
    cond_ptr,
    uncond_ptr,
    latents_ptr,
    norm_ptr,
    latents_prev_ptr,
    guidance: tl.float64,  # an unannotated float would arrive as float32
    keep: tl.float64,
    add: tl.float64,
    S,
    L,
    cond_stride_p,
    cond_stride_s,
    uncond_stride_p,
    uncond_stride_s,
    latents_stride_p,
    latents_stride_s,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per (prompt, seed), always summed in the same order; latents_prev is contiguous.
    row = tl.program_id(0).to(tl.int64)
    p = row // S
    s = row % S
    cond_row = cond_ptr + p * cond_stride_p + s * cond_stride_s
    uncond_row = uncond_ptr + p * uncond_stride_p + s * uncond_stride_s
    latents_row = latents_ptr + p * latents_stride_p + s * latents_stride_s
    squares = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < L
        cond = tl.load(cond_row + i, mask=inside, other=0.0).to(ACC)
        uncond = tl.load(uncond_row + i, mask=inside, other=0.0).to(ACC)
        latents = tl.load(latents_row + i, mask=inside, other=0.0).to(ACC)
        difference = cond - uncond
        squares += difference * difference
        guided = uncond + tl.full([], guidance, ACC) * difference
        latents_prev = tl.full([], keep, ACC) * latents + tl.full([], add, ACC) * guided
        to_ptr = latents_prev_ptr + row * L + i
        tl.store(to_ptr, latents_prev.to(latents_prev_ptr.dtype.element_ty), mask=inside)
    tl.store(norm_ptr + row, tl.sqrt(tl.sum(squares)))


@triton.jit
def _noise_cosine_kernel(
    cond_ptr,
    uncond_ptr,
    mean_ptr,
    S,
    C,
    L,
    cond_stride_p,
    cond_stride_s,
    uncond_stride_p,
    uncond_stride_s,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per (prompt, seed), a row of which is C times L positions.
    row = tl.program_id(0).to(tl.int64)
    p = row // S
    s = row % S
    cond_row = cond_ptr + p * cond_stride_p + s * cond_stride_s
    uncond_row = uncond_ptr + p * uncond_stride_p + s * uncond_stride_s
    cosines = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < L
        product = tl.zeros([BLOCK], ACC)
        length = tl.zeros([BLOCK], ACC)
        distance = tl.zeros([BLOCK], ACC)
        for c in range(0, C):
            cond = tl.load(cond_row + c * L + i, mask=inside, other=0.0).to(ACC)
            uncond = tl.load(uncond_row + c * L + i, mask=inside, other=0.0).to(ACC)
            difference = cond - uncond
            product += uncond * difference
            length += uncond * uncond
            distance += difference * difference
        # Below this a vector counts as this long. A NaN is not below.
        length = tl.sqrt(length)
        length = tl.where(length < 1e-8, 1e-8, length)
        distance = tl.sqrt(distance)
        distance = tl.where(distance < 1e-8, 1e-8, distance)
        cosines += product / (length * distance)
    positions = tl.zeros([], ACC) + L
    tl.store(mean_ptr + row, tl.sum(cosines) / positions)


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


def noise_difference_step_triton(
    eps_cond: Tensor,
    eps_uncond: Tensor,
    latents: Tensor,
    guidance: float,
    alpha_bar: float,
    alpha_bar_prev: float,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; arguments and result as in `noise_difference_step_reference`."""
    shared = eps_uncond.dim() < eps_cond.dim()
    cond, x_t = _rows(eps_cond), _rows(latents)
    prompts, seeds, length = cond.shape
    uncond = _rows(eps_uncond[None] if shared else eps_uncond)
    dtype = torch.float64 if cond.dtype == torch.float64 else torch.float32
    norm = torch.empty(prompts, seeds, dtype=dtype, device=cond.device)
    latents_prev = torch.empty(latents.shape, dtype=latents.dtype, device=cond.device)
    if norm.numel() == 0:
        return norm, latents_prev
    keep = math.sqrt(alpha_bar_prev / alpha_bar)
    with torch.cuda.device_of(cond):
        _noise_difference_step_kernel[(prompts * seeds,)](
            cond,
            uncond,
            x_t,
            norm,
            latents_prev,
            guidance,
            keep,
            math.sqrt(1 - alpha_bar_prev) - keep * math.sqrt(1 - alpha_bar),
            seeds,
            length,
            cond.stride(0),
            cond.stride(1),
            0 if shared else uncond.stride(0),
            uncond.stride(1),
            x_t.stride(0),
            x_t.stride(1),
            ACC=ACCUMULATE[cond.dtype],
            BLOCK=block_of(length, _LARGEST_BLOCK),
            num_warps=8 if length >= _LARGEST_BLOCK else 4,
        )
    return norm, latents_prev


def noise_cosine_triton(eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
    """Launch the kernel; arguments and result as in `noise_cosine_reference`."""
    shared = eps_uncond.dim() < eps_cond.dim()
    cond = _rows(eps_cond)
    prompts, seeds, _ = cond.shape
    uncond = _rows(eps_uncond[None] if shared else eps_uncond)
    dtype = torch.float64 if cond.dtype == torch.float64 else torch.float32
    mean = torch.empty(prompts, seeds, dtype=dtype, device=cond.device)
    if mean.numel() == 0:
        return mean
    channels, positions = eps_cond.shape[2], math.prod(eps_cond.shape[3:])
    if positions == 0:
        return mean.fill_(torch.nan)
    with torch.cuda.device_of(cond):
        _noise_cosine_kernel[(prompts * seeds,)](
            cond,
            uncond,
            mean,
            seeds,
            channels,
            positions,
            cond.stride(0),
            cond.stride(1),
            0 if shared else uncond.stride(0),
            uncond.stride(1),
            ACC=ACCUMULATE[cond.dtype],
            BLOCK=block_of(positions, _LARGEST_BLOCK // 2),
        )
    return mean


def _compile_case(name: str, kernel: Any, element: str, block: int, aligned: bool) -> CompileCase:
    """Types by the arguments' names: outputs per row and scalars in full precision."""
    wide = element == "fp64"
    constexprs = {"ACC": tl.float64 if wide else tl.float32, "BLOCK": block}
    types = {
        **dict.fromkeys(("norm_ptr", "mean_ptr"), "*fp64" if wide else "*fp32"),
        **dict.fromkeys(("guidance", "keep", "add"), "fp64"),
        **dict.fromkeys(("S", "C", "L"), "i32"),
        **dict.fromkeys(constexprs, "constexpr"),
    }
    arguments = kernel.arg_names
    strides = [argument for argument in arguments if "stride" in argument]
    tensors = [name for name in arguments if name.endswith("_ptr") and name not in types]
    types |= dict.fromkeys(strides, "i64") | dict.fromkeys(tensors, f"*{element}")
    return CompileCase(
        name=f"{name}-{element}-{'aligned' if aligned else 'any'}",
        kernel=kernel,
        signature={argument: types[argument] for argument in arguments},
        constexprs=constexprs,
        aligned=(*tensors, "L", *strides) if aligned else (),
        num_warps=8 if block == _LARGEST_BLOCK else 4,
        vector_loads=aligned,
    )


COMPILE_CASES = tuple(
    _compile_case(name, kernel, element, block, aligned)
    for name, kernel, block in (
        ("noise_difference", _noise_difference_kernel, _LARGEST_BLOCK),
        ("noise_difference_step", _noise_difference_step_kernel, _LARGEST_BLOCK),
        ("noise_cosine", _noise_cosine_kernel, _LARGEST_BLOCK // 2),
    )
    for element in ("fp32", "bf16", "fp16", "fp64")
    for aligned in (True, False)
)
