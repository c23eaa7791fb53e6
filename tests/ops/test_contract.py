"""Every op, every backend that can run here, against the float64 oracle.

By default, all pairs of layout, size and dtype meet in each backend of each op; with
--run-nightly, their full product is tested.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import pytest
import torch

from dori_fast._library import OPS
from dori_fast.testing import check_backend, run
from tests.ops.contract import (
    COVER,
    DEVICE,
    DTYPES,
    IN_CUDA,
    NONFINITE_COVER,
    NOT_IN_CPP,
    OP_BACKENDS,
    SPECS,
    backends_of,
    factors_of,
    inputs_of,
    laid_out,
    nonfinite_factors_of,
)

Rows = Iterable[tuple[tuple[int, ...], torch.dtype]]


def test_every_operator_has_a_spec_and_every_backend_that_this_machine_should_have() -> None:
    assert set(SPECS) == set(OPS)
    for name in SPECS:
        there = name not in NOT_IN_CPP if DEVICE == "cpu" else name in IN_CUDA
        compiled = {"cpp" if DEVICE == "cpu" else "cuda"} if there else set()
        assert set(backends_of(name)) == {"reference", "triton"} | compiled


def check_rows(name: str, backend: str, rows: Rows, layout: str, value: float | None) -> None:
    """Compare with the oracle in every row and list the rows that disagree."""
    spec, wrong = SPECS[name], []
    for size, dtype in rows:
        inputs = inputs_of(spec, size, dtype)
        if value is not None:
            inputs[0].view(-1)[:: max(2, inputs[0].numel() // 3)] = value
        try:
            check_backend(spec, backend, laid_out(inputs, layout))
        except AssertionError as error:
            wrong.append(f"{size} {dtype}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("name", "backend", "layout"), COVER)
def test_sizes_dtypes_and_layouts(name: str, backend: str, layout: str) -> None:
    check_rows(name, backend, COVER[name, backend, layout], layout, None)


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "backend", "layout"), COVER)
def test_all_sizes_dtypes_and_layouts(name: str, backend: str, layout: str) -> None:
    check_rows(name, backend, itertools.product(*factors_of(name)[1:]), layout, None)


@pytest.mark.parametrize(("name", "backend", "value"), NONFINITE_COVER)
def test_nonfinite_values_stay_where_they_are(name: str, backend: str, value: float) -> None:
    check_rows(name, backend, NONFINITE_COVER[name, backend, value], "contiguous", value)


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "backend", "value"), NONFINITE_COVER)
def test_all_nonfinite_values_stay_where_they_are(name: str, backend: str, value: float) -> None:
    rows = itertools.product(*nonfinite_factors_of(name)[1:])
    check_rows(name, backend, rows, "contiguous", value)


@pytest.mark.parametrize(("name", "backend"), OP_BACKENDS)
def test_results_repeat_bit_for_bit(name: str, backend: str) -> None:
    kernel = OPS[name].kernel(backend)
    for dtype in DTYPES:
        inputs = inputs_of(SPECS[name], SPECS[name].sizes[4], dtype)
        first = run(kernel, inputs)
        for _ in range(3):
            assert all(map(torch.equal, run(kernel, inputs), first)), dtype


@pytest.mark.parametrize(("name", "backend"), [x for x in OP_BACKENDS if x[1] != "reference"])
def test_alignment_does_not_change_a_bit(name: str, backend: str) -> None:
    """Memory that is not aligned is read in narrower loads, but added in the same order."""
    if name == "activation_stats" and DEVICE == "cuda":
        pytest.skip("its float64 sums follow the width of loads, as dori_fast.ops says")
    spec, kernel = SPECS[name], OPS[name].kernel(backend)
    for dtype in DTYPES:
        inputs = inputs_of(spec, max(spec.sizes, key=math.prod), dtype)
        aligned = run(kernel, inputs)
        assert all(map(torch.equal, run(kernel, laid_out(inputs, "offset")), aligned)), dtype


def test_unwritten_memory_would_be_seen() -> None:
    assert torch.empty(1000).isnan().all()
