"""Killed at random moments and at every delicate one, a scan loses nothing and doubles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_model import save_tiny_sd

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: Any) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("kill")
    prompts = [f"a {'very ' * (i % 7)}small cat number {i % 250}" for i in range(300)]
    prompts[17] = "caf\udce9"
    text = "id;Caption\n" + "".join(f"{i};{prompt}\n" for i, prompt in enumerate(prompts))
    (work / "p.csv").write_text(text, errors="surrogateescape")
    model = save_tiny_sd(work / "model")
    command = [sys.executable, "-m", "tests.faults.warm_parent"]
    done = subprocess.run(
        [*command, str(model), str(work / "p.csv"), str(work)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_random_kills_happened_while_a_shard_was_open(report: dict[str, Any]) -> None:
    kills = [kill for kill in report["random"]["kills"] if kill["code"] == -9]
    assert len(kills) >= 20
    states = [kill["state"] for kill in kills]
    assert states.count("scoring") + states.count("committing") >= 0.9 * len(states)
    assert min(states.count("scoring"), states.count("committing")) >= 3, states


def test_random_kills_leave_only_whole_shards(report: dict[str, Any]) -> None:
    assert [kill["violations"] for kill in report["random"]["kills"] if kill["violations"]] == []


def test_resumed_runs_equal_the_undisturbed_one_byte_for_byte(report: dict[str, Any]) -> None:
    ends = report["random"]["ends"]
    assert len(ends) >= 5
    assert all(end == {"code": 0, "violations": []} for end in ends)


def test_kills_at_every_point_of_a_commit(report: dict[str, Any]) -> None:
    points = report["points"]
    assert [kill["code"] for kill in points["kills"]] == [-9] * 5
    assert [kill["state"] for kill in points["kills"]] == ["committing"] * 5
    assert all(kill["violations"] == [] for kill in points["kills"])
    assert points["ends"] == [{"code": 0, "violations": []}]


def test_a_broken_commit_is_noticed(report: dict[str, Any]) -> None:
    broken = report["broken"]["kills"]
    assert "does not open" in str(broken[-1]["violations"])
    assert broken[-1]["code"] == -9


def test_even_then_resuming_repairs_it(report: dict[str, Any]) -> None:
    assert report["broken"]["ends"] == [{"code": 0, "violations": []}]
