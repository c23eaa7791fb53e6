"""dori-fast attack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dori_fast as df


def test_the_demo_then_again(cli: Any, tmp_path: Path) -> None:
    prompt = df.demo.pairs("memorized")[0][0]
    (tmp_path / "p.txt").write_text(f"{prompt}\nno such picture\n")
    out = tmp_path / "run"
    command = ("attack", "--prompts", tmp_path / "p.txt", "--images", "demo", "--out", out,
               "--objective", "min-snr", "--attack-steps", "2", "--draws", "2",
               "--seeds", "2", "--steps", "2", "--device", "cpu",
               "--max-errors", "0.5")  # fmt: skip
    done = cli(*command)
    assert done.code == 0, done.err
    assert "1 rows attacked" in done.err and "1 of 2 quarantined" in done.err
    assert "copies before" in done.out
    assert {"embeddings.safetensors", "attack.png"} <= {p.name for p in out.iterdir()}
    again = json.loads(cli(*command, "--json").out)
    assert [row["status"] for row in again["rows"]] == ["ok", "quarantined"]
    assert len(again["rows"][0]["similarity"]) == 2 and again["threshold"] == 0.6


def test_usage_errors(cli: Any, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    command = ("attack", "--prompts", tmp_path / "p.txt", "--out", tmp_path / "run",
               "--model", tiny)  # fmt: skip
    wrong = cli(*command, "--images", "demo", "--objective", "velocity")
    assert wrong.code == 2 and "objective must be one of" in wrong.err
    other = cli(*command, "--images", "demo")
    assert other.code == 2 and "64 x 64 for a model that draws 16 x 16" in other.err
    masks = cli(*command, "--images", "demo", "--masks", tmp_path / "none")
    assert masks.code == 2 and "no such file" in masks.err


def test_over_the_error_budget(cli: Any, tiny: str, tmp_path: Path) -> None:
    """No file of these names is there, so that no row is attacked."""
    (tmp_path / "p.csv").write_text("prompt,image\na boat,0.png\na tower,1.png\n")
    out = tmp_path / "run"
    command = ("attack", "--prompts", tmp_path / "p.csv", "--images", tmp_path, "--model", tiny,
               "--out", out)  # fmt: skip
    done = cli(*command)
    assert done.code == 3 and "0 rows attacked" in done.err
    assert f"error: {out}: 2 of 2 rows failed, the first: row 0: image: no file '0.png'" in done.err
    assert json.loads(cli(*command, "--json", "--max-errors", "9").out)["state"] == "over_budget"
    assert "over_budget" in cli("status", out).out
    assert cli("verify", out, "--files-only").code == 0
    assert cli("report", out).code == 0
    assert cli("export", out, "--format", "csv", "--out", tmp_path / "rows.csv").code == 0
    assert not (out / "embeddings.safetensors").exists()
    (tmp_path / "p.csv").write_text("prompt,image\n")
    done = cli(*command, "--out", tmp_path / "other")
    assert done.code == 2 and "the input has no rows" in done.err
