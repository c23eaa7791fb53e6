"""What the difference of conditional and unconditional noise prediction tells.

    norm[p, s]   = || eps_cond[p, s] - eps_uncond[s] ||_2
    cosine[p, s] = mean over positions of cos(eps_uncond[s], eps_cond[p, s] - eps_uncond[s])

The norm is the score of Wen et al., "Detecting, Explaining, and Mitigating Memorization in
Diffusion Models" (ICLR 2024), section 3.2, for one timestep; scored along a trajectory, it shares
its pass with the step to the next timestep. The cosine, over channels, is the other half of the
score of Asthana & Belagiannis (ICLR 2026). P prompts, S seeds, C channels, `*` the (rest of the)
shape of a latent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op
from dori_fast.reference import accumulate_dtype
from dori_fast.reference.noise_difference import (
    noise_cosine_reference,
    noise_difference_reference,
    noise_difference_step_reference,
)

__all__ = ["noise_cosine", "noise_difference", "noise_difference_step"]


def _fake(eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
    return eps_cond.new_empty(eps_cond.shape[:2], dtype=accumulate_dtype(eps_cond.dtype))


def _triton(eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
    from dori_fast.triton_kernels.noise_difference import noise_difference_triton

    return noise_difference_triton(eps_cond, eps_uncond)


def _step_fake(
    eps_cond: Tensor,
    eps_uncond: Tensor,
    latents: Tensor,
    guidance: float,
    alpha_bar: float,
    alpha_bar_prev: float,
) -> tuple[Tensor, Tensor]:
    return _fake(eps_cond, eps_uncond), latents.new_empty(latents.shape)


def _step_triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    from dori_fast.triton_kernels.noise_difference import noise_difference_step_triton

    return noise_difference_step_triton(*arguments)


def _cosine_triton(eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
    from dori_fast.triton_kernels.noise_difference import noise_cosine_triton

    return noise_cosine_triton(eps_cond, eps_uncond)


_OP = define_op(
    "noise_difference",
    "(Tensor eps_cond, Tensor eps_uncond) -> Tensor",
    reference=noise_difference_reference,
    triton=_triton,
    fake=_fake,
)
_STEP = define_op(
    "noise_difference_step",
    "(Tensor eps_cond, Tensor eps_uncond, Tensor latents, float guidance, float alpha_bar,"
    " float alpha_bar_prev) -> (Tensor, Tensor)",
    reference=noise_difference_step_reference,
    triton=_step_triton,
    fake=_step_fake,
)
_COSINE = define_op(
    "noise_cosine",
    "(Tensor eps_cond, Tensor eps_uncond) -> Tensor",
    reference=noise_cosine_reference,
    triton=_cosine_triton,
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
    _checks.same_dtype(op, "latents", latents, "eps_cond", eps_cond)
    _checks.same_device(op, "latents", latents, "eps_cond", eps_cond)
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

    The step is DDIM with eta 0 (Song et al., ICLR 2021, equation 12) along the guided prediction
    (Ho & Salimans, 2022): with g = eps_uncond + guidance (eps_cond - eps_uncond) and
    x_0 = (latents - sqrt(1 - alpha_bar) g) / sqrt(alpha_bar),
    latents_prev = sqrt(alpha_bar_prev) x_0 + sqrt(1 - alpha_bar_prev) g.

    Args:
        eps_cond: [P, S, *] noise predictions with text, float32, bfloat16, float16 or float64, any
            strides.
        eps_uncond: [S, *] (shared by all prompts) or [P, S, *] without text, same dtype and device.
        latents: [P, S, *] that both predictions are of, same dtype and device; expand latents that
            prompts share, which copies nothing.
        guidance: scale of classifier-free guidance; 1 follows eps_cond.
        alpha_bar: cumulative alpha at the timestep of the predictions, in (0, 1].
        alpha_bar_prev: cumulative alpha at the next, less noisy timestep, in [0, 1].
        backend: "auto", or an implementation by name, which then answers or raises.

    Returns:
        norm [P, S], float32 (float64 for float64 inputs), equal to `noise_difference`; and
        latents_prev [P, S, *] in the dtype of latents, contiguous, rounded once. No gradient.

    Raises:
        TypeError: an input is not a tensor.
        ValueError: shape, dtype, device or a number do not fit, an input requires grad while
            gradients are recorded, or the backend is unknown.
        RuntimeError: the backend asked for cannot serve; says why.

    Note:
        Arithmetic in float32 or better. A row's results do not depend on the batch around it and
        repeat bit for bit on one machine.
    """
    _check_step(eps_cond, eps_uncond, latents, alpha_bar, alpha_bar_prev)
    numbers = (float(guidance), float(alpha_bar), float(alpha_bar_prev))
    compute = select(_STEP, backend, eps_cond)
    norm, latents_prev = compute(eps_cond, eps_uncond, latents, *numbers)
    return norm, latents_prev


def noise_cosine(eps_cond: Tensor, eps_uncond: Tensor, *, backend: str = "auto") -> Tensor:
    """Return the mean cosine of `eps_uncond` and `eps_cond - eps_uncond` per prompt and seed.

    Args:
        eps_cond: [P, S, C, *] noise predictions with text, float32, bfloat16, float16 or float64,
            any strides.
        eps_uncond: [S, C, *] (shared by all prompts) or [P, S, C, *] without text, same dtype and
            device.
        backend: "auto", or an implementation by name, which then answers or raises.

    Returns:
        [P, S] float32 (float64 for float64 inputs): the cosine over channels, averaged over
        positions. A vector shorter than 1e-8 counts as that long, so equal predictions give 0. No
        gradient.

    Raises:
        TypeError: an input is not a tensor.
        ValueError: shape, dtype or device do not fit, an input requires grad while gradients are
            recorded, or the backend is unknown.
        RuntimeError: the backend asked for cannot serve; says why.

    Note:
        Sums in float32 or better. A row's result does not depend on the batch around it and repeats
        bit for bit on one machine.
    """
    op = "noise_cosine"
    _check(op, eps_cond, eps_uncond)
    if eps_cond.dim() < 3:
        _checks.reject(op, "eps_cond", "[P, S, C, *]", _checks.shape_of(eps_cond))
    _checks.constant(op, "eps_cond", eps_cond)
    _checks.constant(op, "eps_uncond", eps_uncond)
    cosine: Tensor = select(_COSINE, backend, eps_cond)(eps_cond, eps_uncond)
    return cosine
