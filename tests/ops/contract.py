"""Cases that the tests of all ops share, drawn from the specs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st

import dori_fast.ops  # noqa: F401  (defines the ops)
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
# ops with a kernel in CUDA C++; GPUs run the Triton kernel of all others
IN_CUDA = {"neuron_mask", "neuron_mask_", "noise_difference"}
# torch's own matrix products take nearly all of its time, so a CPU uses the reference
NOT_IN_CPP = {"sdpa_jvp"}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NONFINITE = (float("nan"), float("inf"), float("-inf"))


def backends_of(name: str) -> list[str]:
    return available_backends(name, DEVICE)


def layouts_of(name: str) -> tuple[str, ...]:
    """Memory layouts of an op's inputs; repeated memory cannot be written.

    "mixed" gives neighboring inputs different layouts, so that no stride can stand for another.
    """
    mutable = OPS[name].dispatched._schema.is_mutable
    own = (layout for layout in LAYOUTS if layout != "expanded" or not mutable)
    return (*own, "mixed")


def laid_out(inputs: tuple[Any, ...], layout: str) -> tuple[Any, ...]:
    """Return inputs whose tensors, also flags and indices, have a layout of `layouts_of`."""
    turns = itertools.cycle(("sliced", "contiguous", "transposed", "offset"))
    return map_tensors(
        lambda x: with_layout(x, next(turns) if layout == "mixed" else layout), inputs
    )


def inputs_of(spec: OpSpec, size: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return spec.make_inputs(size, dtype, DEVICE, generator)


def draw_and_check(spec: OpSpec, backend: str, size: Sequence[int], data: st.DataObject) -> None:
    """Compare with the oracle at a size, with drawn numbers, dtype and layout."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    inputs = spec.make_inputs(tuple(size), data.draw(st.sampled_from(DTYPES)), DEVICE, generator)
    layout = data.draw(st.sampled_from(["contiguous", "offset", "sliced", "transposed", "mixed"]))
    check_backend(spec, backend, laid_out(inputs, layout))


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
    """Layouts, sizes and dtypes of an op."""
    return layouts_of(name), SPECS[name].sizes, DTYPES


def nonfinite_factors_of(name: str) -> tuple[Any, ...]:
    """Values that are not finite, sizes with elements to hold them, and dtypes."""
    spec = SPECS[name]
    sizes = [size for size in spec.sizes if inputs_of(spec, size, torch.float32)[0].numel()]
    return NONFINITE, sizes, DTYPES


OP_BACKENDS = [(name, backend) for name in SPECS for backend in backends_of(name)]


def covered(factors: Callable[[str], tuple[Any, ...]]) -> dict[tuple[Any, ...], list[Any]]:
    """(size, dtype) by op, backend and first factor.

    In each backend, any two values of two factors meet. So every kernel sees every size in every
    dtype, as in the full product, and every size and every dtype in every layout.
    """
    cases: dict[tuple[Any, ...], list[Any]] = {}
    covers = {name: cover(*factors(name)) for name in SPECS}
    for name, backend in OP_BACKENDS:
        for first, *row in covers[name]:
            cases.setdefault((name, backend, first), []).append(row)
    return cases


COVER = covered(factors_of)
NONFINITE_COVER = covered(nonfinite_factors_of)
