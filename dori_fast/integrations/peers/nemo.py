"""NeMo: Hintersdorf, Struppek et al., "Finding NeMo", NeurIPS 2024.

Each test runs the UNet once instead of twice, for the requested seeds only, starting at the first
cross-attention. Magnitudes need no run. Tests of the refinement run in batches that share the
network before their layer, with the decisions of the released greedy search
(:mod:`dori_fast.prune.nemo.refine`). Random draws are those of the released code.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from dori_fast.functional import pairwise_ms_ssim
from dori_fast.integrations.peers.nemo_inputs import autocast, chosen, draw, encode, layers
from dori_fast.integrations.peers.nemo_network import network
from dori_fast.integrations.peers.nemo_refinement import make_refinement
from dori_fast.integrations.peers.swap import Patch, Peer, Swap
from dori_fast.models.backbones.unet.stock import foreign_module
from dori_fast.ops import NeuronIndices, largest_per_map, neuron_mask_, pack_indices

_REPOSITORY = (
    "https://github.com/ml-research/localizing_memorization_in_diffusion_models at f952ede"
)
_MODULE = "utils.activation_detection"
_BETAS = (0.33, 0.33, 0.33)
_STATISTICS = "statistics/statistics_additional_laion_prompts_v1_4.pt"


def _scaled(difference: Tensor) -> Tensor:
    least = difference.amin(dim=[2, 3], keepdim=True)
    return (difference - least) / (difference.amax(dim=[2, 3], keepdim=True) - least)


@contextmanager
def _blocked(unet: Any, neurons: Sequence[Sequence[int]] | None, factor: float) -> Iterator[None]:
    def rescale(listed: Sequence[int]) -> Any:
        packed: NeuronIndices | None = None

        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            nonlocal packed
            if packed is None:
                # released: an index, so a negative neuron counts from the end
                width = output.shape[-1]
                neurons = [int(n) + width * (int(n) < 0) for n in listed]
                packed = pack_indices(neurons, device=output.device)
            return neuron_mask_(output, packed, factor)

        return hook

    with ExitStack() as stack:
        for attention, listed in zip(layers(unet).values(), neurons or [], strict=False):
            if len(listed):
                stack.callback(attention.to_v.register_forward_hook(rescale(listed)).remove)
        yield


def _make_noise_diff(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
    @functools.wraps(released)
    @torch.no_grad()
    def compute_noise_diff(
        prompts: Sequence[str],
        tokenizer: Any,
        text_encoder: Any,
        unet: Any,
        scheduler: Any,
        blocked_indices: Any,
        guidance_scale: float,
        seed: int,
        samples_per_prompt: int,
        scaling_factor: float,
        num_inference_steps: int = 50,
        early_stopping: int = 1,
        seed_indices_to_return: Any = None,
    ) -> Tensor:
        foreign = foreign_module(unet, any_root=True)
        if foreign is not None:
            record.note(f"compute_noise_diff: as released: {foreign} may look across a batch")
            return released(
                prompts, tokenizer, text_encoder, unet, scheduler, blocked_indices, guidance_scale,
                seed, samples_per_prompt, scaling_factor, num_inference_steps, early_stopping,
                seed_indices_to_return,
            )  # fmt: skip
        each = max(samples_per_prompt, 1)
        latents = draw(len(prompts) * each, unet, seed)
        text = encode(prompts, tokenizer, text_encoder).repeat_interleave(each, 0)
        empty = encode([""], tokenizer, text_encoder) if guidance_scale != 0 else None
        scheduler.set_timesteps(num_inference_steps)
        # released: earlier runs are discarded and leave the latents unchanged, so skip them
        last = min(max(early_stopping, 0), num_inference_steps - 1)
        t = scheduler.timesteps[last]
        rows = chosen(seed_indices_to_return, len(latents))
        if not rows:
            return latents[rows].to(text.device)
        if len(prompts) == 1 and empty is None and scaling_factor == 0:
            parts = (tokenizer, text_encoder, unet, scheduler)
            if (found := network(record, *parts)[0]) is not None:
                before = found.model.engine.evaluations
                with autocast(unet):
                    difference = found.differences(text[:1], latents, int(t), rows, blocked_indices)
                record.evaluations += found.model.engine.evaluations - before
                return _scaled(difference)
        latents, text = latents[rows].to(text.device), text[rows]
        if empty is not None:
            text = torch.cat([empty.expand_as(text), text])
        inputs = latents if empty is None else torch.cat([latents] * 2)
        # released: a scheduler that counts its calls scales inputs at every step and never steps
        for step in scheduler.timesteps[: last + 1]:
            scaled = scheduler.scale_model_input(inputs, step).to(unet.device)
        with autocast(unet), _blocked(unet, blocked_indices, scaling_factor):
            predicted = unet(scaled, t, encoder_hidden_states=text, return_dict=False)[0]
        if empty is not None:
            # released: the halves are [empty, text] but are read as [text, empty]
            first, second = predicted.chunk(2)
            predicted = second + guidance_scale * (first - second)
        return _scaled(predicted - latents)

    return compute_noise_diff


def _make_activations(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
    @functools.wraps(released)
    @torch.no_grad()
    def collect_activations(
        prompts: Sequence[str],
        tokenizer: Any,
        text_encoder: Any,
        unet: Any,
        scheduler: Any,
        num_inference_steps: int = 50,
        early_stopping: int | None = None,
        seed: int = 1,
        samples_per_prompt: int = 1,
    ) -> list[Tensor]:
        foreign = foreign_module(unet, any_root=True)
        if foreign is not None:
            record.note(f"collect_activations: as released: {foreign} may change the values")
            return released(
                prompts, tokenizer, text_encoder, unet, scheduler, num_inference_steps,
                early_stopping, seed, samples_per_prompt,
            )  # fmt: skip
        draw(len(prompts) * max(samples_per_prompt, 1), unet, seed)
        scheduler.set_timesteps(num_inference_steps)
        text = encode(prompts[:1], tokenizer, text_encoder)
        with autocast(unet):
            return [layer.to_v(text)[0].abs().mean(0) for layer in layers(unet).values()]

    return collect_activations


def _make_selection(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
    @functools.wraps(released)
    @torch.no_grad()
    def initial_neuron_selection(
        prompt: str,
        tokenizer: Any,
        text_encoder: Any,
        unet: Any,
        scheduler: Any,
        layer_depth: int,
        theta: float,
        k: int,
        seed: int = 1,
        version: str = "v1-5",
    ) -> list[list[int]]:
        path = _STATISTICS if version == "v1-4" else version
        means, stds = torch.load(path, weights_only=True)
        collect = sys.modules[_MODULE].collect_activations
        found = collect(
            [prompt], tokenizer, text_encoder, unet, scheduler, early_stopping=1, seed=seed
        )
        chosen: list[list[int]] = [[] for _ in range(7)]
        for i in range(layer_depth):
            unusual = (found[i].cpu() - means[i]).abs() / stds[i] > theta
            largest = found[i].abs().topk(min(k, len(means[i]))).indices
            # released: a neuron that meets both conditions is listed twice
            chosen[i] = unusual.nonzero().flatten().tolist() + largest.tolist()
        return chosen

    return initial_neuron_selection


def _make_pairwise(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
    @functools.wraps(released)
    def calculate_max_pairwise_ssim(noise_diffs: Tensor) -> Tensor:
        if len(noise_diffs) < 2:
            return released(noise_diffs)
        found = pairwise_ms_ssim(noise_diffs, betas=_BETAS)
        return largest_per_map(found[None])[0].to(noise_diffs.dtype)

    return calculate_max_pairwise_ssim


def _swap(target: str, signature: str, make: Any, why: str) -> Swap:
    return Swap(_MODULE, target, signature, make, why)


_PARTS = "tokenizer, text_encoder, unet, scheduler"
PEER = Peer(
    _REPOSITORY,
    (
        _swap(
            "compute_noise_diff",
            f"prompts, {_PARTS}, blocked_indices, guidance_scale, seed, samples_per_prompt,"
            " scaling_factor, num_inference_steps=50, early_stopping=1,"
            " seed_indices_to_return=None",
            _make_noise_diff,
            "ran the UNet twice and discarded the first run; ran unrequested seeds; ran the layers"
            " before the text again",
        ),
        _swap(
            "collect_activations",
            f"prompts, {_PARTS}, num_inference_steps=50, early_stopping=None, seed=1,"
            " samples_per_prompt=1",
            _make_activations,
            "ran the UNet to read activations that depend only on the text",
        ),
        _swap(
            "initial_neuron_selection",
            f"prompt, {_PARTS}, layer_depth, theta, k, seed=1, version='v1-5'",
            _make_selection,
            "ran the UNet for each theta and k",
        ),
        _swap(
            "calculate_max_pairwise_ssim",
            "noise_diffs",
            _make_pairwise,
            "computed the moments of each map once per pair",
        ),
        _swap(
            "neuron_refinement",
            f"prompt, {_PARTS}, input_indices, scaling_factor, metric='ssim', threshold=None,"
            " samples_per_prompt=8, guidance_scale=0, seed=1, seeds_to_look_at=None,"
            " rel_threshold=None",
            make_refinement,
            "ran the whole UNet, twice, for one mask at a time",
        ),
    ),
)
