"""Norm of the difference between conditional and unconditional noise prediction.

    norm[p, s] = || eps_cond[p, s] - eps_uncond[s] ||_2

The score of Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models"
(ICLR 2024), section 3.2, for one timestep. P prompts, S seeds, `*` the shape of a latent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op
from dori_fast.reference import accumulate_dtype
from dori_fast.reference.noise_difference import noise_difference_reference

__all__ = ["noise_difference"]


def _fake(eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
    return eps_cond.new_empty(eps_cond.shape[:2], dtype=accumulate_dtype(eps_cond.dtype))


def _triton(eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
    from dori_fast.triton_kernels.noise_difference import noise_difference_triton

    return noise_difference_triton(eps_cond, eps_uncond)


_OP = define_op(
    "noise_difference",
    "(Tensor eps_cond, Tensor eps_uncond) -> Tensor",
    reference=noise_difference_reference,
    triton=_triton,
    fake=_fake,
)


class _NoiseDifference(torch.autograd.Function):
    """d norm / d eps_cond = (eps_cond - eps_uncond) / norm, taken as 0 where the norm is 0."""

    @staticmethod
    def forward(ctx: Any, eps_cond: Tensor, eps_uncond: Tensor, backend: str) -> Tensor:
        norm: Tensor = select(_OP, backend, eps_cond)(eps_cond, eps_uncond)
        ctx.save_for_backward(eps_cond, eps_uncond, norm)
        return norm

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        eps_cond, eps_uncond, norm = ctx.saved_tensors
        # Plain torch: it is elementwise, small beside the network's own backward pass, and can be
        # differentiated again.
        rate = torch.where(norm == 0, 0.0, grad / torch.where(norm == 0, 1.0, norm))
        rate = rate.reshape(*rate.shape, *(1,) * (eps_cond.dim() - 2))
        slope = rate * (eps_cond.to(norm.dtype) - eps_uncond.to(norm.dtype))
        to_cond = slope.to(eps_cond.dtype) if ctx.needs_input_grad[0] else None
        to_uncond = None
        if ctx.needs_input_grad[1]:
            shared = eps_uncond.dim() < eps_cond.dim()
            to_uncond = -(slope.sum(0) if shared else slope).to(eps_uncond.dtype)
        return to_cond, to_uncond, None


def _check(eps_cond: Tensor, eps_uncond: Tensor) -> None:
    op = "noise_difference"
    _checks.floating_tensor(op, "eps_cond", eps_cond)
    _checks.floating_tensor(op, "eps_uncond", eps_uncond)
    shape = eps_cond.shape
    if len(shape) < 2:
        _checks.reject(op, "eps_cond", "[P, S, *]", _checks.shape_of(eps_cond))
    shared = shape[1:]
    if eps_uncond.shape != shared and eps_uncond.shape != shape:
        expected = f"{list(shared)} or {list(shape)} for eps_cond {list(shape)}"
        _checks.reject(op, "eps_uncond", expected, _checks.shape_of(eps_uncond))
    _checks.same_dtype(op, "eps_uncond", eps_uncond, "eps_cond", eps_cond)
    _checks.same_device(op, "eps_uncond", eps_uncond, "eps_cond", eps_cond)


def noise_difference(eps_cond: Tensor, eps_uncond: Tensor, *, backend: str = "auto") -> Tensor:
    """Return the L2 norm of `eps_cond - eps_uncond` per prompt and seed, reading each once.

    Args:
        eps_cond: [P, S, *] noise predictions with text, float32, bfloat16, float16 or float64, any
            strides.
        eps_uncond: [S, *] noise predictions without text, shared by all prompts and never copied
            for them; or [P, S, *]. Same dtype and device.
        backend: "auto", or an implementation by name, which then answers or raises.

    Returns:
        [P, S] float32 (float64 for float64 inputs), differentiable in both inputs; the gradient is
        0 where the difference is 0.

    Raises:
        TypeError: an input is not a tensor.
        ValueError: shape, dtype or device do not fit, or the backend is unknown.
        RuntimeError: the backend asked for cannot serve; says why.

    Note:
        Sums in float32 or better and in an order that depends on the length of a row alone: a row's
        result does not depend on the batch around it and repeats bit for bit on one machine.
    """
    _check(eps_cond, eps_uncond)
    if (eps_cond.requires_grad or eps_uncond.requires_grad) and torch.is_grad_enabled():
        norm: Tensor = _NoiseDifference.apply(eps_cond, eps_uncond, backend)
        return norm
    norm = select(_OP, backend, eps_cond)(eps_cond, eps_uncond)
    return norm
