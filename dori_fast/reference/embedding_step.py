"""One step of Adam on many independent problems, in plain torch.

Adam (Kingma & Ba, ICLR 2015) with decoupled weight decay (Loshchilov & Hutter, ICLR 2019). Adam at
lr 0.1 is the attack of Kowalczuk et al., "Finding DoRI" (ICML 2026). AdamW with weight decay 0.01
is the mitigation of Wen et al. (ICLR 2024, released code). That code zeroes the gradient of the
first token, which still decays; to repeat it, zero the gradient and do not freeze the token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dori_fast.reference import Inputs, OpSpec, accumulate_dtype, randn


def embedding_step_reference(
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
    """Step the active problems in place; frozen tokens and their moments stay as they are.

    With t the problem's step count after this step,

        exp_avg    <- exp_avg + (1 - beta1) (grad - exp_avg)
        exp_avg_sq <- beta2 exp_avg_sq + (1 - beta2) grad^2
        params     <- (1 - lr weight_decay) params
                      - lr / (1 - beta1^t) exp_avg / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)

    Args:
        params: [P, T, D], any floating dtype; written.
        grad: [P, T, D], same dtype.
        exp_avg, exp_avg_sq: [P, T, D] moments, float32 (float64 for float64 params); written.
        step: int64 [P], steps taken before this one; written.
        active: bool [P], or None for all.
        frozen: bool [T] or [P, T], or None for none.
        lr, beta1, beta2, eps, weight_decay: rates of Adam, decay decoupled.
    """
    dtype = accumulate_dtype(params.dtype)
    if active is None:
        active = torch.ones_like(step, dtype=torch.bool)
    live = active[:, None, None].expand(-1, params.shape[1], 1)
    if frozen is not None:
        live = live & ~frozen.unsqueeze(-1)
    step += active
    count = step.double()[:, None, None]
    step_size = (lr / (1 - beta1**count)).to(dtype)
    root_bias = (1 - beta2**count).sqrt().to(dtype)
    slope = grad.to(dtype)
    mean = exp_avg + (1 - beta1) * (slope - exp_avg)
    square = beta2 * exp_avg_sq + (1 - beta2) * slope * slope
    kept = (1 - lr * weight_decay) * params.to(dtype)
    moved = kept - step_size * (mean / (square.sqrt() / root_bias + eps))
    for old, new in ((params, moved), (exp_avg, mean), (exp_avg_sq, square)):
        old.copy_(torch.where(live, new.to(old.dtype), old))


def _inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (P, T, D, inactive problems, rank of the frozen mask).

    No problem is inactive (0), or every other one is (1).
    """
    *shape, inactive, rank = size
    problems, tokens, _ = shape
    wide = accumulate_dtype(dtype)

    def draw(dtype: torch.dtype) -> torch.Tensor:
        return randn(tuple(shape), dtype, device, generator)

    frozen_shape = {0: None, 1: (tokens,), 2: (problems, tokens)}[rank]
    frozen = None if frozen_shape is None else torch.rand(frozen_shape, generator=generator) < 0.3
    active = torch.arange(problems) % 2 == 0 if inactive else None
    return (
        draw(dtype),
        draw(dtype),
        draw(wide),
        draw(wide).square(),
        torch.arange(problems, device=device) * 7,
        None if active is None else active.to(device),
        None if frozen is None else frozen.to(device),
        *(0.1, 0.9, 0.999, 1e-8, 0.01),
    )


SPECS = (
    OpSpec(
        name="embedding_step",
        public="embedding_step",
        reference=embedding_step_reference,
        # widths around the vector widths; every kind of mask; empty dimensions
        sizes=(
            *((2, 3, dim, 0, 0) for dim in (1, 3, 63, 64, 257, 1000)),
            *((5, 4, 65, 1, 0), (3, 7, 65, 0, 1), (5, 7, 65, 1, 2), (1, 77, 32, 1, 1)),
            *((0, 3, 8, 1, 2), (2, 0, 8, 0, 1), (2, 3, 0, 1, 2)),
        ),
        make_inputs=_inputs,
        uncanceled=lambda params, grad, exp_avg, *rest: (
            params.abs(),
            -grad.abs(),
            -exp_avg.abs(),
            *rest,
        ),
    ),
)
