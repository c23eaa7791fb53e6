"""dori-fast locality, from the commands that lead to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def test_from_attack_to_comparison(cli: Any, tiny: str, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "cat.png")
    rows, prompts = tmp_path / "rows.csv", tmp_path / "prompts.txt"
    rows.write_text("prompt,image\n" + "a cat,cat.png\n" * 2)
    prompts.write_text("a cup of coffee\na dog\n")
    common = ("--model", tiny, "--device", "cpu")
    attacked, wanda = (
        tmp_path / "attack",
        ("--method", "wanda", "--sparsity", "0.1", "--steps", "1"),
    )
    for command in (
        ("attack", "--prompts", rows, "--images", tmp_path, "--out", attacked, "--attack-steps",
         "1", "--draws", "2", "--start", "gaussian", "--seeds", "1", "--steps", "1"),
        ("prune", "--prompts", rows, "--out", tmp_path / "t", "--embeddings", attacked, *wanda),
        ("prune", "--prompts", prompts, "--out", tmp_path / "m", *wanda),
    ):  # fmt: skip
        done = cli(*command, *common)
        assert done.code == 0, done.err
    command = ("locality", "--attacked", attacked, "--memorized", prompts, "--ordinary", prompts,
               "--out", tmp_path / "out", "--triggers", tmp_path / "t",
               "--baselines", tmp_path / "m", *common)  # fmt: skip
    done = cli(*command)
    assert done.code == 0, done.err
    assert done.out.split()[:2] == ["what", "layer"] and "agreement" in done.out
    assert (tmp_path / "out" / "locality.png").exists()
    assert len(json.loads(cli(*command, "--json").out)["agreement"]) == 1
    missing = cli(*command[:2], tmp_path / "none", *command[3:])
    assert missing.code == 2 and "finished attack" in missing.err
