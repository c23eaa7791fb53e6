"""Measures of copying: similarity of two images and the threshold above which it is a copy."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dori_fast._checks import finite_similarities, threshold_number
from dori_fast.errors import UsageError
from dori_fast.evaluate.similarity import BLUR_SIGMA, SSIM_SIGMA, THRESHOLD, similarity

Images = NDArray[np.uint8]


class CopySimilarity(Protocol):
    """A measure of copying.

    Attributes:
        name: name in results.
        threshold: similarity above which an image counts as a copy.
    """

    name: str
    threshold: float

    def config(self) -> dict[str, Any]:
        """Everything that the similarities depend on besides the images, as plain JSON."""
        ...

    def __call__(self, drawn: Images, original: Images) -> NDArray[np.float64]:
        """Similarities [P, S] of uint8 [P, S, H, W, 3] to uint8 [P, H, W, 3]."""
        ...


class SmallImages:
    """The measure for the demo model's small images; see :mod:`dori_fast.evaluate.similarity`.

    Args:
        threshold: similarity of a copy; the default was fixed beforehand, on unrelated pairs.

    Raises:
        UsageError: a threshold of NaN.
    """

    name = "blurred correlation and SSIM"

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold_number("SmallImages", threshold)

    def config(self) -> dict[str, Any]:
        """Everything that the similarities depend on besides the images, as plain JSON."""
        return {
            "name": self.name,
            "threshold": self.threshold,
            "blur_sigma": BLUR_SIGMA,
            "ssim_sigma": SSIM_SIGMA,
        }

    def __call__(self, drawn: Images, original: Images) -> NDArray[np.float64]:
        """Similarities [P, S] of images of equal size; see :func:`similarity`."""
        return similarity(drawn, original[:, None])


def similarities(measure: CopySimilarity, drawn: Images, original: Images) -> NDArray[np.float64]:
    """A measure's similarities float64 [P, S], checked.

    Args:
        measure: measure of copying.
        drawn: uint8 [P, S, H, W, 3].
        original: uint8 [P, H, W, 3].

    Raises:
        NonFiniteError: similarities that are NaN or infinite.
        UsageError: similarities of another shape, or a threshold of NaN.
    """
    found = np.asarray(measure(drawn, original), dtype=np.float64)
    if found.shape != drawn.shape[:2]:
        raise UsageError(
            f"copies: the measure returned {list(found.shape)} for {list(drawn.shape[:2])} prompts"
            " and seeds; return one similarity for each image"
        )
    return finite_similarities(found, measure.threshold)
