"""What is timed: per operation and mode, the shapes, the eager baseline and ours.

The baseline is what the papers' code does, in the fewest eager operations that do it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.ops.cases import attack as cases_attack
from benchmarks.ops.cases import attention as cases_attention
from benchmarks.ops.cases import noise as cases_noise
from benchmarks.ops.cases import prune as cases_prune
from benchmarks.ops.cases import stats as cases_stats
from benchmarks.ops.cases.case import DTYPES, BenchCase, Inputs, Shape, goals, randn
from dori_fast import ops


def _noise_shared(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    return randn(shape, dtype, device), randn(shape[1:], dtype, device).flip(0)


def _noise_pairs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    return randn(shape, dtype, device), randn(shape, dtype, device).flip(0)


def _noise_eager(cond: Tensor, uncond: Tensor) -> Tensor:
    return (cond.float() - uncond.float()).flatten(2).norm(dim=2)


def _noise_ours(backend: str, cond: Tensor, uncond: Tensor) -> Tensor:
    return ops.noise_difference(cond, uncond, backend=backend)


def _mask_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    return randn(shape, dtype, device), randn((shape[0], shape[2]), dtype, device)


def _mask_eager(x: Tensor, scale: Tensor) -> Tensor:
    return x * scale[:, None, :]


def _mask_ours(backend: str, x: Tensor, scale: Tensor) -> Tensor:
    return ops.neuron_mask(x, scale, backend=backend)


# -1 so that timing many calls does not drive the numbers into the subnormal range.
_FACTOR = -1.0


def _some_neurons(count: int, of: int, seed: int) -> list[int]:
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count].tolist()


def _list_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Ten neurons for all samples, as a tensor for eager and packed for ours."""
    listed = _some_neurons(10, shape[2], 0)
    packed = ops.pack_indices(listed, device=device)
    return randn(shape, dtype, device), torch.tensor(listed, device=device), packed


def _list_eager(x: Tensor, listed: Tensor, packed: ops.NeuronIndices) -> Tensor:
    x[:, :, listed] *= _FACTOR
    return x


def _lists_inputs(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Ten neurons for each sample, as tensors for eager and packed for ours."""
    lists = [_some_neurons(10, shape[2], seed) for seed in range(shape[0])]
    tensors = [torch.tensor(listed, device=device) for listed in lists]
    return randn(shape, dtype, device), tensors, ops.pack_indices(lists, device=device)


def _lists_eager(x: Tensor, lists: list[Tensor], packed: ops.NeuronIndices) -> Tensor:
    for sample, listed in zip(x, lists, strict=True):
        sample[:, listed] *= _FACTOR
    return x


def _in_place_ours(backend: str, x: Tensor, eager_form: Any, packed: ops.NeuronIndices) -> Tensor:
    return ops.neuron_mask_(x, packed, _FACTOR, backend=backend)


_LATENTS = ((64, 1, 4, 64, 64), (16, 4, 4, 64, 64), (64, 4, 4, 64, 64), (16, 4, 4, 16, 16))
_VALUES = ((32, 77, 1280), (32, 77, 640), (32, 77, 320), (4, 77, 768))


# Scaling in float32 moves the same bytes as eager and cannot be faster; the checks of the arguments
# cost about a microsecond more. In bfloat16 eager pays for its conversions.
_NOT_SLOWER = 0.9


__all__ = ["CASES", "DTYPES", "BenchCase", "Inputs", "Shape"]

CASES = (
    BenchCase(
        op="noise_difference",
        mode="shared_uncond",
        shapes=_LATENTS,
        make=_noise_shared,
        eager=_noise_eager,
        ours=_noise_ours,
        # read eps_cond and one eps_uncond per seed, write the norms
        traffic=lambda s, e: (math.prod(s) + math.prod(s[1:])) * e + 4 * s[0] * s[1],
        flops=lambda s: 3 * math.prod(s),
        goals=goals(_LATENTS[:1], 2.5, 6.0),
    ),
    BenchCase(
        op="noise_difference",
        mode="pairs",
        shapes=_LATENTS[:1],
        make=_noise_pairs,
        eager=_noise_eager,
        ours=_noise_ours,
        # read both predictions, write the norms
        traffic=lambda s, e: 2 * math.prod(s) * e + 4 * s[0] * s[1],
        flops=lambda s: 3 * math.prod(s),
        goals=goals(_LATENTS[:1], 2.5, 6.0),
    ),
    BenchCase(
        op="neuron_mask",
        mode="per_sample",
        shapes=_VALUES,
        make=_mask_inputs,
        eager=_mask_eager,
        ours=_mask_ours,
        # read x and the scales, write y
        traffic=lambda s, e: 2 * math.prod(s) * e + s[0] * s[2] * e,
        flops=lambda s: math.prod(s),
        goals=goals(_VALUES, _NOT_SLOWER, 1.0),
    ),
    BenchCase(
        op="neuron_mask_",
        mode="one_list",
        shapes=_VALUES,
        make=_list_inputs,
        eager=_list_eager,
        ours=_in_place_ours,
        # read and write ten neurons of every token
        traffic=lambda s, e: 2 * 10 * s[0] * s[1] * e,
        flops=lambda s: 10 * s[0] * s[1],
        goals=goals(_VALUES, 1.0, 1.0),
    ),
    BenchCase(
        op="neuron_mask_",
        mode="list_per_sample",
        shapes=_VALUES,
        make=_lists_inputs,
        eager=_lists_eager,
        ours=_in_place_ours,
        # read and write ten neurons of every token
        traffic=lambda s, e: 2 * 10 * s[0] * s[1] * e,
        flops=lambda s: 10 * s[0] * s[1],
        goals=goals(_VALUES, 1.0, 1.0),
    ),
    *cases_noise.CASES,
    *cases_attack.CASES,
    *cases_attention.CASES,
    *cases_prune.CASES,
    *cases_stats.CASES,
)
