"""Token significance for memorization: Wen et al., ICLR 2024 (openreview 84n3UwkH7b), section 4.

    significance_i = mean over tracked steps of || dF / dy_i ||_2

with F as in :mod:`dori_fast.mitigate.magnitude`, at the current latents of each step, and y_i the
text encoder's output at position i. The released code (YuxinWenRick/diffusion_memorization at
c8fe471, `get_text_cond_grad`) also divides by twice the number of images and swaps the two halves
of guidance, which reverses the trajectory between tracked steps. Neither is done here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dori_fast._checks import accumulate_dtype, require_finite, seed_tuple
from dori_fast.errors import UsageError
from dori_fast.mitigate.magnitude import magnitude
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.schedules.vp import DDIM_STEPS, require_units
from dori_fast.models.text.prompts import list_of_str


def token_significance(
    model: Denoiser,
    prompts: Sequence[str],
    seeds: int | Sequence[int] = 4,
    steps: int = 1,
    *,
    total_steps: int = DDIM_STEPS,
    guidance: float = 7.5,
    units: str = "epsilon",
) -> Tensor:
    """The significance of every position of P >= 1 prompts.

    Args:
        model: the denoiser.
        prompts: P prompts.
        seeds: number of seeds (0, 1, ...), or the seeds themselves.
        steps: tracked denoising steps, from the noisiest.
        total_steps: steps of the whole DDIM run.
        guidance: guidance scale of the trajectory between tracked steps.
        units: predictions that F compares: ``"epsilon"``, ``"x0"`` or ``"prediction"``, the
            network's own output.

    Returns:
        [P, T] on the CPU, float32 (float64 for a float64 model): begin mark, tokens, end mark and
        padding, as :func:`dori_fast.models.text.tokens.PromptTokens` places them.

    Raises:
        UsageError: no prompts or seeds, steps out of range, unknown units, or epsilon at zero
            terminal signal-to-noise ratio.
        NonFiniteError: significances that are NaN or infinite.
    """
    chosen = seed_tuple(seeds)
    prompts = list_of_str("significance", prompts)
    if len(prompts) == 0 or not chosen:
        raise UsageError("significance: needs 1 or more prompts and seeds")
    if not 1 <= steps <= total_steps <= 1000:
        raise UsageError(
            f"significance: steps must be 1..total_steps and total_steps at most 1000, got {steps}"
            f" of {total_steps}"
        )
    require_units("significance", units)
    condition = model.encode(prompts).one_row_each()
    wide = accumulate_dtype(model.dtype)
    embeddings = condition.unique.detach().to(wide)
    timesteps, empty = model.timesteps(total_steps), model.unconditional_for(condition)
    latents = model.noise(chosen).expand(len(condition), len(chosen), *model.latent_shape)
    found = embeddings.new_zeros(embeddings.shape[:2])
    for i, t in enumerate(timesteps[:steps]):
        with torch.no_grad():
            if i == 0:
                uncond = model.output_uncond(condition, model.share_noise(chosen, t))
                uncond = uncond.expand(latents.shape)
            else:
                uncond = model.output(empty, latents, t)
        fixed = model.schedule.in_units(uncond, latents, t, units)
        gradient = _gradient(model, embeddings, condition.pooled, latents, fixed, t, units)
        found += gradient.norm(dim=-1)
        if i + 1 < steps:
            with torch.no_grad():
                outputs = model.output(condition, latents, t), uncond
                cond, without = (model.schedule.estimate(x, latents, t) for x in outputs)
                guided = without + guidance * (cond - without)
                moved = model.schedule.step(guided, latents, t, timesteps[i + 1])
                latents = moved.to(model.dtype)
    require_finite("significance", "significances", found, model.dtype)
    return (found / steps).cpu()


def _gradient(
    model: Denoiser,
    embeddings: Tensor,
    pooled: Tensor | None,
    latents: Tensor,
    uncond: Tensor,
    timestep: int,
    units: str,
) -> Tensor:
    """dF/dy [P, T, D] at latents [P, S, C, H, W], given unconditional predictions of that shape."""

    def predict(part: TextCondition, some: slice, seeds: slice) -> tuple[Tensor, Tensor]:
        x_t = latents[some, seeds]
        output = model.output(part, x_t, timestep)
        return model.schedule.in_units(output, x_t, timestep, units), uncond[some, seeds]

    rows = torch.arange(len(embeddings))
    return magnitude(model, embeddings, pooled, rows, latents.shape[1], predict)[1]
