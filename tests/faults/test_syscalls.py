"""The order of system calls that survives a power cut, which no kill can test.

A kill loses nothing that the kernel holds, so every test with SIGKILL passes with each fsync
deleted. Here strace shows the calls that the kernel saw.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STRACE = shutil.which("strace")
CALLS = "fsync,fdatasync,rename,renameat,renameat2"
PROGRAM = """
import sys
from pathlib import Path
from dori_fast.runs.store import durable
from tests.runs.store.test_directory import SIZE, make_table, opened
{change}
with opened(Path(sys.argv[1])) as run:
    for index in range(2):
        run.commit(index, make_table(index * SIZE, SIZE))
"""


def traced(folder: Path, change: str = "") -> list[tuple[str, str, str]]:
    """(call, path, new path) of a run with two shards, in order, as the kernel saw them."""
    log, out = folder / "log", folder / "run"
    command = [str(STRACE), "-f", "-y", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(log)]
    python = [sys.executable, "-c", PROGRAM.format(change=change), str(out)]
    done = subprocess.run([*command, *python], cwd=ROOT, capture_output=True, text=True)
    if "ptrace" in done.stderr or "not permitted" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    calls = []
    for line in log.read_text().splitlines():
        if found := re.search(r" f(?:data)?sync\(\d+<(.*)>\) += 0", line):
            calls.append(("fsync", found[1], ""))
        elif found := re.search(r' rename\w*\(.*?"(.*?)", .*?"(.*?)".*\) += 0', line):
            calls.append(("rename", found[1], found[2]))
    return [call for call in calls if str(out) in call[1]]


def out_of_order(calls: list[tuple[str, str, str]], name: str) -> list[str]:
    """Faults in how the file of this name was made."""
    at = [i for i, call in enumerate(calls) if call[0] == "rename" and call[2].endswith(name)]
    if not at:
        return [f"{name} was not renamed into place"]
    found = []
    for i in at:
        _, temporary, final = calls[i]
        if ("fsync", temporary, "") not in calls[:i]:
            found.append(f"{name}: its data may come after its name")
        if ("fsync", str(Path(final).parent), "") not in calls[i + 1 : i + 2]:
            found.append(f"{name}: its name may be lost after its commit was reported")
    return found


NAMES = ("run.json", "part-00000.parquet", "part-00001.parquet")
pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed")


def test_data_then_name_then_directory(tmp_path: Path) -> None:
    calls = traced(tmp_path)
    assert [fault for name in NAMES for fault in out_of_order(calls, name)] == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("durable.sync_file = lambda path: None", "its data may come after its name"),
        ("durable.sync_directory = lambda path: None", "its name may be lost"),
        (
            "import os, shutil; os.replace = lambda a, b: shutil.copyfile(a, b)",
            "was not renamed into place",
        ),
    ],
    ids=["no fsync of the file", "no fsync of the directory", "no rename"],
)
def test_each_missing_call_is_noticed(tmp_path: Path, change: str, fault: str) -> None:
    calls = traced(tmp_path, change)
    for name in NAMES:
        assert any(fault in found for found in out_of_order(calls, name)), (name, calls)
