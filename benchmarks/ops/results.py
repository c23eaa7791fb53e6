"""Measured problems, read from benchmarks/results/*.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import RESULTS, TIMES

# in order of preference: "auto" takes the first that runs
KERNELS = ("triton", "cuda", "cpp", "reference")
OURS = (*KERNELS, "dori_fast")


@dataclass(frozen=True, order=True)
class Problem:
    """One measured problem; the table compares its providers."""

    machine: str
    threads: int
    op: str
    mode: str
    size: int
    shape: str
    dtype: str
    unit: str


@dataclass
class Measured:
    """Medians of a problem and shares of the roofline, by provider."""

    problem: Problem
    medians: dict[str, float] = field(default_factory=dict)
    shares: dict[str, str] = field(default_factory=dict)
    sources: set[tuple[str, str]] = field(default_factory=set)

    @property
    def ours(self) -> str | None:
        """The provider that represents this package; None if none was timed."""
        return next((name for name in OURS if name in self.medians), None)

    @property
    def speedup(self) -> float | None:
        """Eager's median over ours; None if one is missing."""
        if self.ours is None or "eager" not in self.medians:
            return None
        return self.medians["eager"] / self.medians[self.ours]


def load(folder: Path = RESULTS) -> list[Measured]:
    """All times in a folder's CSV files, sorted by problem."""
    found: dict[Problem, Measured] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["metric"] not in TIMES:
                    continue
                problem = Problem(
                    machine=row["machine"],
                    threads=int(row["threads"]),
                    op=row["op"],
                    mode=row["mode"],
                    size=int(row["x"]),
                    shape=row["shape"],
                    dtype=row["dtype"],
                    unit=row["unit"],
                )
                measured = found.setdefault(problem, Measured(problem))
                measured.medians[row["provider"]] = float(row["p50"])
                measured.shares[row["provider"]] = row.get("roofline_pct") or ""
                measured.sources.add((row["versions"], row["commit"]))
    return [found[problem] for problem in sorted(found)]


@dataclass(frozen=True, order=True)
class Figure:
    """A measurement that is no time, or a case that gave none; `value` is a text with its unit."""

    machine: str
    threads: int
    op: str
    mode: str
    shape: str
    dtype: str
    provider: str
    metric: str
    value: str


def figures(folder: Path = RESULTS) -> list[Figure]:
    """All rows of a folder's CSV files whose metric is no time of a call, sorted."""
    found = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["metric"] in TIMES:
                    continue
                number = "" if row["p50"] == "nan" else f"{float(row['p50']):.4g} {row['unit']}"
                found.append(
                    Figure(
                        row["machine"],
                        int(row["threads"]),
                        *(row[n] for n in ("op", "mode", "shape", "dtype", "provider", "metric")),
                        f"{number} {row.get('note') or ''}".strip(),
                    )
                )
    return sorted(found)


def place(machine: str, threads: int) -> str:
    """Name of a machine, with the number of threads if a CPU computed."""
    return f"{machine}, {threads} thread{'s' if threads > 1 else ''}" if threads else machine
