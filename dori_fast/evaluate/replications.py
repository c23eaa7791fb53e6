"""Replication: images per condition and seed, and the share of copies of given images.

There are two rates, and papers do not always say which one they report: over images (every seed of
every prompt counts) and over prompts (one verdict each, by any seed or by the median over seeds).
Seeds of one prompt resemble each other, so the interval over images, which assumes independent
images, is too narrow; the one over prompts is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast._checks import finite_similarities, seed_tuple
from dori_fast.errors import UsageError
from dori_fast.evaluate.copies import CopySimilarity, SmallImages, similarities
from dori_fast.evaluate.rates import Interval, clopper_pearson
from dori_fast.models import Denoiser, TextCondition
from dori_fast.models.schedules.vp import DDIM_STEPS

RULES = ("any", "median")


@dataclass(frozen=True)
class Replication:
    """Similarities of a model's images to the images that it should not draw.

    Attributes:
        similarity: float64 [P, S], by prompt and seed.
        threshold: similarity above which an image counts as a copy.
        seeds: the S seeds.
        confidence: confidence of all intervals (Clopper & Pearson, 1934).
        config: measure, DDIM steps and guidance.
        images: the drawn images uint8 [P, S, H, W, 3] if ``keep_images`` was set, else None.

    Raises:
        NonFiniteError: similarities that are NaN or infinite.
        UsageError: a threshold of NaN.
    """

    similarity: NDArray[np.float64]
    threshold: float
    seeds: tuple[int, ...]
    confidence: float
    config: dict[str, Any]
    images: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        finite_similarities(self.similarity, self.threshold)

    @property
    def copies(self) -> NDArray[np.bool_]:
        """bool [P, S], True for images that count as copies."""
        return self.similarity > self.threshold

    @property
    def rate(self) -> Interval:
        """Share of copies among all P x S images."""
        copies = self.copies
        return clopper_pearson(int(copies.sum()), copies.size, self.confidence)

    def replicated(self, rule: str = "any") -> NDArray[np.bool_]:
        """bool [P], one verdict per prompt: by its best seed, or by the median of its seeds.

        Raises:
            UsageError: an unknown rule.
        """
        if rule not in RULES:
            raise UsageError(f"replication: rule must be one of {', '.join(RULES)}, got {rule!r}")
        reduce = np.max if rule == "any" else np.median
        return np.asarray(reduce(self.similarity, axis=1) > self.threshold)

    def prompt_rate(self, rule: str = "any") -> Interval:
        """Share of prompts with a copy, under a rule of :meth:`replicated`."""
        verdicts = self.replicated(rule)
        return clopper_pearson(int(verdicts.sum()), len(verdicts), self.confidence)

    def summary(self) -> dict[str, Any]:
        """The rates and how they were measured, as plain JSON."""
        rates = {"images": self.rate, **{f"prompts_{r}": self.prompt_rate(r) for r in RULES}}
        return {
            **self.config,
            "seeds": list(self.seeds),
            "confidence": self.confidence,
            "mean_similarity": float(self.similarity.mean()),
            **{f"rate_over_{name}": [x.value, x.low, x.high] for name, x in rates.items()},
        }


def replication(
    model: Denoiser,
    condition: TextCondition,
    images: Tensor | NDArray[np.uint8],
    *,
    seeds: int | Sequence[int] = 10,
    steps: int = DDIM_STEPS,
    guidance: float = 7.5,
    measure: CopySimilarity | None = None,
    confidence: float = 0.95,
    keep_images: bool = False,
) -> Replication:
    """Draw images of P conditions and compare each with its condition's original image.

    Args:
        model: the denoiser, plain or masked.
        condition: P conditions, such as ``model.encode(prompts)`` or those of an attack's result.
        images: uint8 [P, H, W, 3], the images that must not come back.
        seeds: number of seeds (0, 1, ...), or the seeds themselves.
        steps: DDIM steps.
        guidance: guidance scale.
        measure: measure of copying; default: the one for small images.
        confidence: confidence of the intervals.
        keep_images: True to keep the drawn images in the result.

    Raises:
        UsageError: not one image per condition, no seeds, or no autoencoder.
        NonFiniteError: images or similarities are NaN or infinite.
    """
    originals = np.asarray(images)
    if len(originals) != len(condition) or len(originals) == 0:
        raise UsageError(
            f"replication: {len(condition)} conditions, {len(originals)} images; needs one for each"
        )
    drawn_from = seed_tuple(seeds)
    if not drawn_from:
        raise UsageError("replication: needs at least one seed")
    measure = SmallImages() if measure is None else measure
    at_once = max(1, model.batch_size // len(drawn_from))
    rows, kept = [], []
    for part in torch.arange(len(condition)).split(at_once):
        drawn = model.generate(condition[part], drawn_from, steps=steps, guidance=guidance).numpy()
        rows.append(similarities(measure, drawn, originals[part.numpy()]))
        if keep_images:
            kept.append(drawn)
    return Replication(
        similarity=np.concatenate(rows),
        threshold=measure.threshold,
        seeds=drawn_from,
        confidence=confidence,
        config={"measure": measure.config(), "steps": steps, "guidance": guidance},
        images=np.concatenate(kept) if keep_images else None,
    )
