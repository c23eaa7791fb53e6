"""Locality of memorization: distances between the triggers of one image, and their agreement.

The three experiments of Kowalczuk et al., "Finding DoRI" (ICML 2026), section on locality: L2
distances between embeddings, discrepancy of activations, agreement of the neurons or weights that a
localization finds for each trigger. None of the numbers means much by itself: compare those of the
adversarial embeddings of one image with those of ordinary and of memorized prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast.errors import NonFiniteError, UsageError
from dori_fast.models import Denoiser, NeuronMask, TextCondition, WeightMask
from dori_fast.models.probes import feed_forward_inputs
from dori_fast.models.schedules.vp import DDIM_STEPS


def pairwise_distances(points: Tensor) -> NDArray[np.float64]:
    """L2 distances between all pairs i < j of N points [N, *], float64 [N (N - 1) / 2].

    Raises:
        UsageError: fewer than two points.
        NonFiniteError: points that are NaN or infinite.
    """
    if len(points) < 2:
        raise UsageError(f"locality: needs at least 2 points to compare, got {len(points)}")
    flat = points.detach().flatten(1).double().cpu()
    bad = int((~flat.isfinite()).any(1).sum())
    if bad:
        raise NonFiniteError(
            f"locality: {bad} of {len(flat)} points to compare are NaN or Inf; load the model with"
            " a wider dtype, or leave those prompts out"
        )
    return np.asarray(torch.nn.functional.pdist(flat).numpy())


@torch.no_grad()
def value_discrepancy(model: Denoiser, condition: TextCondition) -> dict[str, float]:
    """Mean L2 distance between the values [T, C] of P conditions, by cross-attention.

    Values depend on the text alone, so there is no noise to fix.
    """
    found = {}
    for name in model.layers:
        project = model.unet.get_submodule(name).to_v
        with model.engine.precision():
            values = torch.stack([project(text) for text in condition.embeddings])
        found[name] = float(pairwise_distances(values).mean())
    return found


@torch.no_grad()
def feed_forward_discrepancy(
    model: Denoiser, condition: TextCondition, *, seed: int = 0, timestep: int | None = None
) -> dict[str, float]:
    """Mean L2 distance between the inputs [HW, 4C] of the feed-forwards' second linear layers.

    Args:
        model: the denoiser, plain or masked.
        condition: P conditions; the activations of all of them are held at once.
        seed: seed of the one initial noise of all conditions.
        timestep: timestep of this noise; default: the noisiest of 50 DDIM steps.
    """
    timestep = model.timesteps(DDIM_STEPS)[0] if timestep is None else timestep
    _, seen = feed_forward_inputs(
        model, condition, model.noise([seed]), timestep, lambda activations: activations.flatten(1)
    )
    return {name: float(pairwise_distances(inputs).mean()) for name, inputs in seen.items()}


@dataclass(frozen=True)
class Agreement:
    """Agreement of M masks in one layer: mean intersection over union (IoU) of pairs.

    Attributes:
        iou: mean over the pairs in which at least one mask selects anything; NaN without such.
        iou_empty_as_one: mean over all pairs, where two empty selections count as 1. This is the
            paper's convention: a layer that no mask selects agrees perfectly.
        empty_pairs: share of pairs in which neither mask selects anything.
    """

    iou: float
    iou_empty_as_one: float
    empty_pairs: float


def agreement(masks: NeuronMask | WeightMask) -> dict[str, Agreement]:
    """Agreement of the M masks that are present, by layer.

    Raises:
        UsageError: fewer than two masks.
    """
    masks = masks.take(masks.present)
    if len(masks) < 2:
        raise UsageError(f"locality: needs at least 2 masks to compare, got {len(masks)}")
    if isinstance(masks, NeuronMask):
        selected = {name: scales != 1 for name, scales in masks.scales.items()}
    else:
        selected = dict(masks.pruned)
    return {name: _agreement(rows.flatten(1)) for name, rows in selected.items()}


def _agreement(selected: Tensor) -> Agreement:
    """Agreement of M selections, bool [M, N]."""
    # float32 counts exactly up to 2^24 only; a layer may have more weights
    rows = selected.double()
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    both = (rows @ rows.T)[first, second]
    sizes = rows.sum(1)
    either = sizes[first] + sizes[second] - both
    some = either > 0
    ious = both[some] / either[some]
    empty = int((~some).sum())
    return Agreement(
        iou=float(ious.mean()) if len(ious) else float("nan"),
        iou_empty_as_one=float((ious.sum() + empty) / len(both)),
        empty_pairs=empty / len(both),
    )
