"""benchmarks/device.sh: stages are chosen, end in time, stop nothing, and keep what they found."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.device.__main__ import chosen, main
from benchmarks.device.run import run
from benchmarks.device.stage import Stage
from benchmarks.device.stages import CALL_SECONDS, stages
from tests.benchmarks.bare import bare_python

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def rows_in(folder: Path) -> list[dict[str, str]]:
    """Rows of the machine's file in an output folder."""
    (path,) = (path for path in folder.glob("*.csv") if path.name != "stages.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_failures_and_timeouts_are_recorded_and_stop_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = [
        Stage(
            "good",
            60,
            python("import os; print('said', os.environ['GIVEN'])"),
            "",
            1,
            {"GIVEN": "x"},
        ),
        Stage("bad", 60, python("print('the reason'); raise SystemExit(3)")),
        Stage("accepted", 60, python("raise SystemExit(5)"), accepted=(0, 5)),
        Stage("absent", 60, ("/nonexistent/program",)),
        Stage("skipped", 60, ("/nonexistent/program",), missing="not here"),
        Stage("slow", 1, python("import time; time.sleep(60)")),
        Stage("last", 60, python("print('the end')")),
    ]
    outcomes = run(plan, tmp_path, dict(os.environ), 300)
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


@pytest.mark.parametrize(
    ("then", "state"), [("wait", "timed out"), ("kill -9 $$", "failed"), ("exit 0", "ok")]
)
def test_nothing_that_a_stage_started_outlives_it(tmp_path: Path, then: str, state: str) -> None:
    """Not even a child that ignores SIGTERM, however the stage itself ends."""
    note = tmp_path / "pid"
    code = f"(trap '' TERM; exec sleep 60) & echo $! > {note}; {then}"
    outcomes = run([Stage("parent", 2, ("bash", "-c", code))], tmp_path, dict(os.environ), 60)
    assert outcomes[0].state == state
    expect_end(int(note.read_text()))


def test_a_run_that_is_terminated_ends_its_stage(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    stage = Stage("long", 60, ("bash", "-c", f"echo $$ > {note}; exec sleep 60"))
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(SystemExit) as found:
        run([stage], tmp_path, dict(os.environ), 60)
    assert found.value.code == 128 + signal.SIGTERM
    expect_end(int(note.read_text()))


def expect_end(pid: int) -> None:
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in status(pid):
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} lives on")


def test_a_later_call_keeps_what_earlier_ones_have_found(tmp_path: Path) -> None:
    say = {name: python(f"print('said {name}')") for name in ("a", "b")}
    bad = python("print('the reason'); raise SystemExit(3)")
    run([Stage("build", 60, bad), Stage("a", 60, say["a"])], tmp_path, dict(os.environ), 300)
    run([Stage("build", 60, say["b"]), Stage("b", 60, bad)], tmp_path, dict(os.environ), 300)
    with (tmp_path / "stages.csv").open(newline="") as file:
        states = [(row["stage"], row["state"]) for row in csv.DictReader(file)]
    assert states == [("a", "ok"), ("build", "ok"), ("b", "failed")]
    log = (tmp_path / "device.log").read_text()
    assert "said a" in log and "said b" in log and log.count("the reason") == 4


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "\nState:\tZ"


def test_the_total_is_a_limit_too(tmp_path: Path) -> None:
    sleep = python("import time; time.sleep(30)")
    start = time.monotonic()
    outcomes = run([Stage("a", 20, sleep), Stage("b", 20, sleep)], tmp_path, {}, 2.5)
    assert [o.state for o in outcomes] == ["timed out", "not reached"]
    assert outcomes[1].why == "no time left" and time.monotonic() - start < 15


def test_a_stage_that_is_killed_keeps_the_rows_that_it_wrote(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from benchmarks.harness import Recorder
recorder = Recorder("cpu", 1, "python", Path({str(tmp_path)!r}))
for number in range(3):
    with recorder.case(op="probe", mode=f"case_{{number}}", provider="ours") as case:
        if number == 1:
            raise RuntimeError("the second case is broken")
        case.write([1.0, 2.0], metric="time", unit="us")
os.kill(os.getpid(), signal.SIGKILL)
"""
    outcomes = run([Stage("killed", 300, python(code))], tmp_path, {**os.environ}, 300)
    assert (outcomes[0].state, outcomes[0].code) == ("failed", -9)
    found = {row["mode"]: (row["metric"], row["note"]) for row in rows_in(tmp_path)}
    assert found == {
        "case_0": ("time", ""),
        "case_1": ("failed", "RuntimeError: the second case is broken"),
        "case_2": ("time", ""),
    }


def test_real_and_dry_runs_have_the_same_stages_and_every_call_fits(tmp_path: Path) -> None:
    real, dry = (stages(tmp_path, tmp_path, dry_run=dry) for dry in (False, True))
    assert [stage.name for stage in real] == [stage.name for stage in dry]
    assert len({stage.name for stage in real}) == len(real)
    for plan in (real, dry):
        for stage in plan:
            assert stage.limit > 0 and all(isinstance(word, str) for word in stage.command)
            assert "{" not in " ".join(stage.command[:-1]) and stage.question
    assert all("cpu" not in stage.command for stage in real)
    assert all("cuda" not in stage.command for stage in dry)
    calls = [stage.call for stage in real]
    assert calls == sorted(calls), "a run of all stages goes through the calls in order"
    limits = {
        call: sum(stage.limit for stage in real if stage.call in (0, call))
        for call in set(calls) - {0}
    }
    assert max(limits.values()) <= CALL_SECONDS < 10 * 60
    # what is worth most fits into the half hour for which a machine is lent
    assert sum(limits[call] for call in (1, 2, 3)) <= 27 * 60


def test_stages_are_chosen_by_name_by_call_and_by_what_is_left_out(tmp_path: Path) -> None:
    plan = stages(tmp_path, tmp_path, dry_run=False)
    always = ["wheels", "machine", "build"]

    def names(*given: str, skip: tuple[str, ...] = (), call: int | None = None) -> list[str]:
        return [stage.name for stage in chosen(plan, given, skip, call)]

    assert names() == [stage.name for stage in plan]
    # in the order of the plan, whatever the order on the command line
    assert names("ops", "scan_sd14") == [*always, "scan_sd14", "ops"]
    assert names("ops", skip=("build", "wheels")) == ["machine", "ops"]
    assert set(names(call=1)) | set(names(call=2)) < set(names())
    assert names(call=1)[:4] == [*always, "doctor"] and "memcheck" in names(call=5)
    for wrong in (("nothing",), ()):
        with pytest.raises(SystemExit, match="use --list"):
            chosen(plan, wrong, () if wrong else ("nothing",), None)
    with pytest.raises(SystemExit, match="no call 9"):
        chosen(plan, (), (), 9)
    # a run of the preparations alone would say that all is well
    with pytest.raises(SystemExit, match="'ops' is in call 3; leave out --call 1"):
        chosen(plan, ("scan_sd14", "ops"), (), 1)


def test_the_list_says_what_each_stage_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("positions" in line and "same bits at every position" in line for line in lines)


def test_options_add_up_and_an_unusable_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--list", "--stage", "doctor", "--stage", "ops", "--skip", "build"]) == 0
    listed = [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == ["wheels", "machine", "doctor", "ops"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("OUT", str(tmp_path / "file"))
    with pytest.raises(SystemExit, match="file: cannot be written .*; set OUT"):
        main(["--stage", "doctor"])


def test_the_page_names_every_stage_with_its_call(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    told = {
        name.strip(" `"): int(cells[1])
        for cells in (line.split("|") for line in text.splitlines())
        if len(cells) == 5 and cells[1].strip().isdigit()
        for name in cells[2].split(",")
    }
    plan = stages(tmp_path, tmp_path, dry_run=False)
    assert told == {stage.name: stage.call for stage in plan if stage.call}


def test_a_dry_run_of_a_few_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("DORI_COMMIT", "abc123")
    code = main(["--dry-run", "--skip", "build", "--stage", "sdpa", "repeat"])
    assert code == 0, capsys.readouterr().out
    found = rows_in(tmp_path)
    assert {row["commit"] for row in found} == {"abc123"}
    assert {row["mode"] for row in found if row["op"] == "repeatability"} == {
        *("scan_twice", "attack_twice", "attack_alone")
    }
    # a CPU repeats to the bit
    assert {row["p50"] for row in found if row["metric"] == "equal"} == {"100.0"}
    skipped = [row for row in found if row["metric"] == "skipped"]
    assert {row["provider"] for row in skipped} == {"cudnn", "efficient"}
    assert all("does not take this shape" in row["note"] for row in skipped)


@pytest.mark.slow
def test_the_dry_run_runs_every_stage_without_the_extras(tmp_path: Path) -> None:
    """In an environment with nothing but what the head of device.sh names."""
    out = tmp_path / "out"
    done = subprocess.run(
        [ROOT / "benchmarks" / "device.sh", "--dry-run"],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))},
            "OUT": str(out),
            "PYTHON": str(bare_python(tmp_path / "bare")),
        },
        capture_output=True,
        text=True,
        timeout=3000,
    )
    log = (out / "device.log").read_text() if out.exists() else done.stderr
    assert done.returncode == 0, done.stdout + log[-3000:]
    with (out / "stages.csv").open(newline="") as file:
        states = {row["stage"]: row["state"] for row in csv.DictReader(file)}
    plan = stages(tmp_path, tmp_path, dry_run=True)
    assert list(states) == [stage.name for stage in plan]
    assert {name for name, state in states.items() if state != "ok"} <= {"wheels"}
    found = rows_in(out)
    assert not [row for row in found if row["metric"] == "failed"]
    assert {row["op"] for row in found if row["metric"] != "skipped"} >= {
        *("scan", "scan_split", "sdpa", "gradient", "attack", "nemo", "wanda", "compile"),
        *("position_invariance", "repeatability", "memory", "score_floor", "noise_difference"),
    }
