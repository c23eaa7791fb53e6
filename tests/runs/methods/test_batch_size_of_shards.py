"""A shard of a method's run says the size of its batches, where they had one."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import dori_fast as df
from dori_fast.attack import Dori
from dori_fast.runs.methods.attack import Judging, attack
from dori_fast.runs.store.shard import read_footer
from tests.models.engine.limited import Memory

PROMPTS = ["a cat", "a dog"]


def test_batches_that_gradients_have_halved_are_told(tiny_directory: Path, tmp_path: Path) -> None:
    model = df.load(tiny_directory, device="cpu", batch_size=8)
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("\n".join(["prompt", *PROMPTS]) + "\n")
    images = {prompt: torch.zeros(16, 16, 3, dtype=torch.uint8).numpy() for prompt in PROMPTS}
    how = {"method": Dori(steps=1, draws=2), "judging": Judging(seeds=1, steps=1)}

    def sizes(run: Path) -> tuple[int | None, int]:
        (shard,) = attack(model, prompts, images, out=run, **how).run.shards
        recorded = json.loads((run / "run.json").read_bytes())["batch_size"]
        return read_footer(shard).batch_size, recorded

    assert sizes(tmp_path / "whole") == (8, 8)
    memory = Memory(2)
    with memory.of(model.unet):
        # images are drawn and judged in batches of 8, gradients in batches of 2
        assert sizes(tmp_path / "small") == (None, 2)
    assert memory.refused == [8, 4] and model.batch_size == 8
