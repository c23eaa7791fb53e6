"""Noised latents, and the mean squared error of a noise prediction with its gradient."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import ACCUMULATE, CompileCase, block_of

# Of the loss, which keeps sums of a whole row; of the others, which stream it.
_LARGEST_BLOCK = 2048
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
    # One program per block of one (problem, draw); alpha_bar and x_t are contiguous.
    row = tl.program_id(0).to(tl.int64)
    p = row // B
    b = row % B
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < L
    alpha_bar = tl.load(alpha_bar_ptr + row).to(ACC)
    x0 = tl.load(x0_ptr + p * x0_stride_p + i, mask=inside).to(ACC)
    eps = tl.load(eps_ptr + p * eps_stride_p + b * eps_stride_b + i, mask=inside).to(ACC)
    x_t = tl.sqrt(alpha_bar) * x0 + tl.sqrt(1 - alpha_bar) * eps
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
    # One program per (problem, draw), always summed in the same order.
    row = tl.program_id(0).to(tl.int64)
    p = row // B
    b = row % B
    pred_row = pred_ptr + p * pred_stride_p + b * pred_stride_b
    eps_row = eps_ptr + p * eps_stride_p + b * eps_stride_b
    squares = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < L
        pred = tl.load(pred_row + i, mask=inside, other=0.0).to(ACC)
        eps = tl.load(eps_row + i, mask=inside, other=0.0).to(ACC)
        squares += (pred - eps) * (pred - eps)
    tl.store(sum_ptr + row, tl.sum(squares))


@triton.jit
def _mean_of_draws_kernel(sum_ptr, loss_ptr, B, L, ACC: tl.constexpr, BLOCK: tl.constexpr):
    # One program per problem. A sum by torch could change its order with the number of problems.
    p = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], ACC)
    for start in range(0, B, BLOCK):
        b = start + tl.arange(0, BLOCK)
        total += tl.load(sum_ptr + p * B + b, mask=b < B, other=0.0).to(ACC)
    count = tl.zeros([], ACC) + B
    tl.store(loss_ptr + p, tl.sum(total) / (count * L))


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
    # One program per block of one (problem, draw); to_pred is contiguous.
    row = tl.program_id(0).to(tl.int64)
    p = row // B
    b = row % B
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < L
    rate = tl.load(rate_ptr + p).to(ACC)
    pred = tl.load(pred_ptr + p * pred_stride_p + b * pred_stride_b + i, mask=inside).to(ACC)
    eps = tl.load(eps_ptr + p * eps_stride_p + b * eps_stride_b + i, mask=inside).to(ACC)
    to_pred = (rate * (pred - eps)).to(to_pred_ptr.dtype.element_ty)
    tl.store(to_pred_ptr + row * L + i, to_pred, mask=inside)


def _rows(x: Tensor, leading: int) -> Tensor:
    """x with its dimensions from `leading` on as one, of adjacent elements."""
    flat = x.unsqueeze(-1).flatten(leading)
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def add_noise_triton(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Launch the kernel; arguments and result as in `add_noise_reference`."""
    x_t = torch.empty(eps.shape, dtype=eps.dtype, device=eps.device)
    if x_t.numel() == 0:
        return x_t
    rows, images = _rows(eps, 2), _rows(x0, 1)
    problems, draws, length = rows.shape
    block = block_of(length, _STREAMED_BLOCK)
    with torch.cuda.device_of(eps):
        _add_noise_kernel[(problems * draws, triton.cdiv(length, block))](
            images,
            rows,
            alpha_bar.contiguous(),
            x_t,
            draws,
            length,
            images.stride(0),
            rows.stride(0),
            rows.stride(1),
            ACC=ACCUMULATE[eps.dtype],
            BLOCK=block,
        )
    return x_t


def diffusion_loss_triton(eps_pred: Tensor, eps: Tensor) -> Tensor:
    """Launch the kernels; arguments and result as in `diffusion_loss_reference`."""
    dtype = torch.float64 if eps.dtype == torch.float64 else torch.float32
    pred, target = _rows(eps_pred, 2), _rows(eps, 2)
    problems, draws, length = pred.shape
    if pred.numel() == 0:
        return torch.full((problems,), torch.nan, dtype=dtype, device=eps.device)
    sums = torch.empty(problems, draws, dtype=dtype, device=eps.device)
    loss = torch.empty(problems, dtype=dtype, device=eps.device)
    acc = ACCUMULATE[eps.dtype]
    with torch.cuda.device_of(eps):
        _diffusion_loss_kernel[(problems * draws,)](
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
    block = block_of(draws, _LARGEST_BLOCK)
    with torch.cuda.device_of(eps):
        _mean_of_draws_kernel[(problems,)](
            sums, loss, draws, length, ACC=acc, BLOCK=block, num_warps=1
        )
    return loss


def diffusion_loss_bwd_triton(rate: Tensor, eps_pred: Tensor, eps: Tensor) -> Tensor:
    """Launch the kernel; arguments and result as in `diffusion_loss_bwd_reference`."""
    to_pred = torch.empty(eps_pred.shape, dtype=eps_pred.dtype, device=eps_pred.device)
    if to_pred.numel() == 0:
        return to_pred
    pred, target = _rows(eps_pred, 2), _rows(eps, 2)
    problems, draws, length = pred.shape
    block = block_of(length, _STREAMED_BLOCK)
    with torch.cuda.device_of(eps):
        _diffusion_loss_bwd_kernel[(problems * draws, triton.cdiv(length, block))](
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


_TENSORS = ("x0_ptr", "eps_ptr", "x_t_ptr", "pred_ptr", "to_pred_ptr")


def _compile_case(
    name: str,
    kernel: Any,
    element: str,
    *,
    aligned: bool,
    block: int = _STREAMED_BLOCK,
    warps: int = 4,
) -> CompileCase:
    """Types by the arguments' names: rows of the element type, single numbers in full precision."""
    wide = element == "fp64"
    constexprs = {"ACC": tl.float64 if wide else tl.float32, "BLOCK": block}
    number = "*fp64" if wide else "*fp32"
    signature = {}
    for argument in kernel.arg_names:
        if argument in constexprs:
            signature[argument] = "constexpr"
        elif argument.endswith("_ptr"):
            signature[argument] = f"*{element}" if argument in _TENSORS else number
        else:
            signature[argument] = "i64" if "stride" in argument else "i32"
    strides = tuple(argument for argument in signature if "stride" in argument)
    tensors = tuple(argument for argument in signature if argument in _TENSORS)
    return CompileCase(
        name=f"{name}-{element}-{'aligned' if aligned else 'any'}",
        kernel=kernel,
        signature=signature,
        constexprs=constexprs,
        aligned=(*tensors, "L", *strides) if aligned else (),
        num_warps=warps,
        vector_loads=aligned,
    )


def _compile_cases(element: str, aligned: bool) -> tuple[CompileCase, ...]:
    return (
        _compile_case("add_noise", _add_noise_kernel, element, aligned=aligned),
        _compile_case(
            "diffusion_loss",
            _diffusion_loss_kernel,
            element,
            aligned=aligned,
            block=_LARGEST_BLOCK,
            warps=8,
        ),
        _compile_case("diffusion_loss_bwd", _diffusion_loss_bwd_kernel, element, aligned=aligned),
    )


COMPILE_CASES = (
    *(
        case
        for element in ("fp32", "bf16", "fp16", "fp64")
        for aligned in (True, False)
        for case in _compile_cases(element, aligned)
    ),
    *(
        _compile_case(
            "diffusion_loss-mean", _mean_of_draws_kernel, element, aligned=False, block=16, warps=1
        )
        for element in ("fp32", "fp64")
    ),
)
