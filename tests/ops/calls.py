"""A use of each op among other operations, to be compiled: a function and its inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dori_fast import ops
from tests.ops.contract import DEVICE

Call = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def activation_stats(backend: str) -> Call:
    def call(x: Tensor) -> Tensor:
        batch, other = (ops.activation_stats(y, backend=backend) for y in (x * 2, x[:1]))
        return batch.merge(other).std() + batch.abs_max + batch.count

    return call, (torch.randn(3, 4, 5),)


def add_noise(backend: str) -> Call:
    alpha_bar = torch.rand(2, 3)

    def call(x0: Tensor, eps: Tensor) -> Tensor:
        return ops.add_noise(x0 * 2, eps, alpha_bar.to(eps.device), backend=backend) + 1

    return call, (torch.randn(2, 4, 5), torch.randn(2, 3, 4, 5))


def diffusion_loss(backend: str) -> Call:
    def call(eps_pred: Tensor, eps: Tensor) -> Tensor:
        return ops.diffusion_loss(eps_pred * 2, eps, backend=backend) + 1

    return call, (torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5))


def embedding_step(backend: str) -> Call:
    def call(params: Tensor, grad: Tensor) -> Tensor:
        params = params * 2
        state = ops.EmbeddingState.zeros_like(params)
        for _ in range(2):
            ops.embedding_step(params, grad, state, lr=0.1, backend=backend)
        return params + state.exp_avg + state.step[:, None, None]

    return call, (torch.randn(2, 3, 20), torch.randn(2, 3, 20))


def ms_ssim(backend: str) -> Call:
    def call(maps: Tensor) -> Tensor:
        pairs = ops.ms_ssim_pairs(maps[0], maps * 2, backend=backend)
        return ops.ms_ssim(maps * 2, backend=backend).sum() + pairs

    return call, (torch.randn(2, 2, 1, 8, 8),)


def neuron_mask(backend: str) -> Call:
    def call(x: Tensor, scale: Tensor) -> Tensor:
        return ops.neuron_mask(x * 2, scale, backend=backend) + 1

    return call, (torch.randn(2, 3, 20), torch.randn(2, 20))


def neuron_mask_(backend: str) -> Call:
    lists = ops.pack_indices([[1, 2], [3]], device=DEVICE)

    def call(x: Tensor) -> Tensor:
        return ops.neuron_mask_(x * 2, lists, 0.5, backend=backend) + 1

    return call, (torch.randn(2, 3, 20),)


def noise_cosine(backend: str) -> Call:
    def call(cond: Tensor, uncond: Tensor) -> Tensor:
        return ops.noise_cosine(cond * 2, uncond, backend=backend) + 1

    return call, (torch.randn(2, 3, 4, 5), torch.randn(3, 4, 5))


def noise_difference(backend: str) -> Call:
    def call(cond: Tensor, uncond: Tensor) -> Tensor:
        return ops.noise_difference(cond * 2, uncond, backend=backend) + 1

    return call, (torch.randn(2, 3, 4, 5), torch.randn(3, 4, 5))


def noise_difference_step(backend: str) -> Call:
    numbers = {"guidance": 7.5, "alpha_bar": 0.5, "alpha_bar_prev": 0.6}

    def call(cond: Tensor, uncond: Tensor, latents: Tensor) -> Tensor:
        norm, latents_prev = ops.noise_difference_step(
            cond * 2, uncond, latents, **numbers, backend=backend
        )
        return latents_prev + norm[:, :, None, None]

    return call, (torch.randn(2, 3, 4, 5), torch.randn(3, 4, 5), torch.randn(2, 3, 4, 5))


def sdpa_jvp(backend: str) -> Call:
    def call(q: Tensor, k: Tensor, v: Tensor, tq: Tensor) -> Tensor:
        out, tangent = ops.sdpa_jvp(q * 2, k, v, tq, None, v, backend=backend)
        return out + tangent

    return call, tuple(torch.randn(2, 2, length, 8) for length in (3, 5, 5, 3))


def wanda_mask(backend: str) -> Call:
    def call(weight: Tensor, norm: Tensor, base: Tensor) -> Tensor:
        mask = ops.wanda_mask(weight * 2, norm, 0.3, base_act_norm=base, backend=backend)
        return mask.float() + 1

    return call, (torch.randn(5, 40), torch.rand(40), torch.rand(40))


CALLS = {
    "activation_stats": activation_stats,
    "add_noise": add_noise,
    "diffusion_loss": diffusion_loss,
    "diffusion_loss_bwd": diffusion_loss,
    "embedding_step": embedding_step,
    "ms_ssim": ms_ssim,
    "neuron_mask": neuron_mask,
    "neuron_mask_": neuron_mask_,
    "noise_cosine": noise_cosine,
    "noise_difference": noise_difference,
    "noise_difference_step": noise_difference_step,
    "sdpa_jvp": sdpa_jvp,
    "wanda_mask": wanda_mask,
}

# Kernels of ms_ssim have no gradient; its reference has one, which the op's own tests check.
WITHOUT_GRADIENT = {
    "activation_stats",
    "embedding_step",
    "ms_ssim",
    "noise_cosine",
    "noise_difference_step",
    "sdpa_jvp",
    "wanda_mask",
}
