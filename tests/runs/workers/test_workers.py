"""Several processes give the rows of one, to the bit, whichever of them fail."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dori_fast.errors import UsageError
from dori_fast.prune import NeuronMask
from dori_fast.runs.errors import StorageError, WorkerError
from dori_fast.runs.result import ScanResult
from dori_fast.runs.workers.ledger import Ledger
from dori_fast.runs.workers.processes import Processes, ProcessSlot
from dori_fast.runs.workers.supervisor import Supervisor
from dori_fast.runs.workers.worker import _portable
from tests.faults.lab.invariants import violations
from tests.runs.faulty import OPTIONS, Faulty
from tests.runs.scanning import scanned

ROOT = Path(__file__).parents[3]
# longer than a busy machine's silence
WATCHDOG = 8.0


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("input") / "p.csv"
    rows = [f"{i};{'very ' * (i % 5)}small cat {i}" for i in range(200)]
    rows[17] = "17;caf\udce9"
    path.write_text("id;prompt\n" + "\n".join(rows) + "\n", errors="surrogateescape")
    return path


@pytest.fixture(scope="module")
def alone(model: Any, prompts: Path, tmp_path_factory: Any) -> ScanResult:
    """The undisturbed run of one process."""
    return scanned(model, prompts, tmp_path_factory.mktemp("alone") / "run", seeds=2, **OPTIONS)


def test_killed_hung_and_faulty_workers_are_replaced(
    model: Any, prompts: Path, alone: ScanResult, tmp_path: Path, caplog: Any
) -> None:
    out = tmp_path / "run"
    faults = {"very small cat 31": "kill", "small cat 75": "hang", "very small cat 121": "device"}
    detector = Faulty(faults, tmp_path)
    seen: list[int] = []
    result = scanned(
        model,
        prompts,
        out,
        detector=detector,
        workers=2,
        watchdog=WATCHDOG,
        on_progress=lambda progress: seen.append(progress.done),
        **OPTIONS,
    )
    assert sorted(path.name for path in tmp_path.glob("*-0")) == ["device-0", "hang-0", "kill-0"]
    for index, why in [(3, "died of SIGKILL"), (7, "silent for 8 s"), (12, "lost its device")]:
        assert [f"shard {index} is" in m for m in caplog.messages if why in m] == [True], why
    assert violations(out, alone.out, finished=True) == []
    assert (result.scored, result.counts) == (200, alone.counts)
    assert 2 * 199 <= result.evaluations <= alone.evaluations + 2 * 8
    assert max(seen) == 200
    assert multiprocessing.active_children() == []


def test_all_workers_are_killed_while_they_wait_for_their_next_shards(
    model: Any, prompts: Path, alone: ScanResult, tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    out, killed = tmp_path / "run", list[int]()
    listen = Supervisor._listen

    def until_all_are_idle(self: Supervisor, ledger: Any) -> None:
        listen(self, ledger)
        if killed or _shards(out) < 2:
            return
        while any(slot.lease is not None for slot in self._in_use):
            listen(self, ledger)
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
            killed.append(_shards(out))

    monkeypatch.setattr(Supervisor, "_listen", until_all_are_idle)
    detector = Faulty({}, tmp_path)
    result = scanned(model, prompts, out, detector=detector, workers=2, **OPTIONS)
    assert len(killed) == 2 and killed[-1] < 20
    assert violations(out, alone.out, finished=True) == []
    assert result.counts == alone.counts and result.state == "done"
    assert sum("died of SIGKILL" in message for message in caplog.messages) == 2


def test_an_engine_that_leaves_shards_undone_finishes_no_run(
    model: Any, prompts: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Ledger, "open", property(lambda ledger: False))
    with pytest.raises(RuntimeError, match="shards are left"):
        scanned(model, prompts, tmp_path / "run", seeds=2, workers=2, **OPTIONS)
    assert json.loads((tmp_path / "run/run.json").read_bytes())["state"] == "interrupted"
    assert not (tmp_path / "run/manifest.json").exists()


def test_a_finished_run_starts_no_process(
    model: Any, prompts: Path, alone: ScanResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProcessSlot, "start", lambda self: pytest.fail("started"))
    assert scanned(model, prompts, alone.out, seeds=2, workers=2, **OPTIONS).scored == 0


class Loading:
    """Bytes that a worker takes a hundred seconds to load."""

    def __reduce__(self) -> Any:
        return time.sleep, (100,)


def test_stopping_loading_workers_takes_no_time() -> None:
    slots = object.__new__(Processes)
    slots._slots = [ProcessSlot(number, pickle.dumps(Loading())) for number in range(6)]
    for slot in slots.all:
        slot.start()
    began = time.monotonic()
    slots.stop()
    # not half a second for each, one after another
    assert time.monotonic() - began < 2.5
    assert multiprocessing.active_children() == []


def test_how_a_worker_ended() -> None:
    alive, killed, left = (ProcessSlot(number, pickle.dumps(Loading())) for number in range(3))
    left._pickled = pickle.dumps(Leaving())
    for slot in (alive, killed, left):
        slot.start()
    killed._process.kill()
    # end() is called when the pipe has closed
    assert killed.receive() is None and left.receive() is None
    ends = [slot.end() for slot in (alive, killed, left)]
    assert ends == ["was ended", "died of SIGKILL", "ended with code 7"]


class Leaving:
    """A worker that ends by itself as it loads."""

    def __reduce__(self) -> Any:
        return sys.exit, (7,)


def test_an_error_of_the_request_is_raised_at_once(
    model: Any, prompts: Path, tmp_path: Path
) -> None:
    detector = Faulty({"small cat 0": "raise"}, tmp_path)
    with pytest.raises(RuntimeError, match="ValueError: no such luck") as info:
        scanned(model, prompts, tmp_path / "run", detector=detector, workers=2, limit=10)
    assert "in _meet" in info.value.__notes__[0]
    assert len(list(tmp_path.glob("raise-*"))) == 1
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "times"), [("kill", 4), ("hang", 2)])
def test_a_shard_that_ends_every_worker_ends_the_scan(
    model: Any, prompts: Path, tmp_path: Path, kind: str, times: int
) -> None:
    detector = Faulty({"small cat 75": kind}, tmp_path, times=99)
    with pytest.raises(WorkerError, match=rf"shard 7 \(rows 70 to 79\).* {times} times"):
        scanned(
            model,
            prompts,
            tmp_path / "run",
            detector=detector,
            workers=2,
            watchdog=WATCHDOG,
            **OPTIONS,
        )
    assert len(list(tmp_path.glob(f"{kind}-*"))) == times
    assert multiprocessing.active_children() == []
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.slow
def test_a_worker_with_another_model_gets_no_work(
    tiny_directory: Path, prompts: Path, tmp_path: Path
) -> None:
    import dori_fast

    changed = dori_fast.load(tiny_directory, batch_size=8)
    changed.unet.conv_out.weight.data.mul_(1.001)
    with pytest.raises(WorkerError, match="no worker is left.*self-test"):
        scanned(changed, prompts, tmp_path / "run", workers=2, **OPTIONS)
    assert not list((tmp_path / "run" / "shards").iterdir())


def _started(prompts: Path, tiny_directory: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.runs.faulty", tiny_directory, prompts, out, "local"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)


def _workers(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(driver.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def _shards(out: Path) -> int:
    return len(list((out / "shards").glob("part-*"))) if out.exists() else 0


def test_a_killed_driver_leaves_no_worker_and_a_run_to_resume(
    model: Any, prompts: Path, alone: ScanResult, tiny_directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    driver = _started(prompts, tiny_directory, out)
    _wait_for(lambda: _shards(out) >= 2, "no shard")
    workers = _workers(driver)
    assert len(workers) == 2
    driver.kill()
    driver.communicate()
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    before = _shards(out)
    assert 2 <= before < 20
    assert violations(out, alone.out, finished=False) == []

    driver = _started(prompts, tiny_directory, out)
    _wait_for(lambda: len(_workers(driver)) == 2 and _shards(out) > before, "no new shard")
    workers = _workers(driver)
    # as a terminal does it: to all processes at once
    began = time.monotonic()
    os.killpg(driver.pid, signal.SIGINT)
    errors = driver.communicate(timeout=60)[1].decode()
    assert time.monotonic() - began < 15
    # multiprocessing may add a warning about a semaphore of a worker that was killed
    assert "ScanInterrupted: SIGINT\n" in errors and "in run" not in errors
    assert psutil.wait_procs(workers, timeout=1)[1] == []
    assert not list(out.rglob("*.tmp"))
    assert _shards(out) < 20
    scanned(model, prompts, out, seeds=2, resume="must", **OPTIONS)
    assert violations(out, alone.out, finished=True) == []


def test_jobs_of_an_array_share_a_run(
    model: Any, prompts: Path, alone: ScanResult, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    jobs = [
        scanned(model, prompts, out, seeds=2, num_jobs=3, job_id=job, **OPTIONS) for job in (2, 0)
    ]
    assert [path.name for path in jobs[0].shards[:2]] == [
        "part-00002.parquet",
        "part-00005.parquet",
    ]
    assert [job.counts.rows for job in jobs] == [60, 70]
    seen: list[Any] = []
    scanned(
        model,
        prompts,
        out,
        seeds=2,
        num_jobs=3,
        job_id=1,
        on_progress=seen.append,
        **OPTIONS,
    )
    assert seen[-1].done == 70 and seen[-1].remaining < seen[0].remaining
    result = scanned(model, prompts, out, seeds=2, **OPTIONS)
    assert result.scored == 0
    assert violations(out, alone.out, finished=True) == []
    with pytest.raises(UsageError, match="job_id=3 of num_jobs=3; number the jobs from 0 to 2"):
        scanned(model, prompts, out, num_jobs=3, job_id=3)


def test_what_cannot_be_sent_is_refused(model: Any, prompts: Path, tmp_path: Path) -> None:
    layer = model.layers[0]
    view = model.masked(NeuronMask({layer: torch.ones(1, model.engine.value_widths[layer])}))
    with pytest.raises(UsageError, match="masked view.*one process"):
        scanned(view, prompts, tmp_path / "run", workers=2)
    detector = Faulty({}, tmp_path)
    detector.marks = lambda: None  # type: ignore[assignment]
    with pytest.raises(UsageError, match="'wen' cannot be sent.*workers=1"):
        scanned(model, prompts, tmp_path / "run", detector=detector, workers=2)
    for options in ({"workers": 0}, {"workers": "many"}, {"watchdog": 0.0}, {"engine": "slurm"}):
        with pytest.raises(UsageError, match=next(iter(options))):
            scanned(model, prompts, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_errors_survive_the_way_to_the_parent() -> None:
    sent = pickle.loads(pickle.dumps(_portable(StorageError("full"))))
    assert type(sent) is StorageError and str(sent) == "full"
    try:
        {}["missing"]
    except KeyError as error:
        sent = pickle.loads(pickle.dumps(_portable(error)))
    assert str(sent) == "KeyError: 'missing'" and "Traceback" in sent.__notes__[0]
