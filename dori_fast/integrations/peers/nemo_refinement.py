"""NeMo's refinement in batches of masks, with the decisions of the released greedy search."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dori_fast.integrations.peers.nemo_inputs import autocast, chosen, draw, encode, layers
from dori_fast.integrations.peers.nemo_network import network
from dori_fast.integrations.peers.swap import Patch
from dori_fast.prune.nemo.candidates import Candidates
from dori_fast.prune.nemo.lockstep import Lockstep, Walk
from dori_fast.prune.nemo.masked_rows import MaskedRows
from dori_fast.prune.nemo.walk import Ask, Asks, refine_candidates

_STEPS = 50
# largest difference of one mask's score between batches
_SAME = 1e-5
# samples that keep a device busy; larger batches hold more guesses, and more of them fail
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
            # the swapped compute_noise_diff still runs the UNet only once per test
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
            # a whole number of masks, so that no batch is padded
            width = max(1, _BUSY.get(unet.device.type, _BUSY["cuda"]) // len(rows))
            model.batch_size = width * len(rows)
            shared = found.latents(drawn, timestep, rows)
            names = list(layers(unet))
            masked = MaskedRows(model, model.condition(text), shared, names, "epsilon")
            kept = _kept(input_indices, masked, delta, width > 1, float(threshold))
        record.evaluations += model.engine.evaluations - before
        print(f"Removed {sum(map(len, input_indices)) - sum(map(len, kept))} neurons.")
        print(f"Remaining neurons: {kept}")
        return kept

    return neuron_refinement


def _kept(
    indices: Sequence[Sequence[int]],
    rows: MaskedRows,
    delta: torch.Tensor,
    guess: bool,
    threshold: float,
) -> list[list[int]]:
    """Neurons that stay blocked, by layer, in the order of the released code."""
    neurons = tuple((layer, int(n)) for layer, listed in enumerate(indices) for n in listed)
    if not neurons:
        return [[] for _ in indices]
    candidates = Candidates(0.0, 0, neurons, len(indices))
    found: list[frozenset[int]] = []

    def search(threshold: float) -> Asks:
        everything = yield Ask(frozenset(neurons))
        if abs(everything - threshold) <= _SAME:
            # the script's search gave up and passes the score of this very mask; compare with our
            # own value of it, since the test is "strictly below"
            threshold = everything
        found.append((yield from refine_candidates(candidates, threshold)))

    walk = Walk(0, tuple(range(len(delta))), delta, rows.model.dtype, search(threshold))
    Lockstep(rows, guess).run([walk])
    if walk.error is not None:
        raise walk.error
    counts = candidates.by_layer(found[0])
    kept: list[list[int]] = []
    for listed, left in zip(indices, counts, strict=True):
        # list.remove removes the first of two equal neurons, so the last ones stay
        stays = []
        for neuron in reversed([int(n) for n in listed]):
            if neuron in left:
                left.remove(neuron)
                stays.append(neuron)
        kept.append(stays[::-1])
    return kept
