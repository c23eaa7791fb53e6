"""Cases that the tests of all operators share, drawn from the specs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st

import dori_fast.ops  # noqa: F401  (defines the operators)
from dori_fast._library import OPS
from dori_fast.reference import OpSpec, all_specs
from dori_fast.testing import (
    LAYOUTS,
    available_backends,
    check_backend,
    map_tensors,
    with_layout,
)
from tests.ops.pairwise import cover

SPECS = {spec.name: spec for spec in all_specs()}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# operators with a kernel in CUDA C++; GPUs run the Triton kernel of all others
IN_CUDA = {"neuron_mask", "neuron_mask_", "noise_difference"}
# torch's own matrix products take nearly all of its time, so a CPU uses the reference
NOT_IN_CPP = {"sdpa_jvp"}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NONFINITE = (float("nan"), float("inf"), float("-inf"))


def backends_of(name: str) -> list[str]:
    return available_backends(name, DEVICE)


def layouts_of(name: str) -> tuple[str, ...]:
    """Memory layouts of an operator's inputs; repeated memory cannot be written."""
    mutable = OPS[name].dispatched._schema.is_mutable
    return tuple(layout for layout in LAYOUTS if layout != "expanded" or not mutable)


def inputs_of(spec: OpSpec, size: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return spec.make_inputs(size, dtype, DEVICE, generator)


def draw_and_check(spec: OpSpec, backend: str, size: Sequence[int], data: st.DataObject) -> None:
    """Compare with the oracle at a size, with drawn numbers, dtype and layout."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    inputs = spec.make_inputs(tuple(size), data.draw(st.sampled_from(DTYPES)), DEVICE, generator)
    layout = data.draw(st.sampled_from(["contiguous", "offset", "sliced", "transposed"]))
    check_backend(spec, backend, map_tensors(lambda x: with_layout(x, layout), inputs))


def check_threads(call: Callable[[], Sequence[torch.Tensor]], threads: int) -> None:
    """Require the same bits with another number of threads."""
    before = torch.get_num_threads()
    expected = call()
    try:
        torch.set_num_threads(threads)
        assert all(map(torch.equal, call(), expected))
    finally:
        torch.set_num_threads(before)


def factors_of(name: str) -> tuple[Any, ...]:
    """Backends, layouts, sizes and dtypes of an operator."""
    return backends_of(name), layouts_of(name), SPECS[name].sizes, DTYPES


def nonfinite_factors_of(name: str) -> tuple[Any, ...]:
    """Backends, values that are not finite, sizes with elements to hold them, and dtypes."""
    spec = SPECS[name]
    sizes = [size for size in spec.sizes if inputs_of(spec, size, torch.float32)[0].numel()]
    return backends_of(name), NONFINITE, sizes, DTYPES


def grouped(rows: list[tuple[Any, ...]]) -> dict[tuple[Any, Any], list[tuple[Any, Any]]]:
    """Rows by their first two values."""
    key = lambda row: (row[0], str(row[1]))  # noqa: E731
    groups = (list(group) for _, group in itertools.groupby(sorted(rows, key=key), key))
    return {group[0][:2]: [row[2:] for row in group] for group in groups}


OP_BACKENDS = [(name, backend) for name in SPECS for backend in backends_of(name)]
# (size, dtype) by operator, backend and layout, so that all pairs of these meet
COVER = {
    (name, *case): rows
    for name in SPECS
    for case, rows in grouped(cover(*factors_of(name))).items()
}
# the same with a value that is not finite instead of a layout
NONFINITE_COVER = {
    (name, *case): rows
    for name in SPECS
    for case, rows in grouped(cover(*nonfinite_factors_of(name))).items()
}
