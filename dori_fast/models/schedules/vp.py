"""Variance-preserving noise schedules: alpha_bar, prediction types and DDIM.

With x_t = sqrt(a) x_0 + sqrt(1 - a) eps, where a is the cumulative alpha at t (Ho et al., 2020,
arXiv 2006.11239; v from Salimans & Ho, 2022, arXiv 2202.00512):

    epsilon       eps = output
    v_prediction  eps = sqrt(a) output + sqrt(1 - a) x_t
    sample        eps = (x_t - sqrt(a) output) / sqrt(1 - a)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError

KINDS = ("epsilon", "v_prediction", "sample")
Epsilon = Callable[[Tensor, int], Tensor]
"""A function of latents [*] and a timestep that returns noise predictions of the same shape."""

DDIM_STEPS = 50
"""Denoising steps of a DDIM run in the papers; the default of every method."""


class Schedule:
    """The variance-preserving schedule of DDPM, with DDIM's timesteps and unit initial noise.

    It replaces the sampler that the model's files name.

    Attributes:
        prediction_type: the network's output: epsilon, v_prediction or sample.
        alphas_cumprod: float64 [1000], cumulative alphas.
        sampler: diffusers' DDIM scheduler of this schedule.
    """

    def __init__(self, scheduler_config: dict[str, Any]) -> None:
        from diffusers import DDIMScheduler

        # keys of the config keep their meaning, whichever sampler wrote them; thresholding and
        # clipping are samplers' options that the plain DDIM update does not have
        self.sampler = DDIMScheduler.from_config(
            {**scheduler_config, "clip_sample": False, "thresholding": False}
        )
        self.prediction_type: str = self.sampler.config.prediction_type
        if self.prediction_type not in KINDS:
            raise UsageError(
                f"load: prediction_type {self.prediction_type!r} is not one of {', '.join(KINDS)}"
            )
        self.alphas_cumprod: Tensor = self.sampler.alphas_cumprod.double()

    def timesteps(self, steps: int) -> list[int]:
        """The DDIM timesteps of a run of ``steps`` steps, noisiest first."""
        self.sampler.set_timesteps(steps)
        return [int(t) for t in self.sampler.timesteps]

    def alpha_bar(self, timestep: int) -> float:
        """The cumulative alpha at a timestep; a negative one means the end of the chain.

        For several timesteps, index ``alphas_cumprod``.
        """
        if timestep < 0:
            return float(self.sampler.final_alpha_cumprod)
        return float(self.alphas_cumprod[timestep])

    def epsilon(self, output: Tensor, x_t: Tensor, timestep: int | Tensor) -> Tensor:
        """Epsilon [N, *] from the network's output [N, *] at x_t [N, *].

        ``timestep`` is one for all samples, or int64 [N] on the CPU.
        """
        if not isinstance(timestep, Tensor):
            return to_epsilon(output, x_t, self.alpha_bar(timestep), self.prediction_type)
        alpha_bar = self.alphas_cumprod[timestep].reshape(-1, *(1,) * (output.ndim - 1))
        return to_epsilon(output, x_t, alpha_bar.to(output.device), self.prediction_type)

    def target(self, x_0: Tensor, eps: Tensor, timestep: Tensor) -> Tensor:
        """The network's training target [P, B, *], in the dtype of eps.

        Args:
            x_0: clean latents [P, *].
            eps: noise [P, B, *] that was added to them.
            timestep: int64 [P, B] on the CPU.
        """
        alpha_bar = self.alphas_cumprod[timestep].to(eps.device)
        alpha_bar = alpha_bar.reshape(*timestep.shape, *(1,) * (eps.ndim - 2))
        return target(x_0.unsqueeze(1).expand_as(eps), eps, alpha_bar, self.prediction_type)

    def step(self, eps: Tensor, x_t: Tensor, timestep: int, to: int) -> Tensor:
        """The DDIM update from one timestep to a less noisy one; a negative ``to`` is the end."""
        return ddim_step(eps, x_t, self.alpha_bar(timestep), self.alpha_bar(to))

    @torch.no_grad()
    def denoise(
        self,
        conditional: Epsilon,
        unconditional: Epsilon,
        latents: Tensor,
        *,
        steps: int,
        guidance: float,
    ) -> Tensor:
        """Clean latents from unit noise [*], by DDIM with classifier-free guidance.

        eps = eps_uncond + guidance (eps_cond - eps_uncond) (Ho & Salimans, 2022, arXiv 2207.12598).

        Args:
            conditional: noise predictions with the prompts.
            unconditional: noise predictions without; not called at guidance 1.
            latents: initial noise.
            steps: number of steps.
            guidance: guidance scale.
        """
        timesteps, dtype = self.timesteps(steps), latents.dtype
        for t, t_prev in zip(timesteps, [*timesteps[1:], -1], strict=True):
            eps = conditional(latents, t)
            if guidance != 1.0:
                eps_uncond = unconditional(latents, t)
                eps = eps_uncond + guidance * (eps - eps_uncond)
            latents = self.step(eps, latents, t, t_prev).to(dtype)
        return latents


def unit_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise [S, *shape] of S seeds, float32.

    Each is drawn on the CPU from its own seed, so that it is the same on every device.
    """
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
    return torch.stack(draws) if draws else torch.zeros(0, *shape)


def to_epsilon(output: Tensor, x_t: Tensor, alpha_bar: float | Tensor, kind: str) -> Tensor:
    """Epsilon [N, *] from the network's output [N, *] at x_t [N, *].

    ``alpha_bar`` is one for all samples, or float64 of a shape that broadcasts to theirs. An
    epsilon-prediction is returned as it is. The others are converted in float32 or wider, since
    methods take small differences of the result.
    """
    if kind == "epsilon":
        return output
    wide = output.float() if output.dtype.itemsize < 4 else output
    x_t = x_t.to(wide.dtype)
    signal, noise = _amplitudes(alpha_bar, wide.dtype)
    if kind == "v_prediction":
        return signal * wide + noise * x_t
    return (x_t - signal * wide) / noise


def target(x_0: Tensor, eps: Tensor, alpha_bar: Tensor, kind: str) -> Tensor:
    """The training target at x_t of clean x_0 and noise eps, all [N, *], in the dtype of eps.

    ``alpha_bar`` is float64 of a shape that broadcasts to theirs.
    """
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x_0
    wide = torch.float32 if eps.dtype.itemsize < 4 else eps.dtype
    signal, noise = _amplitudes(alpha_bar, wide)
    return (signal * eps - noise * x_0).to(eps.dtype)


def _amplitudes(alpha_bar: float | Tensor, dtype: torch.dtype) -> tuple[Any, Any]:
    """sqrt(a) and sqrt(1 - a), rounded once to ``dtype`` where they are tensors."""
    signal, noise = alpha_bar**0.5, (1.0 - alpha_bar) ** 0.5
    if isinstance(signal, Tensor) and isinstance(noise, Tensor):
        return signal.to(dtype), noise.to(dtype)
    return signal, noise


def ddim_step(eps: Tensor, x_t: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    """The deterministic DDIM update (eta 0; Song et al., 2021, arXiv 2010.02502, equation 12).

    x_0 = (x_t - sqrt(1 - a) eps) / sqrt(a), then x_prev = sqrt(a') x_0 + sqrt(1 - a') eps.
    """
    x_0 = (x_t - (1.0 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return alpha_bar_prev**0.5 * x_0 + (1.0 - alpha_bar_prev) ** 0.5 * eps
