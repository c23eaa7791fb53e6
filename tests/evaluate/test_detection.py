"""Detection figures against scikit-learn, simulation and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from dori_fast.errors import UsageError
from dori_fast.evaluate.detection import auc, roc, tpr_at_fpr
from dori_fast.evaluate.rates import clopper_pearson


def sample(m, n, shift, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    pos, neg = rng.normal(shift, 1, m), rng.normal(0, 1, n)
    return (pos.round(), neg.round()) if ties else (pos, neg)


@pytest.mark.parametrize("ties", [False, True])
def test_against_scikit_learn(ties):
    pos, neg = sample(60, 140, 1.0, ties=ties)
    labels, scores = np.r_[np.ones(60), np.zeros(140)], np.r_[pos, neg]
    assert auc(pos, neg).value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    fpr, tpr, thresholds = roc(pos, neg)
    expected = roc_curve(labels, scores, drop_intermediate=False)
    for ours, theirs in zip((fpr, tpr, thresholds), expected, strict=True):
        np.testing.assert_allclose(ours, theirs)


def test_the_interval_covers_as_often_as_it_says():
    truth = 0.9213503964748574  # Phi(1 / sqrt(0.5)): two normals two standard deviations apart
    covered = 0
    for seed in range(400):
        interval = auc(*sample(30, 60, 2.0, seed=seed))
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_perfect_separation_is_not_certain():
    interval = auc([2.0] * 30, [1.0] * 50)
    assert interval.value == interval.high == 1.0
    assert 0.85 < interval.low < 0.97
    worst = auc([1.0] * 30, [2.0] * 50)
    assert worst.value == worst.low == 0.0 and worst.high < 0.15


def test_true_positives_at_a_false_rate_by_hand():
    negative = np.arange(100)
    positive = [99.5, 98.5, 97.5, 50.5]
    # strictly below 1 % of 100 negatives: none may be flagged, so the threshold is over 99
    assert tpr_at_fpr(positive, negative, 0.01).value == 0.25
    assert tpr_at_fpr(positive, negative, 0.02).value == 0.5
    assert tpr_at_fpr(positive, negative, 0.011).value == 0.5
    # the nearest point to 1 % flags one negative
    assert tpr_at_fpr(positive, negative, 0.01, rule="nearest").value == 0.25
    assert tpr_at_fpr([1, 1], [1, 1], 0.5).value == 0.0


def test_clopper_pearson_figures():
    # from published tables: 5 of 500, 0 of 500, 475 of 500
    assert clopper_pearson(5, 500).low == pytest.approx(0.0033, abs=5e-5)
    assert clopper_pearson(5, 500).high == pytest.approx(0.0232, abs=5e-5)
    assert clopper_pearson(0, 500).high == pytest.approx(0.0074, abs=5e-5)
    assert clopper_pearson(475, 500).low == pytest.approx(0.927, abs=5e-4)
    assert clopper_pearson(3, 3).high == 1.0 and clopper_pearson(0, 3).low == 0.0


@pytest.mark.parametrize("bad", [([], [1]), ([1], []), ([float("nan")], [1])])
def test_samples_that_cannot_be_judged(bad):
    with pytest.raises(UsageError):
        auc(*bad)
    with pytest.raises(UsageError):
        clopper_pearson(3, 2)
    with pytest.raises(UsageError):
        tpr_at_fpr([1], [0], 0)
