"""Calibrated decisions: exact at the edges, valid on average."""

from __future__ import annotations

import numpy as np
import pytest

from dori_fast.errors import UsageError
from dori_fast.evaluate.calibration import Calibration


def test_p_values_by_hand():
    calibration = Calibration([3.0, 1.0, 2.0, 2.0])
    found = calibration.p_values([0.5, 1.0, 2.0, 2.5, 3.0, 9.0, float("nan")])
    np.testing.assert_allclose(found, [1.0, 1.0, 0.8, 0.4, 0.4, 0.2, np.nan])
    assert calibration.resolution == 0.2


@pytest.mark.parametrize("n", [19, 99, 100, 101, 1000])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25])
def test_flagged_by_threshold_is_flagged_by_p_value(n, rate):
    rng = np.random.default_rng(n)
    calibration = Calibration(rng.normal(size=n).round(2))
    scores = np.concatenate([calibration.scores, calibration.scores + 0.005, rng.normal(size=500)])
    by_p_value = calibration.p_values(scores) <= rate * (1 + 1e-12)
    assert np.array_equal(by_p_value, scores > calibration.threshold(rate))


def test_the_rate_holds():
    rng = np.random.default_rng(0)
    flagged = [
        (Calibration(rng.gumbel(size=199)).p_values(rng.gumbel(size=100)) <= 0.05).mean()
        for _ in range(400)
    ]
    # 40,000 draws around 0.05; the calibration samples make them dependent, hence the slack
    assert 0.045 <= np.mean(flagged) <= 0.055


def test_rates_that_the_sample_cannot_support_are_refused():
    calibration = Calibration(np.arange(99.0))
    assert calibration.threshold(0.01) == 98.0
    with pytest.raises(UsageError, match="needs at least 999 clean prompts, .* has 99;"):
        calibration.threshold(0.001)
    with pytest.raises(UsageError, match="over 0 and under 1"):
        calibration.threshold(0.0)
    with pytest.raises(UsageError, match="finite"):
        Calibration([1.0, float("nan")])


def test_the_bound_on_the_realised_rate():
    interval = Calibration(np.arange(999.0)).false_positive_rate(0.01)
    assert interval.value == pytest.approx(9 / 999)
    assert interval.low < 0.01 < interval.high < 0.02
