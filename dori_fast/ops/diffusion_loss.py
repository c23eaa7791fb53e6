"""Noise latents, and take the diffusion loss of many problems at once.

    x_t[p, b] = sqrt(alpha_bar[p, b]) x_0[p] + sqrt(1 - alpha_bar[p, b]) eps[p, b]
    loss[p]   = mean over b and * of (eps_pred[p, b] - eps[p, b])^2

Ho et al., "Denoising Diffusion Probabilistic Models" (NeurIPS 2020), equations 4 and 14; minimized
over embeddings by Kowalczuk et al., "Finding DoRI" (ICML 2026), and over weights by fine-tuning.
P problems (images), B draws of (noise, timestep) per problem, `*` the shape of a latent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op
from dori_fast.reference import accumulate_dtype
from dori_fast.reference.diffusion_loss import (
    add_noise_reference,
    diffusion_loss_bwd_reference,
    diffusion_loss_reference,
)

__all__ = ["add_noise", "diffusion_loss"]


def _noise_fake(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    return eps.new_empty(eps.shape)


def _noise_triton(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    from dori_fast.triton_kernels.diffusion_loss import add_noise_triton

    return add_noise_triton(x0, eps, alpha_bar)


def _loss_fake(eps_pred: Tensor, eps: Tensor) -> Tensor:
    return eps_pred.new_empty(eps_pred.shape[:1], dtype=accumulate_dtype(eps_pred.dtype))


def _loss_triton(eps_pred: Tensor, eps: Tensor) -> Tensor:
    from dori_fast.triton_kernels.diffusion_loss import diffusion_loss_triton

    return diffusion_loss_triton(eps_pred, eps)


def _bwd_fake(rate: Tensor, eps_pred: Tensor, eps: Tensor) -> Tensor:
    return eps_pred.new_empty(eps_pred.shape)


def _bwd_triton(rate: Tensor, eps_pred: Tensor, eps: Tensor) -> Tensor:
    from dori_fast.triton_kernels.diffusion_loss import diffusion_loss_bwd_triton

    return diffusion_loss_bwd_triton(rate, eps_pred, eps)


_NOISE = define_op(
    "add_noise",
    "(Tensor x0, Tensor eps, Tensor alpha_bar) -> Tensor",
    reference=add_noise_reference,
    triton=_noise_triton,
    fake=_noise_fake,
)
_LOSS = define_op(
    "diffusion_loss",
    "(Tensor eps_pred, Tensor eps) -> Tensor",
    reference=diffusion_loss_reference,
    triton=_loss_triton,
    fake=_loss_fake,
)
_LOSS_BWD = define_op(
    "diffusion_loss_bwd",
    "(Tensor rate, Tensor eps_pred, Tensor eps) -> Tensor",
    reference=diffusion_loss_bwd_reference,
    triton=_bwd_triton,
    fake=_bwd_fake,
)


class _AddNoise(torch.autograd.Function):
    """d x_t / d x_0 = sqrt(alpha_bar), summed over draws; d x_t / d eps = sqrt(1 - alpha_bar)."""

    @staticmethod
    def forward(ctx: Any, x0: Tensor, eps: Tensor, alpha_bar: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(alpha_bar)
        x_t: Tensor = select(_NOISE, backend, eps)(x0, eps, alpha_bar)
        return x_t

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (alpha_bar,) = ctx.saved_tensors
        alpha_bar = alpha_bar.reshape(*alpha_bar.shape, *(1,) * (grad.dim() - 2))
        wide = grad.to(alpha_bar.dtype)
        to_x0 = to_eps = None
        if ctx.needs_input_grad[0]:
            to_x0 = (alpha_bar.sqrt() * wide).sum(1).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            to_eps = ((1 - alpha_bar).sqrt() * wide).to(grad.dtype)
        return to_x0, to_eps, None, None


class _DiffusionLoss(torch.autograd.Function):
    """d loss / d eps_pred = 2 (eps_pred - eps) / n, with n elements per problem."""

    @staticmethod
    def forward(ctx: Any, eps_pred: Tensor, eps: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(eps_pred, eps)
        ctx.backend = backend
        loss: Tensor = select(_LOSS, backend, eps)(eps_pred, eps)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        eps_pred, eps = ctx.saved_tensors
        rate = grad * (2.0 / max(1, eps[:1].numel()))
        # Only plain torch can be differentiated again, which create_graph announces by this mode.
        again = torch.is_grad_enabled()
        compute = diffusion_loss_bwd_reference if again else select(_LOSS_BWD, ctx.backend, eps)
        slope: Tensor = compute(rate, eps_pred, eps)
        to_eps = -slope if ctx.needs_input_grad[1] else None
        return slope if ctx.needs_input_grad[0] else None, to_eps, None


def _check_draws(op: str, name: str, value: Tensor) -> None:
    _checks.floating_tensor(op, name, value)
    if value.dim() < 2:
        _checks.reject(op, name, "[P, B, *]", _checks.shape_of(value))


def _check_noise(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> None:
    op = "add_noise"
    _check_draws(op, "eps", eps)
    _checks.floating_tensor(op, "x0", x0)
    _checks.floating_tensor(op, "alpha_bar", alpha_bar)
    shape = eps.shape
    if x0.shape != (shape[0], *shape[2:]):
        expected = f"[{', '.join(map(str, (shape[0], *shape[2:])))}] for eps {list(shape)}"
        _checks.reject(op, "x0", expected, _checks.shape_of(x0))
    if alpha_bar.shape != shape[:2]:
        expected = f"{list(shape[:2])} for eps {list(shape)}"
        _checks.reject(op, "alpha_bar", expected, _checks.shape_of(alpha_bar))
    _checks.same_dtype(op, "x0", x0, "eps", eps)
    _checks.same_device(op, "x0", x0, "eps", eps)
    _checks.same_device(op, "alpha_bar", alpha_bar, "eps", eps)
    _checks.constant(op, "alpha_bar", alpha_bar)


def add_noise(x0: Tensor, eps: Tensor, alpha_bar: Tensor, *, backend: str = "auto") -> Tensor:
    """Return x_t of several draws per image, reading each image where it lies.

    Args:
        x0: [P, *] clean latents, float32, bfloat16, float16 or float64, any strides.
        eps: [P, B, *] noise, same dtype and device.
        alpha_bar: [P, B] cumulative alpha at each draw's timestep, in [0, 1], any floating dtype,
            same device; a constant, without gradient.
        backend: "auto", or an implementation by name, which then answers or raises.

    Returns:
        [P, B, *] in the dtype of x0, contiguous, differentiable in x0 and eps. Arithmetic is in
        float32 (float64 for float64 x0), rounded once.

    Raises:
        TypeError: an input is not a tensor.
        ValueError: shape, dtype or device do not fit, alpha_bar requires grad while gradients are
            recorded, or the backend is unknown.
        RuntimeError: the backend asked for cannot serve; says why.
    """
    _check_noise(x0, eps, alpha_bar)
    alpha_bar = alpha_bar.to(accumulate_dtype(eps.dtype))
    if (x0.requires_grad or eps.requires_grad) and torch.is_grad_enabled():
        x_t: Tensor = _AddNoise.apply(x0, eps, alpha_bar, backend)
        return x_t
    x_t = select(_NOISE, backend, eps)(x0, eps, alpha_bar)
    return x_t


def _check_loss(eps_pred: Tensor, eps: Tensor) -> None:
    op = "diffusion_loss"
    _check_draws(op, "eps_pred", eps_pred)
    _check_draws(op, "eps", eps)
    if eps.shape != eps_pred.shape:
        expected = f"{_checks.shape_of(eps_pred)}, as eps_pred is"
        _checks.reject(op, "eps", expected, _checks.shape_of(eps))
    _checks.same_dtype(op, "eps", eps, "eps_pred", eps_pred)
    _checks.same_device(op, "eps", eps, "eps_pred", eps_pred)


def diffusion_loss(eps_pred: Tensor, eps: Tensor, *, backend: str = "auto") -> Tensor:
    """Return the mean squared error of each problem, and carry its gradient in one pass.

    Args:
        eps_pred: [P, B, *] predicted noise, float32, bfloat16, float16 or float64, any strides.
        eps: [P, B, *] noise that was added, same dtype and device.
        backend: "auto", or an implementation by name, which then answers or raises.

    Returns:
        [P] float32 (float64 for float64 inputs), differentiable in both inputs; NaN where a
        problem has no elements, as a mean of nothing.

    Raises:
        TypeError: an input is not a tensor.
        ValueError: shape, dtype or device do not fit, or the backend is unknown.
        RuntimeError: the backend asked for cannot serve; says why.

    Note:
        Sums in float32 or better and in an order that depends on B and `*` alone: a problem's loss
        does not depend on the problems around it and repeats bit for bit on one machine.
    """
    _check_loss(eps_pred, eps)
    if (eps_pred.requires_grad or eps.requires_grad) and torch.is_grad_enabled():
        loss: Tensor = _DiffusionLoss.apply(eps_pred, eps, backend)
        return loss
    loss = select(_LOSS, backend, eps)(eps_pred, eps)
    return loss
