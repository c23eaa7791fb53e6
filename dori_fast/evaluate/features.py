"""Feature spaces to compare sets of images in: an interface, and an extractor for small images.

An extractor is any object with a name, a configuration and a call from images to vectors, such as
an Inception network of a library that you trust. Distances of two extractors are not comparable.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dori_fast.errors import UsageError
from dori_fast.evaluate.similarity import LUMINANCE


class FeatureExtractor(Protocol):
    """A function from images to vectors.

    Attributes:
        name: name in results.
    """

    name: str

    def config(self) -> dict[str, Any]:
        """Everything that the features depend on besides the images, as plain JSON."""
        ...

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Features [N, D] of uint8 [N, H, W, 3], each image by itself."""
        ...


class GridHistograms:
    """Histograms of colors and edges on a grid: deterministic, no network, for small images.

    The image is cut into cells x cells parts. Each part has a histogram of the values of each
    channel, and one of the orientations, 0..180 degrees, of the luminance's gradient, weighted by
    its magnitude (as in Dalal & Triggs, "Histograms of Oriented Gradients", CVPR 2005, without
    their blocks). ``FLOOR`` is added to each orientation, so that a flat cell prefers none.
    Features are roots of shares (Hellinger), scaled so that x . x = D. They capture color, layout
    and edges, but no meaning.

    Args:
        cells: parts along each side.
        bins: bins of each histogram.
    """

    name = "colour and edge histograms"
    FLOOR = 1.0  # grey levels per pixel and bin

    def __init__(self, cells: int = 4, bins: int = 8) -> None:
        if cells < 1 or bins < 2:
            raise UsageError(
                f"features: cells must be at least 1 and bins at least 2, got {cells} and {bins}"
            )
        self.cells, self.bins = cells, bins

    def config(self) -> dict[str, Any]:
        """Everything that the features depend on besides the images, as plain JSON."""
        return {"name": self.name, "cells": self.cells, "bins": self.bins, "floor": self.FLOOR}

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Features [N, 4 cells^2 bins] of uint8 [N, H, W, 3].

        Raises:
            UsageError: another dtype or shape, or images smaller than the grid.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise UsageError(
                f"features: images are {images.dtype} {list(images.shape)}; pass uint8 [N, H, W, 3]"
            )
        if min(images.shape[1:3]) < max(2, self.cells):
            raise UsageError(
                f"features: images of {list(images.shape[1:3])} have no {self.cells} x"
                f" {self.cells} cells; use fewer"
            )
        values = images.astype(np.float64)
        down, right = np.gradient(values @ LUMINANCE, axis=(1, 2))
        # a half turn is the same edge; an angle just below 180 degrees may round up to 180
        angle = np.arctan2(down, right) % np.pi
        edges = np.minimum((angle / np.pi * self.bins).astype(int), self.bins - 1)
        planes = [((images[..., c].astype(int) * self.bins) // 256, None) for c in range(3)]
        planes.append((edges, np.hypot(down, right)))
        found = [
            self._shares(*(None if x is None else x[:, rows, columns] for x in plane))
            for rows in _parts(images.shape[1], self.cells)
            for columns in _parts(images.shape[2], self.cells)
            for plane in planes
        ]
        return np.sqrt(self.bins * np.concatenate(found, axis=1))

    def _shares(
        self, which: NDArray[np.int64] | None, weight: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Shares [N, bins] of the bins that [N, h, w] pixels fall into."""
        hits = np.asarray(which)[..., None] == np.arange(self.bins)
        if weight is None:
            return hits.mean(axis=(1, 2))
        mass = (hits * weight[..., None]).mean(axis=(1, 2)) + self.FLOOR
        return np.asarray(mass / mass.sum(axis=1, keepdims=True))


def _parts(length: int, count: int) -> list[slice]:
    cuts = [length * i // count for i in range(count + 1)]
    return [slice(low, high) for low, high in zip(cuts, cuts[1:], strict=False)]
