"""Runs stages one after the other: none outlasts its limit, and no failure stops the next."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.device.stage import Outcome, Stage

ROOT = Path(__file__).resolve().parents[2]
_LAST_LINES = 12


def run_stage(stage: Stage, log: Path, seconds_left: float, environment: dict[str, str]) -> Outcome:
    """Run one stage and append its output to the log."""
    if stage.missing:
        return Outcome(stage.name, "skipped", None, 0.0, stage.missing)
    limit = min(stage.limit, seconds_left)
    if limit < 1:
        return Outcome(stage.name, "not reached", None, 0.0, "no time left")
    start = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n=== {stage.name}: {' '.join(stage.command)}\n".encode())
        file.flush()
        try:
            process = subprocess.Popen(
                stage.command,
                cwd=ROOT,
                env={**environment, **stage.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # a process group of its own, so that a timeout also ends its children
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(stage.name, "failed", None, 0.0, str(error))
        code = _wait(process, limit)
    took = time.monotonic() - start
    if code is None:
        return Outcome(stage.name, "timed out", None, took, f"limit {limit:.0f} s")
    return Outcome(stage.name, "ok" if code in stage.accepted else "failed", code, took)


def _wait(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """The exit code, or None after a timeout; then nothing of its process group is left."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        # also if the process has ended: a child that outlives it would hold the GPU
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)


def run(
    plan: Sequence[Stage], out: Path, environment: dict[str, str], total: float
) -> list[Outcome]:
    """Run all stages within `total` seconds; add to device.log and stages.csv in `out`.

    SIGTERM, as from `timeout`, also ends the stage that is running.
    """
    with _leaving_on_sigterm():
        return _run(plan, out, environment, total)


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(
    plan: Sequence[Stage], out: Path, environment: dict[str, str], total: float
) -> list[Outcome]:
    deadline = time.monotonic() + total
    log, table = out / "device.log", out / "stages.csv"
    log.touch()
    # what earlier calls have found, but for the stages that run again
    before = [row for row in _read(table) if row[0] not in {stage.name for stage in plan}]
    outcomes = []
    for stage in plan:
        start = log.stat().st_size
        outcome = run_stage(stage, log, deadline - time.monotonic(), environment)
        outcomes.append(outcome)
        print(_line(outcome), flush=True)
        if outcome.bad and outcome.state != "not reached":
            text = log.read_bytes()[start:].decode(errors="replace")
            print(*(f"    {line}" for line in text.splitlines()[-_LAST_LINES:]), sep="\n")
        _write(before, outcomes, table)
    return outcomes


def _line(outcome: Outcome) -> str:
    code = "" if outcome.code in (0, None) else f" exit code {outcome.code}"
    return f"{outcome.stage:22} {outcome.state:11} {outcome.seconds:6.1f} s {outcome.why}{code}"


def _read(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def _write(before: Sequence[Sequence[str]], outcomes: Sequence[Outcome], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("stage", "state", "exit_code", "seconds", "why"))
        writer.writerows(before)
        for o in outcomes:
            writer.writerow((o.stage, o.state, o.code, round(o.seconds, 1), o.why))
