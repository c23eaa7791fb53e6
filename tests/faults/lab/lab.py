"""Scans in forked children of one process that holds torch and the model.

A start costs milliseconds instead of seconds. The children are real processes that run the real
command line; they are really killed.
"""

from __future__ import annotations

import gc
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import dori_fast
import dori_fast.runs.scan  # what the children would otherwise import one by one
from dori_fast import detect, models
from dori_fast.cli import main
from dori_fast.runs.store import durable, shard
from tests.faults.lab.invariants import held_locks, violations
from tests.runs.scanning import Spelling

STARTING, SCORING, COMMITTING, BETWEEN = range(4)
STATES = ("starting", "scoring", "committing", "between")
SHARD = 10
# slows a fast detector, so that kills hit it at work
_SCORING_SECONDS = 0.003
Prepare = Callable[[], None]
Result = dict[str, Any]
_NO_REAP = os.WEXITED | os.WNOHANG | os.WNOWAIT


def nothing() -> None:
    """The preparation of an undisturbed child."""


class Lab:
    """Starts scans of one input with one model, disturbs them and checks the remains.

    Attributes:
        fast: score by a detector that needs no network; else by Wen's with a tiny one.
    """

    def __init__(self, model: Path, prompts: Path, work: Path) -> None:
        torch.set_num_threads(1)
        self.model = dori_fast.load(model, batch_size=8)
        self.model.config()
        self.prompts, self.work, self.fast = prompts, work, True
        # garbage collection in a child would copy the parent's memory
        gc.freeze()
        self._board = mmap.mmap(-1, 16)
        self._baselines: dict[bool, Path] = {}

    @property
    def baseline(self) -> Path:
        """An undisturbed run."""
        if self.fast not in self._baselines:
            out = self.work / ("baseline-fast" if self.fast else "baseline")
            if self.end(self.start(out)):
                raise RuntimeError((self.work / "stderr").read_text())
            self._baselines[self.fast] = out
        return self._baselines[self.fast]

    @property
    def asked(self) -> int:
        """Number of prompts given to the children's detectors since :meth:`reset`."""
        return int(struct.unpack_from("q", self._board, 8)[0])

    def reset(self) -> None:
        """Set the count to zero."""
        assert self.baseline.is_dir(), "made first, so that it is not counted"
        struct.pack_into("q", self._board, 8, 0)

    def start(self, out: Path, prepare: Prepare = nothing, more: Sequence[str] = ()) -> int:
        """Fork a child that scans into ``out`` and return its pid."""
        self._board[0] = STARTING
        (self.work / "stderr").write_text("")
        pid = os.fork()
        if pid == 0:
            self._child(out, prepare, more)
        return pid

    def end(self, pid: int) -> int:
        """Wait for a child; its exit code, or minus the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def run(self, out: Path, prepare: Prepare = nothing, more: Sequence[str] = ()) -> Result:
        """Run one child to its end; return its result."""
        return self.result(out, self.end(self.start(out, prepare, more)))

    def finish(self, out: Path, more: Sequence[str] = ()) -> Result:
        """Resume undisturbed."""
        result = self.run(out, more=more)
        return result | {"violations": violations(out, self.baseline, finished=True)}

    def wait_for(self, pid: int, state: int, asked: int = 0) -> None:
        """Wait until the child is in a state and ``asked`` prompts were given, or it has ended."""
        while (self._board[0] != state or self.asked < asked) and not self.ended(pid):
            time.sleep(0.0002)

    def ended(self, pid: int) -> bool:
        """Whether a child has ended, without reaping it."""
        return os.waitid(os.P_PID, pid, _NO_REAP) is not None

    def kill_at_random(
        self, out: Path, draw: random.Random, prepare: Prepare = nothing, within: float = 0.01
    ) -> Result:
        """Kill a child in the middle of one of the next eight shards, scoring or committing."""
        asked = self.asked + SHARD * draw.randrange(6)
        pid = self.start(out, prepare)
        self.wait_for(pid, draw.choice((SCORING, COMMITTING)), asked)
        time.sleep(draw.uniform(0, within))
        os.kill(pid, signal.SIGKILL)
        return self.result(out, self.end(pid))

    def result(self, out: Path, code: int) -> Result:
        """The remains of an ended child: exit code, last line of stderr, broken promises."""
        errors = (self.work / "stderr").read_text().splitlines()
        return {
            "code": code,
            "state": STATES[self._board[0]],
            "said": errors[-1] if errors else "",
            "errors": errors,
            "violations": [*violations(out, self.baseline, finished=False), *held_locks(out)],
        }

    def _child(self, out: Path, prepare: Prepare, more: Sequence[str]) -> None:
        code = 1
        try:
            errors = os.open(self.work / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(errors, sys.stderr.fileno())
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._mark_states()
            models.load = lambda *_, **__: self.model
            sys.argv = ["dori-fast", "scan", str(self.prompts), "--out", str(out)]
            sys.argv += ["--shard-size", str(SHARD), "--seeds", "2", *more]
            prepare()
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _mark_states(self) -> None:
        get, fast, board = detect.get, self.fast, self._board

        def watched(name: str, **options: Any) -> Any:
            return _Watched(board, Spelling() if fast else get(name, **options))

        def marked_write(*arguments: Any) -> None:
            board[0] = COMMITTING
            durable.write_durably(*arguments)
            board[0] = BETWEEN

        detect.get, shard.write_durably = watched, marked_write


class _Watched:
    """A detector that marks when it works and counts its prompts."""

    def __init__(self, board: mmap.mmap, inner: Any) -> None:
        self._board, self._inner = board, inner
        self.name = inner.name

    def config(self) -> dict[str, Any]:
        return dict(self._inner.config())

    def scores(self, model: Any, prompts: Sequence[str], positions: Any = None) -> Any:
        self._board[0] = SCORING
        time.sleep(_SCORING_SECONDS)
        (before,) = struct.unpack_from("q", self._board, 8)
        struct.pack_into("q", self._board, 8, before + len(prompts))
        return self._inner.scores(model, prompts, positions)
