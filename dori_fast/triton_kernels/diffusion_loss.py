"""Noised latents, the mean squared error of a noise prediction, and its gradient."""

from __future__ import annotations

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
    row_and_block,
    rows,
    sum_of,
)

# a program of the loss walks a whole row in blocks of this size
_LARGEST_BLOCK = 2048
# a program of the others takes one block of a row
_STREAMED_BLOCK = 1024


@triton.jit
def _add_noise_kernel(
    x0_ptr,
    eps_ptr,
    alpha_bar_ptr,
    x_t_ptr,
    B,
    L,
    x0_stride_p,
    eps_stride_p,
    eps_stride_b,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per 1024 elements of one (problem, draw). Offsets are int64: a batch may have more
    # than 2^31 elements.
    row, block = row_and_block(L, BLOCK)
    row = row.to(tl.int64)
    p = row // B
    b = row % B
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < L
    # alpha_bar is contiguous, one number per row; x0 has no draws, so all draws read one image
    alpha_bar = tl.load(alpha_bar_ptr + row).to(ACC)
    x0 = tl.load(x0_ptr + p * x0_stride_p + i, mask=inside).to(ACC)
    eps = tl.load(eps_ptr + p * eps_stride_p + b * eps_stride_b + i, mask=inside).to(ACC)
    x_t = root(alpha_bar) * x0 + root(1 - alpha_bar) * eps
    # x_t is contiguous; this is the only rounding to the dtype of x0
    tl.store(x_t_ptr + row * L + i, x_t.to(x_t_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _diffusion_loss_kernel(
    pred_ptr,
    eps_ptr,
    sum_ptr,
    B,
    L,
    pred_stride_p,
    pred_stride_b,
    eps_stride_p,
    eps_stride_b,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per (problem, draw), which sums its row in an order that depends on L alone: a
    # problem's loss does not depend on the others.
    row = tl.program_id(0).to(tl.int64)
    p = row // B
    b = row % B
    pred_row = pred_ptr + p * pred_stride_p + b * pred_stride_b
    eps_row = eps_ptr + p * eps_stride_p + b * eps_stride_b
    # one partial sum per place in the block, so that no addition waits for its neighbor's
    squares = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        # beyond the row both are 0, and so is their difference
        inside = i < L
        pred = tl.load(pred_row + i, mask=inside, other=0.0).to(ACC)
        eps = tl.load(eps_row + i, mask=inside, other=0.0).to(ACC)
        squares += (pred - eps) * (pred - eps)
    tl.store(sum_ptr + row, sum_of(squares))


@triton.jit
def _mean_of_draws_kernel(sum_ptr, loss_ptr, B, L, ACC: tl.constexpr, BLOCK: tl.constexpr):
    # One program of one warp per problem. torch's own sum could change its order with the number
    # of problems.
    p = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], ACC)
    for start in range(0, B, BLOCK):
        b = start + tl.arange(0, BLOCK)
        total += tl.load(sum_ptr + p * B + b, mask=b < B, other=0.0).to(ACC)
    # B * L in floating point: as int32 it could overflow
    count = tl.zeros([], ACC) + B
    tl.store(loss_ptr + p, quotient(sum_of(total), count * L))


@triton.jit
def _diffusion_loss_bwd_kernel(
    rate_ptr,
    pred_ptr,
    eps_ptr,
    to_pred_ptr,
    B,
    L,
    pred_stride_p,
    pred_stride_b,
    eps_stride_p,
    eps_stride_b,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per 1024 elements of one (problem, draw).
    row, block = row_and_block(L, BLOCK)
    row = row.to(tl.int64)
    p = row // B
    b = row % B
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < L
    # the rate holds 2 / n and the gradient of the problem's loss; to_pred is contiguous
    rate = tl.load(rate_ptr + p).to(ACC)
    pred = tl.load(pred_ptr + p * pred_stride_p + b * pred_stride_b + i, mask=inside).to(ACC)
    eps = tl.load(eps_ptr + p * eps_stride_p + b * eps_stride_b + i, mask=inside).to(ACC)
    to_pred = (rate * (pred - eps)).to(to_pred_ptr.dtype.element_ty)
    tl.store(to_pred_ptr + row * L + i, to_pred, mask=inside)


def add_noise_triton(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Launch the kernel; arguments and result as in `add_noise_reference`."""
    x_t = torch.empty(eps.shape, dtype=eps.dtype, device=eps.device)
    if x_t.numel() == 0:
        return x_t
    noise, images = rows(eps, 2), rows(x0, 1)
    problems, draws, length = noise.shape
    block = block_of(length, _STREAMED_BLOCK)
    launch(
        _add_noise_kernel,
        problems * draws * triton.cdiv(length, block),
        eps,
        images,
        noise,
        alpha_bar.contiguous(),
        x_t,
        draws,
        length,
        images.stride(0),
        *noise.stride()[:2],
        ACC=ACCUMULATE[eps.dtype],
        BLOCK=block,
    )
    return x_t


def diffusion_loss_triton(eps_pred: Tensor, eps: Tensor) -> Tensor:
    """Launch the kernels; arguments and result as in `diffusion_loss_reference`."""
    dtype = accumulate_dtype(eps.dtype)
    pred, target = rows(eps_pred, 2), rows(eps, 2)
    problems, draws, length = pred.shape
    if pred.numel() == 0:
        return torch.full((problems,), torch.nan, dtype=dtype, device=eps.device)
    sums = torch.empty(problems, draws, dtype=dtype, device=eps.device)
    loss = torch.empty(problems, dtype=dtype, device=eps.device)
    acc = ACCUMULATE[eps.dtype]
    launch(
        _diffusion_loss_kernel,
        problems * draws,
        eps,
        pred,
        target,
        sums,
        draws,
        length,
        *pred.stride()[:2],
        *target.stride()[:2],
        ACC=acc,
        BLOCK=block_of(length, _LARGEST_BLOCK),
        num_warps=8 if length >= _LARGEST_BLOCK else 4,
    )
    launch(
        _mean_of_draws_kernel,
        problems,
        eps,
        *(sums, loss, draws, length),
        ACC=acc,
        BLOCK=block_of(draws, _LARGEST_BLOCK),
        num_warps=1,
    )
    return loss


def diffusion_loss_bwd_triton(rate: Tensor, eps_pred: Tensor, eps: Tensor) -> Tensor:
    """Launch the kernel; arguments and result as in `diffusion_loss_bwd_reference`."""
    to_pred = torch.empty(eps_pred.shape, dtype=eps_pred.dtype, device=eps_pred.device)
    if to_pred.numel() == 0:
        return to_pred
    pred, target = rows(eps_pred, 2), rows(eps, 2)
    problems, draws, length = pred.shape
    block = block_of(length, _STREAMED_BLOCK)
    launch(
        _diffusion_loss_bwd_kernel,
        problems * draws * triton.cdiv(length, block),
        eps,
        rate.contiguous(),
        pred,
        target,
        to_pred,
        draws,
        length,
        *pred.stride()[:2],
        *target.stride()[:2],
        ACC=ACCUMULATE[eps.dtype],
        BLOCK=block,
    )
    return to_pred
