"""NeMo's statistics of activations and similarity of maps."""

from __future__ import annotations

import math
from importlib import metadata

import torch
from torch import Tensor

from benchmarks.harness import NotHere
from benchmarks.ops.cases.case import BenchCase, Inputs, Shape, goals, randn
from dori_fast import ops

# what NeMo's code pins; later versions compute another MS-SSIM
_TORCHMETRICS = "1.3.2"


def _activations(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Values around 2: around 0 a mean would be all rounding."""
    return (randn(shape, torch.float32, device).add(2).to(dtype),)


def _stats_eager(x: Tensor) -> Tensor:
    """One pass each, in float32: mean, deviation, magnitudes and squares."""
    values = x.float()
    magnitudes = values.abs()
    passes = (
        values.mean(0),
        values.std(0),
        magnitudes.mean(0),
        magnitudes.amax(0),
        values.square().sum(0),
    )
    return torch.stack(passes)


def _stats_ours(backend: str, x: Tensor) -> Tensor:
    found = ops.activation_stats(x, backend=backend)
    tensors = (found.mean, found.std(), found.abs_mean, found.abs_max, found.sum_sq)
    stacked = torch.stack(tensors)
    return stacked if x.dtype == torch.float64 else stacked.float()


def _maps(shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    """Maps of a group that share a common part."""
    images = randn(shape, torch.float32, device)
    common = randn((shape[0], 1, *shape[2:]), torch.float32, device).flip(-1)
    return ((images + common).to(dtype),)


def _require_torchmetrics() -> None:
    try:
        found = metadata.version("torchmetrics")
    except metadata.PackageNotFoundError:
        found = None
    if found != _TORCHMETRICS:
        raise NotHere(f"eager is torchmetrics {_TORCHMETRICS}, found {found or 'none'}")


def _similarity_eager(maps: Tensor) -> Tensor:
    """Rescale a group and compare all its pairs in one call; one call per group."""
    _require_torchmetrics()
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    pairs = torch.combinations(torch.arange(maps.shape[1], device=maps.device))
    found = []
    for group in maps.float():
        low, high = group.amin((-2, -1), keepdim=True), group.amax((-2, -1), keepdim=True)
        group = (group - low) / (high - low)
        found.append(
            multiscale_structural_similarity_index_measure(
                group[pairs[:, 0]],
                group[pairs[:, 1]],
                kernel_size=11,
                betas=(0.33, 0.33, 0.33),
                reduction="none",
                data_range=None,
            )
        )
    return torch.stack(found)


def _similarity_ours(backend: str, maps: Tensor) -> Tensor:
    return ops.ms_ssim(maps, backend=backend)


def _similarity_flops(shape: Shape) -> int:
    """Separable blurs of 11 taps at three scales: two per image, one per pair, rows and columns."""
    groups, images, channels, height, width = shape
    planes = groups * channels * (2 * images + images * (images - 1) // 2)
    pixels = sum((height >> s) * (width >> s) for s in range(3))
    return 2 * 2 * 11 * planes * pixels


_BATCHES = ((32768, 320), (2464, 1280), (4096, 5120))
_GROUPS = ((1, 10, 4, 64, 64), (4, 10, 4, 64, 64))

CASES = (
    BenchCase(
        op="activation_stats",
        mode="one_read",
        shapes=_BATCHES,
        make=_activations,
        eager=_stats_eager,
        ours=_stats_ours,
        # read x, write five numbers per neuron
        traffic=lambda s, e: math.prod(s) * e + 5 * 8 * s[1],
        # two sums, a magnitude, a maximum, a square and its sum, a deviation, its square and sum
        flops=lambda s: 9 * math.prod(s),
        goals=goals(_BATCHES, 4.0, 4.0),
    ),
    BenchCase(
        op="ms_ssim",
        mode="all_pairs",
        shapes=_GROUPS,
        make=_maps,
        eager=_similarity_eager,
        ours=_similarity_ours,
        # read the maps, write a number per pair
        traffic=lambda s, e: math.prod(s) * e + 4 * s[0] * s[1] * (s[1] - 1) // 2,
        flops=_similarity_flops,
        goals=goals(_GROUPS, 3.0, 3.0),
        # torchmetrics subtracts squares of unshifted values in float32
        eager_error=1e-4,
    ),
)
