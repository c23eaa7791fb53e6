"""Multi-scale structural similarity of pairs of maps within groups.

G groups, S maps per group (one per seed), C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op
from dori_fast.reference.ms_ssim import ms_ssim_reference

__all__ = ["MsSsimSettings", "largest_per_map", "ms_ssim", "ms_ssim_pairs", "ms_ssim_settings"]

# NeMo's; the exponents of all scales sum to about 1
_BETAS = (0.33, 0.33, 0.33)
_KERNEL_SIZE, _SIGMA = 11, 1.5
# A window below 5 pixels sees little structure: a scale is dropped before the window shrinks to 3.
_COMFORTABLE, _SMALLEST = 5, 3
_LARGEST, _MOST_SCALES = 11, 8


def _fake(maps: Tensor, pairs: Tensor, *settings: Any) -> Tensor:
    return maps.new_empty(
        (maps.shape[0], pairs.shape[0]), dtype=_checks.accumulate_dtype(maps.dtype)
    )


_OP = define_op(
    "ms_ssim",
    "(Tensor maps, Tensor pairs, int kernel_size, float sigma, float[] betas, bool rescale)"
    " -> Tensor",
    reference=ms_ssim_reference,
    fake=_fake,
    triton="dori_fast.triton_kernels.ms_ssim:ms_ssim_triton",
)


@dataclass(frozen=True)
class MsSsimSettings:
    """Settings of MS-SSIM for maps of one size.

    Attributes:
        kernel_size: length of the Gaussian window in pixels, odd.
        sigma: standard deviation of the window in pixels.
        betas: exponent of each scale, finest first.
    """

    kernel_size: int
    sigma: float
    betas: tuple[float, ...]

    @property
    def n_scales(self) -> int:
        """Number of scales."""
        return len(self.betas)


def ms_ssim_settings(
    height: int,
    width: int,
    kernel_size: int = _KERNEL_SIZE,
    sigma: float = _SIGMA,
    betas: Sequence[float] = _BETAS,
) -> MsSsimSettings:
    """Return the settings that `ms_ssim` uses on maps [*, height, width].

    The window must fit into the coarsest scale. If it does not, it shrinks to the largest odd
    length that fits, down to 5 pixels, and sigma shrinks with it. If that is not enough, the
    coarsest scales are dropped, and the exponents of the others are raised so that their sum stays.
    The last resort is a window of 3. NeMo's settings (11 pixels, 3 scales) fit from 44 x 44 on;
    32 x 32 gets (7, 3), 16 x 16 gets (7, 2).

    Args:
        height: height of a map in pixels, at least 3.
        width: width of a map in pixels, at least 3.
        kernel_size: preferred length of the window in pixels, odd, 3 to 11.
        sigma: standard deviation of the preferred window in pixels, positive.
        betas: exponents of the preferred scales, 1 to 8 positive numbers.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_settings(kernel_size, sigma, betas)
    side = min(height, width)
    for acceptable in (min(_COMFORTABLE, kernel_size), _SMALLEST):
        for scales in range(len(betas), 0, -1):
            room = side >> (scales - 1)
            fitting = min(kernel_size, room - 1 + room % 2)
            if fitting >= acceptable:
                raised = sum(betas) / sum(betas[:scales])
                return MsSsimSettings(
                    kernel_size=fitting,
                    sigma=sigma * (fitting / kernel_size),
                    betas=tuple(float(beta) * raised for beta in betas[:scales]),
                )
    _checks.reject("ms_ssim", "maps", f"at least {_SMALLEST} pixels a side", [height, width])


def _check_settings(kernel_size: int, sigma: float, betas: Sequence[float]) -> None:
    op = "ms_ssim"
    if kernel_size % 2 == 0 or not _SMALLEST <= kernel_size <= _LARGEST:
        _checks.reject(op, "kernel_size", f"odd, {_SMALLEST} to {_LARGEST}", kernel_size)
    if not sigma > 0:
        _checks.reject(op, "sigma", "positive", sigma)
    if not 1 <= len(betas) <= _MOST_SCALES or not all(beta > 0 for beta in betas):
        _checks.reject(op, "betas", f"1 to {_MOST_SCALES} positive numbers", tuple(betas))


def _check_maps(argument: str, maps: Tensor) -> None:
    _checks.floating_tensor("ms_ssim", argument, maps)
    shape = maps.shape
    if len(shape) != 5 or 0 in shape[2:]:
        _checks.reject("ms_ssim", argument, "[G, S, C, H, W]", _checks.shape_of(maps))


def _compute(
    maps: Tensor, pairs: Tensor, settings: MsSsimSettings, rescale: bool, backend: str
) -> Tensor:
    compute = select(_OP, backend, maps)
    if compute is not _OP.reference and maps.requires_grad and torch.is_grad_enabled():
        if backend != "auto":
            raise RuntimeError(
                f"ms_ssim: backend '{backend}' has no gradient; use 'auto' or 'reference', or "
                "detach the maps"
            )
        compute = _OP.reference
    result: Tensor = compute(
        maps, pairs, settings.kernel_size, settings.sigma, list(settings.betas), rescale
    )
    return result


def ms_ssim(
    maps: Tensor,
    *,
    kernel_size: int = _KERNEL_SIZE,
    sigma: float = _SIGMA,
    betas: Sequence[float] = _BETAS,
    rescale: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Return the MS-SSIM of all pairs of each group's S maps, with one data range per group.

    Args:
        maps: [G, S, C, H, W], H and W at least 3.
        kernel_size: length of the Gaussian window in pixels, odd. Small maps get a smaller window
            and fewer scales, as `ms_ssim_settings(H, W, ...)` returns them.
        sigma: standard deviation of the window in pixels.
        betas: exponent of each scale, finest first.
        rescale: stretch each channel of each map to [0, 1] first; default True. A constant channel
            becomes 0 (NeMo's code divides 0 by 0 there and gets NaN).
        backend: implementation; see `dori_fast.ops`.

    Returns:
        [G, S * (S - 1) / 2] float32 (float64 for float64 maps), pairs in the order of
        `torch.combinations(torch.arange(S))`. A group is NaN if a map is not finite or nothing has
        contrast. Differentiable: while gradients are recorded, "auto" is the reference.

    Raises:
        RuntimeError: gradients are recorded and the named backend has none.
    """
    _check_maps("maps", maps)
    _, seeds, _, height, width = maps.shape
    settings = ms_ssim_settings(height, width, kernel_size, sigma, betas)
    pairs = torch.triu_indices(seeds, seeds, 1, device=maps.device).T.contiguous()
    return _compute(maps, pairs, settings, rescale, backend)


def ms_ssim_pairs(
    first: Tensor,
    second: Tensor,
    *,
    kernel_size: int = _KERNEL_SIZE,
    sigma: float = _SIGMA,
    betas: Sequence[float] = _BETAS,
    rescale: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Return the MS-SSIM of each map of one stack with its partner in another.

    NeMo compares a prompt's maps before and after blocking neurons, seed by seed. A group is one
    mask; all masks may share the maps before blocking.

    Args:
        first: [G, S, C, H, W], or [S, C, H, W] shared by all groups; see `maps` of `ms_ssim`.
        second: [G, S, C, H, W].
        kernel_size: as in `ms_ssim`.
        sigma: as in `ms_ssim`.
        betas: as in `ms_ssim`.
        rescale: as in `ms_ssim`.
        backend: as in `ms_ssim`.

    Returns:
        [G, S] float32 (float64 for float64 maps), otherwise as `ms_ssim`.

    Raises:
        RuntimeError: gradients are recorded and the named backend has none.
    """
    _check_maps("second", second)
    _checks.floating_tensor("ms_ssim", "first", first)
    shape = second.shape
    if first.shape != shape and first.shape != shape[1:]:
        expected = f"{list(shape[1:])} or {list(shape)} for second {list(shape)}"
        _checks.reject("ms_ssim", "first", expected, _checks.shape_of(first))
    _checks.same_dtype_and_device("ms_ssim", "first", first, "second", second)
    settings = ms_ssim_settings(shape[-2], shape[-1], kernel_size, sigma, betas)
    seed = torch.arange(shape[1], device=second.device)
    pairs = torch.stack([seed, seed + shape[1]], 1)
    return _compute(torch.cat([first.expand(shape), second], 1), pairs, settings, rescale, backend)


def largest_per_map(similarity: Tensor) -> Tensor:
    """Return each map's largest similarity to another map of its group.

    Args:
        similarity: [G, S * (S - 1) / 2], all pairs of S maps as `ms_ssim` returns them.

    Returns:
        [G, S], same dtype.
    """
    n = (1 + math.isqrt(1 + 8 * similarity.shape[1])) // 2
    first, second = torch.triu_indices(n, n, 1, device=similarity.device)
    square = similarity.new_full((similarity.shape[0], n, n), -torch.inf)
    square[:, first, second] = square[:, second, first] = similarity
    return square.amax(dim=2)
