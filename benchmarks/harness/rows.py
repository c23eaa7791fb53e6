"""The row of a measurement, and the CSV file that keeps the rows of a machine."""

from __future__ import annotations

import csv
import functools
import math
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results"
# Metrics that are times of a call; tables of speed-ups compare these. `graph_time` is a GPU's time
# of a replayed call, `enqueue_time` a CPU's time of launching it.
TIMES = ("cpu_time", "time", "graph_time")
# metrics of a case that gave no number; its row has the reason as its note
FAILED, SKIPPED = "failed", "skipped"
# provider of a case that failed for all providers
ALL = "all"


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
        note: reason why a case has no number, or a remark.
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
    note: str = ""


# A new measurement replaces an old one with the same values in these columns.
_KEY = ("op", "mode", "provider", "metric", "shape", "dtype", "threads", "machine")


def _key(row: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in _KEY)


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
    """Short commit of the sources, with a + if the working tree differs.

    `DORI_COMMIT` names it where the sources travel without their repository.
    """
    given = os.environ.get("DORI_COMMIT", "").strip()
    if given:
        return given
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10"]
    try:
        done = subprocess.run(
            command, cwd=RESULTS.parents[1], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def percentiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile; of one sample, itself three times."""
    if len(samples) == 1:
        return (samples[0],) * 3
    cuts = statistics.quantiles(samples, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def _rounded(value: float) -> float:
    """Three decimals, or four digits of a small value."""
    return round(value, 3) if not math.isfinite(value) or abs(value) >= 1 else float(f"{value:.4g}")


def make_row(
    samples: Sequence[float], *, device: str = "cpu", threads: int = 1, command: str, **facts: Any
) -> Row:
    """A row from samples in its unit and its own facts; the machine's facts are added.

    `command` is completed by the device or threads, so that it measures the row again.
    """
    on_gpu = device == "cuda"
    p20, p50, p80 = map(_rounded, percentiles(samples))
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

    A number also replaces the row that says why there was none, and a time one that was taken in
    another way. The file is whole at any moment.
    Rows of an older layout are kept, with missing columns empty.
    """
    folder = folder or RESULTS
    path = folder / f"{slug(rows[0].machine)}.csv"
    kept: dict[tuple[str, ...], dict[str, object]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for old in csv.DictReader(file):
                kept[_key(old)] = dict(old)
    for row in map(asdict, rows):
        for metric, provider in product((FAILED, SKIPPED), (row["provider"], ALL)):
            kept.pop(_key({**row, "metric": metric, "provider": provider}), None)
        for metric in TIMES if row["metric"] in TIMES else ():
            kept.pop(_key({**row, "metric": metric}), None)
        kept[_key(row)] = row
    folder.mkdir(parents=True, exist_ok=True)
    # a stage may be ended at any moment
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept[key] for key in sorted(kept))
    part.replace(path)
    return path


def slug(machine: str) -> str:
    """Stem of a machine's file."""
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
