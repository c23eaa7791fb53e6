"""The command as a process: start-up time, signals, closed pipes, a real terminal."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "dori_fast"]


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([*COMMAND, *map(str, arguments)], text=True, **streams)


@pytest.fixture
def long_scan(tiny: str, tmp_path: Path) -> list[str | Path]:
    path = tmp_path / "p.txt"
    path.write_text("".join(f"prompt number {i}\n" for i in range(5000)))
    return ["scan", path, "--out", tmp_path / "run", "--model", tiny, "--shard-size", "20"]


def shards(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "shards").glob("part-*"))


def await_shards(out: Path, count: int) -> None:
    deadline = time.monotonic() + 240
    while len(shards(out)) < count:
        assert time.monotonic() < deadline, "no shard came"
        time.sleep(0.02)


def test_help_is_quick() -> None:
    # processor time, which is the wall time of an idle machine: other work must not fail the test
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and "scan" in done.stdout
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5, times


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, dori_fast.cli; "
        "heavy = {'torch', 'pyarrow', 'numpy', 'pydantic', 'rich'} & set(sys.modules); "
        "sys.exit(f'loads {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_interrupted_and_resumed(long_scan: list[str | Path], tmp_path: Path) -> None:
    process = start(*long_scan)
    await_shards(tmp_path / "run", 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert out == "" and "Traceback" not in err
    line = err.splitlines()[-1]
    assert line == "error: interrupted by SIGINT; run the same command again to continue"
    finished = shards(tmp_path / "run")
    assert 2 <= len(finished) < 250
    assert not list((tmp_path / "run").rglob("*.tmp"))
    long_scan += ["--resume", "must", "--json"]
    process = start(*long_scan)
    await_shards(tmp_path / "run", len(finished) + 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "interrupted"
    assert record["counts"]["rows"] == 20 * len(shards(tmp_path / "run"))


def test_a_second_signal_ends_at_once() -> None:
    code = (
        "import time, os, signal\n"
        "from dori_fast.runs.signals import interruptible\n"
        "with interruptible():\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        print('first', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for expected in ("ready\n", "first\n"):
        assert process.stdout.readline() == expected
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    process.stdout.close()


def test_closed_stdout_is_no_error(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a\nb\n")
    process = start("scan", path, "--out", tmp_path / "run", "--model", tiny)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 0, err
    assert "Traceback" not in err and "BrokenPipe" not in err and "Exception" not in err
    assert shards(tmp_path / "run") == ["part-00000.parquet"]


@pytest.mark.parametrize("closed", ["<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_closed_before_the_start_are_no_error(
    tiny: str, tmp_path: Path, closed: str
) -> None:
    path, run = tmp_path / "p.txt", tmp_path / "run"
    path.write_text("a\nb\n")

    def code(*arguments: str | Path) -> int:
        words = [*COMMAND, *map(str, arguments)]
        command = ["bash", "-c", f'"$@" {closed}', "bash", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert "Traceback" not in done.stderr and "Exception" not in done.stderr
        # nor do errors take the way of results
        assert "error:" not in done.stdout
        return done.returncode

    assert code("scan", path, "--out", run, "--model", tiny) == 0
    assert shards(run) == ["part-00000.parquet"]
    assert code("verify", run, "--files-only") == 0
    assert code("status", run) == 0
    assert code("status", tmp_path / "typo") == 2
    assert code("status", "--no-such-option") == 2
    assert code("--help") == 0


def test_a_terminal_gets_a_progress_line_and_nothing_else(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("".join(f"prompt number {i}\n" for i in range(64)))
    master, slave = pty.openpty()
    process = start("scan", path, "--out", tmp_path / "run", "--model", tiny, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # a pseudo-terminal ends with EIO
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.wait() == 0
    lines = shown.decode().replace("\r\n", "\n").split("\r")
    assert any("rows/s, ETA" in line and "quarantined" in line for line in lines)
    # no library's bar or advice gets between
    others = [line for line in lines if line.strip("\x1b[K\n") and "quarantined" not in line]
    assert [line for line in others if "Merkle root" not in line] == []
