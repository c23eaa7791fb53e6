"""NeMo's search by its released procedure: forward hooks, one mask at a time, two passes each.

It follows 3_detect_memorized_neurons.py and utils/activation_detection.py of
ml-research/localizing_memorization_in_diffusion_models at f952ede, for the layers of any model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import dori_fast as df
from dori_fast.ops import ms_ssim_pairs
from dori_fast.prune import NeuronStatistics

Blocked = list[list[int]]
Similarity = Callable[[Tensor, Tensor], Tensor]
"""Similarity [N] of each pair of two stacks of maps [N, C, H, W]."""


def reference_similarity(first: Tensor, second: Tensor) -> Tensor:
    """MS-SSIM in plain torch, for maps too small for torchmetrics' window."""
    return ms_ssim_pairs(first, second[None], backend="reference")[0]


@dataclass
class PeerSearch:
    """One prompt's search; ``evaluations`` counts UNet samples, discarded passes included."""

    model: df.Denoiser
    prompt: str
    layers: list[str]
    statistics: NeuronStatistics
    threshold: float
    noise: Tensor
    timesteps: Sequence[int]
    theta_end: float = 1.0
    similarity: Similarity = reference_similarity
    seeds: list[int] = field(default_factory=list)
    initial: Blocked = field(default_factory=list)
    initial_similarity: float | None = None
    refined: Blocked = field(default_factory=list)
    refined_similarity: float | None = None
    evaluations: int = 0
    calls: int = 0

    @torch.no_grad()
    def run(self) -> PeerSearch:
        """Detect, select, refine."""
        plain = self.noise_diff(None)
        self.seeds = (self._max_pairwise(plain) > self.threshold).nonzero()[:, 0].tolist()
        if not self.seeds:
            return self
        theta, k = 5.0, 0
        threshold = self.threshold
        while True:
            self.initial = self._select(theta, k)
            blocked = self.noise_diff(self.initial)
            reached = self._max_same_seed(plain, blocked)
            if not reached > self.threshold:
                break
            theta, k = theta - 0.25, k + 1
            if theta <= self.theta_end:
                threshold = reached
                break
        self.initial_similarity = reached
        self._refine(threshold)
        return self

    def _refine(self, threshold: float) -> None:
        plain = self.noise_diff(None)
        self.noise_diff(
            self.initial
        )  # the released code always computes this but uses it for relative thresholds only
        current = [list(layer) for layer in self.initial]
        for layer in reversed(range(len(current))):
            if current[layer]:
                trial = [[] if i == layer else n for i, n in enumerate(current)]
                if self._max_same_seed(plain, self.noise_diff(trial)) < threshold:
                    current = trial
        for layer in reversed(range(len(current))):
            place = 0
            while place < len(current[layer]):
                trial = [list(n) for n in current]
                del trial[layer][place]
                if self._max_same_seed(plain, self.noise_diff(trial)) < threshold:
                    current = trial
                else:
                    place += 1
        self.refined = current
        self.refined_similarity = self._max_same_seed(plain, self.noise_diff(current))

    def _select(self, theta: float, k: int) -> Blocked:
        selected = []
        for name, a in zip(self.layers, self._activations(), strict=True):
            z = (a.double().cpu() - self.statistics.mean[name]).abs() / self.statistics.std[name]
            largest = a.topk(min(k, len(a))).indices.tolist()
            selected.append((z > theta).nonzero()[:, 0].tolist() + largest)
        return selected

    def _activations(self) -> list[Tensor]:
        """Mean absolute activations of the value projections, from a whole UNet pass."""
        found: dict[str, Tensor] = {}

        def watch(name: str) -> Any:
            def hook(module: Any, args: Any, out: Tensor) -> None:
                found[name] = out[0].abs().mean(0)

            return hook

        with ExitStack() as hooks:
            for name in self.layers:
                handle = self.model.unet.get_submodule(name).to_v.register_forward_hook(watch(name))
                hooks.callback(handle.remove)
            self._unet(self.noise[:1], self.timesteps[0])
        return [found[name] for name in self.layers]

    def noise_diff(self, blocked: Blocked | None) -> Tensor:
        """Noise differences [S, C, H, W] of all seeds; the first of two passes is discarded."""

        def rescale(neurons: list[int]) -> Any:
            def hook(module: Any, args: Any, out: Tensor) -> Tensor:
                out[..., neurons] *= 0
                return out

            return hook

        self.calls += 1
        with ExitStack() as hooks:
            for name, neurons in zip(self.layers, blocked or [[]] * len(self.layers), strict=True):
                if neurons:
                    to_v = self.model.unet.get_submodule(name).to_v
                    hooks.callback(to_v.register_forward_hook(rescale(neurons)).remove)
            for timestep in self.timesteps:
                prediction = self._unet(self.noise, timestep)
        return prediction - self.noise

    def _unet(self, latents: Tensor, timestep: int) -> Tensor:
        self.evaluations += len(latents)
        ids = self.model.tokenizer(
            [self.prompt] * len(latents),
            padding="max_length",
            max_length=self.model.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.model.device)
        text = self.model.text_encoder(ids)[0]
        time = torch.tensor(timestep, device=self.model.device)
        output = self.model.unet(latents, time, text).sample
        return self.model.schedule.epsilon(output, latents, timestep)

    def _max_pairwise(self, diff: Tensor) -> Tensor:
        pairs = torch.combinations(torch.arange(len(diff)), r=2)
        similarity = self.similarity(diff[pairs[:, 0]], diff[pairs[:, 1]])
        return torch.stack([similarity[(pairs == i).any(1)].max() for i in range(len(diff))])

    def _max_same_seed(self, plain: Tensor, blocked: Tensor) -> float:
        return self.similarity(plain[self.seeds], blocked[self.seeds]).max().item()
