"""Every operator, every backend that can run here, against the float64 oracle."""

from __future__ import annotations

import pytest
import torch

from dori_fast._library import OPS
from dori_fast.testing import LAYOUTS, check_backend, map_tensors, run, with_layout
from tests.ops.contract import (
    DEVICE,
    DTYPES,
    IN_CUDA,
    NOT_IN_CPP,
    OP_BACKEND_SIZES,
    OP_BACKENDS,
    SPECS,
    backends_of,
    inputs_of,
)

# Memory that repeats cannot be written.
OP_BACKEND_LAYOUTS = [
    (name, backend, layout)
    for name, backend in OP_BACKENDS
    for layout in LAYOUTS
    if layout != "expanded" or not OPS[name].dispatched._schema.is_mutable
]


def test_every_operator_has_a_spec_and_every_backend_that_this_machine_should_have() -> None:
    assert set(SPECS) == set(OPS)
    for name in SPECS:
        there = name not in NOT_IN_CPP if DEVICE == "cpu" else name in IN_CUDA
        compiled = {"cpp" if DEVICE == "cpu" else "cuda"} if there else set()
        assert set(backends_of(name)) == {"reference", "triton"} | compiled


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "backend", "size"), OP_BACKEND_SIZES)
def test_sizes_and_dtypes(
    name: str, backend: str, size: tuple[int, ...], dtype: torch.dtype
) -> None:
    spec = SPECS[name]
    check_backend(spec, backend, inputs_of(spec, size, dtype))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("name", "backend", "layout"), OP_BACKEND_LAYOUTS)
def test_memory_layouts(name: str, backend: str, layout: str, dtype: torch.dtype) -> None:
    spec = SPECS[name]
    for size in spec.sizes:
        if 0 in size[:3]:
            continue
        inputs = inputs_of(spec, size, dtype)
        check_backend(spec, backend, map_tensors(lambda x: with_layout(x, layout), inputs))


@pytest.mark.parametrize("value", (float("nan"), float("inf"), float("-inf")), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "backend"), OP_BACKENDS)
def test_nonfinite_values_stay_where_they_are(
    name: str, backend: str, dtype: torch.dtype, value: float
) -> None:
    spec = SPECS[name]
    for size in spec.sizes:
        inputs = inputs_of(spec, size, dtype)
        if inputs[0].numel() == 0:
            continue
        inputs[0].view(-1)[:: max(2, inputs[0].numel() // 3)] = value
        check_backend(spec, backend, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "backend"), OP_BACKENDS)
def test_results_repeat_bit_for_bit(name: str, backend: str, dtype: torch.dtype) -> None:
    spec = SPECS[name]
    kernel = {"reference": OPS[name].reference, "triton": OPS[name].triton}.get(
        backend, OPS[name].dispatched
    )
    inputs = inputs_of(spec, spec.sizes[4], dtype)
    first = run(kernel, inputs)
    for _ in range(3):
        assert all(map(torch.equal, run(kernel, inputs), first))


def test_unwritten_memory_would_be_seen() -> None:
    assert torch.empty(1000).isnan().all()
