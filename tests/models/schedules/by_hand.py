"""Scores and steps written out over diffusers' own objects, without dori_fast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PROMPTS = ["a cup of coffee", "the cat on the mat"]
SEEDS, STEPS, GUIDANCE = (3,), 2, 7.5


def alphas_of(scheduler: Any) -> Tensor:
    """The scheduler's own cumulative alphas; 2**-24 is the stand-in of some samplers for 0."""
    alphas = scheduler.alphas_cumprod.double().clone()
    if getattr(scheduler.config, "rescale_betas_zero_snr", False) and alphas[-1] == 2**-24:
        alphas[-1] = 0
    return alphas


def timesteps_of(scheduler: Any, steps: int) -> list[int]:
    """DDIM's timesteps of table 2 of arXiv 2305.08891 for the scheduler's spacing and offset."""
    count = scheduler.config.num_train_timesteps
    spacing = getattr(scheduler.config, "timestep_spacing", "leading")
    if spacing == "leading":
        first = getattr(scheduler.config, "steps_offset", 0)
        return [first + i * (count // steps) for i in reversed(range(steps))]
    if spacing == "trailing":
        return [round(count - i * count / steps) - 1 for i in range(steps)]
    return [round((count - 1) * i / (steps - 1)) for i in reversed(range(steps))]


def converted(kind: str, out: Tensor, x: Tensor, a: float) -> tuple[Tensor | None, Tensor]:
    """Epsilon (None where a = 0) and x_0 of a network's output."""
    signal, noise = a**0.5, (1 - a) ** 0.5
    if kind == "epsilon":
        return out, (x - noise * out) / signal
    if kind == "v_prediction":
        return (signal * out + noise * x if a else None), signal * x - noise * out
    return ((x - signal * out) / noise if a else None), out


def outputs(pipe: Any, x: Tensor, t: int, prompt: str) -> tuple[Tensor, Tensor]:
    """The network's outputs [1, C, H, W] with the prompt and without."""
    ids = pipe.tokenizer(
        [prompt, ""], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    with_text, without = pipe.text_encoder(ids)[0].split(1)
    return tuple(pipe.unet(x, t, text).sample for text in (with_text, without))


@torch.no_grad()
def wen(pipe: Any, units: str = "epsilon", steps: int = STEPS, total: int = 50) -> Tensor:
    """Wen's scores: the mean over seeds and steps of the norm of the difference (METHODS 2.1)."""
    kind, alphas = pipe.scheduler.config.prediction_type, alphas_of(pipe.scheduler)
    timesteps = timesteps_of(pipe.scheduler, total)
    scores = []
    for prompt in PROMPTS:
        norms = []
        for seed in SEEDS:
            x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
            for i, t in enumerate(timesteps[:steps]):
                a = float(alphas[t])
                cond, uncond = outputs(pipe, x, t, prompt)
                wanted = {"epsilon": 0, "x0": 1}
                pair = [
                    out if units == "prediction" else converted(kind, out, x, a)[wanted[units]]
                    for out in (cond, uncond)
                ]
                norms.append((pair[0] - pair[1]).norm())
                if i + 1 == steps:
                    break
                b = float(alphas[timesteps[i + 1]])
                guided = uncond + GUIDANCE * (cond - uncond)
                eps, x_0 = converted(kind, guided, x, a)
                x = b**0.5 * x_0 + (1 - b) ** 0.5 * (x if eps is None else eps)
        scores.append(torch.stack(norms).mean())
    return torch.stack(scores)
