"""Multi-scale structural similarity of pairs of maps.

Planes of every scale around their means, where squares and their differences keep most digits; the data range
of each group; moments once per image; and per pair only what both images have to do with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dori_fast.triton_kernels._common import ACCUMULATE, CompileCase

_BLOCK = 1024
_PAIR_BLOCK = 64
# Elements of working memory; groups that do not fit in together are done one after the other.
_WORKSPACE = 1 << 26
_K1 = tl.constexpr(0.01)
_K2 = tl.constexpr(0.03)


@triton.jit
def _center_kernel(
    maps_ptr,
    planes_ptr,
    pivots_ptr,
    M,
    C,
    L,
    stride_g,
    stride_m,
    RESCALE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per plane of L pixels, whose mean (it need not be exact) becomes 0; its pivot is what
    # now stands there. Minima and maxima may skip a NaN; x - x is NaN for it, as for infinities, and
    # 0 for anything else.
    plane = tl.program_id(0).to(tl.int64)
    image = plane // C
    x_ptr = maps_ptr + (image // M) * stride_g + (image % M) * stride_m + (plane % C) * L
    low = tl.full([BLOCK], float("inf"), ACC)
    high = tl.full([BLOCK], float("-inf"), ACC)
    poison = tl.zeros([BLOCK], ACC)
    total = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < L, other=0.0).to(ACC)
        low = tl.minimum(low, tl.where(i < L, x, float("inf")))
        high = tl.maximum(high, tl.where(i < L, x, float("-inf")))
        poison += x - x
        total += x
    least = tl.min(low, 0) + tl.sum(poison, 0)
    largest = tl.max(high, 0) + tl.sum(poison, 0)
    mean = tl.where(largest == least, least, tl.sum(total, 0) / L)
    pivot = mean
    span = tl.full([], 1.0, ACC)
    if RESCALE:
        span = tl.where(largest == least, span, largest - least)
        pivot = (mean - least) / span
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < L, other=0.0).to(ACC)
        tl.store(planes_ptr + plane * L + i, (x - mean) / span, mask=i < L)
    tl.store(pivots_ptr + plane, pivot)


@triton.jit
def _pool_kernel(from_ptr, to_ptr, count, from_L, from_W, L, W, BLOCK: tl.constexpr):
    # Means of 2 x 2 pixels, of all planes in a row.
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = j < count
    i = j % L
    x_ptr = from_ptr + (j // L) * from_L + 2 * (i // W) * from_W + 2 * (i % W)
    x = tl.load(x_ptr, mask=inside) + tl.load(x_ptr + 1, mask=inside)
    x += tl.load(x_ptr + from_W, mask=inside) + tl.load(x_ptr + from_W + 1, mask=inside)
    tl.store(to_ptr + j, 0.25 * x, mask=inside)


@triton.jit
def _extent_kernel(
    planes_ptr,
    pivots_ptr,
    extents_ptr,
    C,
    L,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per image: the least and the largest value, both NaN where one is not finite.
    image = tl.program_id(0).to(tl.int64)
    low = tl.full([BLOCK], float("inf"), ACC)
    high = tl.full([BLOCK], float("-inf"), ACC)
    poison = tl.zeros([BLOCK], ACC)
    for start in range(0, C * L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < C * L
        x = tl.load(planes_ptr + image * C * L + i, mask=inside, other=0.0)
        x += tl.load(pivots_ptr + image * C + i // L, mask=inside, other=0.0)
        low = tl.minimum(low, tl.where(inside, x, float("inf")))
        high = tl.maximum(high, tl.where(inside, x, float("-inf")))
        poison += x - x
    tl.store(extents_ptr + 2 * image, tl.min(low, 0) + tl.sum(poison, 0))
    tl.store(extents_ptr + 2 * image + 1, tl.max(high, 0) + tl.sum(poison, 0))


@triton.jit
def _range_kernel(
    extents_ptr,
    pairs_ptr,
    range_ptr,
    M,
    P,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per group: the larger range of values among first and second members of the pairs,
    # NaN where nothing has contrast or a value is not finite.
    g = tl.program_id(0).to(tl.int64)
    widest = tl.zeros([], ACC)
    for member in range(0, 2):
        low = tl.full([BLOCK], float("inf"), ACC)
        high = tl.full([BLOCK], float("-inf"), ACC)
        poison = tl.zeros([BLOCK], ACC)
        for start in range(0, P, BLOCK):
            k = start + tl.arange(0, BLOCK)
            inside = k < P
            at = extents_ptr + 2 * (g * M + tl.load(pairs_ptr + 2 * k + member, mask=inside, other=0))
            least = tl.load(at, mask=inside, other=float("inf"))
            largest = tl.load(at + 1, mask=inside, other=float("-inf"))
            low = tl.minimum(low, least)
            high = tl.maximum(high, largest)
            poison += tl.where(inside, least - largest, 0.0)
        poisoned = tl.sum(poison, 0)
        widest = tl.maximum(widest, tl.max(high, 0) - tl.min(low, 0)) + (poisoned - poisoned)
    tl.store(range_ptr + g, tl.where(widest > 0, widest, float("nan")))


@triton.jit
def _moments_kernel(
    planes_ptr,
    window_ptr,
    mean_ptr,
    variance_ptr,
    count,
    L,
    W,
    inner_L,
    inner_W,
    ACC: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # The pixels around which the whole window fits, of all planes in a row.
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = j < count
    i = j % inner_L
    x_ptr = planes_ptr + (j // inner_L) * L + (i // inner_W) * W + i % inner_W
    mean = tl.zeros([BLOCK], ACC)
    square = tl.zeros([BLOCK], ACC)
    for row in range(0, WINDOW):
        row_mean = tl.zeros([BLOCK], ACC)
        row_square = tl.zeros([BLOCK], ACC)
        for column in tl.static_range(WINDOW):
            weight = tl.load(window_ptr + column)
            x = tl.load(x_ptr + column, mask=inside, other=0.0)
            row_mean += weight * x
            row_square += weight * (x * x)
        row_weight = tl.load(window_ptr + row)
        mean += row_weight * row_mean
        square += row_weight * row_square
        x_ptr += W
    variance = square - mean * mean
    tl.store(mean_ptr + j, mean, mask=inside)
    tl.store(variance_ptr + j, tl.where(variance < 0, 0.0, variance), mask=inside)


@triton.jit
def _similarity_kernel(
    planes_ptr,
    mean_ptr,
    variance_ptr,
    pivots_ptr,
    window_ptr,
    pairs_ptr,
    range_ptr,
    to_ptr,
    count,
    M,
    P,
    C,
    L,
    W,
    inner_L,
    inner_W,
    LUMINANCE: tl.constexpr,
    ACC: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # to is [G, P, C, inner_L], in a row.
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = j < count
    i = j % inner_L
    c = (j // inner_L) % C
    pair = j // inner_L // C
    g = pair // P
    k = pair % P
    first = (g * M + tl.load(pairs_ptr + 2 * k, mask=inside, other=0)) * C + c
    second = (g * M + tl.load(pairs_ptr + 2 * k + 1, mask=inside, other=0)) * C + c
    pixel = (i // inner_W) * W + i % inner_W
    x_ptr = planes_ptr + first * L + pixel
    y_ptr = planes_ptr + second * L + pixel
    product = tl.zeros([BLOCK], ACC)
    for row in range(0, WINDOW):
        row_product = tl.zeros([BLOCK], ACC)
        for column in tl.static_range(WINDOW):
            x = tl.load(x_ptr + column, mask=inside, other=0.0)
            y = tl.load(y_ptr + column, mask=inside, other=0.0)
            row_product += tl.load(window_ptr + column) * (x * y)
        product += tl.load(window_ptr + row) * row_product
        x_ptr += W
        y_ptr += W
    data_range = tl.load(range_ptr + g, mask=inside, other=1.0)
    c1 = (_K1 * data_range) * (_K1 * data_range)
    c2 = (_K2 * data_range) * (_K2 * data_range)
    a = tl.load(mean_ptr + first * inner_L + i, mask=inside, other=0.0)
    b = tl.load(mean_ptr + second * inner_L + i, mask=inside, other=0.0)
    upper = 2 * (product - a * b) + c2
    lower = tl.load(variance_ptr + first * inner_L + i, mask=inside, other=0.0) + c2
    lower += tl.load(variance_ptr + second * inner_L + i, mask=inside, other=0.0)
    if LUMINANCE:
        a += tl.load(pivots_ptr + first, mask=inside, other=0.0)
        b += tl.load(pivots_ptr + second, mask=inside, other=0.0)
        upper *= 2 * a * b + c1
        lower *= a * a + b * b + c1
    tl.store(to_ptr + j, upper / lower, mask=inside)


@triton.jit
def _mean_kernel(from_ptr, to_ptr, L, ACC: tl.constexpr, BLOCK: tl.constexpr):
    # One program per row of L numbers, always summed in the same order.
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(from_ptr + row * L + i, mask=i < L, other=0.0)
    tl.store(to_ptr + row, tl.sum(total, 0) / L)


def _window(kernel_size: int, sigma: float, like: Tensor) -> Tensor:
    half = (kernel_size - 1) / 2
    weights = [math.exp(-(((i - half) / sigma) ** 2) / 2) for i in range(kernel_size)]
    total = math.fsum(weights)
    return torch.tensor([weight / total for weight in weights], dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class _Pairs:
    """What is compared with what, and the window to look through."""

    pairs: Tensor
    window: Tensor

    def ranges(self, planes: Tensor, pivots: Tensor) -> Tensor:
        """Data range [G] at one scale."""
        groups, images, channels, height, width = planes.shape
        acc = ACCUMULATE[planes.dtype]
        extents = planes.new_empty(groups, images, 2)
        _extent_kernel[(groups * images,)](
            planes, pivots, extents, channels, height * width, ACC=acc, BLOCK=_BLOCK
        )
        ranges = planes.new_empty(groups)
        _range_kernel[(groups,)](
            extents, self.pairs, ranges, images, len(self.pairs), ACC=acc, BLOCK=_PAIR_BLOCK
        )
        return ranges

    def means(self, planes: Tensor, pivots: Tensor, luminance: bool) -> Tensor:
        """Mean similarity [G, P] at one scale."""
        groups, images, channels, height, width = planes.shape
        inner = (height - len(self.window) + 1, width - len(self.window) + 1)
        inner_l = inner[0] * inner[1]
        sizes = (height * width, width, inner_l, inner[1])
        acc = ACCUMULATE[planes.dtype]
        options: dict[str, Any] = {"ACC": acc, "WINDOW": len(self.window), "BLOCK": _BLOCK}
        mean = planes.new_empty(*planes.shape[:3], *inner)
        variance = torch.empty_like(mean)
        count = mean.numel()
        _moments_kernel[(triton.cdiv(count, _BLOCK),)](
            planes, self.window, mean, variance, count, *sizes, **options
        )
        similarity = planes.new_empty(groups, len(self.pairs), channels * inner_l)
        count = similarity.numel()
        _similarity_kernel[(triton.cdiv(count, _BLOCK),)](
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
        _mean_kernel[(means.numel(),)](
            similarity, means, similarity.shape[2], ACC=acc, BLOCK=_BLOCK
        )
        return means


def _center(maps: Tensor, rescale: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Planes [G, M, C, H, W] around 0 and their pivots [G, M, C]."""
    groups, images, channels, height, width = maps.shape
    planes = torch.empty(maps.shape, dtype=dtype, device=maps.device)
    pivots = planes.new_empty(groups, images, channels)
    _center_kernel[(groups * images * channels,)](
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
    height, width = planes.shape[-2:]
    half = planes.new_empty(*planes.shape[:-2], height // 2, width // 2)
    _pool_kernel[(triton.cdiv(half.numel(), _BLOCK),)](
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
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    result = torch.ones(groups, len(pairs), dtype=dtype, device=maps.device)
    if result.numel() == 0:
        return result
    compared = _Pairs(pairs.contiguous(), _window(kernel_size, sigma, result))
    maps = maps if maps[0, 0].is_contiguous() else maps.contiguous()
    per_group = (4 * maps.shape[1] + len(pairs)) * maps[0, 0].numel()
    chunk = max(1, _WORKSPACE // per_group)
    with torch.cuda.device_of(maps):
        for part, to in zip(maps.split(chunk), result.split(chunk), strict=True):
            planes, pivots = _center(part, rescale, dtype)
            for scale, beta in enumerate(betas):
                planes = planes if scale == 0 else _halved(planes)
                mean = compared.means(planes, pivots, luminance=scale == len(betas) - 1)
                to *= torch.where(mean <= 0, 0.0, mean**beta)
    return result
