"""False discovery rates: equal to scipy's decisions, and kept in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from dori_fast.errors import UsageError
from dori_fast.evaluate.discoveries import (
    EValue,
    discoveries,
    e_bh,
    e_value,
)

ranks_of_rows = st.integers(2, 40).flatmap(
    lambda size: st.tuples(st.just(size), st.lists(st.integers(1, size), min_size=1, max_size=60))
)


def counted(size: int, ranks: list[int]) -> np.ndarray:
    return np.bincount(np.array(ranks, dtype=int) - 1, minlength=size)


@given(ranks_of_rows, st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.5]), st.sampled_from(["bh", "by"]))
def test_flagged_rows_are_those_of_scipy(case, rate, variant):
    size, ranks = case
    found = discoveries(counted(size, ranks), rate, variant)
    p = np.array(ranks) / size
    # scipy rounds; a p-value within rounding of the rate may fall on either side of it there
    adjusted = false_discovery_control(p, method=variant)
    near = np.abs(adjusted - rate) < 1e-12
    flagged = np.array(ranks) <= found.rank
    assert np.array_equal(flagged[~near], (adjusted <= rate)[~near])
    assert found.flagged == flagged.sum() and found.rows == len(ranks)


def test_a_tie_at_the_rate_is_flagged_without_rounding():
    # 3 of 10 rows at p = 0.03 = 3 * 0.1 / 10, which floats miss: 3 * 0.1 > 0.3
    counts = counted(100, [3] * 3 + [100] * 7)
    assert discoveries(counts, 0.1).flagged == 3
    counts = counted(100, [4] * 3 + [100] * 7)
    assert discoveries(counts, 0.1).flagged == 0


@given(ranks_of_rows, st.integers(0, 60), st.sampled_from([0.05, 0.2]))
def test_counts_of_parts_add_up_to_the_decision_of_the_whole(case, cut, rate):
    size, ranks = case
    parts = counted(size, ranks[:cut]) + counted(size, ranks[cut:])
    assert discoveries(parts, rate) == discoveries(counted(size, ranks[::-1]), rate)


def simulated(
    rng: np.random.Generator, rows: int, planted: int, clean: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts by rank of all rows and of the false ones among them."""
    usual = np.sort(rng.normal(size=clean))
    scores = rng.normal(size=rows)
    scores[:planted] += 5
    ranks = 1 + clean - np.searchsorted(usual, scores, side="left")
    return counted(clean + 1, ranks), counted(clean + 1, ranks[planted:])


def realized(
    rows: int, planted: int, clean: int, repeats: int, rate: float
) -> tuple[float, float, float]:
    """Mean share of false rows among the flagged, its standard error, and the share found."""
    shares, found = [], []
    for seed in range(repeats):
        counts, false = simulated(np.random.default_rng(seed), rows, planted, clean)
        result = discoveries(counts, rate)
        wrong = int(false[: result.rank].sum())
        shares.append(wrong / max(1, result.flagged))
        found.append((result.flagged - wrong) / planted)
    return float(np.mean(shares)), float(np.std(shares) / repeats**0.5), float(np.mean(found))


def test_the_realized_rate_is_at_most_the_wanted_one():
    share, error, found = realized(rows=5_000, planted=100, clean=5_000, repeats=200, rate=0.1)
    assert share <= 0.1 * (1 - 0.02) + 3 * error
    assert found > 0.9


@pytest.mark.slow
def test_the_realized_rate_of_a_million_rows():
    share, error, found = realized(1_000_000, 5_000, 100_000, repeats=200, rate=0.05)
    assert share <= 0.05 + 3 * error
    assert found > 0.9


def test_flags_of_jobs_decided_apart_stay_within_the_rate():
    shares = []
    for seed in range(300):
        rng, jobs, wrong = np.random.default_rng(seed), [], []
        for planted in (100, 20, 0):
            counts, false = simulated(rng, 2_000, planted, 2_000)
            jobs.append(e_value(counts, 0.05))
            wrong.append(int(false[: discoveries(counts, 0.05).rank].sum()))
        kept = e_bh(jobs, 0.1)
        flagged = sum(job.flagged for job, stays in zip(jobs, kept, strict=True) if stays)
        shares.append(
            sum(w for w, stays in zip(wrong, kept, strict=True) if stays) / max(1, flagged)
        )
    assert np.mean(shares) <= 0.1
    assert e_bh([EValue(400.0, 50, 1000)], 0.05) == [True]
    assert e_bh([EValue(400.0, 50, 1000), EValue(0.0, 0, 1000)], 0.05) == [False, False]
    assert e_bh([EValue(800.0, 50, 1000), EValue(0.0, 0, 1000)], 0.05) == [True, False]


def test_one_job_by_e_values_is_benjamini_hochberg():
    counts, _ = simulated(np.random.default_rng(5), 3_000, 60, 3_000)
    found = discoveries(counts, 0.05)
    assert found.flagged > 30
    assert e_bh([e_value(counts, 0.05)], 0.05) == [True]


def test_wrong_arguments_are_refused_and_no_rows_flag_nothing():
    none = discoveries(np.zeros(20, dtype=int), 0.05, "by")
    assert (none.flagged, none.rank, none.p_value, none.expected_false) == (0, 0, 0.0, 0.0)
    with pytest.raises(UsageError, match="over 0 and under 1"):
        discoveries(np.ones(20), 1.0)
    with pytest.raises(UsageError, match="'bh' or 'by'"):
        discoveries(np.ones(20), 0.1, "holm")
    with pytest.raises(UsageError, match="n clean prompts"):
        discoveries(np.ones(1), 0.1)


def test_the_calibration_that_a_rate_needs():
    # 1 row in 100 at a false discovery rate of 0.05 needs p = 0.0005 = 1 / 2000
    flagged = discoveries(counted(2000, [1] + [2000] * 99), 0.05).flagged
    assert flagged == 1
    assert discoveries(counted(1999, [1] + [1999] * 99), 0.05).flagged == 0
