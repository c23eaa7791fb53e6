"""False discovery rate: how many rows to flag so that few of the flagged are expected to be false.

Rows are compared with n clean prompts. A row's rank r is one more than the number of clean scores
at least as high, its conformal p-value r / (n + 1). Decisions need nothing from a run but its
number of rows at each rank: they depend on neither order nor shards, and jobs add their counts up.

- Benjamini & Hochberg (1995): flag the k rows of the smallest p-values, with the largest k for
  which the k-th is at most k q / m, of m rows. Conformal p-values of one calibration are positively
  dependent in the way it needs (Bates et al., 2023, theorem 2; Benjamini & Yekutieli, 2001).
- Benjamini & Yekutieli (2001): q is divided by 1 + 1/2 + ... + 1/m; valid under any dependence.
- e-BH (Wang & Ramdas, 2022): flag the k rows of the largest e-values, with the largest k for which
  the k-th is at least m / (k q). e-values of jobs that were decided apart may be joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

from dori_fast.errors import UsageError

Variant = Literal["bh", "by"]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Discoveries:
    """Rows that are flagged at a false discovery rate.

    Attributes:
        rank: rows of this rank or a smaller one are flagged; 0 flags none.
        flagged: number of flagged rows.
        rows: number of rows.
        clean: number of clean prompts, n.
        rate: the wanted false discovery rate q.
    """

    rank: int
    flagged: int
    rows: int
    clean: int
    rate: float

    @property
    def p_value(self) -> float:
        """The largest flagged p-value; 0 if none is flagged."""
        return self.rank / (self.clean + 1)

    @property
    def expected_false(self) -> float:
        """Bound on the expected number of false ones among the flagged."""
        return self.rate * self.flagged


def discoveries(counts: Counts, rate: float, variant: Variant = "bh") -> Discoveries:
    """The rows to flag so that the expected share of false ones among them is at most ``rate``.

    Args:
        counts: int [n + 1], number of rows of rank 1..n + 1.
        rate: false discovery rate q, over 0 and under 1; ``bh`` compares it without rounding.
        variant: ``"bh"`` (Benjamini-Hochberg) or ``"by"`` (Benjamini-Yekutieli).

    Raises:
        UsageError: a rate outside 0..1, an unknown variant, or no clean prompts.
    """
    counts, rows = _checked(counts), int(np.sum(counts))
    q = _exact(rate)
    if variant == "by":
        # 1 + 1/2 + ... + 1/m
        q /= Fraction(float(digamma(rows + 1) + np.euler_gamma)) if rows else 1
    elif variant != "bh":
        raise UsageError(f"discoveries: variant must be 'bh' or 'by', got {variant!r}")
    n, upto = len(counts) - 1, np.cumsum(counts)
    for index in np.flatnonzero(counts)[::-1].tolist():
        rank, flagged = index + 1, int(upto[index])
        # p <= k q / m in integers, since a rounded product would decide ties by chance
        if rank * rows * q.denominator <= flagged * q.numerator * (n + 1):
            return Discoveries(rank, flagged, rows, n, rate)
    return Discoveries(0, 0, rows, n, rate)


@dataclass(frozen=True)
class EValue:
    """The flagged rows of one job: ``rows`` rows, of which ``flagged`` have the e-value ``value``.

    All other rows have e-value 0.
    """

    value: float
    flagged: int
    rows: int


def e_value(counts: Counts, rate: float) -> EValue:
    """The e-value of the rows that Benjamini-Hochberg flags at ``rate`` in one job.

    It is m / (rate k) for k flagged of m rows. Summed over false rows its mean is at most m, since
    it is V / k times m / rate (Ren & Barber, 2024, for knockoffs).
    """
    found = discoveries(counts, rate)
    value = found.rows / (rate * found.flagged) if found.flagged else 0.0
    return EValue(value, found.flagged, found.rows)


def e_bh(jobs: Sequence[EValue], rate: float) -> list[bool]:
    """Whether each job's flagged rows stay flagged at false discovery rate ``rate`` over all jobs.

    Valid whatever the dependence between jobs. With jobs decided at ``rate`` a job without any
    flagged row unflags the others; with e-values at half of it, jobs may differ by as much.
    """
    q, rows = _exact(rate), sum(job.rows for job in jobs)
    for least in sorted({job.value for job in jobs if job.flagged}):
        flagged = sum(job.flagged for job in jobs if job.value >= least)
        if least * flagged * float(q) >= rows * (1 - 1e-12):
            return [bool(job.flagged) and job.value >= least for job in jobs]
    return [False] * len(jobs)


def _checked(counts: Counts) -> Counts:
    counts = np.asarray(counts, dtype=np.int64)
    if counts.ndim != 1 or len(counts) < 2 or counts.min() < 0:
        raise UsageError("discoveries: counts must be numbers of rows [n + 1] of n clean prompts")
    return counts


def _exact(rate: float) -> Fraction:
    """The rate as the decimal number that was written."""
    if not 0 < rate < 1:
        raise UsageError(f"discoveries: the rate must be over 0 and under 1, got {rate}")
    return Fraction(repr(float(rate)))
