"""NaN and infinity are no verdict: every judge refuses them instead of comparing them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dori_fast.attack import LossBelow
from dori_fast.errors import NonFiniteError, UsageError
from dori_fast.evaluate import (
    Replication,
    SmallImages,
    auc,
    kernel_distance,
    quality,
    replication,
    roc,
    tpr_at_fpr,
)
from dori_fast.evaluate.calibration import Calibration
from dori_fast.evaluate.futility import futility_bound
from dori_fast.evaluate.locality import pairwise_distances
from dori_fast.evaluate.quality_kept import bootstrap_mean
from dori_fast.finetune import Surrogates, surrogates
from dori_fast.prune import NeMo

PROMPTS = ["a cup of coffee", "the cat on the mat"]
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
BAD = [np.nan, np.inf, -np.inf]


class Broken(SmallImages):
    """A measure whose last similarity is not finite."""

    def __init__(self, bad: float) -> None:
        super().__init__()
        self.bad = bad

    def __call__(self, drawn, original):
        found = super().__call__(drawn, original)
        found[-1, -1] = self.bad
        return found


@pytest.mark.parametrize("bad", BAD)
def test_a_similarity_that_is_not_finite_is_no_verdict(model, bad):
    how = {"steps": 1, "guidance": 1.0, "measure": Broken(bad)}
    with pytest.raises(NonFiniteError, match="1 of 4 similarities are NaN or Inf"):
        replication(model, model.encode(PROMPTS), IMAGES, seeds=2, **how)
    with pytest.raises(NonFiniteError, match="1 of 4 similarities are NaN or Inf"):
        surrogates(model, PROMPTS, IMAGES, count=2, candidates=2, **how)
    with pytest.raises(NonFiniteError, match="1 of 2 similarities are NaN or Inf"):
        quality(model, model, PROMPTS, IMAGES, seeds=1, draws=1, **how)
    with pytest.raises(NonFiniteError):
        Replication(np.array([[0.1, bad]]), 0.6, (0, 1), 0.95, {})
    with pytest.raises(NonFiniteError):
        Surrogates(torch.zeros(1, 1, 2, 2, 3).byte(), np.array([1]), np.array([[0.1, bad]]))


@pytest.mark.parametrize(
    "make",
    [
        SmallImages,
        LossBelow,
        lambda nan: NeMo(threshold=nan),
        lambda nan: Replication(np.array([[0.1]]), nan, (0,), 0.95, {}),
        lambda nan: futility_bound(np.ones((200, 2)), nan, 0.9),
        lambda nan: Calibration([0.1, 0.2]).threshold(nan),
        lambda nan: tpr_at_fpr([1.0], [0.0], nan),
    ],
    ids=["small-images", "loss-below", "nemo", "replication", "futility", "calibration", "tpr"],
)
def test_a_threshold_of_nan_is_refused(make):
    with pytest.raises(UsageError, match=r"must be a number|must be over 0"):
        make(float("nan"))


@pytest.mark.parametrize("bad", BAD)
def test_scores_that_are_not_finite_have_no_rate_and_no_p_value(bad):
    for rate in (roc, auc, tpr_at_fpr):
        with pytest.raises(UsageError, match="scores must be finite"):
            rate([1.0, bad], [0.0])
    with pytest.raises(UsageError, match="finite scores"):
        Calibration([0.1, bad])
    p_values = Calibration([0.1, 0.2, 0.3]).p_values([0.25, bad])
    assert p_values[0] == 0.5 and np.isnan(p_values[1])
    with pytest.raises(NonFiniteError, match="1 of 200 prompts have scores that are NaN or Inf"):
        futility_bound(np.vstack([np.ones((199, 2)), [[1.0, bad]]]), 0.5, 0.9)


@pytest.mark.parametrize("bad", BAD)
def test_distances_and_means_of_what_is_not_finite_are_refused(bad):
    features = np.random.default_rng(0).normal(size=(8, 3))
    spoiled = features.copy()
    spoiled[3, 1] = bad
    with pytest.raises(NonFiniteError, match="features are NaN or Inf"):
        kernel_distance(features, spoiled, subsets=2)
    with pytest.raises(NonFiniteError, match="1 of 8 points to compare are NaN or Inf"):
        pairwise_distances(torch.from_numpy(spoiled))
    with pytest.raises(NonFiniteError, match="1 of 8 values are NaN or Inf"):
        bootstrap_mean(spoiled[:, 1])


def test_a_distance_that_overflows_is_refused():
    with pytest.raises(NonFiniteError, match="overflows"):
        kernel_distance(np.full((4, 2), 1e80), np.full((4, 2), -1e80), subsets=2)


def test_the_diversity_of_one_seed_stays_undefined(model):
    found = quality(model, model, PROMPTS, IMAGES, seeds=1, steps=1, draws=1).summary()
    assert found["diversity"] == {"changed": None, "original": None, "change": None}
    assert found["held_out_loss"]["changed"][0] > 0


def test_a_measure_must_judge_every_image(model):
    class Short(SmallImages):
        def __call__(self, drawn, original):
            return super().__call__(drawn, original)[:, :1]

    with pytest.raises(UsageError, match=r"returned \[2, 1\] for \[2, 2\] prompts and seeds"):
        replication(model, model.encode(PROMPTS), IMAGES, seeds=2, steps=1, measure=Short())
