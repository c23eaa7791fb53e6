"""Stages that run tests, on the device and under compute-sanitizer."""

from __future__ import annotations

import importlib.util
import shutil
import sys

from benchmarks.device.run import ROOT
from benchmarks.device.stage import Stage

_NO_TESTS_COLLECTED = 5
_CONTRACT = "tests/ops/test_contract.py"
# what a file of tests imports that the machine may lack
_NEEDS = {"test_composition.py": "accelerate"}


def gpu_tests() -> list[str]:
    """Files with tests for a GPU; naming them saves the collection of all others."""
    return [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text()
        and (path.name not in _NEEDS or importlib.util.find_spec(_NEEDS[path.name]))
    ]


def suites(dry_run: bool) -> list[Stage]:
    """The tests on the device, then under the sanitizers, the slowest last."""
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    # a module that does not import costs its own tests only; without the strict configuration,
    # options of plugins that are not installed are no error
    pytest += ("--continue-on-collection-errors", "-o", "addopts=--strict-markers")
    parallel = ("-n", "8") if importlib.util.find_spec("xdist") and not dry_run else ()
    empty = (0, _NO_TESTS_COLLECTED) if dry_run else (0,)
    return [
        Stage(
            "op_tests",
            80,
            (*pytest, _CONTRACT, "-k", "unwritten or every_operator")
            if dry_run
            else (*pytest, *parallel, "tests/ops", "-m", "not gpu"),
            "does each op agree with its float64 oracle on this device",
            3,
        ),
        Stage(
            "gpu_tests",
            60,
            (*pytest, "-m", "gpu", *gpu_tests()),
            "the tests that need a GPU",
            3,
            accepted=empty,
        ),
        _sanitized("memcheck", 160, pytest, dry_run),
        _sanitized("racecheck", 120, pytest, dry_run),
        _sanitized("initcheck", 120, pytest, dry_run),
    ]


def _sanitized(tool: str, limit: float, pytest: tuple[str, ...], dry_run: bool) -> Stage:
    """The ops' tests under a tool of compute-sanitizer; the dry run has some of them, without."""
    sanitizer = shutil.which("compute-sanitizer")
    chosen = "test_sizes and contiguous and not reference"
    if dry_run:
        chosen += " and neuron_mask-"
    under = () if dry_run else (sanitizer or "", "--tool", tool, "--error-exitcode", "9")
    return Stage(
        tool,
        limit,
        (*under, *pytest, _CONTRACT, "-k", chosen),
        f"compute-sanitizer's {tool} on the ops",
        5,
        # torch's GPU memory cache would hide a write past a tensor's end
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        missing="" if sanitizer or dry_run else "compute-sanitizer is not installed",
    )
