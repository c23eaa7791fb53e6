"""Add the rows of device runs to benchmarks/results: `python -m benchmarks.ops.merge device_out`.

A run in several calls leaves a folder for each. Of rows about the same thing the newest is kept.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks import harness

_TYPES: dict[str, Any] = {
    **dict.fromkeys(("p20", "p50", "p80"), float),
    **dict.fromkeys(("x", "bytes", "flops", "threads"), int),
    "roofline_pct": lambda text: float(text) if text else None,
}


def rows_of(path: Path) -> list[harness.Row]:
    """The rows of a CSV file, oldest first; [] if the file holds something else."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if not {"op", "provider", "metric", "timestamp"} <= set(reader.fieldnames or ()):
            return []
        names = [field.name for field in fields(harness.Row)]
        found = [
            harness.Row(**{name: _TYPES.get(name, str)(row.get(name) or "") for name in names})
            for row in reader
        ]
    return sorted(found, key=lambda row: row.timestamp)


def merge(folders: Iterable[Path], into: Path) -> int:
    """Add the rows of all folders to the files of their machines; return their number."""
    rows = [row for folder in folders for path in folder.glob("*.csv") for row in rows_of(path)]
    # the newest last, which replaces the others
    for row in sorted(rows, key=lambda row: row.timestamp):
        harness.record([row], into)
    return len(rows)


def main(arguments: list[str] | None = None) -> int:
    """Merge; return 1 if there was nothing to merge."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ops.merge", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folders", nargs="+", type=Path, help="output folders of device.sh")
    parser.add_argument("--into", type=Path, default=harness.RESULTS, help="folder of the CSV")
    options = parser.parse_args(arguments)
    count = merge(options.folders, options.into)
    print(f"{count} rows merged into {options.into}")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
