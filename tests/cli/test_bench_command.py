"""dori-fast bench: from a checkout it times, elsewhere it says what to do."""

from __future__ import annotations

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

bench_module = importlib.import_module("dori_fast.cli.commands.bench")


def test_from_a_checkout_it_writes_checked_rows(tmp_path: Path) -> None:
    # where the user stands is a folder of the same name, which must not be taken for ours
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("raise SystemExit('the wrong folder')")
    command = [sys.executable, "-P", "-m", "dori_fast", "bench", "--op", "noise_difference"]
    done = subprocess.run(
        [*command, "--rounds", "2", "--results", "kept", "--device", "cpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(bench_module._CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "kept").glob("*.csv")
    with written.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["op"] for row in rows} == {"noise_difference"}
    assert {"eager", "cpp"} <= {row["provider"] for row in rows}
    assert all(float(row["roofline_pct"]) > 0 for row in rows)


def test_without_a_checkout_it_says_so(cli: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_module, "_CHECKOUT", tmp_path)
    done = cli("bench")
    assert done.code == 2 and done.out == ""
    assert done.err.startswith("error: bench: the benchmarks are not part of the installed package")
    assert done.err.count("\n") == 1


def test_options_of_the_other_kind_are_refused(cli: Any) -> None:
    for arguments, said in (
        (["ops", "--model", "demo"], "--model is for scan, not for ops"),
        (["scan", "--op", "ms_ssim"], "--op is for ops, not for scan"),
        (["scan", "--compile"], "--compile is for ops, not for scan"),
        (["everything"], "everything"),
        (["ops", "--rounds", "1"], "--rounds"),
    ):
        done = cli("bench", *arguments)
        assert done.code == 2 and said in done.err, arguments


def test_the_programs_exit_code_is_ours(cli: Any) -> None:
    assert cli("bench", "--op", "no such op").code == 2


def test_arguments_reach_the_program(cli: Any, monkeypatch: Any) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(bench_module, "_run", lambda *call: seen.append(call) or 0)
    assert cli("bench", "scan", "--model", "sd14", "--threads", "2", "--no-write").code == 0
    assert cli("bench", "--op", "a", "--op", "b", "--compile", "--rounds", "5").code == 0
    assert seen == [
        ("scan", ["--model", "sd14", "--threads", "2", "--no-write"]),
        ("ops", ["--rounds", "5", "--op", "a", "--op", "b", "--threads", "1", "--compile"]),
    ]
