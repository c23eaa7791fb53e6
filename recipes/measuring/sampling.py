"""Images and first-step scores of the stock pipeline, for `measure` and `grid`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from recipes.training.networks import Pipeline

STEPS, GUIDANCE = 20, 4.0


def open_pipeline(path: Path) -> Pipeline:
    """A stock pipeline of the directory, without progress bars or network access."""
    pipeline: Pipeline = StableDiffusionPipeline.from_pretrained(path, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(seeds: Sequence[int]) -> Tensor:
    """Initial latents float32 [S, 4, 16, 16]; each depends on its seed alone."""
    shape = (4, 16, 16)
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    batch: int = 32,
) -> np.ndarray:
    """uint8 [P, S, 64, 64, 3]: every prompt with every seed."""
    texts = [p for p in prompts for _ in seeds]
    start = noise(seeds).repeat(len(prompts), 1, 1, 1)
    images = [
        pipeline(
            texts[i : i + batch],
            latents=start[i : i + batch],
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="np",
        ).images
        for i in range(0, len(texts), batch)
    ]
    pixels = np.rint(np.concatenate(images) * 255).astype(np.uint8)
    return pixels.reshape(len(prompts), len(seeds), *pixels.shape[1:])


@torch.no_grad()
def first_step_score(
    pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], steps: int = 50
) -> np.ndarray:
    """Wen et al. 2024, eq. 5, at the first of `steps` DDIM timesteps: float64 [P], mean over seeds.

    |eps_cond - eps_uncond| = sqrt(a / (1 - a)) |x0_cond - x0_uncond|, since both share x_t.
    """
    pipeline.scheduler.set_timesteps(steps)
    t = pipeline.scheduler.timesteps[0]
    kept = float(pipeline.scheduler.alphas_cumprod[t])
    start = noise(seeds)

    def clean(text: str) -> Tensor:
        ids = pipeline.tokenizer(
            [text],
            padding="max_length",
            truncation=True,
            max_length=pipeline.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        states = pipeline.text_encoder(ids).last_hidden_state.expand(len(start), -1, -1)
        return pipeline.unet(start, t, states).sample

    nothing = clean("")
    norms = [(clean(p) - nothing).flatten(1).norm(dim=1).double().mean() for p in prompts]
    return (kept / (1 - kept)) ** 0.5 * torch.stack(norms).numpy()
