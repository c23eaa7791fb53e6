"""Norm and cosine of the difference of two noise predictions, and the guided step."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast._checks import accumulate_dtype
from dori_fast.triton_kernels._common import (
    ACCUMULATE,
    block_of,
    launch,
    quotient,
    root,
    rows,
    sum_of,
)

_LARGEST_BLOCK = 2048
# the cosine keeps three sums per position instead of one
_COSINE_BLOCK = _LARGEST_BLOCK // 2


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
    # One program per (prompt, seed), which sums its row in blocks of 2048 in an order that depends
    # on L alone.
    row = tl.program_id(0).to(tl.int64)
    p = row // S
    s = row % S
    cond_row = cond_ptr + p * cond_stride_p + s * cond_stride_s
    uncond_row = uncond_ptr + p * uncond_stride_p + s * uncond_stride_s
    # One partial sum per place in the block; they are summed once, after the loop. Beyond the row
    # both are 0, and so is their difference.
    squares = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < L
        cond = tl.load(cond_row + i, mask=inside, other=0.0).to(ACC)
        uncond = tl.load(uncond_row + i, mask=inside, other=0.0).to(ACC)
        squares += (cond - uncond) * (cond - uncond)
    tl.store(norm_ptr + row, root(sum_of(squares)))


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
    # One program per (prompt, seed). The norm is summed in the order of the kernel above, and each
    # element of both predictions is read once for the norm and the step.
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
        # x_0 is never formed: with the step's terms collected, latents_prev = keep x_t + add guided
        guided = uncond + tl.full([], guidance, ACC) * difference
        latents_prev = tl.full([], keep, ACC) * latents + tl.full([], add, ACC) * guided
        # latents_prev is contiguous and rounded here, once
        to_ptr = latents_prev_ptr + row * L + i
        tl.store(to_ptr, latents_prev.to(latents_prev_ptr.dtype.element_ty), mask=inside)
    tl.store(norm_ptr + row, root(sum_of(squares)))


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
    # One program per (prompt, seed), whose row is C channels of L positions.
    row = tl.program_id(0).to(tl.int64)
    p = row // S
    s = row % S
    cond_row = cond_ptr + p * cond_stride_p + s * cond_stride_s
    uncond_row = uncond_ptr + p * uncond_stride_p + s * uncond_stride_s
    # one cosine per position: a lane owns a position and walks its channels, which are L apart
    cosines = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < L
        product = tl.zeros([BLOCK], ACC)
        length = tl.zeros([BLOCK], ACC)
        distance = tl.zeros([BLOCK], ACC)
        cond_at = cond_row + i
        uncond_at = uncond_row + i
        for _ in range(0, C):
            cond = tl.load(cond_at, mask=inside, other=0.0).to(ACC)
            uncond = tl.load(uncond_at, mask=inside, other=0.0).to(ACC)
            difference = cond - uncond
            product += uncond * difference
            length += uncond * uncond
            distance += difference * difference
            cond_at += L
            uncond_at += L
        # A vector shorter than 1e-8 counts as 1e-8 long; a NaN is not shorter. Positions beyond L
        # give 0 / 1e-16 = 0.
        length = root(length)
        length = tl.where(length < 1e-8, 1e-8, length)
        distance = root(distance)
        distance = tl.where(distance < 1e-8, 1e-8, distance)
        cosines += quotient(product, length * distance)
    # the mean over positions
    tl.store(mean_ptr + row, quotient(sum_of(cosines), L))


def _operands(
    eps_cond: Tensor, eps_uncond: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """Return both as rows [P, S, L], an empty number per row, and the strides of P and S."""
    shared = eps_uncond.dim() < eps_cond.dim()
    cond = rows(eps_cond, 2)
    uncond = rows(eps_uncond[None] if shared else eps_uncond, 2)
    # a stride of 0 repeats eps_uncond for all prompts
    strides = (*cond.stride()[:2], 0 if shared else uncond.stride(0), uncond.stride(1))
    dtype = accumulate_dtype(cond.dtype)
    return cond, uncond, torch.empty(cond.shape[:2], dtype=dtype, device=cond.device), strides


def _options(x: Tensor) -> dict[str, Any]:
    """Return the launch options of a kernel that walks rows of x [P, S, L]."""
    length = x.shape[2]
    return {
        "ACC": ACCUMULATE[x.dtype],
        "BLOCK": block_of(length, _LARGEST_BLOCK),
        "num_warps": 8 if length >= _LARGEST_BLOCK else 4,
    }


def noise_difference_triton(eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
    """Launch the kernel; arguments and result as in `noise_difference_reference`."""
    cond, uncond, norm, strides = _operands(eps_cond, eps_uncond)
    if norm.numel() == 0:
        return norm
    _, seeds, length = cond.shape
    launch(
        _noise_difference_kernel,
        norm.numel(),
        cond,
        *(cond, uncond, norm, seeds, length, *strides),
        **_options(cond),
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
    cond, uncond, norm, strides = _operands(eps_cond, eps_uncond)
    latents_prev = torch.empty(latents.shape, dtype=latents.dtype, device=cond.device)
    if norm.numel() == 0:
        return norm, latents_prev
    _, seeds, length = cond.shape
    x_t = rows(latents, 2)
    keep = math.sqrt(alpha_bar_prev / alpha_bar)
    launch(
        _noise_difference_step_kernel,
        norm.numel(),
        cond,
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
        *strides,
        *x_t.stride()[:2],
        **_options(cond),
    )
    return norm, latents_prev


def noise_cosine_triton(eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
    """Launch the kernel; arguments and result as in `noise_cosine_reference`."""
    cond, uncond, mean, strides = _operands(eps_cond, eps_uncond)
    if mean.numel() == 0:
        return mean
    channels, positions = eps_cond.shape[2], math.prod(eps_cond.shape[3:])
    if positions == 0:
        return mean.fill_(torch.nan)
    launch(
        _noise_cosine_kernel,
        mean.numel(),
        cond,
        *(cond, uncond, mean, cond.shape[1], channels, positions, *strides),
        ACC=ACCUMULATE[cond.dtype],
        BLOCK=block_of(positions, _COSINE_BLOCK),
    )
    return mean
