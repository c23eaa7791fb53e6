from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import dori_fast
from tests.tiny_model import save_tiny_sd

ROOT = Path(__file__).parents[2]
Experiment = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: Any) -> Path:
    return save_tiny_sd(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def model(tiny_directory: Path) -> Any:
    return dori_fast.load(tiny_directory, batch_size=8)


@pytest.fixture(scope="session")
def experiment(tiny_directory: Path, tmp_path_factory: Any) -> Iterator[Experiment]:
    """A function that runs an experiment by name in the warm process."""
    memory = Path("/dev/shm")
    # a kill loses nothing that the kernel holds, so a run in memory is the same experiment
    where = memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("faults")
    with TemporaryDirectory(dir=where, prefix="dori_fast-") as work:
        yield from _warm(tiny_directory, Path(work))


def _warm(model: Path, work: Path) -> Iterator[Experiment]:
    prompts = [f"a {'very ' * (i % 7)}small cat number {i % 250}" for i in range(300)]
    prompts[17] = "caf\udce9"
    text = "id;Caption\n" + "".join(f"{i};{prompt}\n" for i, prompt in enumerate(prompts))
    (work / "p.csv").write_text(text, errors="surrogateescape")
    command = [sys.executable, "-m", "tests.faults.lab.warm_parent"]
    with subprocess.Popen(
        [*command, str(model), str(work / "p.csv"), str(work)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as warm:

        def run(name: str, **arguments: Any) -> dict[str, Any]:
            assert warm.stdin is not None and warm.stdout is not None
            warm.stdin.write(json.dumps({"experiment": name, **arguments}) + "\n")
            warm.stdin.flush()
            answer: dict[str, Any] = json.loads(warm.stdout.readline())
            assert "failed" not in answer, answer["failed"]
            return answer

        yield run
