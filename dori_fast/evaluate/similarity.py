"""Similarity of two small images: does a generated image reproduce a training image?

`similarity` is the mean of two numbers that fail in different ways:

* the correlation of the blurred color images, which compares layout and colors but not detail, and
  is lenient toward low-detail targets;
* the structural similarity of the luminance (Wang et al. 2004, "Image quality assessment", eq. 13,
  K1 = 0.01, K2 = 0.03, Gaussian window of sigma 1.5), which compares edges.

`THRESHOLD` was fixed on pairs of unrelated images before any generated image was inspected; the
model card of the demo model (`dori_fast/demo/MODEL_CARD.md`) has the figures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dori_fast.errors import UsageError

THRESHOLD = 0.6

BLUR_SIGMA = 1.5
SSIM_SIGMA = 1.5
LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def similarity(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Similarity of images of equal size: 1 for equal images, about 0 for unrelated ones.

    Args:
        first: uint8 [..., H, W, 3], sRGB.
        second: uint8 [..., H, W, 3]; leading axes broadcast against those of `first`.

    Returns:
        float64 [...] in -1..1: mean of blurred color correlation and luminance SSIM. The
        correlation with an image of a single color is 0.

    Raises:
        UsageError: not uint8, not three channels, or different heights or widths.
    """
    for name, image in (("first", first), ("second", second)):
        if image.dtype != np.uint8 or image.ndim < 3 or image.shape[-1] != 3:
            raise UsageError(
                f"similarity: {name} is {image.dtype} {list(image.shape)}; "
                "pass uint8 [..., H, W, 3]"
            )
    if first.shape[-3:] != second.shape[-3:]:
        raise UsageError(
            f"similarity: sizes {list(first.shape[-3:])} and "
            f"{list(second.shape[-3:])} differ; resize one of them"
        )
    a, b = first.astype(np.float64), second.astype(np.float64)
    return (blurred_correlation(a, b) + luminance_ssim(a, b)) / 2


def blurred_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlation over all pixels and channels of the blurred images [..., H, W, 3]."""
    x, y = (blur(np.moveaxis(v, -1, -3), BLUR_SIGMA) for v in (a, b))
    x, y = (v - v.mean(axis=(-3, -2, -1), keepdims=True) for v in (x, y))
    power = np.sqrt((x * x).sum(axis=(-3, -2, -1)) * (y * y).sum(axis=(-3, -2, -1)))
    product = (x * y).sum(axis=(-3, -2, -1))
    return np.divide(product, power, out=np.zeros_like(product), where=power > 1e-9)


def luminance_ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean SSIM of the luminances of two images [..., H, W, 3] in 0..255."""
    x, y = a @ LUMINANCE, b @ LUMINANCE
    mean_x, mean_y = blur(x, SSIM_SIGMA), blur(y, SSIM_SIGMA)
    var_x = blur(x * x, SSIM_SIGMA) - mean_x**2
    var_y = blur(y * y, SSIM_SIGMA) - mean_y**2
    cov = blur(x * y, SSIM_SIGMA) - mean_x * mean_y
    top = (2 * mean_x * mean_y + C1) * (2 * cov + C2)
    bottom = (mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2)
    return np.asarray((top / bottom).mean(axis=(-2, -1)))


def blur(x: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Gaussian blur over the last two axes, cut at 3.5 sigma, with mirrored edges.

    It is scipy.ndimage.gaussian_filter up to 1e-13. Stored similarities have these very bits.
    """
    rows, columns = gaussian_matrix(x.shape[-2], sigma), gaussian_matrix(x.shape[-1], sigma)
    return rows @ x @ columns.T


def gaussian_matrix(size: int, sigma: float) -> NDArray[np.float64]:
    """[size, size] matrix of a Gaussian blur with mirrored edges; every row sums to 1."""
    radius = int(3.5 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    # mirror positions beyond an edge, repeatedly where an image is smaller than the kernel
    source = (np.arange(size)[:, None] + offsets) % (2 * size)
    source = np.where(source >= size, 2 * size - 1 - source, source)
    matrix = np.zeros((size, size))
    np.add.at(
        matrix, (np.repeat(np.arange(size), len(offsets)), source.ravel()), np.tile(kernel, size)
    )
    return matrix
