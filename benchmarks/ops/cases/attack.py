"""A step of the attack on embeddings: noise, loss with its gradient, and Adam."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.cases.case import BenchCase, Inputs, Shape, goals, randn
from dori_fast import ops

_LR = 0.1
# After this many steps Adam's bias corrections are 1. The moments equal the gradient's, so a step
# leaves them unchanged however often it is timed.
_MANY_STEPS = 1_000_000


def _noise_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Clean latents, noise, and cumulative alphas; the alphas are always float32."""
    x0, eps = randn((shape[0], *shape[2:]), dtype, device), randn(shape, dtype, device)
    alpha_bar = torch.rand(shape[:2], generator=torch.Generator().manual_seed(0))
    return x0, eps, alpha_bar.to(device)


def _noise_eager(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    alpha_bar = alpha_bar.reshape(*alpha_bar.shape, *(1,) * (eps.dim() - 2))
    return alpha_bar.sqrt() * x0[:, None] + (1 - alpha_bar).sqrt() * eps


def _noise_ours(backend: str, x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    return ops.add_noise(x0, eps, alpha_bar, backend=backend)


def _loss_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    eps = randn(shape, dtype, device)
    return eps.flip(0, -1).contiguous(), eps


def _loss_eager(eps_pred: Tensor, eps: Tensor) -> Tensor:
    """Gradient of the float32 loss that training scripts use."""
    eps_pred = eps_pred.detach().requires_grad_()
    wide = torch.promote_types(eps.dtype, torch.float32)
    loss = F.mse_loss(eps_pred.to(wide), eps.to(wide), reduction="none").flatten(1).mean(1)
    return torch.autograd.grad(loss.sum(), eps_pred)[0]


def _loss_ours(backend: str, eps_pred: Tensor, eps: Tensor) -> Tensor:
    eps_pred = eps_pred.detach().requires_grad_()
    loss = ops.diffusion_loss(eps_pred, eps, backend=backend)
    return torch.autograd.grad(loss.sum(), eps_pred)[0]


def _adam_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Parameters, gradient, our state, and torch's optimizer in the same state."""
    params, grad = randn(shape, dtype, device), randn(shape, dtype, device).flip(-1).contiguous()
    leaf = torch.nn.Parameter(params.clone())
    leaf.grad = grad
    adam = torch.optim.Adam([leaf], lr=_LR, foreach=True)
    moments = grad.float(), grad.float().square()
    adam.state[leaf] = {
        "step": torch.tensor(float(_MANY_STEPS)),
        "exp_avg": moments[0].to(dtype, copy=True),
        "exp_avg_sq": moments[1].to(dtype, copy=True),
    }
    step = torch.full(shape[:1], _MANY_STEPS, device=device)
    return params, grad, *moments, step, adam


def _adam_eager(
    params: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    adam: torch.optim.Adam,
) -> Tensor:
    (leaf,) = adam.param_groups[0]["params"]
    leaf.data = params
    adam.step()
    return params


def _adam_ours(
    backend: str,
    params: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    adam: torch.optim.Adam,
) -> Tensor:
    state = ops.EmbeddingState(exp_avg, exp_avg_sq, step)
    ops.embedding_step(params, grad, state, lr=_LR, backend=backend)
    return params


_DRAWS = ((8, 8, 4, 64, 64), (1, 8, 4, 64, 64), (16, 8, 4, 16, 16))
_EMBEDDINGS = ((16, 77, 768), (1, 77, 768), (64, 77, 64))

CASES = (
    BenchCase(
        op="add_noise",
        mode="draws",
        shapes=_DRAWS,
        make=_noise_inputs,
        eager=_noise_eager,
        ours=_noise_ours,
        # read each image once and all noise, write the noised latents
        traffic=lambda s, e: (2 * math.prod(s) + math.prod(s) // s[1]) * e,
        flops=lambda s: 3 * math.prod(s),
        goals=goals(_DRAWS, 1.0, 1.0),
        dtypes=(torch.float32,),
    ),
    BenchCase(
        op="diffusion_loss",
        mode="with_gradient",
        shapes=_DRAWS,
        make=_loss_inputs,
        eager=_loss_eager,
        ours=_loss_ours,
        # read both twice (loss, gradient), write the gradient
        traffic=lambda s, e: 5 * math.prod(s) * e,
        flops=lambda s: 5 * math.prod(s),
        goals=goals(_DRAWS, 1.0, 1.0),
    ),
    BenchCase(
        op="embedding_step",
        mode="adam_foreach",
        shapes=_EMBEDDINGS,
        make=_adam_inputs,
        eager=_adam_eager,
        ours=_adam_ours,
        # read parameters, gradient and two moments, write all but the gradient
        traffic=lambda s, e: 7 * math.prod(s) * e,
        flops=lambda s: 12 * math.prod(s),
        goals=goals(_EMBEDDINGS, 1.0, 1.0),
        dtypes=(torch.float32,),
    ),
)
