"""A paired test of two models on the same cases: does one replicate more than the other?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from dori_fast.errors import UsageError


@dataclass(frozen=True)
class PairedTest:
    """McNemar's test on N pairs.

    Attributes:
        both: cases that are positive for both models.
        first_only: cases that are positive for the first model alone.
        second_only: cases that are positive for the second model alone.
        neither: cases that are positive for neither.
        p_value: two-sided p-value; small if the two models differ.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    p_value: float


def mcnemar(first: ArrayLike, second: ArrayLike) -> PairedTest:
    """The exact binomial form of McNemar's test (McNemar, 1947), bool [N] against bool [N].

    Under the null hypothesis, a case on which the models differ favors either with probability
    1/2. The cases must be independent: use one verdict per prompt, not one per seed.

    Raises:
        UsageError: not boolean, or of different lengths.
    """
    one, two = np.asarray(first), np.asarray(second)
    if one.dtype != bool or two.dtype != bool or one.ndim != 1 or one.shape != two.shape:
        raise UsageError(
            "mcnemar: verdicts must be bool [N] for the same N cases, got"
            f" {one.dtype} {list(one.shape)} and {two.dtype} {list(two.shape)}"
        )
    only = int((one & ~two).sum()), int((two & ~one).sum())
    p_value = float(binomtest(only[0], sum(only), 0.5).pvalue) if sum(only) else 1.0
    return PairedTest(int((one & two).sum()), *only, int((~one & ~two).sum()), p_value)
