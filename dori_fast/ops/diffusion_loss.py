"""Noised latents and the diffusion loss of many problems at once.

P problems (images), B draws of (noise, timestep) per problem, `*` the shape of a latent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op
from dori_fast.reference.diffusion_loss import (
    add_noise_reference,
    diffusion_loss_bwd_reference,
    diffusion_loss_reference,
)

__all__ = ["add_noise", "diffusion_loss"]


def _noise_fake(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    return eps.new_empty(eps.shape)


def _loss_fake(eps_pred: Tensor, eps: Tensor) -> Tensor:
    return eps_pred.new_empty(eps_pred.shape[:1], dtype=_checks.accumulate_dtype(eps_pred.dtype))


def _bwd_fake(rate: Tensor, eps_pred: Tensor, eps: Tensor) -> Tensor:
    return eps_pred.new_empty(eps_pred.shape)


_NOISE = define_op(
    "add_noise",
    "(Tensor x0, Tensor eps, Tensor alpha_bar) -> Tensor",
    reference=add_noise_reference,
    fake=_noise_fake,
    triton="dori_fast.triton_kernels.diffusion_loss:add_noise_triton",
)
_LOSS = define_op(
    "diffusion_loss",
    "(Tensor eps_pred, Tensor eps) -> Tensor",
    reference=diffusion_loss_reference,
    fake=_loss_fake,
    triton="dori_fast.triton_kernels.diffusion_loss:diffusion_loss_triton",
)
_LOSS_BWD = define_op(
    "diffusion_loss_bwd",
    "(Tensor rate, Tensor eps_pred, Tensor eps) -> Tensor",
    reference=diffusion_loss_bwd_reference,
    fake=_bwd_fake,
    triton="dori_fast.triton_kernels.diffusion_loss:diffusion_loss_bwd_triton",
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
        # create_graph turns recording on here; only plain torch can be differentiated again
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
    _checks.same_dtype_and_device(op, "x0", x0, "eps", eps)
    _checks.same_device(op, "alpha_bar", alpha_bar, "eps", eps)
    _checks.constant(op, "alpha_bar", alpha_bar)


def add_noise(x0: Tensor, eps: Tensor, alpha_bar: Tensor, *, backend: str = "auto") -> Tensor:
    """Return x_t of several draws per image; the images are not copied for their draws.

    Args:
        x0: [P, *] clean latents.
        eps: [P, B, *] noise.
        alpha_bar: [P, B] cumulative alpha at each draw's timestep, in [0, 1], any floating dtype.
        backend: implementation; see `dori_fast.ops`.

    Returns:
        [P, B, *] in the dtype of x0, contiguous; differentiable in x0 and eps.

    Raises:
        ValueError: alpha_bar requires grad while gradients are recorded.
    """
    _check_noise(x0, eps, alpha_bar)
    alpha_bar = alpha_bar.to(_checks.accumulate_dtype(eps.dtype))
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
    _checks.same_dtype_and_device(op, "eps", eps, "eps_pred", eps_pred)


def diffusion_loss(eps_pred: Tensor, eps: Tensor, *, backend: str = "auto") -> Tensor:
    """Return the mean squared error of each problem; its gradient takes one pass.

    Args:
        eps_pred: [P, B, *] predicted noise.
        eps: [P, B, *] noise that was added.
        backend: implementation; see `dori_fast.ops`.

    Returns:
        [P] float32 (float64 for float64 inputs); differentiable in both inputs. A problem without
        elements gives NaN.
    """
    _check_loss(eps_pred, eps)
    if (eps_pred.requires_grad or eps.requires_grad) and torch.is_grad_enabled():
        loss: Tensor = _DiffusionLoss.apply(eps_pred, eps, backend)
        return loss
    loss = select(_LOSS, backend, eps)(eps_pred, eps)
    return loss
