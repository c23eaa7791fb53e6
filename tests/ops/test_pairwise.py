from __future__ import annotations

import itertools
import math

import pytest

from tests.ops.contract import (
    COVER,
    NONFINITE_COVER,
    OP_BACKENDS,
    factors_of,
    nonfinite_factors_of,
)
from tests.ops.pairwise import cover


def pairs_of(rows: list[tuple]) -> set:
    """Pairs of values with the factors that they belong to."""
    return {pair for row in rows for pair in itertools.combinations(list(enumerate(row)), 2)}


@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), (4, 4, 3), (15, 4, 5, 3), (2,) * 7], ids=str)
def test_all_pairs_meet_in_few_rows(sizes: tuple[int, ...]) -> None:
    factors = [[f"{i}{value}" for value in range(size)] for i, size in enumerate(sizes)]
    rows = cover(*factors)
    assert pairs_of(rows) == pairs_of(list(itertools.product(*factors)))
    assert len(set(rows)) == len(rows)
    # fewer than the product of the two largest factors is impossible
    least = math.prod(sorted(sizes)[-2:])
    assert least <= len(rows) <= max(least + 6, 1.25 * least)
    assert cover(*factors) == rows


@pytest.mark.parametrize(
    ("covers", "factors_of"), [(COVER, factors_of), (NONFINITE_COVER, nonfinite_factors_of)]
)
def test_the_contract_covers_all_pairs_in_every_backend(covers: dict, factors_of) -> None:
    for name, backend in OP_BACKENDS:
        cases = [case for case in covers if case[:2] == (name, backend)]
        rows = [(case[2], *row) for case in cases for row in covers[case]]
        assert pairs_of(rows) == pairs_of(list(itertools.product(*factors_of(name)))), name
