"""McNemar's exact test against its definition."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from dori_fast.errors import UsageError
from dori_fast.evaluate import mcnemar


@pytest.mark.parametrize(("first_only", "second_only"), [(0, 1), (3, 9), (7, 7), (0, 12), (20, 2)])
def test_p_value_is_the_binomial_tail_twice(first_only, second_only):
    first = np.array([True] * (4 + first_only) + [False] * (second_only + 2))
    second = np.array([True] * 4 + [False] * first_only + [True] * second_only + [False] * 2)
    n, few = first_only + second_only, min(first_only, second_only)
    expected = min(1.0, 2 * sum(comb(n, k) for k in range(few + 1)) / 2**n)
    test = mcnemar(first, second)
    assert (test.both, test.first_only, test.second_only, test.neither) == (
        4,
        first_only,
        second_only,
        2,
    )
    assert test.p_value == pytest.approx(expected)
    assert mcnemar(second, first).p_value == pytest.approx(expected)


def test_no_difference_is_no_evidence():
    assert mcnemar([True, False], [True, False]).p_value == 1.0


def test_verdicts_must_be_pairs_of_booleans():
    for first, second in (([1, 0], [True, False]), ([True], [True, False]), ([[True]], [[True]])):
        with pytest.raises(UsageError, match="mcnemar: verdicts must be bool"):
            mcnemar(first, second)
