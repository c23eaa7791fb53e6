"""Multi-scale structural similarity of pairs of maps.

Per group: planes of every scale with their extents, the data range, moments once per image, and for
each pair only what both images have to do with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import ACCUMULATE, CompileCase

_BLOCK = 1024
_PAIR_BLOCK = 64
# Elements of the workspace; more groups than fit into it are done one after the other.
_WORKSPACE = 1 << 26
_K1 = tl.constexpr(0.01)
_K2 = tl.constexpr(0.03)


@triton.jit
def _planes_kernel(
    maps_ptr,
    planes_ptr,
    extents_ptr,
    M,
    C,
    L,
    stride_g,
    stride_m,
    RESCALE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per plane of L pixels. Minima and maxima may skip a NaN; x - x is NaN for it, as for
    # infinities, and 0 for anything else.
    plane = tl.program_id(0).to(tl.int64)
    image = plane // C
    x_ptr = maps_ptr + (image // M) * stride_g + (image % M) * stride_m + (plane % C) * L
    low = tl.full([BLOCK], float("inf"), ACC)
    high = tl.full([BLOCK], float("-inf"), ACC)
    poison = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < L
        x = tl.load(x_ptr + i, mask=inside, other=0.0).to(ACC)
        low = tl.minimum(low, tl.where(inside, x, float("inf")))
        high = tl.maximum(high, tl.where(inside, x, float("-inf")))
        poison += x - x
    least = tl.min(low, 0) + tl.sum(poison, 0)
    largest = tl.max(high, 0) + tl.sum(poison, 0)
    offset = tl.zeros([], ACC)
    span = offset + 1.0
    if RESCALE:
        offset = least
        span = tl.where(largest == least, span, largest - least)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < L, other=0.0).to(ACC)
        tl.store(planes_ptr + plane * L + i, (x - offset) / span, mask=i < L)
    tl.store(extents_ptr + 2 * plane, (least - offset) / span)
    tl.store(extents_ptr + 2 * plane + 1, (largest - offset) / span)


@triton.jit
def _pool_kernel(
    from_ptr,
    to_ptr,
    extents_ptr,
    from_L,
    from_W,
    L,
    W,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per plane: means of 2 x 2 pixels. A NaN has already made its whole plane NaN.
    plane = tl.program_id(0).to(tl.int64)
    low = tl.full([BLOCK], float("inf"), ACC)
    high = tl.full([BLOCK], float("-inf"), ACC)
    poison = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < L
        x_ptr = from_ptr + plane * from_L + 2 * (i // W) * from_W + 2 * (i % W)
        x = tl.load(x_ptr, mask=inside, other=0.0) + tl.load(x_ptr + 1, mask=inside, other=0.0)
        x += tl.load(x_ptr + from_W, mask=inside, other=0.0)
        x += tl.load(x_ptr + from_W + 1, mask=inside, other=0.0)
        x = 0.25 * x
        tl.store(to_ptr + plane * L + i, x, mask=inside)
        low = tl.minimum(low, tl.where(inside, x, float("inf")))
        high = tl.maximum(high, tl.where(inside, x, float("-inf")))
        poison += x - x
    tl.store(extents_ptr + 2 * plane, tl.min(low, 0) + tl.sum(poison, 0))
    tl.store(extents_ptr + 2 * plane + 1, tl.max(high, 0) + tl.sum(poison, 0))


@triton.jit
def _range_kernel(
    extents_ptr,
    pairs_ptr,
    range_ptr,
    M,
    C,
    P,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per (group, scale): the larger range of values among first and second members of
    # the pairs, NaN where nothing has contrast or a value is not finite.
    g = tl.program_id(0).to(tl.int64)
    groups = tl.num_programs(0).to(tl.int64)
    scale = tl.program_id(1).to(tl.int64)
    group_ptr = extents_ptr + 2 * (scale * groups + g) * M * C
    widest = tl.zeros([], ACC)
    for member in range(0, 2):
        low = tl.full([BLOCK], float("inf"), ACC)
        high = tl.full([BLOCK], float("-inf"), ACC)
        poison = tl.zeros([BLOCK], ACC)
        for start in range(0, P, BLOCK):
            k = start + tl.arange(0, BLOCK)
            inside = k < P
            image = tl.load(pairs_ptr + 2 * k + member, mask=inside, other=0)
            for c in range(0, C):
                at = group_ptr + 2 * (image * C + c)
                least = tl.load(at, mask=inside, other=float("inf"))
                largest = tl.load(at + 1, mask=inside, other=float("-inf"))
                low = tl.minimum(low, least)
                high = tl.maximum(high, largest)
                poison += tl.where(inside, least - largest, 0.0)
        span = tl.max(high, 0) - tl.min(low, 0)
        poisoned = tl.sum(poison, 0)
        widest = tl.maximum(widest, span) + (poisoned - poisoned)
    tl.store(range_ptr + scale * groups + g, tl.where(widest > 0, widest, float("nan")))


@triton.jit
def _moments_kernel(
    planes_ptr,
    window_ptr,
    mean_ptr,
    variance_ptr,
    L,
    W,
    inner_L,
    inner_W,
    ACC: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per plane and block of the pixels around which the whole window fits.
    plane = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < inner_L
    x_ptr = planes_ptr + plane * L + (i // inner_W) * W + i % inner_W
    mean = tl.zeros([BLOCK], ACC)
    square = tl.zeros([BLOCK], ACC)
    for row in range(0, WINDOW):
        row_weight = tl.load(window_ptr + row)
        for column in tl.static_range(WINDOW):
            weight = row_weight * tl.load(window_ptr + column)
            x = tl.load(x_ptr + row * W + column, mask=inside, other=0.0)
            mean += weight * x
            square += weight * (x * x)
    variance = square - mean * mean
    to = plane * inner_L + i
    tl.store(mean_ptr + to, mean, mask=inside)
    tl.store(variance_ptr + to, tl.where(variance < 0, 0.0, variance), mask=inside)


@triton.jit
def _similarity_kernel(
    planes_ptr,
    mean_ptr,
    variance_ptr,
    window_ptr,
    pairs_ptr,
    range_ptr,
    sums_ptr,
    M,
    P,
    L,
    W,
    inner_L,
    inner_W,
    LUMINANCE: tl.constexpr,
    ACC: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per (group, pair) and channel, always summed in the same order; sums is [G, P, C].
    row_of_sums = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64)
    C = tl.num_programs(1).to(tl.int64)
    g = row_of_sums // P
    k = row_of_sums % P
    first = (g * M + tl.load(pairs_ptr + 2 * k)) * C + c
    second = (g * M + tl.load(pairs_ptr + 2 * k + 1)) * C + c
    data_range = tl.load(range_ptr + g)
    c1 = (_K1 * data_range) * (_K1 * data_range)
    c2 = (_K2 * data_range) * (_K2 * data_range)
    total = tl.zeros([BLOCK], ACC)
    for start in range(0, inner_L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < inner_L
        pixel = (i // inner_W) * W + i % inner_W
        covariance = tl.zeros([BLOCK], ACC)
        for row in range(0, WINDOW):
            row_weight = tl.load(window_ptr + row)
            for column in tl.static_range(WINDOW):
                weight = row_weight * tl.load(window_ptr + column)
                at = pixel + row * W + column
                x = tl.load(planes_ptr + first * L + at, mask=inside, other=0.0)
                y = tl.load(planes_ptr + second * L + at, mask=inside, other=0.0)
                covariance += weight * (x * y)
        a = tl.load(mean_ptr + first * inner_L + i, mask=inside, other=0.0)
        b = tl.load(mean_ptr + second * inner_L + i, mask=inside, other=0.0)
        covariance -= a * b
        upper = 2 * covariance + c2
        lower = tl.load(variance_ptr + first * inner_L + i, mask=inside, other=0.0) + c2
        lower += tl.load(variance_ptr + second * inner_L + i, mask=inside, other=0.0)
        if LUMINANCE:
            upper *= 2 * a * b + c1
            lower *= a * a + b * b + c1
        total += tl.where(inside, upper / lower, 0.0)
    tl.store(sums_ptr + row_of_sums * C + c, tl.sum(total, 0))


def _window(kernel_size: int, sigma: float, like: Tensor) -> Tensor:
    half = (kernel_size - 1) / 2
    weights = [math.exp(-(((i - half) / sigma) ** 2) / 2) for i in range(kernel_size)]
    total = math.fsum(weights)
    return torch.tensor([weight / total for weight in weights], dtype=like.dtype, device=like.device)


def _pyramid(maps: Tensor, scales: int, rescale: bool, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Planes [G, M, C, H_s, W_s] of every scale and their extents [scales, G, M, C, 2]."""
    groups, images, channels, height, width = maps.shape
    count = groups * images * channels
    options: dict[str, Any] = {"ACC": ACCUMULATE[dtype], "BLOCK": _BLOCK}
    extents = torch.empty(scales, *maps.shape[:3], 2, dtype=dtype, device=maps.device)
    planes = [torch.empty(maps.shape, dtype=dtype, device=maps.device)]
    _planes_kernel[(count,)](
        maps,
        planes[0],
        extents,
        images,
        channels,
        height * width,
        maps.stride(0),
        maps.stride(1),
        RESCALE=rescale,
        **options,
    )
    for scale in range(1, scales):
        above = planes[-1]
        h, w = height >> scale, width >> scale
        planes.append(above.new_empty(*maps.shape[:3], h, w))
        sizes = (above.shape[-2] * above.shape[-1], above.shape[-1], h * w, w)
        _pool_kernel[(count,)](above, planes[-1], extents[scale], *sizes, **options)
    return planes, extents


def _mean_similarity(
    planes: Tensor, pairs: Tensor, window: Tensor, data_range: Tensor, luminance: bool
) -> Tensor:
    """Mean similarity [G, P] at one scale."""
    groups, images, channels, height, width = planes.shape
    inner_h, inner_w = height - len(window) + 1, width - len(window) + 1
    sizes = (height * width, width, inner_h * inner_w, inner_w)
    options: dict[str, Any] = {
        "ACC": ACCUMULATE[planes.dtype],
        "WINDOW": len(window),
        "BLOCK": _BLOCK,
    }
    mean = planes.new_empty(*planes.shape[:3], inner_h, inner_w)
    variance = torch.empty_like(mean)
    grid = (groups * images * channels, triton.cdiv(inner_h * inner_w, _BLOCK))
    _moments_kernel[grid](planes, window, mean, variance, *sizes, **options)
    sums = planes.new_empty(groups, len(pairs), channels)
    _similarity_kernel[(groups * len(pairs), channels)](
        planes,
        mean,
        variance,
        window,
        pairs,
        data_range,
        sums,
        images,
        len(pairs),
        *sizes,
        LUMINANCE=luminance,
        **options,
    )
    return sums.sum(2) / (channels * inner_h * inner_w)


def ms_ssim_triton(
    maps: Tensor,
    pairs: Tensor,
    kernel_size: int,
    sigma: float,
    betas: Sequence[float],
    rescale: bool,
) -> Tensor:
    """Launch the kernels; arguments and result as in `ms_ssim_reference`."""
    groups, images, channels = maps.shape[:3]
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    result = torch.ones(groups, len(pairs), dtype=dtype, device=maps.device)
    if result.numel() == 0:
        return result
    pairs = pairs.contiguous()
    if not maps[0, 0].is_contiguous():
        maps = maps.contiguous()
    window = _window(kernel_size, sigma, result)
    chunk = max(1, _WORKSPACE // (4 * maps[0].numel()))
    for first in range(0, groups, chunk):
        part = maps[first : first + chunk]
        planes, extents = _pyramid(part, len(betas), rescale, dtype)
        ranges = extents.new_empty(len(betas), len(part))
        _range_kernel[(len(part), len(betas))](
            extents,
            pairs,
            ranges,
            images,
            channels,
            len(pairs),
            ACC=ACCUMULATE[dtype],
            BLOCK=_PAIR_BLOCK,
        )
        for scale, beta in enumerate(betas):
            luminance = scale == len(betas) - 1
            mean = _mean_similarity(planes[scale], pairs, window, ranges[scale], luminance)
            result[first : first + chunk] *= torch.where(mean <= 0, 0.0, mean**beta)
    return result
