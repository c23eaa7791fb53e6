"""One step of Adam on many independent problems."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import (
    ACCUMULATE,
    block_of,
    launch,
    quotient,
    root,
    row_and_block,
)

_LARGEST_BLOCK = 1024


@triton.jit
def _embedding_step_kernel(
    params_ptr,
    grad_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    step_ptr,
    active_ptr,
    frozen_ptr,
    lr: tl.float64,  # an unannotated float would arrive as float32
    log_beta1: tl.float64,
    log_beta2: tl.float64,
    to_avg: tl.float64,
    to_sq: tl.float64,
    keep_sq: tl.float64,
    eps: tl.float64,
    keep_param: tl.float64,
    T,
    D,
    params_stride_p,
    params_stride_t,
    params_stride_d,
    grad_stride_p,
    grad_stride_t,
    grad_stride_d,
    exp_avg_stride_p,
    exp_avg_stride_t,
    exp_avg_stride_d,
    exp_avg_sq_stride_p,
    exp_avg_sq_stride_t,
    exp_avg_sq_stride_d,
    step_stride_p,
    active_stride_p,
    frozen_stride_p,
    frozen_stride_t,
    HAS_ACTIVE: tl.constexpr,
    HAS_FROZEN: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per 1024 columns of one (problem, token). The launcher counts the step afterwards:
    # a program cannot, while others still read the count.
    row, block = row_and_block(D, BLOCK)
    p = (row // T).to(tl.int64)
    t = (row % T).to(tl.int64)
    # int64, since a stride of the last dimension may be large, too
    d = block * BLOCK + tl.arange(0, BLOCK)
    # an inactive problem or a frozen token turns the whole mask off, so nothing of it is written
    live = d < D
    if HAS_ACTIVE:
        live = live & (tl.load(active_ptr + p * active_stride_p) != 0)
    if HAS_FROZEN:
        live = live & (tl.load(frozen_ptr + p * frozen_stride_p + t * frozen_stride_t) == 0)
    # Bias corrections in float64, as torch.optim takes them in Python: beta^t = exp(t log beta).
    # 1 - beta^t cancels for small t.
    count = (tl.load(step_ptr + p * step_stride_p) + 1).to(tl.float64)
    step_size = (lr / (1 - tl.exp(count * log_beta1))).to(ACC)
    inverse_root_bias = (1 / tl.sqrt(1 - tl.exp(count * log_beta2))).to(ACC)

    params_at = params_ptr + p * params_stride_p + t * params_stride_t + d * params_stride_d
    grad_at = grad_ptr + p * grad_stride_p + t * grad_stride_t + d * grad_stride_d
    avg_at = exp_avg_ptr + p * exp_avg_stride_p + t * exp_avg_stride_t + d * exp_avg_stride_d
    sq_at = exp_avg_sq_ptr + p * exp_avg_sq_stride_p + t * exp_avg_sq_stride_t
    sq_at += d * exp_avg_sq_stride_d

    # where nothing is live, a second moment of 1 keeps the root and the division harmless
    params = tl.load(params_at, mask=live).to(ACC)
    slope = tl.load(grad_at, mask=live).to(ACC)
    mean = tl.load(avg_at, mask=live).to(ACC)
    square = tl.load(sq_at, mask=live, other=1.0).to(ACC)
    # the rates arrive as float64 and are rounded once to the type of the arithmetic
    mean += tl.full([], to_avg, ACC) * (slope - mean)
    square = tl.full([], keep_sq, ACC) * square
    square += tl.full([], to_sq, ACC) * slope * slope
    denominator = root(square) * inverse_root_bias + tl.full([], eps, ACC)
    # decoupled decay first: keep_param is 1 - lr * weight_decay
    params = tl.full([], keep_param, ACC) * params - quotient(step_size * mean, denominator)
    tl.store(params_at, params.to(params_ptr.dtype.element_ty), mask=live)
    tl.store(avg_at, mean, mask=live)
    tl.store(sq_at, square, mask=live)


def embedding_step_triton(
    params: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    active: Tensor | None,
    frozen: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Launch the kernel; arguments as in `embedding_step_reference`."""
    problems, tokens, dim = params.shape
    if params.numel() > 0:
        block = block_of(dim, _LARGEST_BLOCK)
        frozen_strides = (0, 0)
        if frozen is not None:
            frozen_strides = (frozen.stride(0) if frozen.dim() == 2 else 0, frozen.stride(-1))
        launch(
            _embedding_step_kernel,
            problems * tokens * triton.cdiv(dim, block),
            params,
            params,
            grad,
            exp_avg,
            exp_avg_sq,
            step,
            step if active is None else active.view(torch.int8),
            step if frozen is None else frozen.view(torch.int8),
            lr,
            _log(beta1),
            _log(beta2),
            1 - beta1,
            1 - beta2,
            beta2,
            eps,
            1 - lr * weight_decay,
            tokens,
            dim,
            *params.stride(),
            *grad.stride(),
            *exp_avg.stride(),
            *exp_avg_sq.stride(),
            *step.stride(),
            0 if active is None else active.stride(0),
            *frozen_strides,
            HAS_ACTIVE=active is not None,
            HAS_FROZEN=frozen is not None,
            ACC=ACCUMULATE[params.dtype],
            BLOCK=block,
        )
    step += 1 if active is None else active


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf
