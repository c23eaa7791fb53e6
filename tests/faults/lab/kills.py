"""Experiments with SIGKILL: at random, at every point of a commit, repeated, after a broken one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dori_fast.runs.store import durable, shard
from tests.faults.lab.lab import SHARD, Lab

POINTS = ("before write", "half written", "before sync", "before rename", "after rename")


def random_kills(lab: Lab, wanted: int, seed: int, fast: bool) -> dict[str, Any]:
    """Several runs, each killed up to eight times and then finished, until enough were killed."""
    lab.fast, draw = fast, random.Random(seed)
    kills: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    while sum(kill["code"] == -9 for kill in kills) < wanted and len(kills) < 3 * wanted:
        out = lab.work / f"killed-{seed}-{len(ends)}"
        lab.reset()
        these = [lab.kill_at_random(out, draw) for _ in range(8)]
        end = lab.finish(out)
        kills += these
        ends.append(end | {"excess": _excess(lab, these)})
    return {"kills": kills, "ends": ends}


def deep_kills(lab: Lab, depth: int, seed: int) -> dict[str, Any]:
    """One run killed while it is resumed, again and again."""
    lab.fast, draw, out = True, random.Random(seed), lab.work / f"deep-{seed}"
    lab.reset()
    kills = [lab.kill_at_random(out, draw) for _ in range(depth + 1)]
    end = lab.finish(out)
    return {"kills": kills, "end": end | {"excess": _excess(lab, kills)}}


def point_kills(lab: Lab) -> dict[str, Any]:
    """One run, killed once at every named point of a commit and then finished."""
    lab.fast, out = True, lab.work / "points"
    kills = [lab.run(out, _trap(point, 2 * i + 1)) for i, point in enumerate(POINTS)]
    return {"kills": kills, "end": lab.finish(out)}


def broken_kills(lab: Lab, most: int, seed: int) -> dict[str, Any]:
    """Runs with a broken commit, until the check finds one."""
    lab.fast, draw = True, random.Random(seed)
    kills: list[dict[str, Any]] = []
    while len(kills) < most and not any(kill["violations"] for kill in kills):
        out = lab.work / f"broken-{len(kills)}"
        kills.append(lab.kill_at_random(out, draw, _write_in_place, within=0.03))
    return {"kills": kills, "end": lab.finish(out)}


def _excess(lab: Lab, kills: list[dict[str, Any]]) -> int:
    """Rows scored beyond once each and one shard per kill; positive is too much work."""
    rows = sum(1 for _ in lab.prompts.open("rb")) - 1
    return lab.asked - rows - SHARD * sum(kill["code"] == -9 for kill in kills)


def _write_in_place() -> None:
    """Break the commit on purpose: a shard grows under its final name."""
    whole_or_absent = durable.write_durably

    def broken(path: Path, write: Callable[[Path], None]) -> None:
        if path.suffix != ".parquet":
            return whole_or_absent(path, write)
        whole = path.with_name("whole.tmp")
        write(whole)
        data = whole.read_bytes()
        whole.unlink()
        with path.open("wb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            time.sleep(0.02)
            file.write(data[len(data) // 2 :])

    durable.write_durably = broken


def _trap(point: str, shard_index: int) -> Callable[[], None]:
    """Arrange a SIGKILL at a point of writing one shard."""
    target = f"part-{shard_index:05d}.parquet"
    write, sync, replace = shard._write, durable.sync_file, os.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def trapped_write(path: Path, *args: Any) -> None:
        ours = target in path.name
        if ours and point == "before write":
            die()
        write(path, *args)
        if ours and point == "half written":
            os.truncate(path, path.stat().st_size // 2)
            die()

    def trapped_sync(path: Path) -> None:
        if target in path.name and point == "before sync":
            die()
        sync(path)

    def trapped_replace(source: Any, path: Any) -> None:
        ours = target in os.fspath(path)
        if ours and point == "before rename":
            die()
        replace(source, path)
        if ours and point == "after rename":
            die()

    def arrange() -> None:
        shard._write, durable.sync_file, os.replace = trapped_write, trapped_sync, trapped_replace

    return arrange
