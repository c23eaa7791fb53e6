"""Actors of a Ray cluster give the rows of one process, to the bit, whichever of them fail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dori_fast.errors import UsageError
from dori_fast.runs.result import ScanResult
from tests.faults.lab.invariants import violations
from tests.runs.faulty import OPTIONS, Faulty
from tests.runs.scanning import scanned

pytestmark = pytest.mark.needs("ray")
ROOT = Path(__file__).parents[3]
PROMPTS = [f"{'very ' * (i % 5)}small cat {i}" for i in range(120)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So that two actors have room on two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "p.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    return path


@pytest.fixture
def alone(model: Any, prompts: Path, tmp_path: Path) -> ScanResult:
    """The undisturbed run of one process."""
    return scanned(model, prompts, tmp_path / "alone", seeds=2, **OPTIONS)


def test_rows_are_the_same_after_the_driver_and_an_actor_were_killed(
    model: Any, prompts: Path, alone: ScanResult, tiny_directory: Path, tmp_path: Path, caplog: Any
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "tests.runs.faulty", tiny_directory, prompts, out, "ray"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    deadline = time.monotonic() + 180
    while len(list(out.glob("shards/part-*"))) < 2:
        assert time.monotonic() < deadline and driver.poll() is None, "no shard"
        time.sleep(0.05)
    cluster = psutil.Process(driver.pid).children(recursive=True)
    # Ray's own agents do no work and end later
    working = [process for process in cluster if "Agent" not in process.name()]
    assert {"raylet", "ray::ActorWorker"} < {process.name().split(".")[0] for process in working}
    driver.kill()
    driver.wait()
    assert psutil.wait_procs(working, timeout=60)[1] == []
    assert 2 <= len(list(out.glob("shards/part-*"))) < 12
    assert violations(out, alone.out, finished=False) == []

    faults = {PROMPTS[111]: "kill", PROMPTS[119]: "device"}
    result = scanned(
        model,
        prompts,
        out,
        detector=Faulty(faults, tmp_path),
        resume="must",
        engine="ray",
        # the third has no room, and is not waited for
        workers=3,
        **OPTIONS,
    )
    assert violations(out, alone.out, finished=True) == []
    assert 0 < result.scored < 120 and result.counts == alone.counts
    for index, why in [(11, "died on"), (11, "lost its device")]:
        assert any(f"shard {index} is" in m for m in caplog.messages if why in m), why
    import ray

    assert not ray.is_initialized()


def test_a_cluster_that_was_asked_for_and_is_not_there(
    model: Any, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UsageError, match="no Ray cluster at RAY_ADDRESS=127.0.0.1:1"):
        scanned(model, prompts, tmp_path / "run", engine="ray")
