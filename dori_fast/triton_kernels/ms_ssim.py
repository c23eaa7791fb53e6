"""Multi-scale structural similarity of pairs of maps: launchers.

Planes are centered once. Each scale has its data range per group, its moments per image, and per
pair only the covariance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from dori_fast._checks import accumulate_dtype, to_device
from dori_fast.triton_kernels import _ms_ssim_kernels as kernels
from dori_fast.triton_kernels._common import ACCUMULATE, launch

_BLOCK = 1024
# smaller, since a pixel under the window takes many registers
_WINDOW_BLOCK = 256
_PAIR_BLOCK = 64
# elements of working memory (256 MiB in float32); groups beyond it follow one after the other
_WORKSPACE = 1 << 26


def _window(kernel_size: int, sigma: float, like: Tensor) -> Tensor:
    half = (kernel_size - 1) / 2
    weights = [math.exp(-(((i - half) / sigma) ** 2) / 2) for i in range(kernel_size)]
    total = math.fsum(weights)
    window = torch.tensor([weight / total for weight in weights], dtype=like.dtype)
    return to_device(window, like.device)


@dataclass(frozen=True)
class _Pairs:
    """Pairs of images [P, 2] to compare, and the Gaussian window [kernel_size]."""

    pairs: Tensor
    window: Tensor

    def ranges(self, planes: Tensor, pivots: Tensor) -> Tensor:
        """Return the data range [G] at one scale."""
        groups, images, channels, height, width = planes.shape
        acc = ACCUMULATE[planes.dtype]
        extents = planes.new_empty(groups, images, 2)
        launch(
            kernels.extent_kernel,
            groups * images,
            planes,
            *(planes, pivots, extents, channels, height * width),
            ACC=acc,
            BLOCK=_BLOCK,
        )
        ranges = planes.new_empty(groups)
        launch(
            kernels.range_kernel,
            groups,
            planes,
            *(extents, self.pairs, ranges, images, len(self.pairs)),
            ACC=acc,
            BLOCK=_PAIR_BLOCK,
        )
        return ranges

    def means(self, planes: Tensor, pivots: Tensor, luminance: bool) -> Tensor:
        """Return the mean similarity [G, P] at one scale."""
        groups, images, channels, height, width = planes.shape
        inner = (height - len(self.window) + 1, width - len(self.window) + 1)
        inner_l = inner[0] * inner[1]
        sizes = (height * width, width, inner_l, inner[1])
        acc = ACCUMULATE[planes.dtype]
        options: dict[str, Any] = {
            "ACC": acc,
            "WINDOW": len(self.window),
            "BLOCK": _WINDOW_BLOCK,
        }
        mean = planes.new_empty(*planes.shape[:3], *inner)
        variance = torch.empty_like(mean)
        count = mean.numel()
        launch(
            kernels.moments_kernel,
            triton.cdiv(count, _WINDOW_BLOCK),
            planes,
            *(planes, self.window, mean, variance, count, *sizes),
            **options,
        )
        similarity = planes.new_empty(groups, len(self.pairs), channels * inner_l)
        count = similarity.numel()
        launch(
            kernels.similarity_kernel,
            triton.cdiv(count, _WINDOW_BLOCK),
            planes,
            planes,
            mean,
            variance,
            pivots,
            self.window,
            self.pairs,
            self.ranges(planes, pivots),
            similarity,
            count,
            images,
            len(self.pairs),
            channels,
            *sizes,
            LUMINANCE=luminance,
            **options,
        )
        means = planes.new_empty(groups, len(self.pairs))
        launch(
            kernels.mean_kernel,
            means.numel(),
            planes,
            *(similarity, means, similarity.shape[2]),
            ACC=acc,
            BLOCK=_BLOCK,
        )
        return means


def _center(maps: Tensor, rescale: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return planes [G, M, C, H, W] around 0 and their pivots [G, M, C]."""
    groups, images, channels, height, width = maps.shape
    planes = torch.empty(maps.shape, dtype=dtype, device=maps.device)
    pivots = planes.new_empty(groups, images, channels)
    launch(
        kernels.center_kernel,
        groups * images * channels,
        maps,
        maps,
        planes,
        pivots,
        images,
        channels,
        height * width,
        maps.stride(0),
        maps.stride(1),
        RESCALE=rescale,
        ACC=ACCUMULATE[dtype],
        BLOCK=_BLOCK,
    )
    return planes, pivots


def _halved(planes: Tensor) -> Tensor:
    """Return the planes at the next coarser scale."""
    height, width = planes.shape[-2:]
    half = planes.new_empty(*planes.shape[:-2], height // 2, width // 2)
    launch(
        kernels.pool_kernel,
        triton.cdiv(half.numel(), _BLOCK),
        planes,
        planes,
        half,
        half.numel(),
        height * width,
        width,
        half.shape[-2] * half.shape[-1],
        half.shape[-1],
        BLOCK=_BLOCK,
    )
    return half


def ms_ssim_triton(
    maps: Tensor,
    pairs: Tensor,
    kernel_size: int,
    sigma: float,
    betas: Sequence[float],
    rescale: bool,
) -> Tensor:
    """Launch the kernels; arguments and result as in `ms_ssim_reference`."""
    groups = maps.shape[0]
    dtype = accumulate_dtype(maps.dtype)
    result = torch.ones(groups, len(pairs), dtype=dtype, device=maps.device)
    if result.numel() == 0:
        return result
    compared = _Pairs(pairs.contiguous(), _window(kernel_size, sigma, result))
    maps = maps if maps[0, 0].is_contiguous() else maps.contiguous()
    per_group = (4 * maps.shape[1] + len(pairs)) * maps[0, 0].numel()
    chunk = max(1, _WORKSPACE // per_group)
    for part, to in zip(maps.split(chunk), result.split(chunk), strict=True):
        planes, pivots = _center(part, rescale, dtype)
        for scale, beta in enumerate(betas):
            planes = planes if scale == 0 else _halved(planes)
            mean = compared.means(planes, pivots, luminance=scale == len(betas) - 1)
            to *= torch.where(mean <= 0, 0.0, mean**beta)
    return result
