"""Rows of test cases in which any two values of any two factors meet at least once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any


def cover(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return few rows, one value per factor, that cover all pairs of values of two factors.

    Greedy and deterministic: each row starts from the first pair that is still missing and takes,
    factor by factor, the value that adds most missing pairs. Of equal values, later rows take later
    ones, so that values spread over rows.

    Args:
        factors: values of each factor, at least two factors, none empty.
    """
    missing = dict.fromkeys(
        ((i, a), (j, b))
        for i, j in itertools.combinations(range(len(factors)), 2)
        for a, b in itertools.product(range(len(factors[i])), range(len(factors[j])))
    )
    rows: list[tuple[Any, ...]] = []
    while missing:
        row = dict(next(iter(missing)))
        for factor, values in enumerate(factors):
            if factor in row:
                continue

            def gain(value: int, factor: int = factor, row: dict[int, int] = row) -> int:
                return sum(
                    tuple(sorted([(factor, value), other])) in missing for other in row.items()
                )

            first = len(rows) % len(values)
            row[factor] = max((*range(first, len(values)), *range(first)), key=gain)
        for pair in itertools.combinations(sorted(row.items()), 2):
            missing.pop(pair, None)
        rows.append(tuple(values[row[factor]] for factor, values in enumerate(factors)))
    return rows
