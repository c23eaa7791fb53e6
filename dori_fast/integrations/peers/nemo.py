"""NeMo: Hintersdorf, Struppek et al., "Finding NeMo", NeurIPS 2024.

One run of the UNet a test in place of two, of the wanted seeds only; no run at all for magnitudes;
the refinement's tests in batches that share the network before their layer, with the released
greedy's decisions (:mod:`dori_fast.prune.refine`). Random draws stay those of the released code.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.functional import pairwise_ms_ssim
from dori_fast.integrations.peers.swap import Patch, Peer, Swap
from dori_fast.models import Denoiser
from dori_fast.models.encoders import TextSide
from dori_fast.ops import largest_per_map
from dori_fast.prune.greedy import refined
from dori_fast.prune.ladder import Rung
from dori_fast.prune.scorer import Scorer

_REPOSITORY = (
    "https://github.com/ml-research/localizing_memorization_in_diffusion_models at f952ede"
)
_MODULE = "utils.activation_detection"
_BETAS = (0.33, 0.33, 0.33)
_STATISTICS = "statistics/statistics_additional_laion_prompts_v1_4.pt"
_STEPS = 50
# scores of the same mask, computed in another batch
_SAME = 1e-5
# samples that keep a CPU busy; a GPU takes some more
_BUSY = {"cpu": 10, "cuda": 40}


def _layers(unet: Any) -> dict[str, Any]:
    """The seven cross-attentions of the released code, by name."""
    names = [f"down_blocks.{block}.attentions.{i}" for block in range(3) for i in range(2)]
    return {
        f"{name}.transformer_blocks.0.attn2": unet.get_submodule(name).transformer_blocks[0].attn2
        for name in [*names, "mid_block.attentions.0"]
    }


def _autocast(unet: Any) -> Any:
    """The released code's precision; it does nothing on a CPU."""
    return torch.autocast("cuda", torch.float16, enabled=unet.device.type == "cuda")


def _draw(prompts: int, unet: Any, seed: int) -> Tensor:
    """Initial latents [prompts, C, 64, 64] from torch's own generator, which is left as released."""
    shape = (prompts, unet.config.in_channels, 64, 64)
    return torch.randn(shape, generator=torch.manual_seed(seed))


def _encode(prompts: Sequence[str], tokenizer: Any, text_encoder: Any) -> Tensor:
    """Embeddings [P, T, D]; the released code encodes a copy for each seed."""
    ids = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    embeddings: Tensor = text_encoder(ids.to(text_encoder.device))[0]
    return embeddings


def _scaled(difference: Tensor) -> Tensor:
    least = difference.amin(dim=[2, 3], keepdim=True)
    return (difference - least) / (difference.amax(dim=[2, 3], keepdim=True) - least)


@contextmanager
def _blocked(unet: Any, neurons: Sequence[Sequence[int]] | None, factor: float) -> Iterator[None]:
    def rescale(listed: Sequence[int]) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            output[:, :, list(listed)] *= factor
            return output

        return hook

    with ExitStack() as stack:
        for attention, listed in zip(_layers(unet).values(), neurons or [], strict=False):
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
        each = max(samples_per_prompt, 1)
        latents = _draw(len(prompts) * each, unet, seed)
        text = _encode(prompts, tokenizer, text_encoder).repeat_interleave(each, 0)
        empty = _encode([""], tokenizer, text_encoder) if guidance_scale != 0 else None
        scheduler.set_timesteps(num_inference_steps)
        if seed_indices_to_return is not None:
            wanted = seed_indices_to_return
            latents, text = latents[_on(wanted, latents)], text[_on(wanted, text)]
        latents = latents.to(text.device)
        # all runs of the UNet before this one are thrown away, and the latents stay the same
        t = scheduler.timesteps[min(max(early_stopping, 0), num_inference_steps - 1)]
        if empty is not None:
            text = torch.cat([empty.expand_as(text), text])
        inputs = latents if empty is None else torch.cat([latents] * 2)
        inputs = scheduler.scale_model_input(inputs, t).to(unet.device)
        with _autocast(unet), _blocked(unet, blocked_indices, scaling_factor):
            predicted = unet(inputs, t, encoder_hidden_states=text, return_dict=False)[0]
        if empty is not None:
            # released: the halves are [empty, text] and are read the other way round
            first, second = predicted.chunk(2)
            predicted = second + guidance_scale * (first - second)
        return _scaled(predicted - latents)

    return compute_noise_diff


def _on(index: Any, like: Tensor) -> Any:
    return index.to(like.device) if isinstance(index, Tensor) else index


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
        _draw(len(prompts) * max(samples_per_prompt, 1), unet, seed)
        scheduler.set_timesteps(num_inference_steps)
        text = _encode(prompts[:1], tokenizer, text_encoder)
        with _autocast(unet):
            return [layer.to_v(text)[0].abs().mean(0) for layer in _layers(unet).values()]

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
            # released: a neuron that is both is listed twice
            chosen[i] = unusual.nonzero().flatten().tolist() + largest.tolist()
        return chosen

    return initial_neuron_selection


def _make_pairwise(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
    @functools.wraps(released)
    def calculate_max_pairwise_ssim(noise_diffs: Tensor) -> Tensor:
        if len(noise_diffs) < 2:
            return released(noise_diffs)  # type: ignore[no-any-return]
        found = pairwise_ms_ssim(noise_diffs, betas=_BETAS)
        return largest_per_map(found[None])[0].to(noise_diffs.dtype)

    return calculate_max_pairwise_ssim


def _make_refinement(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
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
        }.items():
            why_not = reason if holds else why_not
        if why_not is not None or model is None:
            # its tests are still one run of the UNet each, by the swapped compute_noise_diff
            record.note(f"neuron_refinement: one mask at a time: {why_not}")
            return released(  # type: ignore[no-any-return]
                prompt, *parts, input_indices, scaling_factor, metric, threshold,
                samples_per_prompt, guidance_scale, seed, seeds_to_look_at, rel_threshold,
            )  # fmt: skip
        latents = _draw(max(samples_per_prompt, 1), unet, seed)
        if seeds_to_look_at is not None:
            latents = latents[_on(seeds_to_look_at, latents)]
        scheduler.set_timesteps(_STEPS)
        timestep = int(scheduler.timesteps[1])
        with _autocast(unet):
            model.batch_size = max(_BUSY.get(unet.device.type, 10), len(latents))
            text = model.condition(_encode([prompt], tokenizer, text_encoder))
            shared = model.share(latents.to(unet.device), timestep)
            delta = model.epsilon_shared(text, shared)[0] - shared.latents
            width = max(1, model.batch_size // len(latents))
            scorer = Scorer(model, text, shared, delta, list(_layers(unet)), width)
            kept = _kept(input_indices, scorer, float(threshold))
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
            scheduler_config=dict(scheduler.config),
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
    if model.schedule.prediction_type != "epsilon":
        return None, "the released code takes any prediction for epsilon"
    return model, None


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
            "ran the UNet twice and threw the first away; ran seeds that nobody asked for",
        ),
        _swap(
            "collect_activations",
            f"prompts, {_PARTS}, num_inference_steps=50, early_stopping=None, seed=1,"
            " samples_per_prompt=1",
            _make_activations,
            "ran the UNet to read what depends on the text alone",
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
            "took the moments of each map once a pair",
        ),
        _swap(
            "neuron_refinement",
            f"prompt, {_PARTS}, input_indices, scaling_factor, metric='ssim', threshold=None,"
            " samples_per_prompt=8, guidance_scale=0, seed=1, seeds_to_look_at=None,"
            " rel_threshold=None",
            _make_refinement,
            "ran the whole UNet, twice, for one mask at a time",
        ),
    ),
)
