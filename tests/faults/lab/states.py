"""Experiments with the state that a scan finds: damage, other runs, clocks, memory, NaN."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch.nn.functional as F

from dori_fast.runs.store import shard
from tests.faults.lab.lab import SCORING, Lab, Result

CPU_MESSAGE = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"


def damaged_shards(lab: Lab) -> dict[str, Any]:
    """A finished run, shards of which are then cut, flipped, forged or emptied."""
    lab.fast, out = True, lab.work / "damaged"
    lab.run(out)
    paths = [out / "shards" / f"part-{index:05d}.parquet" for index in range(7)]
    for path, keep in zip(paths, (0, 8, 0.5, -1), strict=False):
        size = path.stat().st_size
        os.truncate(path, int(size * keep) if isinstance(keep, float) else keep % size)
    data = bytearray(paths[4].read_bytes())
    data[len(data) // 3] ^= 4
    paths[4].write_bytes(data)
    _forge(paths[5])
    os.replace(paths[6], out / "shards" / "part-00029.parquet")
    (out / "shards" / ".part-00003.parquet.7.tmp").write_bytes(b"stale")
    end = lab.finish(out)
    set_aside = sorted(path.name for path in (out / "quarantine").iterdir())
    return {"end": end, "set_aside": set_aside}


def forged_without_hash_check(lab: Lab) -> dict[str, Any]:
    """A mutation: with the check of the data's hash deleted, a forged score stays."""
    lab.fast, out = True, lab.work / "forged"
    lab.run(out)
    _forge(out / "shards" / "part-00005.parquet")

    def no_check() -> None:
        shard._digest = lambda path, size: shard.read_footer(path).data_sha256

    return lab.run(out, no_check)


def two_runs(lab: Lab) -> dict[str, Any]:
    """A second run in the same directory; then one after the first was killed with its lock."""
    lab.fast, out = True, lab.work / "two"
    lab.reset()
    first = lab.start(out)
    lab.wait_for(first, SCORING)
    os.kill(first, signal.SIGSTOP)
    second = lab.run(out)
    os.kill(first, signal.SIGKILL)
    lab.end(first)
    return {"pid": first, "second": second, "end": lab.finish(out)}


def terminated(lab: Lab, number: int) -> dict[str, Any]:
    """A polite signal in the middle, and the time until the end."""
    lab.fast, out = True, lab.work / f"signal-{number}"
    lab.reset()
    pid = lab.start(out)
    lab.wait_for(pid, SCORING, 50)
    began = time.monotonic()
    os.kill(pid, number)
    fault = lab.result(out, lab.end(pid))
    return {"fault": fault, "seconds": time.monotonic() - began, "end": lab.finish(out)}


def other_clocks(lab: Lab) -> dict[str, Any]:
    """Killed, all file times made equal, and resumed with clocks that stand or run backwards."""
    lab.fast, out = False, lab.work / "clocks"
    pid = lab.start(out)
    lab.wait_for(pid, SCORING)
    os.kill(pid, signal.SIGKILL)
    lab.end(pid)
    for path in out.rglob("*"):
        os.utime(path, (0, 0))

    def turn() -> None:
        from dori_fast.runs import scan
        from dori_fast.runs.scoring import score

        scan.perf_counter = score.perf_counter = lambda: 1.0
        backwards = count(2_000_000_000, -3600)
        time.time = lambda: float(next(backwards))

    result = lab.run(out, turn)
    return result | {"end": lab.finish(out)}


def other_batches(lab: Lab) -> dict[str, Any]:
    """Interrupted and resumed with another batch size: allowed, rows equal up to rounding."""
    lab.fast, out = False, lab.work / "batches"
    lab.reset()
    pid = lab.start(out)
    lab.wait_for(pid, SCORING, 50)
    os.kill(pid, signal.SIGTERM)
    lab.end(pid)
    end = lab.run(out, more=("--batch-size", "3"))
    return {"code": end["code"], "off": _largest_difference(out, lab.baseline)}


def out_of_memory(lab: Lab, nth: int | None) -> dict[str, Any]:
    """The nth evaluation of the network runs out of memory; all do if ``nth`` is None."""
    lab.fast, out = False, lab.work / f"memory-{nth}"
    calls = count(1)

    def arrange() -> None:
        convolve, last = F.conv2d, lab.model.unet.conv_out.weight

        def refuse(x: Any, weight: Any, *rest: Any) -> Any:
            if weight is last and (nth is None or next(calls) == nth):
                raise RuntimeError(CPU_MESSAGE)
            return convolve(x, weight, *rest)

        # not a hook, which would be tested as somebody's change of the network
        F.conv2d = refuse

    fault = lab.run(out, arrange)
    off = _largest_difference(out, lab.baseline) if fault["code"] == 0 else None
    # another batch size changes the rounding, which ``off`` measures
    return {"code": fault["code"], "said": fault["errors"], "off": off, "end": lab.run(out)}


def nonfinite_prompt(lab: Lab) -> dict[str, Any]:
    """One prompt's embedding becomes NaN on its way into the network."""
    lab.fast, out = False, lab.work / "nonfinite"
    encode = lab.model.encode
    bad = "a very small cat number 1"

    def poisoned(prompts: Any, *rest: Any) -> Any:
        condition = encode(prompts, *rest)
        if bad in prompts:
            unique = condition.unique.clone()
            unique[condition.index[list(prompts).index(bad)]] = math.nan
            condition = replace(condition, unique=unique)
        return condition

    fault = lab.run(out, lambda: setattr(lab.model, "encode", poisoned))
    rows, sound = (_rows(path) for path in (out, lab.baseline))
    return {
        "code": fault["code"],
        "errors": fault["errors"],
        "error": rows[1]["error"],
        "others_equal": rows[:1] + rows[2:] == sound[:1] + sound[2:],
    }


def changed(lab: Lab, more: list[str]) -> Result:
    """A finished run, then the same directory with other arguments."""
    lab.fast, out = True, lab.work / f"changed{''.join(more)}"
    lab.run(out)
    return lab.run(out, more=more)


def _forge(path: Path) -> None:
    """Change a score under the same footer."""
    table, metadata = pq.read_table(path, partitioning=None), pq.read_metadata(path).metadata
    at = table.schema.get_field_index("score")
    raised = pc.add(table["score"], 1.0).cast(pa.float32())
    table = table.set_column(at, table.schema.field(at), raised)
    footer = {b"dori_fast": metadata[b"dori_fast"]}
    pq.write_table(table.replace_schema_metadata(footer), path, compression="zstd")


def _rows(out: Path) -> list[dict[str, Any]]:
    paths = sorted((out / "shards").glob("part-*.parquet"))
    return [row for path in paths for row in pq.read_table(path, partitioning=None).to_pylist()]


def _largest_difference(out: Path, baseline: Path) -> float:
    """Largest difference of scores; infinite if anything else differs."""
    rows, expected = _rows(out), _rows(baseline)
    worst = 0.0 if len(rows) == len(expected) else math.inf
    for row, other in zip(rows, expected, strict=False):
        scores = [r.pop("score_per_seed") or [0.0, 0.0] for r in (row, other)]
        means = [r.pop("score") or 0.0 for r in (row, other)]
        worst = max(worst, abs(means[0] - means[1]))
        worst = max(worst, *(abs(a - b) for a, b in zip(*scores, strict=True)))
        if json.dumps(row, default=str) != json.dumps(other, default=str):
            return math.inf
    return worst
