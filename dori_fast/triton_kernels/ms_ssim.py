"""Multi-scale structural similarity of pairs of maps.

Planes of every scale around their means, where squares and their differences keep most digits; the
data range of each group; moments once per image; and per pair only what both images have to do with
each other.
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

from dori_fast.triton_kernels import _ms_ssim_kernels as kernels
from dori_fast.triton_kernels._common import ACCUMULATE, CompileCase

_BLOCK = 1024
# Smaller where a pixel takes many registers.
_WINDOW_BLOCK = 256
_PAIR_BLOCK = 64
# Elements of working memory; groups that do not fit in together are done one after the other.
_WORKSPACE = 1 << 26


def _window(kernel_size: int, sigma: float, like: Tensor) -> Tensor:
    half = (kernel_size - 1) / 2
    weights = [math.exp(-(((i - half) / sigma) ** 2) / 2) for i in range(kernel_size)]
    total = math.fsum(weights)
    return torch.tensor(
        [weight / total for weight in weights], dtype=like.dtype, device=like.device
    )


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
        kernels.extent_kernel[(groups * images,)](
            planes, pivots, extents, channels, height * width, ACC=acc, BLOCK=_BLOCK
        )
        ranges = planes.new_empty(groups)
        kernels.range_kernel[(groups,)](
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
        options: dict[str, Any] = {
            "ACC": acc,
            "WINDOW": len(self.window),
            "BLOCK": _WINDOW_BLOCK,
        }
        mean = planes.new_empty(*planes.shape[:3], *inner)
        variance = torch.empty_like(mean)
        count = mean.numel()
        kernels.moments_kernel[(triton.cdiv(count, _WINDOW_BLOCK),)](
            planes, self.window, mean, variance, count, *sizes, **options
        )
        similarity = planes.new_empty(groups, len(self.pairs), channels * inner_l)
        count = similarity.numel()
        kernels.similarity_kernel[(triton.cdiv(count, _WINDOW_BLOCK),)](
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
        kernels.mean_kernel[(means.numel(),)](
            similarity, means, similarity.shape[2], ACC=acc, BLOCK=_BLOCK
        )
        return means


def _center(maps: Tensor, rescale: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Planes [G, M, C, H, W] around 0 and their pivots [G, M, C]."""
    groups, images, channels, height, width = maps.shape
    planes = torch.empty(maps.shape, dtype=dtype, device=maps.device)
    pivots = planes.new_empty(groups, images, channels)
    kernels.center_kernel[(groups * images * channels,)](
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
    kernels.pool_kernel[(triton.cdiv(half.numel(), _BLOCK),)](
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


def _compile_case(
    name: str,
    kernel: Any,
    pointers: dict[str, str],
    sizes: Sequence[str],
    constexprs: dict[str, Any],
    aligned: Sequence[str] = (),
) -> CompileCase:
    return CompileCase(
        name=f"ms_ssim-{name}",
        kernel=kernel,
        signature={
            **pointers,
            **{size: "i64" if size.startswith(("count", "stride")) else "i32" for size in sizes},
            **dict.fromkeys(constexprs, "constexpr"),
        },
        constexprs=constexprs,
        aligned=tuple(aligned),
        vector_loads=bool(aligned),
    )


def _compile_cases(element: str) -> tuple[CompileCase, ...]:
    """Every kernel for one element type of maps; all but the first see float32 or float64 alone."""
    wide = "fp64" if element == "fp64" else "fp32"
    acc = tl.float64 if wide == "fp64" else tl.float32

    def work(*names: str) -> dict[str, str]:
        return {f"{name}_ptr": "*i64" if name == "pairs" else f"*{wide}" for name in names}

    center_pointers = {"maps_ptr": f"*{element}", **work("planes", "pivots")}
    center_sizes = ("M", "C", "L", "stride_g", "stride_m")
    center = _compile_case(
        f"center-{element}",
        kernels.center_kernel,
        center_pointers,
        center_sizes,
        {"RESCALE": True, "ACC": acc, "BLOCK": _BLOCK},
        aligned=(*center_pointers, "L", "stride_g", "stride_m"),
    )
    if element not in ("fp32", "fp64"):
        return (center,)
    block = {"ACC": acc, "BLOCK": _BLOCK}
    window = {"ACC": acc, "WINDOW": 11, "BLOCK": _WINDOW_BLOCK}
    sizes = ("L", "W", "inner_L", "inner_W")
    compared = ("planes", "mean", "variance", "pivots", "window", "pairs", "range", "to")
    return (
        center,
        _compile_case(
            f"pool-{wide}",
            kernels.pool_kernel,
            work("from", "to"),
            ("count", "from_L", "from_W", "L", "W"),
            {"BLOCK": _BLOCK},
        ),
        _compile_case(
            f"extent-{wide}",
            kernels.extent_kernel,
            work("planes", "pivots", "extents"),
            ("C", "L"),
            block,
        ),
        _compile_case(
            f"range-{wide}",
            kernels.range_kernel,
            work("extents", "pairs", "range"),
            ("M", "P"),
            {"ACC": acc, "BLOCK": _PAIR_BLOCK},
        ),
        _compile_case(
            f"moments-{wide}",
            kernels.moments_kernel,
            work("planes", "window", "mean", "variance"),
            ("count", *sizes),
            window,
        ),
        *(
            _compile_case(
                f"{'similarity' if luminance else 'contrast'}-{wide}",
                kernels.similarity_kernel,
                work(*compared),
                ("count", "M", "P", "C", *sizes),
                {"LUMINANCE": luminance, **window},
            )
            for luminance in (True, False)
        ),
        _compile_case(f"mean-{wide}", kernels.mean_kernel, work("from", "to"), ("L",), block),
    )


COMPILE_CASES = tuple(
    case for element in ("fp32", "bf16", "fp16", "fp64") for case in _compile_cases(element)
)
