"""A run's status while it runs, after its end, and after its writer was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.runs.store.status import RunStatus, status
from tests.runs.scanning import Spelling, scanned

PROMPTS: list[object] = [*(f"prompt {i}" for i in range(9)), None, "last"]


class Watching(Spelling):
    """Reads the status of its own run before each of its calls."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run, self.seen = run, list[RunStatus]()

    def scores(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append(status(self.run))
        time.sleep(0.01)
        return super().scores(*args, **kwargs)


def test_while_a_run_is_going_and_after(model: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    watching = Watching(out)
    scanned(model, PROMPTS, out, detector=watching, shard_size=4, max_errors=1)
    assert [(s.state, s.shards, s.rows) for s in watching.seen] == [
        ("running", 0, 0),
        ("running", 1, 4),
        ("running", 2, 8),
    ]
    first, _, last = watching.seen
    assert (first.rate, first.remaining) == (None, None)
    assert last.owner == f"pid {os.getpid()} on {os.uname().nodename}"
    assert last.rate is not None and last.share is not None and last.remaining is not None
    assert last.rate > 0 and 0 < last.share < 1
    assert last.remaining == pytest.approx(8 * (1 - last.share) / last.share / last.rate)
    done = status(out)
    assert (done.state, done.shards, done.rows, done.quarantined) == ("done", 3, 11, 1)
    assert (done.share, done.rate, done.set_aside) == (1.0, None, 0)


def test_a_killed_writer_is_told(model: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    scanned(model, PROMPTS, out, detector=Spelling(), shard_size=4, max_errors=1)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record = json.loads((out / "run.json").read_text()) | {"state": "running"}
    (out / "run.json").write_text(json.dumps(record))
    owner = json.loads((out / ".owner").read_text()) | {"pid": gone.pid}
    (out / ".owner").write_text(json.dumps(owner))
    assert status(out).state == "stale"
    (out / ".owner").write_text(json.dumps(owner | {"host": "elsewhere"}))
    assert status(out).state == "running"


def signed(run: Path, name: str, **changes: Any) -> None:
    """Another writer's owner file; default: this process, as a job that began just now."""
    host = os.uname().nodename
    owner = {"pid": os.getpid(), "host": host, "since": time.time(), "share": None}
    (run / name).write_text(json.dumps(owner | changes))


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_jobs_are_seen_at_work(model: Any, tmp_path: Path, gone: int) -> None:
    out, me = tmp_path / "run", f"pid {os.getpid()} on {os.uname().nodename}"
    options: dict[str, Any] = {"shard_size": 2, "max_errors": 1, "num_jobs": 2}
    watching = Watching(out)
    scanned(model, PROMPTS, out, detector=watching, job_id=1, **options)
    assert [(s.state, s.shards, s.owner) for s in watching.seen] == [
        ("running", number, f"1 of 2 jobs: {me}") for number in range(3)
    ]
    last = watching.seen[-1]
    assert last.rate is not None and last.remaining is not None and last.share is not None
    # the other job has read nothing
    assert 0 < last.share < 0.5
    # a run without jobs died here before; the other job runs, this one has ended
    signed(out, ".owner", pid=gone, since=0.0)
    signed(out, ".owner-1-of-2", pid=gone, since=1.0, share=1.0)
    scanned(model, PROMPTS, out, detector=watching, job_id=0, **options)
    assert {(s.state, s.owner) for s in watching.seen[3:]} == {("running", f"1 of 2 jobs: {me}")}
    assert watching.seen[3].share == 0.5 and (status(out).share or 0) > 0.9
    signed(out, ".owner-0-of-2", pid=gone, since=2.0)
    ended = status(out)
    assert ended.state == "stale" and ended.owner is not None
    assert ended.owner.startswith(f"0 of 2 jobs, the last pid {gone}") and ended.rate is None
    # the final call without jobs excludes them
    scanned(model, PROMPTS, out, detector=Spelling(), shard_size=2, max_errors=1)
    assert (status(out).state, status(out).owner) == ("done", me)


def test_jobs_go_on_with_an_interrupted_run(model: Any, tmp_path: Path, gone: int) -> None:
    out = tmp_path / "run"
    scanned(model, PROMPTS, out, detector=Spelling(), shard_size=4, max_errors=1)
    record = json.loads((out / "run.json").read_text()) | {"state": "interrupted"}
    (out / "run.json").write_text(json.dumps(record))
    assert status(out).state == "interrupted"
    for job in range(5):
        signed(out, f".owner-{job}-of-8", share=0.4)
    # an earlier array of another size, and the temporary file of a dead writer
    signed(out, ".owner-0-of-2", since=1.0)
    signed(out, ".owner-6-of-8.7.tmp")
    signed(out, ".owner-0-of-0")
    found = status(out)
    assert (found.state, found.share) == ("running", pytest.approx(5 * 0.4 / 8))
    assert found.owner is not None and found.owner.startswith("5 of 8 jobs: pid ")
    assert found.owner.count("pid") == 3 and found.owner.endswith(" and 2 more")
    for job in range(5):
        signed(out, f".owner-{job}-of-8", pid=gone)
    assert status(out).state == "interrupted"


@pytest.mark.parametrize(
    "bad", [{"pid": "x"}, {"since": None}, {"share": []}, {"pid": 2**70}, {"pid": 1e999}]
)
def test_a_signature_that_cannot_be_read(model: Any, tmp_path: Path, bad: dict[str, Any]) -> None:
    out = tmp_path / "run"
    scanned(model, PROMPTS, out, detector=Spelling(), shard_size=4, max_errors=1)
    signed(out, ".owner", **bad)
    assert status(out).state == "done"


def test_damage_does_not_stop_it(model: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    scanned(model, PROMPTS, out, detector=Spelling(), shard_size=4, max_errors=1)
    (out / "shards" / "part-00001.parquet").write_bytes(b"x")
    (out / ".owner").write_text("[")
    found = status(out)
    assert (found.shards, found.rows, found.owner) == (2, 7, None)
    (out / "run.json").write_text("[]")
    with pytest.raises(IntegrityError, match=r"run\.json"):
        status(out)
    with pytest.raises(UsageError, match="no run directory"):
        status(out / "shards")


def test_it_needs_no_heavy_library(model: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    scanned(model, PROMPTS, out, detector=Spelling(), shard_size=4, max_errors=1)
    code = (
        "import sys, dori_fast.cli; from dori_fast.runs.store.status import status;"
        f"print(status({str(out)!r}).rows,"
        "{'torch', 'pyarrow', 'numpy', 'scipy', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "11 set()\n", done.stderr
