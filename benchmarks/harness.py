"""Timers for busy machines, and the CSV file that keeps the results."""

from __future__ import annotations

import csv
import functools
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_SHORTEST_SAMPLE = 200e-6
# A call longer than this is warm after one run; more trial runs would cost as much as timing it.
_LONG_CALL = 0.1
_L2_FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        x: problem size.
        p20, p50, p80: percentiles of `metric` in `unit`.
        bytes, flops: least traffic and arithmetic of the op, the same for every provider.
        roofline_pct: share of the machine's ceiling (`benchmarks.ceilings`), in percent.
        threads: CPU threads; 0 if a GPU computes.
        repro_cmd: command that measures the row again.
    """

    op: str
    mode: str
    provider: str
    metric: str
    unit: str
    x: int
    p20: float
    p50: float
    p80: float
    bytes: int
    flops: int
    roofline_pct: float | None = None
    shape: str
    dtype: str
    threads: int
    machine: str
    versions: str
    commit: str
    repro_cmd: str
    timestamp: str


# A new measurement replaces an old one with the same values in these columns.
_KEY = ("op", "mode", "provider", "metric", "shape", "dtype", "threads", "machine")


def _key(row: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in _KEY)


Timer = Callable[[Callable[[], object], int], float]


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """CPU seconds per call; other processes on the machine hardly change them."""
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


def wall_seconds(call: Callable[[], object], repeats: int) -> float:
    """Wall-clock seconds per call, for more than one thread."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def gpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """GPU seconds per call with a cold L2 cache, measured by events around the call alone."""
    flush = torch.empty(_L2_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    total = 0.0
    for _ in range(repeats):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        total += start.elapsed_time(end) * 1e-3
    return total / repeats


def timer_for(device: str, threads: int) -> Timer:
    """The timer for a device; CPU time is meaningful for one thread only."""
    if device == "cuda":
        return gpu_seconds
    return cpu_seconds if threads == 1 else wall_seconds


def metric_of(timer: Timer) -> str:
    """The name of a timer's metric in the rows."""
    return "cpu_time" if timer is cpu_seconds else "time"


def _repeats(call: Callable[[], object]) -> int:
    """Warm up; return the calls per sample that outlast the clock's resolution."""
    call()
    once = wall_seconds(call, 1)
    if once < _LONG_CALL:
        once = min(wall_seconds(call, 1) for _ in range(6))
    return max(1, round(_SHORTEST_SAMPLE / once))


def interleave(
    calls: dict[str, Callable[[], object]], timer: Timer, rounds: int
) -> dict[str, list[float]]:
    """Time all providers in turn, round after round, so that a slow moment hits all of them.

    Each round starts with another provider, so that none always follows the same one.

    Returns:
        Seconds per call, one a round, by provider.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            samples[name].append(timer(calls[name], repeats[name]))
    return samples


def percentiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile."""
    cuts = statistics.quantiles(samples, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


@functools.cache
def machine_name(device: str) -> str:
    """The kind of processor, never the name of a host."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return models[0] if models else platform.processor() or platform.machine()


@functools.cache
def library_versions() -> str:
    """Versions that affect a timing, as name==version."""
    found = []
    for name in ("dori-fast", "torch", "triton"):
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} absent")
    return " ".join(found)


@functools.cache
def commit_id() -> str:
    """Short commit of the sources, with a + if the working tree differs."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10"]
    try:
        done = subprocess.run(
            command, cwd=RESULTS.parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def make_row(
    samples: Sequence[float], *, device: str = "cpu", threads: int = 1, command: str, **facts: Any
) -> Row:
    """A row from samples in its unit and its own facts; the machine's facts are added.

    `command` is completed by the device or threads, so that it measures the row again.
    """
    on_gpu = device == "cuda"
    p20, p50, p80 = (round(value, 3) for value in percentiles(samples))
    return Row(
        p20=p20,
        p50=p50,
        p80=p80,
        threads=0 if on_gpu else threads,
        repro_cmd=f"{command} --device cuda" if on_gpu else f"{command} --threads {threads}",
        machine=machine_name(device),
        versions=library_versions(),
        commit=commit_id(),
        timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    )


def record(rows: Sequence[Row], folder: Path | None = None) -> Path:
    """Merge rows into the file of their machine; a new measurement replaces the old one.

    Rows of an older layout are kept, with missing columns empty.
    """
    folder = folder or RESULTS
    slug = re.sub(r"[^a-z0-9]+", "-", rows[0].machine.lower()).strip("-")
    path = folder / f"{slug}.csv"
    kept: dict[tuple[str, ...], dict[str, object]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for old in csv.DictReader(file):
                kept[_key(old)] = dict(old)
    kept |= {_key(asdict(row)): asdict(row) for row in rows}
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept[key] for key in sorted(kept))
    return path
