"""The noise-difference score of Wen et al., ICLR 2024 (openreview 84n3UwkH7b).

At denoising step i with timestep t_i and the current latent x_i of seed s,

    d_si = || eps(x_i, t_i, c) - eps(x_i, t_i, empty) ||_2      over the flattened latent,

taken before guidance is applied. The score of a seed is the mean of d_si over the tracked steps,
the score of a prompt the mean over seeds. The paper reports the first 1, 10 or all 50 of 50 DDIM
steps; the default here is one step with four seeds.

UNet evaluations per prompt: S for the first step (the unconditional predictions are shared by all
prompts), 2 S for each further one.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from dori_fast.detect.detector import PromptScores, SeededDetector, one_draw, seed_list
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.schedules.vp import DDIM_STEPS
from dori_fast.ops import noise_difference, noise_difference_step


class Wen(SeededDetector):
    """Wen's detector.

    Args:
        seeds: number of seeds (0, 1, ...), or the seeds themselves.
        steps: tracked denoising steps, from the noisiest.
        total_steps: steps of the whole DDIM run.
        guidance: guidance scale of the trajectory between tracked steps; the first step does not
            depend on it.
        compat: ``None``: all prompts share the seeds' noise, so that the unconditional prediction
            of the first step is computed once per seed. ``"wen"`` reproduces the released code
            (YuxinWenRick/diffusion_memorization at c8fe471): one generator per prompt, seeded by
            the prompt's position plus ``gen_seed``, draws the noise of all its images at once on
            the model's device in its dtype (on CUDA from seed + 4, where ``set_random_seed``
            ends), and norms are rounded to the model's dtype.
        gen_seed: offset of the per-prompt seeds; used with ``compat="wen"`` only.
    """

    name = "wen"

    def __init__(
        self,
        seeds: int | Sequence[int] = 4,
        steps: int = 1,
        *,
        total_steps: int = DDIM_STEPS,
        guidance: float = 7.5,
        compat: str | None = None,
        gen_seed: int = 0,
    ) -> None:
        self.seeds = seed_list(self.name, seeds)
        if not 1 <= steps <= total_steps <= 1000:
            raise UsageError(
                f"wen: steps must be 1..total_steps and total_steps at most 1000, got {steps} of"
                f" {total_steps}"
            )
        if compat not in (None, "wen"):
            raise UsageError(f"wen: compat must be None or 'wen', got {compat!r}")
        self.steps, self.total_steps, self.guidance = steps, total_steps, float(guidance)
        self.compat, self.gen_seed = compat, gen_seed

    def config(self) -> dict[str, Any]:
        """Everything that the scores depend on besides the model, as plain JSON."""
        config: dict[str, Any] = {"name": self.name, "steps": self.steps}
        config |= {"total_steps": self.total_steps, "compat": self.compat}
        if self.steps > 1:
            config["guidance"] = self.guidance
        if self.compat:
            return {**config, "images": len(self.seeds), "gen_seed": self.gen_seed}
        return {**config, "seeds": list(self.seeds)}

    def with_seeds(self, seeds: Sequence[int]) -> Wen:
        """The same detector on other seeds."""
        other = copy(self)
        other.seeds = seed_list(self.name, seeds)
        return other

    @torch.no_grad()
    def scores(
        self, model: Denoiser, prompts: Sequence[str], positions: Sequence[int] | None = None
    ) -> PromptScores:
        """Score P >= 0 prompts; see :class:`dori_fast.detect.detector.Detector`."""
        if self.compat is None:
            return super().scores(model, prompts)
        condition = model.encode(prompts)
        places = range(len(condition)) if positions is None else positions
        return self.collect(self._peer_norms(model, condition, places), condition)

    def per_seed(self, model: Denoiser, condition: TextCondition) -> Tensor:
        """Mean norms over the tracked steps, [P, S], on noise that all prompts share."""
        shared = model.share_noise(self.seeds, model.timesteps(self.total_steps)[0])

        def norms(part: TextCondition, _: int) -> Tensor:
            eps_cond = model.epsilon_shared(part, shared)
            eps_uncond = model.epsilon_uncond(part, shared)
            return self._norms(model, part, shared.latents, eps_cond, eps_uncond)

        return self.in_chunks(model, condition, norms)

    def _peer_norms(
        self, model: Denoiser, condition: TextCondition, positions: Sequence[int]
    ) -> Tensor:
        offset = self.gen_seed + (4 if model.device.type == "cuda" else 0)

        def norms(part: TextCondition, start: int) -> Tensor:
            places = positions[start : start + len(part)]
            draws = [one_draw(model, place + offset, len(self.seeds)) for place in places]
            noise, t = torch.stack(draws), model.timesteps(self.total_steps)[0]
            eps_cond = model.epsilon(part, noise, t)
            eps_uncond = model.epsilon(model.unconditional_for(part), noise, t)
            return self._norms(model, part, noise, eps_cond, eps_uncond)

        return self.in_chunks(model, condition, norms)

    def _norms(
        self,
        model: Denoiser,
        condition: TextCondition,
        noise: Tensor,
        eps_cond: Tensor,
        eps_uncond: Tensor,
    ) -> Tensor:
        """Mean norms [P, S] over the tracked steps, given the predictions of the first step.

        ``noise`` and ``eps_uncond`` are [S, C, H, W], shared by the prompts, or [P, S, C, H, W].
        """
        timesteps, empty = model.timesteps(self.total_steps), model.unconditional_for(condition)
        latents, norms = noise.expand_as(eps_cond), []
        for t, t_next in zip(timesteps, timesteps[1 : self.steps], strict=False):
            norm, latents = noise_difference_step(
                eps_cond,
                eps_uncond,
                latents.to(eps_cond.dtype),
                guidance=self.guidance,
                alpha_bar=model.schedule.alpha_bar(t),
                alpha_bar_prev=model.schedule.alpha_bar(t_next),
            )
            norms.append(norm)
            latents = latents.to(model.dtype)
            eps_cond = model.epsilon(condition, latents, t_next)
            eps_uncond = model.epsilon(empty, latents, t_next)
        norms.append(noise_difference(eps_cond, eps_uncond))
        if self.compat == "wen":
            norms = [norm.to(model.dtype).float() for norm in norms]
        return torch.stack(norms).mean(0)
