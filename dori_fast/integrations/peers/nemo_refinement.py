"""NeMo's refinement with the released greedy's decisions, many masks at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dori_fast.integrations.peers.nemo_inputs import autocast, chosen, draw, encode, layers
from dori_fast.integrations.peers.nemo_network import network
from dori_fast.integrations.peers.swap import Patch
from dori_fast.prune.nemo.candidates import Candidates
from dori_fast.prune.nemo.refine import refine_candidates
from dori_fast.prune.nemo.scorer import Scorer

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
        found, why_not = network(record, *parts)
        for reason, holds in {
            f"scaling_factor={scaling_factor}": scaling_factor != 0,
            f"guidance_scale={guidance_scale}": guidance_scale != 0,
            f"metric={metric!r}": metric != "ssim",
            "rel_threshold": rel_threshold is not None,
        }.items():
            why_not = reason if holds else why_not
        if why_not is not None or found is None:
            # its tests are still one run of the UNet each, by the swapped compute_noise_diff
            record.note(f"neuron_refinement: one mask at a time: {why_not}")
            return released(
                prompt, *parts, input_indices, scaling_factor, metric, threshold,
                samples_per_prompt, guidance_scale, seed, seeds_to_look_at, rel_threshold,
            )  # fmt: skip
        drawn = draw(max(samples_per_prompt, 1), unet, seed)
        rows = chosen(seeds_to_look_at, len(drawn))
        scheduler.set_timesteps(_STEPS)
        timestep = int(scheduler.timesteps[1])
        model = found.model
        before = model.engine.evaluations
        with autocast(unet):
            text = encode([prompt], tokenizer, text_encoder)
            delta = found.unblocked(text, drawn, timestep, rows)
            # whole masks, so that no batch is padded
            width = max(1, _BUSY.get(unet.device.type, _BUSY["cuda"]) // len(rows))
            model.batch_size = width * len(rows)
            shared = found.latents(drawn, timestep, rows)
            names = list(layers(unet))
            scorer = Scorer(model, model.condition(text), shared, delta, names, width)
            kept = _kept(input_indices, scorer, float(threshold))
        record.evaluations += model.engine.evaluations - before
        print(f"Removed {sum(map(len, input_indices)) - sum(map(len, kept))} neurons.")
        print(f"Remaining neurons: {kept}")
        return kept

    return neuron_refinement


def _kept(indices: Sequence[Sequence[int]], scorer: Scorer, threshold: float) -> list[list[int]]:
    """The neurons that stay blocked, by layer, in the order in which the released code has them."""
    neurons = tuple((layer, int(n)) for layer, listed in enumerate(indices) for n in listed)
    if not neurons:
        return [[] for _ in indices]
    candidates = Candidates(0.0, 0, neurons, len(indices))
    (everything,) = scorer.scores([frozenset(neurons)], 0)
    if abs(everything - threshold) <= _SAME:
        # the script's search gave up and passes the score of this very mask; strictly below it
        # means below our own value of it
        threshold = everything
    counts = candidates.by_layer(refine_candidates(candidates, scorer, threshold))
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
