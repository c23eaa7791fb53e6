"""Scans in forked children of a process that has loaded torch and the model once.

Run as a program of its own, so that it forks from a single thread; a start costs milliseconds
instead of seconds. The children are real processes and really killed.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import dori_fast
from dori_fast.scan import durable, engine, shard
from tests.faults.invariants import violations

STARTING, SCORING, COMMITTING, BETWEEN = range(4)
STATES = ("starting", "scoring", "committing", "between")
POINTS = ("before write", "half written", "before sync", "before rename", "after rename")
OPTIONS: dict[str, Any] = {"shard_size": 10, "seeds": 2}


class Lab:
    """Starts scans of one input with one model, kills them, and looks at what is left."""

    def __init__(self, model: Path, prompts: Path, work: Path) -> None:
        torch.set_num_threads(1)
        self.model = dori_fast.load(model, batch_size=8)
        self.model.describe()
        self.prompts, self.work = prompts, work
        self.board = mmap.mmap(-1, 1)
        self.baseline = work / "baseline"
        began = time.perf_counter()
        self.end(self.start(self.baseline))
        self.seconds = time.perf_counter() - began

    def start(self, out: Path, prepare: Callable[[], None] = lambda: None) -> int:
        """Fork a child that scans into ``out`` and return its pid."""
        self.board[0] = STARTING
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            self._mark_states()
            prepare()
            dori_fast.scan(self.model, self.prompts, out=out, **OPTIONS)
            code = 0
        finally:
            os._exit(code)

    def end(self, pid: int) -> int:
        """Wait for a child; its exit code, or minus the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def kill_at_random(
        self, out: Path, delay: float, prepare: Any = None, in_commit: bool = False
    ) -> dict[str, Any]:
        """Kill a child ``delay`` seconds after it opened its first shard.

        A commit is a thousandth of the time on a fast machine: ``in_commit`` waits for the next.
        """
        pid = self.start(out, prepare or (lambda: None))
        while self.board[0] == STARTING and os.waitid(os.P_PID, pid, _NO_REAP) is None:
            time.sleep(0.0005)
        time.sleep(delay)
        while in_commit and self.board[0] != COMMITTING:
            if os.waitid(os.P_PID, pid, _NO_REAP) is not None:
                break
        os.kill(pid, signal.SIGKILL)
        return self._result(out, self.end(pid))

    def kill_at(self, out: Path, point: str, shard_index: int) -> dict[str, Any]:
        """Let a child kill itself at a named point of the commit of one shard."""
        return self._result(out, self.end(self.start(out, lambda: _trap(point, shard_index))))

    def _result(self, out: Path, code: int) -> dict[str, Any]:
        found = violations(out, self.baseline, finished=False)
        return {"code": code, "state": STATES[self.board[0]], "violations": found}

    def finish(self, out: Path) -> dict[str, Any]:
        """Resume undisturbed."""
        code = self.end(self.start(out))
        return {"code": code, "violations": violations(out, self.baseline, finished=True)}

    def _mark_states(self) -> None:
        score, commit = engine.score_rows, engine.commit_shard

        def marked_score(*args: Any) -> Any:
            self.board[0] = SCORING
            return score(*args)

        def marked_commit(*args: Any) -> Any:
            self.board[0] = COMMITTING
            footer = commit(*args)
            self.board[0] = BETWEEN
            return footer

        engine.score_rows = marked_score
        engine.commit_shard = marked_commit


_NO_REAP = os.WEXITED | os.WNOHANG | os.WNOWAIT


def write_in_place() -> None:
    """Break the commit on purpose: the file grows under its final name."""

    def broken(path: Path, write: Callable[[Path], None]) -> None:
        whole = path.with_name("whole.tmp")
        write(whole)
        data = whole.read_bytes()
        whole.unlink()
        with path.open("wb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            time.sleep(0.02)
            file.write(data[len(data) // 2 :])

    shard.write_durably = broken


def _trap(point: str, shard_index: int) -> None:
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

    shard._write, durable.sync_file, os.replace = trapped_write, trapped_sync, trapped_replace


def random_kills(lab: Lab, wanted: int, seed: int) -> dict[str, Any]:
    """Several runs, each killed up to four times and then finished, until enough were killed."""
    draw = random.Random(seed)
    kills: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    while sum(kill["code"] == -9 for kill in kills) < wanted and len(kills) < 3 * wanted:
        out = lab.work / f"killed-{len(ends)}"
        for attempt in range(4):
            delay = draw.uniform(0, lab.seconds / 4)
            kills.append(lab.kill_at_random(out, delay, in_commit=attempt == 1))
        ends.append(lab.finish(out))
    return {"kills": kills, "ends": ends}


def point_kills(lab: Lab) -> dict[str, Any]:
    """One run, killed once at every named point and then finished."""
    out = lab.work / "points"
    kills = [lab.kill_at(out, point, 2 * i + 1) for i, point in enumerate(POINTS)]
    return {"kills": kills, "ends": [lab.finish(out)]}


def broken_kills(lab: Lab, most: int, seed: int) -> dict[str, Any]:
    """Runs with a broken commit, until the check has noticed one."""
    draw = random.Random(seed)
    kills: list[dict[str, Any]] = []
    while len(kills) < most and not any(kill["violations"] for kill in kills):
        out = lab.work / f"broken-{len(kills)}"
        delay = draw.uniform(0, lab.seconds / 2)
        kills.append(lab.kill_at_random(out, delay, write_in_place, in_commit=True))
    return {"kills": kills, "ends": [lab.finish(out)]}


def main(model: str, prompts: str, work: str) -> None:
    """Run all experiments and print what was seen as JSON."""
    lab = Lab(Path(model), Path(prompts), Path(work))
    report = {
        "seconds": lab.seconds,
        "random": random_kills(lab, wanted=20, seed=0),
        "points": point_kills(lab),
        "broken": broken_kills(lab, most=40, seed=1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
