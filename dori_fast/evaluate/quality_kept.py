"""Quality of a changed model against the original, on pairs that neither was trained on.

No image-text model measures the alignment with the prompt here, since none fits small images.
Instead there are two similarities: of the two models' images of one prompt and seed, and of images
to the pair's real image. FID is left out: it needs an Inception network and is biased for few
images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast._checks import seed_tuple
from dori_fast.errors import NonFiniteError, UsageError
from dori_fast.evaluate.copies import CopySimilarity, SmallImages, similarities
from dori_fast.evaluate.denoising import held_out_loss
from dori_fast.evaluate.features import FeatureExtractor, GridHistograms
from dori_fast.evaluate.kid import KernelDistance, kernel_distance
from dori_fast.evaluate.rates import Interval
from dori_fast.models import Denoiser
from dori_fast.models.schedules.vp import DDIM_STEPS
from dori_fast.models.text.prompts import list_of_str

PerPrompt = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Quality:
    """A changed model and the original, by prompt; pairs of values are in this order.

    Attributes:
        distance: distance between all images of the two models, paired by prompt and seed.
        distance_to_pairs: distances of each model's images to the real images. With few real
            images they compare the two models rather than measure their quality.
        same_seed: float64 [P], mean similarity of the two models' images of one seed.
        to_pair: float64 [P] per model, mean similarity to the pair's image.
        diversity: float64 [P] per model, mean distance between the features of two seeds; NaN for
            one seed.
        loss: float64 [P] per model, held-out loss.
        confidence: confidence of the intervals.
        config: seeds, steps, guidance, draws, measure and features.
    """

    distance: KernelDistance
    distance_to_pairs: tuple[KernelDistance, KernelDistance]
    same_seed: PerPrompt
    to_pair: tuple[PerPrompt, PerPrompt]
    diversity: tuple[PerPrompt, PerPrompt]
    loss: tuple[PerPrompt, PerPrompt]
    confidence: float
    config: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """Means over prompts as [value, low, high], bootstrapped over prompts, as plain JSON.

        ``change`` is the changed model's value minus the original's, prompt by prompt.
        """

        def both(values: tuple[PerPrompt, PerPrompt]) -> dict[str, Any]:
            changed, original = values
            parts = {"changed": changed, "original": original, "change": changed - original}
            return {name: self._mean(part) for name, part in parts.items()}

        return {
            **self.config,
            "confidence": self.confidence,
            "distance": asdict(self.distance),
            "distance_to_pairs": {
                name: asdict(found)
                for name, found in zip(("changed", "original"), self.distance_to_pairs, strict=True)
            },
            "same_seed_similarity": self._mean(self.same_seed),
            "similarity_to_pair": both(self.to_pair),
            "diversity": both(self.diversity),
            "held_out_loss": both(self.loss),
        }

    def _mean(self, values: PerPrompt) -> list[float] | None:
        # the diversity of one seed, which is not defined
        if np.isnan(values).all():
            return None
        found = bootstrap_mean(values, self.confidence)
        return [found.value, found.low, found.high]


def bootstrap_mean(values: PerPrompt, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean of float [P] with its percentile bootstrap interval (Efron & Tibshirani, 1993, ch. 13).

    Raises:
        UsageError: no values.
        NonFiniteError: values that are NaN or infinite.
    """
    if len(values) == 0:
        raise UsageError("bootstrap_mean: no values")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise NonFiniteError(
            f"bootstrap_mean: {bad} of {len(values)} values are NaN or Inf; leave them out"
        )
    random = np.random.default_rng(seed)
    means = values[random.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def seed_diversity(features: NDArray[np.float64]) -> PerPrompt:
    """Mean L2 distance between the features of two seeds, float64 [P] from [P, S, D]; NaN if S = 1.

    It is divided by the root of D, so it is a root mean square over features.
    """
    first, second = np.triu_indices(features.shape[1], 1)
    if len(first) == 0:
        return np.full(len(features), np.nan)
    gaps = features[:, first] - features[:, second]
    return np.asarray(np.sqrt((gaps**2).mean(-1)).mean(1))


def quality(
    model: Denoiser,
    original: Denoiser,
    prompts: Sequence[str],
    images: Tensor | NDArray[np.uint8],
    *,
    seeds: int | Sequence[int] = 4,
    steps: int = DDIM_STEPS,
    guidance: float = 7.5,
    features: FeatureExtractor | None = None,
    measure: CopySimilarity | None = None,
    draws: int = 20,
    draw_seed: int = 0,
    confidence: float = 0.95,
) -> Quality:
    """Compare a changed model with the original on held-out pairs.

    Args:
        model: the changed model; a view with one mask per prompt needs as many masks as prompts.
        original: the model that it was made from.
        prompts: P prompts.
        images: uint8 [P, H, W, 3], their real images; neither model was trained on them.
        seeds: number S of seeds (0, 1, ...), or the seeds themselves.
        steps: DDIM steps.
        guidance: guidance scale.
        features: feature space of distance and diversity; default: histograms for small images.
        measure: measure of similarity; default: the one for small images.
        draws: draws of timestep and noise per pair for the loss.
        draw_seed: random seed of these draws and of the subsets of the distance.
        confidence: confidence of the intervals.

    Raises:
        UsageError: not one image per prompt, no seeds, fewer than two images in all, or no
            autoencoder.
        NonFiniteError: images, similarities, features or losses are NaN or infinite.
    """
    prompts = list_of_str("quality", prompts)
    originals = np.asarray(images)
    if len(originals) != len(prompts) or len(prompts) == 0:
        raise UsageError(
            f"quality: {len(originals)} images, {len(prompts)} prompts; needs one for each"
        )
    drawn_from = seed_tuple(seeds)
    if not drawn_from:
        raise UsageError("quality: needs at least one seed")
    features = GridHistograms() if features is None else features
    measure = SmallImages() if measure is None else measure
    drawn = [_draw(m, prompts, drawn_from, steps, guidance) for m in (model, original)]
    found = [features(x.reshape(-1, *x.shape[2:])) for x in drawn]
    by_prompt = [f.reshape(len(prompts), len(drawn_from), -1) for f in found]
    real = features(originals)
    to_real = [kernel_distance(f, real, seed=draw_seed) for f in found]
    seeds_of = range(len(drawn_from))
    same = [similarities(measure, drawn[0][:, [s]], drawn[1][:, s])[:, 0] for s in seeds_of]
    to_pair = [similarities(measure, x, originals).mean(1) for x in drawn]
    losses = [
        held_out_loss(m, prompts, originals, draws=draws, seed=draw_seed) for m in (model, original)
    ]
    return Quality(
        distance=kernel_distance(*found, paired=True, seed=draw_seed),
        distance_to_pairs=(to_real[0], to_real[1]),
        same_seed=np.mean(same, axis=0),
        to_pair=(to_pair[0], to_pair[1]),
        diversity=(seed_diversity(by_prompt[0]), seed_diversity(by_prompt[1])),
        loss=(losses[0], losses[1]),
        confidence=confidence,
        config={
            "prompts": len(prompts),
            "seeds": list(drawn_from),
            "steps": steps,
            "guidance": guidance,
            "draws": draws,
            "draw_seed": draw_seed,
            "measure": measure.config(),
            "features": features.config(),
        },
    )


def _draw(
    model: Denoiser, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float
) -> NDArray[np.uint8]:
    """Images uint8 [P, S, H, W, 3], drawn with as many prompts at a time as fill a batch."""
    condition = model.encode(prompts)
    parts = torch.arange(len(prompts)).split(max(1, model.batch_size // len(seeds)))
    drawn = [model.generate(condition[p], seeds, steps=steps, guidance=guidance) for p in parts]
    return np.concatenate([images.numpy() for images in drawn])
