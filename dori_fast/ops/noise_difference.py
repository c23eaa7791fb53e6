"""Norm and cosine of the difference of conditional and unconditional noise predictions.

P prompts, S seeds, C channels, `*` the (rest of the) shape of a latent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op
from dori_fast.reference.noise_difference import (
    noise_cosine_reference,
    noise_difference_reference,
    noise_difference_step_reference,
)

__all__ = ["noise_cosine", "noise_difference", "noise_difference_step"]


def _fake(eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
    return eps_cond.new_empty(eps_cond.shape[:2], dtype=_checks.accumulate_dtype(eps_cond.dtype))


def _step_fake(
    eps_cond: Tensor, eps_uncond: Tensor, latents: Tensor, *numbers: float
) -> tuple[Tensor, Tensor]:
    return _fake(eps_cond, eps_uncond), latents.new_empty(latents.shape)


_OP = define_op(
    "noise_difference",
    "(Tensor eps_cond, Tensor eps_uncond) -> Tensor",
    reference=noise_difference_reference,
    fake=_fake,
    triton="dori_fast.triton_kernels.noise_difference:noise_difference_triton",
)
_STEP = define_op(
    "noise_difference_step",
    "(Tensor eps_cond, Tensor eps_uncond, Tensor latents, float guidance, float alpha_bar,"
    " float alpha_bar_prev) -> (Tensor, Tensor)",
    reference=noise_difference_step_reference,
    fake=_step_fake,
    triton="dori_fast.triton_kernels.noise_difference:noise_difference_step_triton",
)
_COSINE = define_op(
    "noise_cosine",
    "(Tensor eps_cond, Tensor eps_uncond) -> Tensor",
    reference=noise_cosine_reference,
    fake=_fake,
    triton="dori_fast.triton_kernels.noise_difference:noise_cosine_triton",
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
        # plain torch: elementwise, small beside the network's own backward pass, and
        # differentiable again
        rate = torch.where(norm == 0, 0.0, grad / torch.where(norm == 0, 1.0, norm))
        rate = rate.reshape(*rate.shape, *(1,) * (eps_cond.dim() - 2))
        slope = rate * (eps_cond.to(norm.dtype) - eps_uncond.to(norm.dtype))
        to_cond = slope.to(eps_cond.dtype) if ctx.needs_input_grad[0] else None
        to_uncond = None
        if ctx.needs_input_grad[1]:
            shared = eps_uncond.dim() < eps_cond.dim()
            to_uncond = -(slope.sum(0) if shared else slope).to(eps_uncond.dtype)
        return to_cond, to_uncond, None


def _check(op: str, eps_cond: Tensor, eps_uncond: Tensor) -> None:
    _checks.floating_tensor(op, "eps_cond", eps_cond)
    _checks.floating_tensor(op, "eps_uncond", eps_uncond)
    shape = eps_cond.shape
    if len(shape) < 2:
        _checks.reject(op, "eps_cond", "[P, S, *]", _checks.shape_of(eps_cond))
    shared = shape[1:]
    if eps_uncond.shape != shared and eps_uncond.shape != shape:
        expected = f"{list(shared)} or {list(shape)} for eps_cond {list(shape)}"
        _checks.reject(op, "eps_uncond", expected, _checks.shape_of(eps_uncond))
    _checks.same_dtype_and_device(op, "eps_uncond", eps_uncond, "eps_cond", eps_cond)


def noise_difference(eps_cond: Tensor, eps_uncond: Tensor, *, backend: str = "auto") -> Tensor:
    """Return the L2 norm of `eps_cond - eps_uncond` per prompt and seed, reading each once.

    Args:
        eps_cond: [P, S, *] noise predictions with text.
        eps_uncond: [S, *] noise predictions without text, shared by all prompts and never copied
            for them; or [P, S, *].
        backend: implementation; see `dori_fast.ops`.

    Returns:
        [P, S] float32 (float64 for float64 inputs); differentiable in both inputs. The gradient is
        0 where the difference is 0.
    """
    _check("noise_difference", eps_cond, eps_uncond)
    if (eps_cond.requires_grad or eps_uncond.requires_grad) and torch.is_grad_enabled():
        norm: Tensor = _NoiseDifference.apply(eps_cond, eps_uncond, backend)
        return norm
    norm = select(_OP, backend, eps_cond)(eps_cond, eps_uncond)
    return norm


def _check_step(
    eps_cond: Tensor, eps_uncond: Tensor, latents: Tensor, alpha_bar: float, alpha_bar_prev: float
) -> None:
    op = "noise_difference_step"
    _check(op, eps_cond, eps_uncond)
    _checks.floating_tensor(op, "latents", latents)
    if latents.shape != eps_cond.shape:
        expected = f"{_checks.shape_of(eps_cond)}, as eps_cond is"
        _checks.reject(op, "latents", expected, _checks.shape_of(latents))
    _checks.same_dtype_and_device(op, "latents", latents, "eps_cond", eps_cond)
    named = {"eps_cond": eps_cond, "eps_uncond": eps_uncond, "latents": latents}
    for name, value in named.items():
        _checks.constant(op, name, value)
    if not 0.0 < alpha_bar <= 1.0:
        _checks.reject(op, "alpha_bar", "in (0, 1]", alpha_bar)
    if not 0.0 <= alpha_bar_prev <= 1.0:
        _checks.reject(op, "alpha_bar_prev", "in [0, 1]", alpha_bar_prev)


def noise_difference_step(
    eps_cond: Tensor,
    eps_uncond: Tensor,
    latents: Tensor,
    *,
    guidance: float,
    alpha_bar: float,
    alpha_bar_prev: float,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the norm of the difference and the latents after one guided step, in one pass.

    The step is DDIM with eta 0 along the prediction of classifier-free guidance.

    Args:
        eps_cond: [P, S, *] noise predictions with text.
        eps_uncond: [S, *] (shared by all prompts) or [P, S, *] noise predictions without text.
        latents: [P, S, *] latents that were predicted on; expand latents that prompts share, which
            copies nothing.
        guidance: guidance scale; 1 follows eps_cond.
        alpha_bar: cumulative alpha at the timestep of the predictions, in (0, 1].
        alpha_bar_prev: cumulative alpha at the next, less noisy timestep, in [0, 1].
        backend: implementation; see `dori_fast.ops`.

    Returns:
        norm [P, S], to the bit that of `noise_difference` in the same backend (proven on CPUs; on a
        GPU both kernels share one order of sums); and latents_prev [P, S, *] in the dtype of
        latents, contiguous. No gradient.

    Raises:
        ValueError: an input requires grad while gradients are recorded.
    """
    _check_step(eps_cond, eps_uncond, latents, alpha_bar, alpha_bar_prev)
    numbers = (float(guidance), float(alpha_bar), float(alpha_bar_prev))
    compute = select(_STEP, backend, eps_cond)
    norm, latents_prev = compute(eps_cond, eps_uncond, latents, *numbers)
    return norm, latents_prev


def noise_cosine(eps_cond: Tensor, eps_uncond: Tensor, *, backend: str = "auto") -> Tensor:
    """Return the mean cosine of `eps_uncond` and `eps_cond - eps_uncond` per prompt and seed.

    Args:
        eps_cond: [P, S, C, *] noise predictions with text.
        eps_uncond: [S, C, *] (shared by all prompts) or [P, S, C, *] predictions without text.
        backend: implementation; see `dori_fast.ops`.

    Returns:
        [P, S] float32 (float64 for float64 inputs), the cosine over channels averaged over
        positions. A vector shorter than 1e-8 counts as 1e-8 long, so equal predictions give 0. No
        gradient.

    Raises:
        ValueError: an input requires grad while gradients are recorded.
    """
    op = "noise_cosine"
    _check(op, eps_cond, eps_uncond)
    if eps_cond.dim() < 3:
        _checks.reject(op, "eps_cond", "[P, S, C, *]", _checks.shape_of(eps_cond))
    _checks.constant(op, "eps_cond", eps_cond)
    _checks.constant(op, "eps_uncond", eps_uncond)
    cosine: Tensor = select(_COSINE, backend, eps_cond)(eps_cond, eps_uncond)
    return cosine
