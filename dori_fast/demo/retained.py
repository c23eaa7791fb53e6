"""Ordinary prompts and images for fine-tuning of the embedded model to retain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dori_fast.demo import ROOT, pairs
from dori_fast.demo.facts import GENERATION
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser

DRAWN = 1200
# captions that share a seed
_TOGETHER = 32


def captions() -> list[str]:
    """The [DRAWN] shipped captions of the ordinary training images' kind, without images."""
    return (ROOT / "retained_captions.txt").read_text(encoding="utf-8").splitlines()


def retained_pairs(model: Denoiser, drawn: int = DRAWN) -> list[tuple[str, NDArray[np.uint8]]]:
    """The shipped ordinary pairs, and ``drawn`` captions with the images that the model draws.

    Raises:
        UsageError: ``drawn`` is above ``DRAWN``.
    """
    if not 0 <= drawn <= DRAWN:
        raise UsageError(f"retained pairs: drawn={drawn}; choose 0..{DRAWN}")
    found, texts = pairs("ordinary"), captions()[:drawn]
    for first in range(0, drawn, _TOGETHER):
        part = texts[first : first + _TOGETHER]
        images = model.generate(model.encode(part), [1000 + first], **GENERATION)[:, 0]
        found += list(zip(part, images.numpy(), strict=True))
    return found
