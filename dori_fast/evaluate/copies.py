"""One interface to measures of copying: how alike two pictures are, and from where on it counts."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dori_fast.evaluate.similarity import BLUR_SIGMA, SSIM_SIGMA, THRESHOLD, similarity

Pictures = NDArray[np.uint8]


class CopySimilarity(Protocol):
    """A measure of copying.

    Attributes:
        name: what it is called in results.
        threshold: above this similarity a picture counts as a copy.
    """

    name: str
    threshold: float

    def config(self) -> dict[str, Any]:
        """Everything that the similarities depend on besides the pictures, as plain JSON."""
        ...

    def __call__(self, drawn: Pictures, original: Pictures) -> NDArray[np.float64]:
        """Similarities [P, S] of uint8 [P, S, H, W, 3] to uint8 [P, H, W, 3]."""
        ...


class SmallPictures:
    """The descriptor for the embedded model's small pictures: :mod:`dori_fast.evaluate.similarity`.

    Args:
        threshold: the one that was fixed beforehand, on unrelated pairs.
    """

    name = "blurred correlation and SSIM"

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold

    def config(self) -> dict[str, Any]:
        """Everything that the similarities depend on besides the pictures, as plain JSON."""
        return {
            "name": self.name,
            "threshold": self.threshold,
            "blur_sigma": BLUR_SIGMA,
            "ssim_sigma": SSIM_SIGMA,
        }

    def __call__(self, drawn: Pictures, original: Pictures) -> NDArray[np.float64]:
        """Similarities [P, S] of pictures of equal size; see :func:`similarity`."""
        return similarity(drawn, original[:, None])
