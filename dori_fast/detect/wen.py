"""The noise-difference score of Wen et al., ICLR 2024 (openreview 84n3UwkH7b).

At denoising step i with timestep t_i and the current latent x_i of seed s,

    d_si = || eps(x_i, t_i, c) - eps(x_i, t_i, empty) ||_2      over the flattened latent,

taken before guidance is applied. The score of a seed is the mean of d_si over the tracked steps,
the score of a prompt the mean over seeds. The paper reports the first 1, 10 or all 50 of 50 DDIM
steps; the default here is one step with four seeds. With other ``units`` than epsilon, d_si is the
difference of clean latents x_0, or of the network's own outputs.

UNet evaluations per prompt: S for the first step (the unconditional predictions are shared by all
prompts), 2 S for each further one.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from dori_fast.detect.detector import (
    PromptScores,
    SeededDetector,
    checked_units,
    one_draw,
    seed_list,
)
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser, SharedLatents, TextCondition
from dori_fast.models.probes import paired_outputs
from dori_fast.models.schedules.vp import DDIM_STEPS, units_config
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
        units: predictions whose difference is taken: ``"epsilon"``, ``"x0"`` or ``"prediction"``,
            the network's own output. At zero terminal signal-to-noise ratio epsilon does not
            depend on the prompt and is refused.
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
        units: str = "epsilon",
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
        self.units = checked_units(self.name, units, compat)

    def config(self) -> dict[str, Any]:
        """Everything that the scores depend on besides the model, as plain JSON."""
        config: dict[str, Any] = {"name": self.name, "steps": self.steps}
        config |= {"total_steps": self.total_steps, "compat": self.compat}
        if self.steps > 1:
            config["guidance"] = self.guidance
        if self.compat:
            return {**config, "images": len(self.seeds), "gen_seed": self.gen_seed}
        return {**config, "seeds": list(self.seeds), **units_config(self.units)}

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
        shared = self.noise(model)

        def norms(part: TextCondition, _: int) -> Tensor:
            cond, uncond = model.output_shared(part, shared), model.output_uncond(part, shared)
            return self._norms(model, part, shared.latents, cond, uncond)

        return self.in_chunks(model, condition, norms)

    def paired(
        self, model: Denoiser, condition: TextCondition, shared: SharedLatents, seed: Tensor
    ) -> Tensor:
        """Mean norms over the tracked steps [P] of P prompts, each with one of the seeds.

        ``shared`` is the noise of all seeds, and ``seed`` int64 [P] on the CPU each prompt's place
        among them. Equal to that of :meth:`per_seed`.
        """
        cond, uncond = paired_outputs(model, condition, shared, seed)
        noise = shared.latents[seed.to(shared.latents.device)][:, None]
        return self._norms(model, condition, noise, cond, uncond)[:, 0]

    def noise(self, model: Denoiser) -> SharedLatents:
        """The noise of all seeds, which all prompts share."""
        return model.share_noise(self.seeds, model.timesteps(self.total_steps)[0])

    def _peer_norms(
        self, model: Denoiser, condition: TextCondition, positions: Sequence[int]
    ) -> Tensor:
        offset = self.gen_seed + (4 if model.device.type == "cuda" else 0)

        def norms(part: TextCondition, start: int) -> Tensor:
            places = positions[start : start + len(part)]
            draws = [one_draw(model, place + offset, len(self.seeds)) for place in places]
            noise, t = torch.stack(draws), model.timesteps(self.total_steps)[0]
            cond = model.output(part, noise, t)
            uncond = model.output(model.unconditional_for(part), noise, t)
            return self._norms(model, part, noise, cond, uncond)

        return self.in_chunks(model, condition, norms)

    def _norms(
        self,
        model: Denoiser,
        condition: TextCondition,
        noise: Tensor,
        cond: Tensor,
        uncond: Tensor,
    ) -> Tensor:
        """Mean norms [P, S] over the tracked steps, given the network's outputs of the first step.

        ``noise`` and ``uncond`` are [S, C, H, W], shared by the prompts, or [P, S, C, H, W].
        """
        timesteps, empty = model.timesteps(self.total_steps), model.unconditional_for(condition)
        latents, norms = noise.expand_as(cond), []
        for t, t_next in zip(timesteps, timesteps[1 : self.steps], strict=False):
            norm, latents = self._step(model, cond, uncond, latents, t, t_next)
            norms.append(norm)
            latents = latents.to(model.dtype)
            cond = model.output(condition, latents, t_next)
            uncond = model.output(empty, latents, t_next)
        last = timesteps[self.steps - 1]
        norms.append(noise_difference(*_pair(model, cond, uncond, latents, last, self.units)))
        if self.compat == "wen":
            norms = [norm.to(model.dtype).float() for norm in norms]
        return torch.stack(norms).mean(0)

    def _step(
        self, model: Denoiser, cond: Tensor, uncond: Tensor, latents: Tensor, t: int, t_next: int
    ) -> tuple[Tensor, Tensor]:
        """Norms [P, S] at a timestep, and latents at the next one, from the network's outputs."""
        pair = _pair(model, cond, uncond, latents, t, self.units)
        if self.units == "epsilon":
            return noise_difference_step(
                *pair,
                latents.to(pair[0].dtype),
                guidance=self.guidance,
                alpha_bar=model.schedule.alpha_bar(t),
                alpha_bar_prev=model.schedule.alpha_bar(t_next),
            )
        with_text, without = (model.schedule.estimate(each, latents, t) for each in (cond, uncond))
        guided = without + self.guidance * (with_text - without)
        return noise_difference(*pair), model.schedule.step(guided, latents, t, t_next)


def _pair(
    model: Denoiser, cond: Tensor, uncond: Tensor, latents: Tensor, t: int, units: str
) -> tuple[Tensor, Tensor]:
    """Both predictions in the given units, in the shapes of the network's outputs."""
    # unconditional outputs that the prompts share belong to latents that they share
    shared = latents if uncond.ndim == latents.ndim else latents[0]
    in_units = model.schedule.in_units
    return in_units(cond, latents, t, units), in_units(uncond, shared, t, units)
