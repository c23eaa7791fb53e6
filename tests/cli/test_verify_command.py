"""dori-fast verify, status and scan --dry-run: what they print and exit with."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_scan_command import error_line


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("input") / "p.txt"
    path.write_text("".join(f"prompt {i}\n" for i in range(10)))
    return path


@pytest.fixture
def run(cli: Any, tiny: str, prompts: Path, tmp_path: Path) -> tuple[Path, str]:
    """A finished run and the root that it printed."""
    out = tmp_path / "run"
    done = cli("scan", prompts, "--out", out, "--model", tiny, "--shard-size", "4", "--top", "0")
    assert done.code == 0, done.err
    found = re.search(r"Merkle root ([0-9a-f]{64}): see dori-fast verify", done.err)
    assert found, done.err
    return out, found[1]


def test_a_whole_run(cli: Any, run: tuple[Path, str]) -> None:
    out, root = run
    done = cli("verify", out, "--root", root, "--seed", "5")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "checked      sha256 of 4 result files and the Merkle root, the noted one"
    assert "checked      8 rows scored again, to the bit; seed 5" in lines
    assert lines[-1] == f"Merkle root  {root}"
    found = json.loads(cli("verify", out, "--json", "--files-only").out)
    assert (found["findings"], found["merkle_root"], found["rescored"]) == ([], root, 0)
    assert cli("verify", out, "--model", "no such model").code == 2


def test_findings_exit_4_and_are_named(cli: Any, run: tuple[Path, str]) -> None:
    out, _ = run
    path = out / "shards" / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = cli("verify", out, "--files-only")
    assert done.code == 4
    found = [line for line in done.out.splitlines() if line.startswith("FOUND")]
    remedy = f"; move it away, then run the command that made {out} again"
    assert found and all(line.endswith(remedy) for line in found)
    assert all("shards/part-00001.parquet: " in line for line in found)
    assert error_line(done.err).endswith("findings; each has its remedy above")
    listed = json.loads(cli("verify", out, "--files-only", "--json").out)["findings"]
    assert {"where", "what", "remedy"} == listed[0].keys()


def test_the_report_shows_the_root_and_is_listed(cli: Any, run: tuple[Path, str]) -> None:
    out, root = run
    assert cli("report", out).code == 0
    assert root in (out / "report.html").read_text()
    done = cli("verify", out, "--files-only", "--root", root)
    assert done.code == 0
    assert "not checked  report.html against the noted root, which does not cover it" in done.out
    assert "report.html" not in cli("verify", out, "--files-only").out
    (out / "report.html").write_text("another page")
    done = cli("verify", out, "--files-only", "--root", root)
    assert (done.code, "report.html" in done.out) == (4, True)


def test_status(cli: Any, run: tuple[Path, str]) -> None:
    out, _ = run
    done = cli("status", out)
    assert done.code == 0
    assert "committed    10 rows in 3 shards" in done.out and "done; pid" in done.out
    found = json.loads(cli("status", out, "--json").out)
    assert (found["state"], found["rows"], found["shards"]) == ("done", 10, 3)
    assert cli("status", out / "shards").code == 2


def test_status_is_quick(run: tuple[Path, str]) -> None:
    command = [sys.executable, "-m", "dori_fast", "status", str(run[0])]
    # of the processor: the clock's also count what others do on this machine
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_a_dry_run_writes_nothing(cli: Any, tiny: str, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = cli("scan", prompts, "--out", out, "--model", tiny, "--dry-run", "--shard-size", "4")
    assert done.code == 0, done.err
    for shown in ("10, of which 0 would be quarantined", "rows/s", "MB in 3 shards", "peak memory"):
        assert shown in done.out
    found = json.loads(
        cli("scan", prompts, "--out", out, "--model", tiny, "--dry-run", "--json").out
    )
    assert (found["rows"], found["shards"], found["probed"]) == (10, 1, 10)
    assert not out.exists()
