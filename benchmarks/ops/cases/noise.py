"""Noise differences, the guided step and the noise cosine."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.cases.case import BenchCase, Inputs, Shape, goals, randn
from dori_fast import ops

# A late step: at earlier ones eager's detour over x_0 loses digits, and results would not agree.
_STEP = {"guidance": 3.0, "alpha_bar": 0.90, "alpha_bar_prev": 0.92}


def _noise_shared(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    return randn(shape, dtype, device), randn(shape[1:], dtype, device).flip(0)


def _noise_pairs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    return randn(shape, dtype, device), randn(shape, dtype, device).flip(0)


def _noise_eager(cond: Tensor, uncond: Tensor) -> Tensor:
    return (cond.float() - uncond.float()).flatten(2).norm(dim=2)


def _noise_ours(backend: str, cond: Tensor, uncond: Tensor) -> Tensor:
    return ops.noise_difference(cond, uncond, backend=backend)


def _step_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Conditional and unconditional predictions, and latents of one trajectory per prompt."""
    cond = randn(shape, dtype, device)
    return cond, cond.flip(0).contiguous(), cond.flip(1, -1).contiguous()


def _step_eager(cond: Tensor, uncond: Tensor, latents: Tensor) -> Tensor:
    (cond - uncond).flatten(2).norm(dim=2)
    guided = uncond + _STEP["guidance"] * (cond - uncond)
    alpha_bar, alpha_bar_prev = _STEP["alpha_bar"], _STEP["alpha_bar_prev"]
    x_0 = (latents - (1 - alpha_bar) ** 0.5 * guided) / alpha_bar**0.5
    return alpha_bar_prev**0.5 * x_0 + (1 - alpha_bar_prev) ** 0.5 * guided


def _step_ours(backend: str, cond: Tensor, uncond: Tensor, latents: Tensor) -> Tensor:
    return ops.noise_difference_step(cond, uncond, latents, **_STEP, backend=backend)[1]


def _cosine_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    return randn(shape, dtype, device), randn(shape[1:], dtype, device).flip(0).contiguous()


def _cosine_eager(cond: Tensor, uncond: Tensor) -> Tensor:
    wide = torch.promote_types(cond.dtype, torch.float32)
    uncond = uncond.to(wide)
    difference = cond.to(wide) - uncond
    cosine = F.cosine_similarity(uncond.expand_as(difference), difference, dim=2)
    return cosine.mean((-2, -1))


def _cosine_ours(backend: str, cond: Tensor, uncond: Tensor) -> Tensor:
    return ops.noise_cosine(cond, uncond, backend=backend)


_LATENTS = ((64, 1, 4, 64, 64), (16, 4, 4, 64, 64), (64, 4, 4, 64, 64), (16, 4, 4, 16, 16))
_STEPPED = ((64, 1, 4, 64, 64), (16, 4, 4, 64, 64), (16, 4, 4, 16, 16))

CASES = (
    BenchCase(
        op="noise_difference",
        mode="shared_uncond",
        shapes=_LATENTS,
        make=_noise_shared,
        eager=_noise_eager,
        ours=_noise_ours,
        # read eps_cond and one eps_uncond per seed, write the norms
        traffic=lambda s, e: (math.prod(s) + math.prod(s[1:])) * e + 4 * s[0] * s[1],
        flops=lambda s: 3 * math.prod(s),
        goals=goals(_LATENTS[:1], 2.5, 6.0),
    ),
    BenchCase(
        op="noise_difference",
        mode="pairs",
        shapes=_LATENTS[:1],
        make=_noise_pairs,
        eager=_noise_eager,
        ours=_noise_ours,
        # read both predictions, write the norms
        traffic=lambda s, e: 2 * math.prod(s) * e + 4 * s[0] * s[1],
        flops=lambda s: 3 * math.prod(s),
        goals=goals(_LATENTS[:1], 2.5, 6.0),
    ),
    BenchCase(
        op="noise_difference_step",
        mode="pairs",
        shapes=_STEPPED,
        make=_step_inputs,
        eager=_step_eager,
        ours=_step_ours,
        # read both predictions and the latents, write latents and norms
        traffic=lambda s, e: 4 * math.prod(s) * e + 4 * s[0] * s[1],
        flops=lambda s: 9 * math.prod(s),
        goals=goals(_STEPPED, 1.0, 1.0),
        dtypes=(torch.float32,),
    ),
    BenchCase(
        op="noise_cosine",
        mode="shared_uncond",
        shapes=_STEPPED,
        make=_cosine_inputs,
        eager=_cosine_eager,
        ours=_cosine_ours,
        # read eps_cond and one eps_uncond per seed, write the means
        traffic=lambda s, e: (math.prod(s) + math.prod(s[1:])) * e + 4 * s[0] * s[1],
        flops=lambda s: 7 * math.prod(s),
        goals=goals(_STEPPED, 1.0, 1.0),
    ),
)
