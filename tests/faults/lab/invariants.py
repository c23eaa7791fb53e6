"""Promises that a run directory keeps after any fault, and those of a finished run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pyarrow.parquet as pq


def violations(out: Path, baseline: Path, finished: bool) -> list[str]:
    """The broken promises of ``out``, compared with an undisturbed run of the same input.

    Every file at a final path opens and has the undisturbed run's bytes, so no row is wrong,
    doubled or out of place. A finished run has every row, and nothing else lies there.
    """
    found = []
    ids: list[int] = []
    for path in sorted((out / "shards").glob("part-*.parquet")):
        try:
            table = pq.read_table(path, use_threads=False, partitioning=None)
        except Exception as error:
            found.append(f"{path.name} does not open: {type(error).__name__}")
            continue
        ids += table["row_id"].to_pylist()
        if path.read_bytes() != (baseline / "shards" / path.name).read_bytes():
            found.append(f"{path.name} differs from the undisturbed run")
    if len(set(ids)) != len(ids):
        found.append("a row is there twice")
    if (out / "run.json").exists() and (wrong := _miscounted(out)):
        found.append(wrong)
    return [*found, *(_unfinished(out, baseline, ids) if finished else [])]


def _miscounted(out: Path) -> str | None:
    try:
        counts = json.loads((out / "run.json").read_text())["counts"]
    except ValueError:
        return "run.json is damaged"
    if counts["rows"] != counts["ok"] + counts["quarantined"]:
        return f"the counts do not add up: {counts}"
    return None


def _unfinished(out: Path, baseline: Path, ids: list[int]) -> list[str]:
    found = []
    expected = json.loads((baseline / "run.json").read_text())
    record = json.loads((out / "run.json").read_text())
    if ids != list(range(expected["counts"]["rows"])):
        found.append(f"{len(ids)} rows instead of {expected['counts']['rows']}")
    for key in ("run_hash", "state", "counts"):
        if record[key] != expected[key]:
            found.append(f"{key} is {record[key]}, not {expected[key]}")
    names = {path.name for path in (out / "shards").iterdir()}
    if names != {path.name for path in (baseline / "shards").iterdir()}:
        found.append("the shards are not those of the undisturbed run")
    return [*found, *(f"{path} was left behind" for path in out.rglob(".*.tmp"))]


def held_locks(out: Path) -> list[str]:
    """The kernel's locks on files of ``out``, by any process."""
    inodes = {str(os.stat(path).st_ino): path for path in out.rglob(".*lock*")}
    table = Path("/proc/locks").read_text()
    found = re.findall(r"[0-9a-f]+:[0-9a-f]+:(\d+) ", table)
    return [f"{inodes[inode]} is locked" for inode in found if inode in inodes]
