"""NeMo's refinement with the released greedy's decisions, many masks at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dori_fast.errors import UsageError
from dori_fast.integrations.peers.nemo_inputs import autocast, draw, encode, layers, on
from dori_fast.integrations.peers.swap import Patch
from dori_fast.models import Denoiser
from dori_fast.models.encoders import TextSide
from dori_fast.prune.greedy import refined
from dori_fast.prune.ladder import Rung
from dori_fast.prune.scorer import Scorer

_STEPS = 50
# scores of the same mask, computed in another batch
_SAME = 1e-5
# samples that keep a device busy: more at once are more guesses, of which some are in vain
_BUSY = {"cpu": 4, "cuda": 40}


def make_refinement(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
    @functools.wraps(released)
    @torch.no_grad()
    def neuron_refinement(
        prompt: str,
        tokenizer: Any,
        text_encoder: Any,
        unet: Any,
        scheduler: Any,
        input_indices: Sequence[Sequence[int]],
        scaling_factor: float,
        metric: str = "ssim",
        threshold: Any = None,
        samples_per_prompt: int = 8,
        guidance_scale: float = 0,
        seed: int = 1,
        seeds_to_look_at: Any = None,
        rel_threshold: float | None = None,
    ) -> list[list[int]]:
        parts = (tokenizer, text_encoder, unet, scheduler)
        model, why_not = _denoiser(*parts)
        for reason, holds in {
            f"scaling_factor={scaling_factor}": scaling_factor != 0,
            f"guidance_scale={guidance_scale}": guidance_scale != 0,
            f"metric={metric!r}": metric != "ssim",
            "rel_threshold": rel_threshold is not None,
            type(scheduler).__name__: hasattr(scheduler, "sigmas"),
        }.items():
            why_not = reason if holds else why_not
        if why_not is not None or model is None:
            # its tests are still one run of the UNet each, by the swapped compute_noise_diff
            record.note(f"neuron_refinement: one mask at a time: {why_not}")
            return released(
                prompt, *parts, input_indices, scaling_factor, metric, threshold,
                samples_per_prompt, guidance_scale, seed, seeds_to_look_at, rel_threshold,
            )  # fmt: skip
        latents = draw(max(samples_per_prompt, 1), unet, seed)
        if seeds_to_look_at is not None:
            latents = latents[on(seeds_to_look_at, latents)]
        scheduler.set_timesteps(_STEPS)
        timestep = int(scheduler.timesteps[1])
        with autocast(unet):
            # whole masks, so that no batch is padded
            width = max(1, _BUSY.get(unet.device.type, _BUSY["cuda"]) // len(latents))
            model.batch_size = width * len(latents)
            text = model.condition(encode([prompt], tokenizer, text_encoder))
            shared = model.share(latents.to(unet.device), timestep)
            delta = model.epsilon_shared(text, shared)[0] - shared.latents
            scorer = Scorer(model, text, shared, delta, list(layers(unet)), width)
            kept = _kept(input_indices, scorer, float(threshold))
        record.evaluations += model.engine.evaluations
        print(f"Removed {sum(map(len, input_indices)) - sum(map(len, kept))} neurons.")
        print(f"Remaining neurons: {kept}")
        return kept

    return neuron_refinement


def _kept(indices: Sequence[Sequence[int]], scorer: Scorer, threshold: float) -> list[list[int]]:
    """The neurons that stay blocked, by layer, in the order in which the released code has them."""
    neurons = tuple((layer, int(n)) for layer, listed in enumerate(indices) for n in listed)
    if not neurons:
        return [[] for _ in indices]
    rung = Rung(0.0, 0, neurons, len(indices))
    (everything,) = scorer.scores([frozenset(neurons)], 0)
    if abs(everything - threshold) <= _SAME:
        # the script's search gave up and passes the score of this very mask; strictly below it
        # means below our own value of it
        threshold = everything
    counts = rung.by_layer(refined(rung, scorer, threshold))
    kept: list[list[int]] = []
    for listed, left in zip(indices, counts, strict=True):
        # list.remove takes the first of two equal neurons, so the last ones are left
        stays = []
        for neuron in reversed([int(n) for n in listed]):
            if neuron in left:
                left.remove(neuron)
                stays.append(neuron)
        kept.append(stays[::-1])
    return kept


def _denoiser(
    tokenizer: Any, text_encoder: Any, unet: Any, scheduler: Any
) -> tuple[Denoiser | None, str | None]:
    """The engine on the peer's modules, or why it cannot run them."""
    try:
        model = Denoiser(
            unet=unet,
            text=TextSide(tokenizer, text_encoder),
            # the released code takes any prediction for epsilon
            scheduler_config={**scheduler.config, "prediction_type": "epsilon"},
            vae=lambda: None,
            device=unet.device,
            dtype=unet.dtype,
            batch_size=_BUSY["cpu"],
            picture_size=(512, 512),
            origin={},
            hashes=dict,
        )
    except UsageError as error:
        return None, str(error)
    if model.latent_shape[1:] != (64, 64):
        return None, f"latents of the UNet are {model.latent_shape}, the released code draws 64x64"
    return model, None
