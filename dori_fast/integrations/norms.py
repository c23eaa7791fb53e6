"""Wen's score of every image and step, from the UNet's predictions within a pipeline.

    norm = || eps_text - eps_uncond ||_2          (Wen et al., ICLR 2024, section 3.2)

Differences of velocity and sample predictions convert to epsilon by a factor, because the latents
are equal on both sides and cancel. With a the cumulative alpha at the timestep,

    v_prediction  eps_text - eps_uncond = sqrt(a) (v_text - v_uncond)
    sample        eps_text - eps_uncond = -sqrt(a / (1 - a)) (x_text - x_uncond)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models.schedules.known import schedule_of
from dori_fast.models.schedules.vp import Schedule
from dori_fast.ops import noise_difference


class NoiseNorms:
    """Norms of one call, kept on their device until the call ends."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, output: Tensor, timestep: Any) -> None:
        """Add the UNet's prediction [2 B, *], unconditional half first, at one timestep."""
        without, text = output.detach().chunk(2)
        norm = noise_difference(text[None], without)[0]
        when = torch.as_tensor(timestep, device=norm.device).to(norm.dtype).reshape(1)
        self._rows.append(torch.cat([norm, when]))

    def finish(self, scheduler: Any) -> tuple[Tensor, Tensor]:
        """Norms [steps, B] and timesteps [steps] on the host, in one copy.

        Raises:
            UsageError: predictions of this scheduler cannot be converted to epsilon.
        """
        if not self._rows:
            return torch.zeros(0, 0), torch.zeros(0)
        table = torch.stack(self._rows).cpu()
        norms, timesteps = table[:, :-1], table[:, -1]
        return norms * _to_epsilon(scheduler, timesteps)[:, None].to(norms.dtype), timesteps


def _to_epsilon(scheduler: Any, timesteps: Tensor) -> Tensor:
    """Factors [steps] from norms of the network's outputs to those of epsilon."""
    known = schedule_of(scheduler, who="noise_norms")
    if known.prediction_type == "epsilon":
        return torch.ones(len(timesteps))
    if (timesteps != timesteps.round()).any():
        raise UsageError(
            f"noise_norms: {known.scheduler} runs at timesteps between those of training, where a"
            f" {known.prediction_type} prediction has no known scale; take"
            " DDIMScheduler.from_config(pipe.scheduler.config)"
        )
    schedule = Schedule(known)
    for timestep in timesteps.long().tolist():
        schedule.require_epsilon(timestep, "noise_norms: ")
    alpha_bar = schedule.alphas_cumprod[timesteps.long()]
    if known.prediction_type == "v_prediction":
        return alpha_bar.sqrt()
    return (alpha_bar / (1 - alpha_bar)).sqrt()
