"""Multi-scale structural similarity of pairs of maps, in plain torch.

Wang, Simoncelli and Bovik, "Multi-Scale Structural Similarity for Image Quality Assessment"
(Asilomar 2003), as NeMo (Hintersdorf et al., NeurIPS 2024) uses it on noise differences: through
torchmetrics 1.3.2 with `kernel_size=11, betas=(0.33,) * 3, reduction="none", data_range=None`.
Later versions of torchmetrics also count the borders at the last scale and give other numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dori_fast._checks import to_device
from dori_fast.reference import Inputs, OpSpec, accumulate_dtype, randn

K1, K2 = 0.01, 0.03


def gaussian_window(kernel_size: int, sigma: float) -> Tensor:
    """Return float64 [kernel_size], Gaussian weights that sum to 1."""
    distance = torch.arange(kernel_size, dtype=torch.float64) - (kernel_size - 1) / 2
    weights = torch.exp(-((distance / sigma) ** 2) / 2)
    return weights / weights.sum()


def _min_max(maps: Tensor) -> Tensor:
    """Stretch each channel of each image to [0, 1]; a constant channel becomes 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / torch.where(high == low, 1.0, high - low)


def _blur(planes: Tensor, window: Tensor) -> Tensor:
    """Blur [..., H, W] to [..., H - k + 1, W - k + 1]: only pixels where the whole window fits."""
    flat = planes.reshape(-1, 1, *planes.shape[-2:])
    blurred = functional.conv2d(flat, window.reshape(1, 1, -1, 1))
    blurred = functional.conv2d(blurred, window.reshape(1, 1, 1, -1))
    return blurred.reshape(*planes.shape[:-2], *blurred.shape[-2:])


def _data_range(first: Tensor, second: Tensor) -> Tensor:
    """Return [G, 1, 1, 1, 1], the larger of the ranges of first and of second members of pairs."""
    dims = (1, 2, 3, 4)
    spans = [x.amax(dims, keepdim=True) - x.amin(dims, keepdim=True) for x in (first, second)]
    return torch.maximum(*spans)


def _similarity(maps: Tensor, pairs: Tensor, window: Tensor, contrast_only: bool) -> Tensor:
    """Return the mean similarity [G, K] at one scale; `contrast_only` leaves out luminance."""
    # deviations from a plane's mean have the same (co)variances, and their squares lose less
    level = maps.mean((-2, -1), keepdim=True)
    planes = maps - level
    mean = _blur(planes, window)
    variance = (_blur(planes.square(), window) - mean.square()).clamp(min=0)
    i, j = pairs.unbind(1)
    covariance = _blur(planes[:, i] * planes[:, j], window) - mean[:, i] * mean[:, j]
    data_range = _data_range(maps[:, i], maps[:, j])
    # without any contrast there is nothing to compare; rounding must not decide
    data_range = torch.where(data_range == 0, torch.nan, data_range)
    c1, c2 = (K1 * data_range).square(), (K2 * data_range).square()
    similarity = (2 * covariance + c2) / (variance[:, i] + variance[:, j] + c2)
    if not contrast_only:
        mean = mean + level
        luminance = (2 * mean[:, i] * mean[:, j] + c1) / (
            mean[:, i].square() + mean[:, j].square() + c1
        )
        similarity = similarity * luminance
    return similarity.mean((2, 3, 4))


def _clipped_power(base: Tensor, exponent: float) -> Tensor:
    """Return max(base, 0) ** exponent, with gradient 0 (not NaN) where it is clipped."""
    clipped = base <= 0
    return torch.where(clipped, 0.0, torch.where(clipped, 1.0, base) ** exponent)


def ms_ssim_reference(
    maps: Tensor,
    pairs: Tensor,
    kernel_size: int,
    sigma: float,
    betas: Sequence[float],
    rescale: bool,
) -> Tensor:
    """Compute the multi-scale SSIM of pairs (x, y) of images within each group.

    At each scale s, with Gaussian-weighted means, variances and covariance at each pixel where the
    whole window fits, and with c1 = (0.01 L)^2, c2 = (0.03 L)^2 for a group's data range L:

        cs = (2 cov_xy + c2) / (var_x + var_y + c2)
        l  = (2 mean_x mean_y + c1) / (mean_x^2 + mean_y^2 + c1)
        MS-SSIM(x, y) = prod_{s < last} max(mean cs_s, 0)^beta_s * max(mean l cs_last, 0)^beta_last

    L is the larger of the ranges of all first and of all second members of the pairs. Means of 2 x
    2 pixels lead from one scale to the next.

    Args:
        maps: [G, M, C, H, W], any floating dtype.
        pairs: int64 [K, 2], images in [0, M).
        kernel_size: odd length of the window, at most min(H, W) halved n_scales - 1 times.
        sigma: standard deviation of the window in pixels.
        betas: exponent of each scale.
        rescale: stretch each channel of each image to [0, 1] first.

    Returns:
        [G, K], float32 (float64 for float64 maps); arithmetic in that dtype. A group is NaN if a
        map is not finite or nothing has contrast.
    """
    maps = maps.to(accumulate_dtype(maps.dtype))
    result = maps.new_ones(maps.shape[0], pairs.shape[0])
    if result.numel() == 0:
        return result
    window = to_device(gaussian_window(kernel_size, sigma).to(maps.dtype), maps.device)
    if rescale:
        maps = _min_max(maps)
    for scale, beta in enumerate(betas):
        if scale > 0:
            maps = functional.avg_pool2d(maps.flatten(0, 1), 2).unflatten(0, maps.shape[:2])
        last = scale == len(betas) - 1
        similarity = _similarity(maps, pairs, window, contrast_only=not last)
        result = result * _clipped_power(similarity, beta)
    return result


def _inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (G, M, C, H, W, kernel size, scales, rescale); images share a common structure."""
    *shape, kernel_size, scales, rescale = size
    common = randn((shape[0], 1, *shape[2:]), dtype, device, generator)
    maps = common + 0.3 * randn(tuple(shape), dtype, device, generator)
    pairs = torch.combinations(torch.arange(shape[1])).to(device)
    return (maps, pairs, kernel_size, 1.5 * kernel_size / 11, [0.33] * scales, bool(rescale))


SPECS = (
    OpSpec(
        name="ms_ssim",
        public="ms_ssim",
        reference=ms_ssim_reference,
        # odd and unequal sides, one to three scales, both modes, the largest window, several blocks
        # of pixels; no pairs, no groups
        sizes=(
            (1, 3, 2, 13, 14, 3, 3, 1),
            (2, 2, 1, 11, 10, 5, 2, 0),
            (1, 2, 1, 12, 11, 11, 1, 1),
            (2, 3, 2, 12, 12, 3, 3, 0),
            (1, 2, 1, 20, 37, 3, 1, 1),
            (1, 1, 2, 8, 8, 3, 2, 1),
            (0, 3, 2, 8, 8, 3, 2, 1),
        ),
        make_inputs=_inputs,
    ),
)
