"""dori-fast prune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_nemo_then_again(cli: Any, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    (tmp_path / "clean.txt").write_text("".join(f"clean {i}\n" for i in range(30)))
    out = tmp_path / "run"
    command = ("prune", "--prompts", tmp_path / "p.txt", "--out", out, "--model", tiny,
               "--clean", tmp_path / "clean.txt", "--layers", "all")  # fmt: skip
    done = cli(*command)
    assert done.code == 0, done.err
    assert done.out.split()[:4] == ["row", "pruned", "evaluations", "prompt"]
    assert "2 prompts localized" in done.err
    assert {"masks.safetensors", "nemo.csv", "layers.png"} <= {p.name for p in out.iterdir()}
    again = json.loads(cli(*command, "--json").out)
    assert [row["prompt"] for row in again["rows"]] == ["a cat", "a dog"]
    assert len(again["layers"]) == 4


def test_wanda_with_pictures(cli: Any, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    out = tmp_path / "run"
    done = cli("prune", "--prompts", tmp_path / "p.txt", "--out", out, "--model", tiny,
               "--method", "wanda", "--sparsity", "0.1", "--steps", "2",
               "--conditional-half", "--images", "1")  # fmt: skip
    assert done.code == 0, done.err
    assert (out / "pictures.png").exists() and not (out / "nemo.csv").exists()


def test_usage_errors(cli: Any, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    command = ("prune", "--prompts", tmp_path / "p.txt", "--out", tmp_path / "run", "--model", tiny)
    both = cli(*command, "--clean", tmp_path / "p.txt", "--statistics", tmp_path / "s.pt")
    assert both.code == 2 and "use one" in both.err
    missing = cli(*command, "--statistics", tmp_path / "s.pt")
    assert missing.code == 2 and "s.pt: no such file" in missing.err


def test_over_the_error_budget(cli: Any, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": null}\n{"prompt": 5}\n')
    out = tmp_path / "run"
    done = cli("prune", "--prompts", tmp_path / "p.jsonl", "--out", out, "--model", tiny,
               "--layers", "all")  # fmt: skip
    assert done.code == 3 and "0 prompts localized" in done.err
    assert "2 of 2 rows failed, the first: row 0: null: the row has no prompt" in done.err
    assert not (out / "masks.safetensors").exists()
    masks = cli("attack", "--prompts", tmp_path / "p.jsonl", "--images", "demo", "--out",
                tmp_path / "a", "--masks", out)  # fmt: skip
    assert masks.code == 2 and "finished dori-fast prune that localized a row" in masks.err
