"""Every launch of every op compiles for GPUs, without spills, approximations or wrong grids.

By default, every second size of the specs is compiled once for sm_90, dtypes and layouts in turns,
besides the calls of real runs. With --run-nightly, all sizes meet all dtypes and layouts.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from filelock import FileLock

import dori_fast.triton_kernels as room
from tests.launches.apart import compiled_apart
from tests.launches.occupancy import GRID, blocks_of_sm
from tests.launches.page import PAGE, preface, section
from tests.ops.contract import SPECS

pytestmark = [
    pytest.mark.codegen,
    pytest.mark.needs("triton"),
    # the full product of sizes, dtypes and layouts compiles for more than ten minutes
    pytest.mark.timeout(3600),
]

ALWAYS = ((90, "few", "real"), (100, "smallest"))
NIGHTLY = ((80, "few"), (90, "every", "wide"), (100, "every", "wide"), (100, "few", "real"))
# launches of one call, if not 1; of MS-SSIM five at each of three scales, and three more
LAUNCHES = {"activation_stats": 2, "diffusion_loss": 2, "ms_ssim": 18}
# Kernels with one block on an SM at these calls: the block holds its whole work in registers.
ONE_BLOCK = {"_activation_stats_kernel", "_wanda_mask_kernel"}
# Most bytes that a thread spills, by capability: on B200, ptxas keeps two numbers of some float32
# heads of 64 columns, and four of float64 heads of 24, out of its 255 registers; and two of some
# rows of 1,000.
SPILLS = {
    (100, "sdpa_jvp_kernel"): 16,
    (100, "_noise_cosine_kernel"): 8,
    (100, "_wanda_mask_kernel"): 8,
}
# Kernels that load single elements: neighbors under a window, a list of neurons, few numbers.
NARROW = {
    *("moments_kernel", "similarity_kernel", "pool_kernel", "range_kernel"),
    *("_neuron_mask_in_place_kernel", "_mean_of_draws_kernel"),
}
# Kernels that sum a row. Its order must not follow the alignment, and so the width of loads.
ROW_SUMS = {
    *("_noise_difference_kernel", "_noise_difference_step_kernel", "_noise_cosine_kernel"),
    *("_diffusion_loss_kernel", "mean_kernel"),
}

Found = dict[str, Any]


@pytest.fixture(
    scope="module",
    params=(*ALWAYS, *(pytest.param(kind, marks=pytest.mark.nightly) for kind in NIGHTLY)),
    ids=lambda kind: f"sm_{kind[0]}-{'-'.join(kind[1:])}",
)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Found]:
    """A capability and everything that was launched and compiled for it."""
    return request.param[0], _compiled_once(tmp_path_factory, *request.param)


def _compiled_once(
    tmp_path_factory: pytest.TempPathFactory, capability: int | None, *kinds: str
) -> Found:
    """Compile in one of the test processes; the others read what it found."""
    shared = tmp_path_factory.getbasetemp()
    # test processes of one run have folders side by side
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    path = shared / f"{capability}-{'-'.join(kinds)}.json"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            cache = tmp_path_factory.mktemp("triton")
            path.write_text(json.dumps(compiled_apart(cache, capability, *kinds)))
    found: Found = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Launches with one mistake each."""
    return _compiled_once(tmp_path_factory, 90, "planted")


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Launches of the largest calls, which are not compiled."""
    return _compiled_once(tmp_path_factory, None, "huge")


def launches(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each launch with the call that made it."""
    for call in found["calls"]:
        yield from ((call["call"], launch) for launch in call["launches"])


def only(found: Found, *kinds: str) -> Found:
    """Return what was found with the calls of some kinds alone."""
    return {**found, "calls": [call for call in found["calls"] if call["kind"] in kinds]}


def unguarded(found: Found) -> list[str]:
    return [call for call, launch in launches(found) if not launch["guarded"]]


def beyond_the_grid(found: Found) -> list[str]:
    return [
        f"{call}: {launch['kernel']} {launch['grid']}"
        for call, launch in launches(found)
        if any(not 0 < count <= most for count, most in zip(launch["grid"], GRID, strict=True))
    ]


def binaries_with(found: Found, fault: str) -> dict[str, Any]:
    """Kernels and calls whose binary has a value other than 0 or empty there."""
    return {
        f"{launch['kernel']} in {call}": found["binaries"][launch["binary"]][fault]
        for call, launch in launches(found)
        if found["binaries"][launch["binary"]][fault]
    }


def blocks(capability: int, binary: dict[str, Any]) -> int:
    return blocks_of_sm(capability, binary["registers"], binary["warps"], binary["shared"])


def test_every_launch_compiles(compiled: tuple[int, Found]) -> None:
    assert compiled[1]["failures"] == {}


def test_no_launch_spills_registers(compiled: tuple[int, Found]) -> None:
    capability, found = compiled
    spilled = binaries_with(found, "spills").items()
    most = {name: SPILLS.get((capability, name.split()[0]), 0) for name, _ in spilled}
    assert {name: count for name, count in spilled if count > most[name]} == {}


def test_roots_and_quotients_are_rounded(compiled: tuple[int, Found]) -> None:
    assert binaries_with(compiled[1], "approximations") == {}


def test_sums_over_rows_have_one_order_whatever_the_alignment(
    compiled: tuple[int, Found],
) -> None:
    """Two numbers have one sum in either order; the compiler orders longer sums by registers."""
    sums: dict[str, set[int]] = {}
    for _, launch in launches(compiled[1]):
        length = compiled[1]["binaries"][launch["binary"]]["longest_sum"]
        sums.setdefault(launch["kernel"], set()).add(length)
    assert {kernel: sums[kernel] for kernel in ROW_SUMS} == {kernel: {2} for kernel in ROW_SUMS}
    # the measure sees a plain sum
    assert max(sums["_activation_stats_kernel"]) > 2


def test_every_launch_is_on_the_device_of_its_tensors(compiled: tuple[int, Found]) -> None:
    assert unguarded(compiled[1]) == []


def test_every_launch_fits_an_sm(compiled: tuple[int, Found]) -> None:
    capability, found = compiled
    too_large = {
        f"{launch['kernel']} in {call}": binary
        for call, launch in launches(found)
        if blocks(capability, binary := found["binaries"][launch["binary"]]) == 0
    }
    assert too_large == {}


def test_real_launches_fit_twice_and_load_vectors(compiled: tuple[int, Found]) -> None:
    capability, found = compiled
    for call, launch in launches(only(found, "real", "wide")):
        binary, kernel = found["binaries"][launch["binary"]], launch["kernel"]
        assert blocks(capability, binary) >= 2 - (kernel in ONE_BLOCK), (call, kernel, binary)
        assert binary["widest_load"] == 16 or kernel in NARROW, (call, kernel, binary)


def test_launches_per_call(compiled: tuple[int, Found]) -> None:
    for call in compiled[1]["calls"]:
        expected = {0, LAUNCHES.get(call["op"], 1)}
        if call["op"] == "ms_ssim" and call["kind"] != "real":
            # maps of the spec have one scale, two, or three
            expected |= {6, 12}
        assert len(call["launches"]) in expected, call["call"]
        assert call["launches"] or call["kind"] != "real", call["call"]


def test_every_kernel_is_launched(compiled: tuple[int, Found]) -> None:
    modules = [
        importlib.import_module(f"{room.__name__}.{module.name}")
        for module in pkgutil.iter_modules(room.__path__)
    ]
    there = {
        kernel.__name__
        for module in modules
        for name, kernel in vars(module).items()
        if name.endswith("_kernel")
    }
    assert len(there) > 10
    assert there - {launch["kernel"] for _, launch in launches(compiled[1])} == set()
    assert {call["op"] for call in compiled[1]["calls"]} == set(SPECS)


def test_the_page_shows_what_is_compiled(compiled: tuple[int, Found]) -> None:
    capability, found = compiled
    real = only(found, "real")
    if not real["calls"]:
        pytest.skip("these calls are not on the page")
    text = PAGE.read_text()
    if f"with Triton {found['triton']}. " not in text:
        pytest.skip(f"{PAGE.name} was written with another version of triton")
    assert preface(found["triton"]) in text
    remedy = "run python -m tests.launches.page --write"
    assert section(capability, real) in text, f"{PAGE.name} is out of date; {remedy}"


def test_no_grid_is_too_large(huge: Found) -> None:
    assert huge["failures"] == {}
    assert {call["op"] for call in huge["calls"]} == set(SPECS)
    assert beyond_the_grid(huge) == []
    assert unguarded(huge) == []


def test_planted_mistakes_are_seen(planted: Found) -> None:
    assert list(planted["failures"]) == ["planted uncompilable"]
    assert unguarded(planted) == ["planted unguarded"]
    approximate = binaries_with(planted, "approximations")
    assert {name.split()[-1] for name in approximate} == {"approximate", "unguarded"}
    assert {name.split()[-1] for name in binaries_with(planted, "spills")} == {"spilling"}
    y = {"kernel": "k", "grid": [1, 65_536, 1]}
    x = {"kernel": "k", "grid": [2**31, 1, 1]}
    fits = {"kernel": "k", "grid": [2**31 - 1, 65_535, 65_535]}
    assert len(beyond_the_grid({"calls": [{"call": "c", "launches": [x, y, fits]}]})) == 2
