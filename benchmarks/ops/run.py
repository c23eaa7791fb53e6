"""Time the operations against eager PyTorch: `python -m benchmarks.ops.run --op noise_difference`.

Each provider's result is compared with a float64 oracle before timing. All providers of a case are
timed in turn in one process. Rows are merged into benchmarks/results/<machine>.csv after each case.
A case that fails is recorded as failed, and one whose baseline is missing as skipped.

On a GPU, `graph_time` is the time of a replayed CUDA graph over inputs larger than the L2 cache,
and `enqueue_time` the CPU's time of launching the call. A case with a provider that cannot be
recorded is timed by events instead (`time`), all its providers alike.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

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

    def row(name: str, metric: str, samples: list[float], **more: float) -> harness.Row:
        return harness.make_row(
            [1e6 * value for value in samples],
            device=options.device,
            **facts(case, shape, dtype, options),
            provider=name,
            metric=metric,
            unit="us",
            x=int(inputs[0].numel()),
            **least,
            **more,
        )

    bound: dict[str, Callable[[], object]] = {
        name: functools.partial(call, *inputs) for name, call in calls.items()
    }
    metric, times = timed(calls, inputs, bound, options.rounds, ceilings.timer)
    for name, samples in times.items():
        share = round(100 * best / harness.percentiles(samples)[1], 1)
        yield row(name, metric, samples, roofline_pct=share)
    if options.device == "cuda":
        launches = harness.interleave(bound, harness.enqueue_seconds, options.rounds)
        for name, samples in launches.items():
            yield row(name, "enqueue_time", samples)


def facts(
    case: BenchCase, shape: Shape, dtype: torch.dtype, options: argparse.Namespace
) -> dict[str, Any]:
    """Columns that all rows of a problem share."""
    return {
        "op": case.op,
        "mode": case.mode,
        "shape": "x".join(map(str, shape)),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": options.threads,
        "command": f"python -m benchmarks.ops.run --op {case.op}",
    }


def timed(
    calls: dict[str, Callable[..., Tensor]],
    inputs: Inputs,
    bound: dict[str, Callable[[], object]],
    rounds: int,
    timer: harness.Timer,
) -> tuple[str, dict[str, list[float]]]:
    """The metric, and seconds per call by provider, one a round."""
    if timer is not harness.gpu_seconds:
        return harness.metric_of(timer), harness.interleave(bound, timer, rounds)
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    copies = harness.rotated(inputs, cache)
    replays = {}
    for name, call in calls.items():
        try:
            replays[name] = harness.graph_seconds([functools.partial(call, *x) for x in copies])
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            print(f"{name} cannot be recorded as a graph ({reason}); this case is timed by events")
            torch.cuda.synchronize()
            return harness.metric_of(timer), harness.interleave(bound, timer, rounds)
    samples: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(rounds):
        for name, replayed in replays.items():
            samples[name].append(replayed())
    return "graph_time", samples


def describe(rows: list[harness.Row], goal: float | None) -> Iterator[tuple[str, bool]]:
    """Each row as a line, and False if a dispatched kernel misses the goal."""
    rows = [row for row in rows if row.metric in harness.TIMES]
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
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--compile", action="store_true", help="time torch.compile as well")
    parser.add_argument("--check-first", action="store_true", help="run tests/ops first")
    parser.add_argument("--enforce", action="store_true", help="exit with 1 if a goal is missed")
    parser.add_argument("--shapes", type=int, help="shapes per op and mode; default: all")
    harness.add_options(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; return the exit code."""
    options = parse(arguments)
    if options.check_first:
        tests = [sys.executable, "-m", "pytest", "-q", "tests/ops"]
        if subprocess.run(tests, cwd=harness.RESULTS.parents[1]).returncode != 0:
            print("tests/ops fail; nothing was timed", file=sys.stderr)
            return 1
    torch.set_num_threads(options.threads)
    ceilings = Ceilings(options.device, harness.timer_for(options.device, options.threads))
    recorder = harness.Recorder.of(options, "python -m benchmarks.ops.run")
    missed = 0
    print(HEADER)
    for case in CASES:
        if options.op and case.op not in options.op:
            continue
        for shape in case.shapes[: options.shapes]:
            for dtype in case.dtypes:
                about = facts(case, shape, dtype, options)
                with recorder.case(provider=harness.ALL, **about):
                    rows = list(measure(case, shape, dtype, options, ceilings))
                    recorder.write(rows)
                    for line, met in describe(rows, case.goals.get((shape, dtype))):
                        missed += not met
                        print(line if met else f"{line}  MISSED", flush=True)
    return recorder.finish() or (1 if missed and options.enforce else 0)


if __name__ == "__main__":
    sys.exit(main())
