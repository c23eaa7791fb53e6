"""benchmarks/device.sh: stages end in time, a failure stops nothing, and all of it is recorded."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import device
from benchmarks.device import Stage

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_failures_and_timeouts_are_recorded_and_stop_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = [
        Stage("good", 60, python("import os; print('said', os.environ['GIVEN'])"), {"GIVEN": "x"}),
        Stage("bad", 60, python("print('the reason'); raise SystemExit(3)")),
        Stage("accepted", 60, python("raise SystemExit(5)"), accepted=(0, 5)),
        Stage("absent", 60, ("/nonexistent/program",)),
        Stage("skipped", 60, ("/nonexistent/program",), missing="not here"),
        Stage("slow", 1, python("import time; time.sleep(60)")),
        Stage("last", 60, python("print('the end')")),
    ]
    outcomes = device.run(plan, tmp_path, dict(os.environ))
    states = {o.stage: (o.state, o.code) for o in outcomes}
    assert states == {
        "good": ("ok", 0),
        "bad": ("failed", 3),
        "accepted": ("ok", 5),
        "absent": ("failed", None),
        "skipped": ("skipped", None),
        "slow": ("timed out", None),
        "last": ("ok", 0),
    }
    log = (tmp_path / "device.log").read_text()
    assert "said x" in log and "the end" in log
    with (tmp_path / "stages.csv").open(newline="") as file:
        assert [(row["stage"], row["state"]) for row in csv.DictReader(file)] == [
            (name, state) for name, (state, _) in states.items()
        ]
    shown = capsys.readouterr().out
    assert "    the reason" in shown and "exit code 3" in shown and "not here" in shown


def test_a_timeout_ends_what_the_stage_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    outcomes = device.run([Stage("parent", 5, python(code))], tmp_path, dict(os.environ))
    assert outcomes[0].state == "timed out"
    pid = int(note.read_text())
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in status(pid):
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} lives on")


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "\nState:\tZ"


def test_the_total_is_a_limit_too(tmp_path: Path) -> None:
    sleep = python("import time; time.sleep(30)")
    start = time.monotonic()
    outcomes = device.run([Stage("a", 20, sleep), Stage("b", 20, sleep)], tmp_path, {}, total=2.5)
    assert [o.state for o in outcomes] == ["timed out", "failed"]
    assert outcomes[1].why == "no time left" and time.monotonic() - start < 15


def test_dry_and_real_runs_have_the_same_stages(tmp_path: Path) -> None:
    real, dry = (device.stages(tmp_path, tmp_path, dry_run=dry) for dry in (False, True))
    assert [stage.name for stage in real] == [stage.name for stage in dry]
    assert device.TOTAL_SECONDS < 9 * 60
    for plan in (real, dry):
        for stage in plan:
            assert stage.limit > 0 and all(isinstance(word, str) for word in stage.command)
    assert all("cpu" not in stage.command for stage in real)
    assert all("cuda" not in stage.command for stage in dry)


@pytest.mark.slow
def test_the_dry_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "benchmarks" / "device.sh", "--dry-run"],
        env={**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout + (tmp_path / "device.log").read_text()[-3000:]
    with (tmp_path / "stages.csv").open(newline="") as file:
        states = {row["stage"]: row["state"] for row in csv.DictReader(file)}
    assert {name for name, state in states.items() if state == "ok"} >= {
        *("build", "doctor", "op_tests", "gpu_tests", "op_benchmarks", "scan_demo", "scan_sd14"),
        *("switches", "small_batches"),
    }
    (results,) = (path for path in tmp_path.glob("*.csv") if path.name != "stages.csv")
    with results.open(newline="") as file:
        assert {row["op"] for row in csv.DictReader(file)} == {"noise_difference", "scan"}
