"""Time the operations against eager PyTorch: `python -m benchmarks.ops.run --op noise_difference`.

Each provider's result is compared with a float64 oracle before timing. All providers of a case are
timed in turn in one process. Rows are merged into benchmarks/results/<machine>.csv.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.ceilings import Ceilings
from benchmarks.ops.cases import CASES
from benchmarks.ops.cases.case import BenchCase, Inputs, Shape
from dori_fast.testing import assert_close_to_oracle, available_backends, to_oracle

HEADER = (
    f"{'op':21} {'mode':16} {'shape':18} {'dtype':9} {'provider':8} {'p50 us':>9} {'GB/s':>7}"
    f" {'roof %':>7} {'vs eager':>9} {'goal':>5}"
)


def providers(case: BenchCase, device: str, with_compile: bool) -> dict[str, Callable[..., Tensor]]:
    """Eager, optionally torch.compile of it, and every kernel that runs on the device."""
    found: dict[str, Callable[..., Tensor]] = {"eager": case.eager}
    if with_compile:
        found["compile"] = torch.compile(case.eager, dynamic=False)
    # on a CPU Triton is interpreted, which checks numbers but not speed
    untimed = {"reference", "triton"} if device == "cpu" else {"reference"}
    kernels = [b for b in available_backends(case.op, device) if b not in untimed]
    # without any kernel, users get the reference
    kernels = kernels or ["reference"]
    return found | {name: functools.partial(case.ours, name) for name in kernels}


def check(case: BenchCase, calls: dict[str, Callable[..., Tensor]], inputs: Inputs) -> None:
    """Compare each provider with the float64 oracle.

    Raises:
        AssertionError: a provider's error exceeds its tolerance.
    """
    x, *rest = inputs
    exact = case.ours("reference", *to_oracle((x.clone(), *rest)))
    reference = case.ours("reference", x.clone(), *rest)
    # Eager may sum in another order and lose more digits where terms cancel.
    scale = exact.double().abs().amax().expand_as(exact)
    for name, call in calls.items():
        found = call(x.clone(), *rest)
        try:
            if case.eager_error and name in ("eager", "compile"):
                torch.testing.assert_close(
                    found.double(), exact.double(), rtol=case.eager_error, atol=0
                )
                continue
            assert_close_to_oracle(found, reference, exact, scale)
        except AssertionError as error:
            raise AssertionError(f"{case.op} {case.mode} {name}: {error}") from error


def measure(
    case: BenchCase,
    shape: Shape,
    dtype: torch.dtype,
    options: argparse.Namespace,
    ceilings: Ceilings,
) -> Iterator[harness.Row]:
    """Check and time all providers on one problem."""
    inputs = case.make(shape, dtype, options.device)
    calls = providers(case, options.device, options.compile)
    check(case, calls, inputs)
    least = {"bytes": case.traffic(shape, dtype.itemsize), "flops": case.flops(shape)}
    best = ceilings.seconds(dtype=dtype, **least)
    bound: dict[str, Callable[[], object]] = {
        name: functools.partial(call, *inputs) for name, call in calls.items()
    }
    for name, samples in harness.interleave(bound, ceilings.timer, options.rounds).items():
        yield harness.make_row(
            [1e6 * value for value in samples],
            device=options.device,
            op=case.op,
            mode=case.mode,
            provider=name,
            metric=harness.metric_of(ceilings.timer),
            unit="us",
            x=int(inputs[0].numel()),
            roofline_pct=round(100 * best / harness.percentiles(samples)[1], 1),
            **least,
            shape="x".join(map(str, shape)),
            dtype=str(dtype).removeprefix("torch."),
            threads=options.threads,
            command=f"python -m benchmarks.ops.run --op {case.op}",
        )


def describe(rows: list[harness.Row], goal: float | None) -> Iterator[tuple[str, bool]]:
    """Each row as a line, and False if a dispatched kernel misses the goal."""
    eager = next(row for row in rows if row.provider == "eager")
    for row in rows:
        speedup = eager.p50 / row.p50
        promised = goal if row.provider in ("cpp", "reference") else None
        line = (
            f"{row.op:21} {row.mode:16} {row.shape:18} {row.dtype:9} {row.provider:8}"
            f" {row.p50:9.1f} {row.bytes / row.p50 / 1e3:7.1f} {row.roofline_pct or 0:7.0f}"
            f" {speedup:8.2f}x {promised or '':>5}"
        )
        yield line, promised is None or speedup >= promised


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops.run", description=__doc__)
    names = sorted({case.op for case in CASES})
    parser.add_argument("--op", choices=names, action="append", help="op to time; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--compile", action="store_true", help="time torch.compile as well")
    parser.add_argument("--check-first", action="store_true", help="run tests/ops first")
    parser.add_argument("--enforce", action="store_true", help="exit with 1 if a goal is missed")
    parser.add_argument("--no-write", action="store_true", help="do not write results")
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="folder of the CSV")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; return the exit code."""
    options = parse(arguments)
    if options.check_first:
        tests = [sys.executable, "-m", "pytest", "-q", "tests/ops"]
        if subprocess.run(tests, cwd=harness.RESULTS.parent.parent).returncode != 0:
            print("tests/ops fail; nothing was timed", file=sys.stderr)
            return 1
    torch.set_num_threads(options.threads)
    ceilings = Ceilings(options.device, harness.timer_for(options.device, options.threads))
    written: list[harness.Row] = []
    missed = 0
    print(HEADER)
    for case in CASES:
        if options.op and case.op not in options.op:
            continue
        for shape in case.shapes:
            for dtype in case.dtypes:
                rows = list(measure(case, shape, dtype, options, ceilings))
                for line, met in describe(rows, case.goals.get((shape, dtype))):
                    missed += not met
                    print(line if met else f"{line}  MISSED", flush=True)
                written += rows
    if not options.no_write:
        print(f"results: {harness.record(written, options.results).name}")
    return 1 if missed and options.enforce else 0


if __name__ == "__main__":
    sys.exit(main())
