"""Memory, file descriptors, commit time and resume time of scans of two million prompts.

Reader, ledger and writer are the scan's own; the detector is the fake one of `speed/workers.py`.
`paced` takes about 0.2 ms a prompt, ten times as fast as a GPU on SD 1.4, in shards of 10,000 rows.
`free` takes no time, in a thousand shards of 2,000 rows. About once a second the benchmark reads
the resident memory, whose slope is fitted after the first fifth of the rows, and the number of open
descriptors. A commit lasts from a shard's table to its final name on the disk. The resume is the
same call again: it checks every committed shard and skips its rows in the input.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.scale
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from unittest.mock import patch as replaced

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import dori_fast as df
from benchmarks import harness
from benchmarks.speed.workers import HASHES, Hashing
from dori_fast.runs.progress import Progress
from dori_fast.runs.result import ScanResult
from dori_fast.runs.workers import engine

RESULTS = harness.RESULTS / "quality" / "scale.json"
CASES = {"paced": (HASHES, 10_000), "free": (1, 2_000)}
WORDS = "a photograph of about the usual length of a caption, number"
WARM, GROUP = 0.2, 50_000


def write_prompts(path: Path, rows: int) -> None:
    """Write rows of id and prompt; the suffix of the path selects parquet or CSV."""
    if path.suffix == ".csv":
        with path.open("w") as file:
            file.write("id,prompt\n")
            file.writelines(f'{i},"{WORDS} {i}"\n' for i in range(rows))
        return
    schema = pa.schema({"id": pa.int64(), "prompt": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, GROUP):
            ids = range(first, min(first + GROUP, rows))
            columns = [pa.array(ids), pa.array([f"{WORDS} {i}" for i in ids])]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


class Clock:
    """Calls a function and sums its seconds."""

    def __init__(self, function: Any) -> None:
        self._function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        began = perf_counter()
        try:
            return self._function(*arguments)
        finally:
            self.seconds += perf_counter() - began


def measure(prompts: Path, rows: int, name: str) -> dict[str, Any]:
    """Figures of a scan of `rows` prompts and of its resume."""
    (hashes, shard_size), model, process = CASES[name], df.load("demo"), psutil.Process()
    seen: list[tuple[int, int, int]] = []

    def look(progress: Progress) -> None:
        seen.append((progress.done, process.memory_info().rss, process.num_fds()))

    def scan() -> tuple[ScanResult, float]:
        began = perf_counter()
        result = df.scan(
            model,
            prompts,
            out=prompts.parent / name,
            detector=Hashing(hashes),
            shard_size=shard_size,
            on_progress=look,
        )
        return result, perf_counter() - began

    commit = Clock(engine.commit_shard)
    with replaced.object(engine, "commit_shard", commit):
        first, wall = scan()
    at, resident, descriptors = np.array([row for row in seen if row[0] > WARM * rows]).T
    again, resumed = scan()
    if (first.scored, again.scored) != (rows, 0) or first.counts != again.counts:
        raise RuntimeError(f"not every row was scored once: {first.counts}, then {again.counts}")
    return {
        "case": name,
        "rows": rows,
        "shards": len(first.shards),
        "rows_per_second": round(rows / wall),
        "resident_mb": round(float(resident.max()) / 1e6, 1),
        "resident_mb_per_100k_rows": round(float(np.polyfit(at, resident, 1)[0]) / 10, 4),
        "descriptors": [int(descriptors[0]), int(descriptors.max())],
        "commit_ms": round(1e3 * commit.seconds / len(first.shards), 2),
        "commit_share": round(commit.seconds / wall, 4),
        "resume_seconds": round(resumed, 2),
    }


def within(found: dict[str, Any]) -> bool:
    """True if a case keeps its limits; the share of commits has no limit if scoring is free."""
    return bool(
        found["resident_mb_per_100k_rows"] <= 1
        and found["descriptors"][1] <= found["descriptors"][0]
        and (found["commit_share"] <= 0.01 or found["case"] == "free")
        and found["resume_seconds"] <= 5
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the results; return 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.scale", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--input", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--work", type=Path, help="folder on the measured disk; default: temporary")
    parser.add_argument("--no-write", action="store_true", help="do not write results")
    options = parser.parse_args(arguments)
    found = []
    with TemporaryDirectory(dir=options.work) as folder:
        prompts = Path(folder) / f"prompts.{options.input}"
        write_prompts(prompts, options.rows)
        for name in CASES:
            found.append(measure(prompts, options.rows, name))
            print(json.dumps(found[-1]), flush=True)
    if not options.no_write:
        facts = {"command": "python -m benchmarks.speed.scale", "threads": torch.get_num_threads()}
        text = json.dumps({**facts, "input": options.input, "rows": found}, indent=1)
        RESULTS.write_text(text + "\n", encoding="utf-8")
    return 0 if all(map(within, found)) else 1


if __name__ == "__main__":
    sys.exit(main())
