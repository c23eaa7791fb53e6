"""A model's noise schedule and prediction type, whatever sampler its files name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models.engine.state import Timestep
from dori_fast.models.schedules.prediction import KINDS, ddim_step, target, to_epsilon

DDIM_STEPS = 50
"""Denoising steps of a DDIM run in the papers; the default of every method."""


class Schedule:
    """The variance-preserving schedule of DDPM, with DDIM's timesteps and unit initial noise.

    Attributes:
        prediction_type: what the network predicts: epsilon, v_prediction or sample.
        alphas_cumprod: float64 [1000], cumulative alphas.
        sampler: diffusers' DDIM scheduler of this schedule.
    """

    def __init__(self, scheduler_config: dict[str, Any]) -> None:
        from diffusers import DDIMScheduler

        # the config's own keys keep their meaning, whichever sampler wrote them; thresholding and
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
        """Cumulative alpha at a timestep; a negative one means the end of the chain.

        For several at once, index ``alphas_cumprod``.
        """
        if timestep < 0:
            return float(self.sampler.final_alpha_cumprod)
        return float(self.alphas_cumprod[timestep])

    def epsilon(self, output: Tensor, x_t: Tensor, timestep: Timestep) -> Tensor:
        """Epsilon [N, *] from the network's output at x_t [N, *]."""
        if not isinstance(timestep, Tensor):
            return to_epsilon(output, x_t, self.alpha_bar(timestep), self.prediction_type)
        alpha_bar = self.alphas_cumprod[timestep].reshape(-1, *(1,) * (output.ndim - 1))
        return to_epsilon(output, x_t, alpha_bar.to(output.device), self.prediction_type)

    def target(self, x_0: Tensor, eps: Tensor, timestep: Tensor) -> Tensor:
        """What the network was trained to answer, [P, B, *] in the dtype of eps.

        Args:
            x_0: [P, *] clean latents.
            eps: [P, B, *] noise that was added to them.
            timestep: int64 [P, B] on the CPU.
        """
        alpha_bar = self.alphas_cumprod[timestep].to(eps.device)
        alpha_bar = alpha_bar.reshape(*timestep.shape, *(1,) * (eps.ndim - 2))
        return target(x_0.unsqueeze(1).expand_as(eps), eps, alpha_bar, self.prediction_type)

    def step(self, eps: Tensor, x_t: Tensor, timestep: int, to: int) -> Tensor:
        """The DDIM update from one timestep to a less noisy one; a negative ``to`` is the end."""
        return ddim_step(eps, x_t, self.alpha_bar(timestep), self.alpha_bar(to))
