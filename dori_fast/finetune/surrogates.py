"""Surrogates: images that a memorized prompt may give instead of the memorized image.

The pruned model draws them from the original prompts (Kowalczuk et al., "Finding DoRI", section on
adversarial fine-tuning), so they have the same content but are no copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast._checks import finite_similarities
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser
from dori_fast.models.schedules.vp import DDIM_STEPS
from dori_fast.models.text.prompts import list_of_str


class CopyMeasure(Protocol):
    """A similarity of images; the measures of :mod:`dori_fast.evaluate` fit."""

    threshold: float

    def __call__(
        self, drawn: NDArray[np.uint8], original: NDArray[np.uint8]
    ) -> NDArray[np.float64]:
        """Similarities [P, S] of uint8 [P, S, H, W, 3] to uint8 [P, H, W, 3]."""
        ...


@dataclass(frozen=True)
class Surrogates:
    """K surrogates for each of P memorized images.

    Attributes:
        images: uint8 [P, K, H, W, 3].
        own: int64 [P], number of different surrogates that come from the prompt itself; 0 where
            all of them are another prompt's.
        similarity: float64 [P, S], similarities of all S candidates to the memorized image.

    Raises:
        NonFiniteError: a similarity is NaN or infinite.
    """

    images: Tensor
    own: NDArray[np.int64]
    similarity: NDArray[np.float64]

    def __post_init__(self) -> None:
        finite_similarities(self.similarity)

    def summary(self) -> dict[str, Any]:
        """Counts of surrogates and the candidates' mean similarity, as plain JSON."""
        return {
            "per_prompt": self.images.shape[1],
            "candidates": self.similarity.shape[1],
            "mean_similarity": float(self.similarity.mean()),
            "prompts_without_their_own": int((self.own == 0).sum()),
            "prompts_with_too_few": int((self.own < self.images.shape[1]).sum()),
        }


def surrogates(
    pruned: Denoiser,
    prompts: Sequence[str],
    images: Tensor | NDArray[np.uint8],
    *,
    measure: CopyMeasure,
    count: int = 4,
    candidates: int | None = None,
    steps: int = DDIM_STEPS,
    guidance: float = 7.5,
) -> Surrogates:
    """Draw surrogates of P memorized images with a pruned model.

    A prompt takes its candidates in the order of their seeds, skips copies, and stops at ``count``.
    A prompt with too few repeats them in turn. A prompt with none takes those of the next prompt
    that has some: their content is another one, but copies would train the memory back in.

    Args:
        pruned: view with masks that hide the images, one for all or one for each prompt.
        prompts: P memorized prompts.
        images: uint8 [P, H, W, 3], their memorized images.
        measure: measure of copying, such as ``df.evaluate.SmallImages()``; above its threshold a
            candidate is a copy.
        count: surrogates K per prompt.
        candidates: seeds per prompt (0, 1, ...); default 2 K.
        steps: DDIM steps.
        guidance: guidance scale.

    Raises:
        UsageError: numbers do not fit, no autoencoder, or all candidates of all prompts are copies.
        NonFiniteError: images or similarities are NaN or infinite.
    """
    prompts = list_of_str("surrogates", prompts)
    originals = np.asarray(images)
    seeds = 2 * count if candidates is None else candidates
    if len(originals) != len(prompts) or len(prompts) == 0:
        raise UsageError(
            f"surrogates: {len(originals)} images, {len(prompts)} prompts; needs one for each"
        )
    if not 1 <= count <= seeds:
        raise UsageError(f"surrogates: count must be 1..candidates ({seeds}), got {count}")
    drawn = pruned.generate(pruned.encode(prompts), range(seeds), steps=steps, guidance=guidance)
    similarity = finite_similarities(measure(drawn.numpy(), originals), measure.threshold)
    good = [np.flatnonzero(row <= measure.threshold)[:count] for row in similarity]
    if not any(map(len, good)):
        raise UsageError(
            "surrogates: every candidate of every prompt is a copy; prune more, or use more seeds"
        )
    chosen = []
    for prompt in range(len(prompts)):
        giver = next(p for p in np.roll(np.arange(len(prompts)), -prompt) if len(good[p]))
        chosen.append(drawn[int(giver), np.resize(good[giver], count)])
    own = np.array([len(rows) for rows in good])
    return Surrogates(torch.stack(chosen), own, similarity)
