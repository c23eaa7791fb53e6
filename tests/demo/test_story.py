"""The demo's story: its stages on the embedded model, at the smallest size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dori_fast as df
from dori_fast.demo.facts import GENERATION
from dori_fast.demo.story import BATCH, Settings, stages, tell
from dori_fast.errors import IntegrityError

SMALL = Settings(images=1, controls=1, seeds=1, steps=(0, 1), prompts=60)


@pytest.fixture(scope="module")
def model() -> Any:
    return df.load("demo", device="cpu", batch_size=8)


def test_an_arm_is_computed_once(model, tmp_path, monkeypatch):
    monkeypatch.setitem(GENERATION, "steps", 3)
    stages.begin(tmp_path, model, SMALL)
    stages.attack(tmp_path, model, SMALL, "fine-tuned", "control")
    path = tmp_path / "control-fine-tuned.npz"
    with np.load(path) as arm:
        assert set(arm) == {f"{what} {n}" for what in ("similarity", "pictures") for n in (0, 1)}
        assert arm["similarity 1"].shape == (1, 1) and arm["pictures 1"].shape == (1, 64, 64, 3)
    before = path.stat().st_mtime_ns
    stages.attack(tmp_path, model, SMALL, "fine-tuned", "control")
    assert path.stat().st_mtime_ns == before


def test_another_story_is_refused(model, tmp_path):
    stages.begin(tmp_path, model, SMALL)
    stages.begin(tmp_path, model, SMALL)
    with pytest.raises(IntegrityError, match="seeds: 1 then, 2 now"):
        stages.begin(tmp_path, model, Settings(1, 1, 2, (0, 1), 60))


def test_sets_fit_the_batch():
    settings = Settings()
    assert BATCH % settings.attack().draws == 0
    assert settings.images * settings.seeds == BATCH == settings.controls * settings.seeds


@pytest.mark.slow
def test_the_whole_story(model, tmp_path: Path):
    page = tell(tmp_path, settings=SMALL, model=model, finetuned=lambda: model)
    text = page.read_text(encoding="utf-8")
    assert "fine-tuned, attacked" in text and "<script" not in text
    lines: list[str] = []
    tell(tmp_path, settings=SMALL, model=model, finetuned=lambda: model, say=lines.append)
    assert len(lines) == 9
