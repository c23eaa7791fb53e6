"""The futility bound: exact at the edges, and its stated miss rate holds over all stages."""

from __future__ import annotations

import numpy as np
import pytest

from dori_fast.errors import UsageError
from dori_fast.evaluate.futility import futility_bound


def test_bound_by_hand():
    # running means of the first two seeds; the last row is no positive and does not count
    per_seed = [[4, 2, 9], [1, 5, 9], [8, 8, 8], [5, 1, 9], [0, 0, 0]]
    assert futility_bound(per_seed, 2.0, keep=0.8) == 1.0  # minima 1, 3, 3, 8; the smallest
    assert futility_bound(per_seed, 2.0, keep=0.6) == 3.0
    assert futility_bound(per_seed, 2.0, keep=0.2) == 8.0


@pytest.mark.parametrize(
    ("scores", "keep", "message"),
    [
        (np.ones((98, 4)), 0.99, "at least 99 memorized prompts .* has 98"),
        (np.ones((500, 1)), 0.9, "two or more seeds"),
        (np.ones((500, 4)), 1.0, "over 0 and under 1"),
    ],
)
def test_what_cannot_be_promised_is_refused(scores, keep, message):
    with pytest.raises(UsageError, match=message):
        futility_bound(scores, 0.5, keep)


def test_99_positives_are_enough_for_one_percent():
    assert futility_bound(np.ones((99, 4)), 0.5, 0.99) == 1.0


def test_the_miss_rate_of_new_positives_is_at_most_the_stated_one():
    rng = np.random.default_rng(0)

    def positives(n: int) -> np.ndarray:
        means = rng.lognormal(0, 0.5, (4 * n, 1)) * rng.lognormal(0, 0.4, (4 * n, 4))
        return means[means.mean(axis=1) > 1.0][:n]

    missed = []
    for _ in range(400):
        bound = futility_bound(positives(120), 1.0, keep=0.95)
        fresh = positives(200)
        running = fresh[:, :3].cumsum(axis=1) / np.arange(1, 4)
        missed.append((running.min(axis=1) < bound).mean())
    # 6 / 121 expected for continuous scores; 400 calibrations leave an error of about 0.001
    assert 0.045 < np.mean(missed) < 0.054
