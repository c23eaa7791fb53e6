"""KID: distance between the distributions of two sets of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dori_fast.errors import NonFiniteError, UsageError

Features = NDArray[np.float64]


@dataclass(frozen=True)
class KernelDistance:
    """An unbiased estimate of the squared distance; it may be negative.

    Attributes:
        value: mean over subsets.
        error: standard deviation over subsets, divided by the root of their number. Subsets share
            samples, so it is the error of the mean for these samples, not for new ones.
        subsets: number of subsets.
        size: samples per subset.
    """

    value: float
    error: float
    subsets: int
    size: int


def kernel_distance(
    first: Features,
    second: Features,
    *,
    paired: bool = False,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Squared maximum mean discrepancy with the polynomial kernel, over random subsets.

        k(x, y) = (x . y / D + 1)^3
        MMD^2   = sum_{i != j} (k(x_i, x_j) + k(y_i, y_j)) / (m (m - 1)) - 2 mean of k(x_i, y_j)

    Binkowski et al., "Demystifying MMD GANs" (ICLR 2018), section 4; with their Inception features
    it is the KID. Paired samples, such as two models' images of one prompt and seed, are not
    independent. For them the mean of the last term leaves out i = j, as in the U-statistic of
    Gretton et al., "A Kernel Two-Sample Test" (JMLR 2012), equation 4, whose pairs may be
    dependent. It is 0 for equal sets.

    Args:
        first: float [N, D].
        second: float [M, D]; with ``paired`` its row i belongs to row i of ``first``.
        paired: True for the estimate for paired samples.
        subsets: number of subsets, each drawn without replacement.
        size: samples per subset, at most N and M.
        seed: random seed of the subsets.

    Raises:
        UsageError: shapes do not fit, or fewer than two samples.
        NonFiniteError: features or their distance are NaN or infinite.
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    shapes = f"{list(x.shape)} and {list(y.shape)}"
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UsageError(f"kernel_distance: features must be [N, D] and [M, D], got {shapes}")
    if paired and len(x) != len(y):
        raise UsageError(f"kernel_distance: pairs need as many of each, got {shapes}")
    most = min(len(x), len(y), size)
    if most < 2 or subsets < 2:
        raise UsageError(
            f"kernel_distance: needs 2 samples and 2 subsets, got {most} and {subsets}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise NonFiniteError("kernel_distance: features are NaN or Inf; check the extractor")
    random = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        one = random.permutation(len(x))[:most]
        two = one if paired else random.permutation(len(y))[:most]
        with np.errstate(over="ignore", invalid="ignore"):
            found.append(_mmd(x[one], y[two], paired))
    if not np.isfinite(found).all():
        raise NonFiniteError("kernel_distance: the distance overflows; scale the features down")
    error = float(np.std(found, ddof=1) / np.sqrt(subsets))
    return KernelDistance(float(np.mean(found)), error, subsets, most)


def _mmd(x: Features, y: Features, paired: bool) -> float:
    m, width = x.shape

    def kernel(a: Features, b: Features) -> Features:
        return np.asarray((a @ b.T / width + 1) ** 3)

    def apart(k: Features) -> float:
        return float((k.sum() - np.trace(k)) / (m * (m - 1)))

    between = kernel(x, y)
    cross = apart(between) if paired else float(between.mean())
    return apart(kernel(x, x)) + apart(kernel(y, y)) - 2 * cross
