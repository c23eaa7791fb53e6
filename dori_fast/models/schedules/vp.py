"""Variance-preserving noise schedules: alpha_bar, prediction types and DDIM.

With x_t = sqrt(a) x_0 + sqrt(1 - a) eps, where a is the cumulative alpha at t (Ho et al., 2020,
arXiv 2006.11239; v from Salimans & Ho, 2022, arXiv 2202.00512):

    epsilon       eps = output
    v_prediction  eps = sqrt(a) output + sqrt(1 - a) x_t
    sample        eps = (x_t - sqrt(a) output) / sqrt(1 - a)

    epsilon       x_0 = (x_t - sqrt(1 - a) output) / sqrt(a)
    v_prediction  x_0 = sqrt(a) x_t - sqrt(1 - a) output
    sample        x_0 = output

At zero terminal signal (a = 0; Lin et al., 2024, arXiv 2305.08891) x_t is the noise itself. A
velocity and a sample still give x_0 = -v and x_0, but epsilon is x_t whatever the network says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dori_fast._checks import seed_tuple, to_device
from dori_fast.errors import UsageError
from dori_fast.models.schedules.known import KnownSchedule

Estimate = Callable[[Tensor, int], Tensor]
"""A function of latents [*] and a timestep that returns :meth:`Schedule.estimate`, same shape."""

UNITS = ("epsilon", "x0", "prediction")
"""Units of a prediction: the noise, the clean latents, or the network's own output."""

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

    def __init__(self, known: KnownSchedule) -> None:
        self.sampler = _sampler(known)
        self.prediction_type = known.prediction_type
        self.alphas_cumprod: Tensor = self.sampler.alphas_cumprod.double()

    def timesteps(self, steps: int) -> list[int]:
        """The DDIM timesteps of a run of ``steps`` steps, noisiest first.

        Raises:
            UsageError: the schedule has no such run.
        """
        last = len(self.alphas_cumprod) - 1
        if not 1 <= steps <= last + 1:
            raise UsageError(
                f"a run of {steps} steps is impossible, as the model's schedule has {last + 1}"
                f" timesteps; use 1..{last + 1} steps"
            )
        self.sampler.set_timesteps(steps)
        timesteps = [int(t) for t in self.sampler.timesteps]
        # rounding of "trailing" and an offset may leave the range
        if len(timesteps) != steps or not 0 <= min(timesteps) <= max(timesteps) <= last:
            config = self.sampler.config
            raise UsageError(
                f"a run of {steps} steps with timestep_spacing {config.timestep_spacing!r} and"
                f" steps_offset {config.steps_offset} leaves the timesteps 0..{last}; use another"
                f" number of steps, such as {DDIM_STEPS}"
            )
        return timesteps

    def alpha_bar(self, timestep: int) -> float:
        """The cumulative alpha at a timestep; a negative one means the end of the chain.

        For several timesteps, index ``alphas_cumprod``.
        """
        if timestep < 0:
            return float(self.sampler.final_alpha_cumprod)
        return float(self.alphas_cumprod[timestep])

    def epsilon(self, output: Tensor, x_t: Tensor, timestep: int | Tensor) -> Tensor:
        """Epsilon [*, C, H, W] from the network's output of that shape at x_t.

        Args:
            output: the network's output [*, C, H, W].
            x_t: noisy latents of a shape that broadcasts to the output's.
            timestep: one for all samples, or int64 [N] or [P, S] on the CPU.

        Raises:
            UsageError: the one timestep is one of :meth:`require_epsilon`. If each sample has its
                own, as in a training loss, samples at such a timestep get x_t, which is exact.
        """
        if not isinstance(timestep, Tensor) or timestep.ndim == 0:
            self.require_epsilon(int(timestep))
            return to_epsilon(output, x_t, self.alpha_bar(int(timestep)), self.prediction_type)
        alpha_bar = self.alphas_cumprod[timestep].reshape(*timestep.shape, 1, 1, 1)
        alpha_bar = to_device(alpha_bar, output.device)
        return to_epsilon(output, x_t, alpha_bar, self.prediction_type)

    def require_epsilon(self, timestep: int, where: str = "") -> None:
        """Refuse a timestep at which epsilon is x_t whatever the network predicts.

        ``where`` begins the message.

        Raises:
            UsageError: alpha_bar is 0 there, and the network does not predict epsilon.
        """
        if self.alpha_bar(timestep) == 0.0 and self.prediction_type != "epsilon":
            raise UsageError(
                f"{where}at timestep {timestep} alpha_bar is 0 (zero terminal signal-to-noise"
                f" ratio), so epsilon does not depend on the network's {self.prediction_type};"
                " compare other predictions (units='prediction' or 'x0', --units prediction) where"
                " the method has units, or use a scheduler with timestep_spacing='leading', whose"
                " runs leave this timestep out"
            )

    def in_units(self, output: Tensor, x_t: Tensor, timestep: int, units: str) -> Tensor:
        """The prediction [N, *] in one of ``UNITS`` from the network's output at x_t [N, *].

        Raises:
            UsageError: epsilon at a timestep of :meth:`require_epsilon`.
        """
        if units == "epsilon":
            return self.epsilon(output, x_t, timestep)
        if units == "prediction":
            return output
        return to_x0(output, x_t, self.alpha_bar(timestep), self.prediction_type)

    def estimate(self, output: Tensor, x_t: Tensor, timestep: int) -> Tensor:
        """The prediction that :meth:`step` starts from: epsilon, or x_0 where alpha_bar is 0."""
        units = "x0" if self.alpha_bar(timestep) == 0.0 else "epsilon"
        return self.in_units(output, x_t, timestep, units)

    def target(self, x_0: Tensor, eps: Tensor, timestep: Tensor) -> Tensor:
        """The network's training target [P, B, *], in the dtype of eps.

        Args:
            x_0: clean latents [P, *].
            eps: noise [P, B, *] that was added to them.
            timestep: int64 [P, B] on the CPU.
        """
        alpha_bar = to_device(self.alphas_cumprod[timestep], eps.device)
        alpha_bar = alpha_bar.reshape(*timestep.shape, *(1,) * (eps.ndim - 2))
        return target(x_0.unsqueeze(1).expand_as(eps), eps, alpha_bar, self.prediction_type)

    def step(self, estimate: Tensor, x_t: Tensor, timestep: int, to: int) -> Tensor:
        """The DDIM update from one timestep to a less noisy one; a negative ``to`` is the end.

        ``estimate`` is :meth:`estimate` at x_t, or a guided sum of such.
        """
        alpha_bar, alpha_bar_prev = self.alpha_bar(timestep), self.alpha_bar(to)
        if alpha_bar == 0.0:
            # x_t is the noise itself, as DDIM in diffusers has it
            return alpha_bar_prev**0.5 * estimate + (1.0 - alpha_bar_prev) ** 0.5 * x_t
        return ddim_step(estimate, x_t, alpha_bar, alpha_bar_prev)

    @torch.no_grad()
    def denoise(
        self,
        conditional: Estimate,
        unconditional: Estimate,
        latents: Tensor,
        *,
        steps: int,
        guidance: float,
    ) -> Tensor:
        """Clean latents from unit noise [*], by DDIM with classifier-free guidance.

        eps = eps_uncond + guidance (eps_cond - eps_uncond) (Ho & Salimans, 2022, arXiv 2207.12598),
        and x_0 in place of eps where alpha_bar is 0.

        Args:
            conditional: estimates with the prompts.
            unconditional: estimates without; not called at guidance 1.
            latents: initial noise.
            steps: number of steps.
            guidance: guidance scale.
        """
        timesteps, dtype = self.timesteps(steps), latents.dtype
        for t, t_prev in zip(timesteps, [*timesteps[1:], -1], strict=True):
            estimate = conditional(latents, t)
            if guidance != 1.0:
                uncond = unconditional(latents, t)
                estimate = uncond + guidance * (estimate - uncond)
            latents = self.step(estimate, latents, t, t_prev).to(dtype)
        return latents


def _sampler(known: KnownSchedule) -> Any:
    """DDIM without the clipping and thresholding that its plain update does not have."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**{**known.ddim, "clip_sample": False, "thresholding": False})


def require_units(where: str, units: str) -> None:
    """Raise UsageError for unknown units; ``where`` begins the message."""
    if units not in UNITS:
        raise UsageError(f"{where}: units must be one of {', '.join(UNITS)}, got {units!r}")


def units_config(units: str) -> dict[str, str]:
    """The entry of ``config()``: none for epsilon, as in runs from before there were units."""
    return {} if units == "epsilon" else {"units": units}


def unit_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise [S, *shape] of S seeds, float32.

    Each is drawn on the CPU from its own seed, so that it is the same on every device. A whole
    number n stands for the seeds 0..n-1.

    Raises:
        UsageError: other seeds, such as a text.
    """
    draws = [
        torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for seed in seed_tuple(seeds)
    ]
    return torch.stack(draws) if draws else torch.zeros(0, *shape)


def to_epsilon(output: Tensor, x_t: Tensor, alpha_bar: float | Tensor, kind: str) -> Tensor:
    """Epsilon [N, *] from the network's output [N, *] at x_t [N, *].

    ``alpha_bar`` is one for all samples, or float64 of a shape that broadcasts to theirs. An
    epsilon-prediction is returned as it is. The others are converted in float32 or wider, since
    methods take small differences of the result.
    """
    if kind == "epsilon":
        return output
    wide, x_t, signal, noise = _widened(output, x_t, alpha_bar)
    if kind == "v_prediction":
        return signal * wide + noise * x_t
    return (x_t - signal * wide) / noise


def _widened(
    output: Tensor, x_t: Tensor, alpha_bar: float | Tensor
) -> tuple[Tensor, Tensor, Any, Any]:
    """Output and x_t in float32 or wider, and the amplitudes of signal and noise."""
    wide = output.float() if output.dtype.itemsize < 4 else output
    return wide, x_t.to(wide.dtype), *_amplitudes(alpha_bar, wide.dtype)


def to_x0(output: Tensor, x_t: Tensor, alpha_bar: float, kind: str) -> Tensor:
    """Clean latents [N, *] from the network's output [N, *] at x_t [N, *].

    A sample-prediction is returned as it is; the others are converted as in :func:`to_epsilon`.
    A network that predicts epsilon needs ``alpha_bar`` above 0.
    """
    if kind == "sample":
        return output
    wide, x_t, signal, noise = _widened(output, x_t, alpha_bar)
    if kind == "v_prediction":
        return signal * x_t - noise * wide
    return (x_t - noise * wide) / signal


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
