"""Fuzzing guided by coverage, for a test's time; `tests/faults/lab/fuzz.py` runs longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("atheris")
ROOT = Path(__file__).parents[2]
TARGETS = [
    "txt",
    "csv",
    "tsv",
    "jsonl",
    "parquet",
    "arrow",
    "tar",
    "safetensors",
    "record",
    "condition",
    "page",
]


@pytest.mark.parametrize("runs", [1_000, pytest.param(100_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("target", TARGETS)
def test_any_bytes_are_read_or_refused(target: str, runs: int, tmp_path: Path) -> None:
    options = [f"-runs={runs}", "-seed=1", "-rss_limit_mb=4096", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, "-m", "tests.faults.lab.fuzz", target, *options]
    # the order of sets decides which input covers new code, and so which one is tried next
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {runs} runs" in done.stderr
