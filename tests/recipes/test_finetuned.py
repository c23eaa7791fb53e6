"""The recipe of the fine-tuned embedded model, at the smallest size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dori_fast as df
from dori_fast.demo.facts import GENERATION
from dori_fast.demo.retained import captions
from recipes.images.assets import retained_captions
from recipes.training.finetuned import main


def test_the_shipped_captions_are_the_recipes() -> None:
    unseen = {image.prompt for image in df.demo.images("held_out")}
    assert captions() == retained_captions(unseen)


def test_its_command_writes_a_model_that_the_story_loads(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setitem(GENERATION, "steps", 2)
    out = tmp_path / "model"
    small = ["--images", "1", "--steps", "1", "--drawn", "1"]
    main(["--work", str(tmp_path / "work"), "--out", str(out), *small])
    assert capsys.readouterr().out == f"step 1 of 1\n{out}\n"
    before, after = (df.load(source, device="cpu").config()["files"] for source in ("demo", out))
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert before[weights] != after[weights]
    assert (tmp_path / "work" / "checkpoint.safetensors").is_file()


@pytest.mark.parametrize("option", ["--work", "--out"])
def test_both_folders_are_required(option: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main([option, str(tmp_path)])
