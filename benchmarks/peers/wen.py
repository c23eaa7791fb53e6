"""Wen's first-step score by the papers' procedure: classifier-free guidance, nothing shared.

It follows the released code of Wen et al. (detect_mem.py, local_sd_pipeline.py) for one step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import dori_fast as df


def _encode(model: df.Denoiser, texts: Sequence[str]) -> Tensor:
    ids = model.tokenizer(
        list(texts),
        padding="max_length",
        max_length=model.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return model.text_encoder(ids.to(model.device))[0]


def _predictions(
    model: df.Denoiser, noise: Tensor, timestep: int, embeddings: Tensor
) -> tuple[Tensor, Tensor]:
    """Unconditional and conditional epsilon, both from one batch."""
    latents = torch.cat([noise] * 2)
    time = torch.tensor(timestep, device=model.device)
    output = model.unet(latents, time, encoder_hidden_states=embeddings).sample
    eps_uncond, eps_text = model.schedule.epsilon(output, latents, timestep).chunk(2)
    return eps_uncond, eps_text


@torch.no_grad()
def scores(
    model: df.Denoiser, prompts: Sequence[str], noise: Tensor, timestep: int
) -> tuple[Tensor, float]:
    """Scores [P], and the mean norm of the unconditional prediction.

    As in the released code, prompts are scored one at a time. The empty prompt is encoded again
    with each. One batch holds both halves of all seeds, from `noise` [S, C, H, W]. Each norm is
    fetched with .item().
    """
    seeds = noise.shape[0]
    found, uncond_norms = [], []
    for prompt in prompts:
        embeddings = torch.cat([_encode(model, [t]).repeat(seeds, 1, 1) for t in ("", prompt)])
        eps_uncond, eps_text = _predictions(model, noise, timestep, embeddings)
        norms = [(eps_text[i] - eps_uncond[i]).norm(p=2).item() for i in range(seeds)]
        uncond_norms += [eps_uncond[i].norm(p=2).item() for i in range(seeds)]
        found.append(sum(norms) / seeds)
    return torch.tensor(found), sum(uncond_norms) / len(uncond_norms)


@torch.no_grad()
def scores_in_batches(
    model: df.Denoiser, prompts: Sequence[str], noise: Tensor, timestep: int, batch: int
) -> Tensor:
    """The same scores [P], batched over prompts: `batch` UNet samples at a time."""
    seeds = noise.shape[0]
    at_once = max(1, batch // (2 * seeds))
    found = []
    for start in range(0, len(prompts), at_once):
        part = prompts[start : start + at_once]
        embeddings = _encode(model, [""] * len(part) + list(part)).repeat_interleave(seeds, 0)
        repeated = noise.repeat(len(part), 1, 1, 1)
        eps_uncond, eps_text = _predictions(model, repeated, timestep, embeddings)
        norms = (eps_text.float() - eps_uncond.float()).flatten(1).norm(dim=1)
        found.append(norms.view(len(part), seeds).mean(1).cpu())
    return torch.cat(found)
