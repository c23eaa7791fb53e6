"""dori-fast calibrate, and a scan with its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_calibrate_then_scan(cli: Any, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "clean.txt").write_text("".join(f"clean {i}\n" for i in range(30)))
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    out = tmp_path / "c.json"
    done = cli("calibrate", tmp_path / "clean.txt", "--out", out, "--model", tiny)
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()] == ["rate", "0.1", "0.05"]
    assert "30 distinct clean prompts" in done.err
    scan = ("scan", tmp_path / "p.txt", "--model", tiny, "--calibration", out)
    done = cli(*scan, "--out", tmp_path / "run", "--fpr", "0.1")
    assert done.code == 0, done.err
    assert done.out.split()[:6] == ["rank", "score", "p", "flagged", "row", "prompt"]
    assert " of 2 rows flagged; about 0.2 of them are expected by chance" in done.err
    assert "of 30 clean prompts are above" in done.err
    as_json = json.loads(cli(*scan, "--out", tmp_path / "run", "--fpr", "0.1", "--json").out)
    assert as_json["scored"] == 0 and as_json["decision"]["rule"]["rate"] == 0.1
    assert all(0 < row["p_value"] <= 1 for row in as_json["top"])


def test_a_rate_out_of_reach_is_a_usage_error(cli: Any, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "clean.txt").write_text("one\ntwo\n")
    cli("calibrate", tmp_path / "clean.txt", "--out", tmp_path / "c.json", "--model", tiny)
    done = cli("scan", tmp_path / "clean.txt", "--out", tmp_path / "run", "--model", tiny,
               "--calibration", tmp_path / "c.json")  # fmt: skip
    assert done.code == 2 and "needs at least 99 clean prompts" in done.err
