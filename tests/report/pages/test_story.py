"""The story's page, from files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dori_fast
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.report import story_page
from dori_fast.runs.store.reopen import open_run
from tests.report.pages.test_page import HOSTILE, Reader


@pytest.fixture(scope="module")
def scan(model: Any, tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("scan")
    (folder / "p.csv").write_text("prompt,kind\na cat,memorized\na dog,web\n")
    dori_fast.scan(model, folder / "p.csv", out=folder / "run", seeds=1)
    return open_run(folder / "run")


def write(folder: Path, arms: dict[str, list[list[float]]]) -> None:
    """A story with one picture a set; similarities of each arm after 0 and 50 steps."""
    setting = {"threshold": 0.6, "attack": {}, "nemo": {}, "wanda": {}, "generation": {}}
    story = {"setting": setting, "model": {}, "memorized": [HOSTILE], "control": ["a <i>key</i>"]}
    (folder / "story.json").write_text(json.dumps(story), encoding="utf-8")
    image = np.zeros((1, 4, 4, 3), np.uint8)
    np.savez(folder / "originals.npz", memorized=image, control=image)
    for name, rows in arms.items():
        steps = zip((0, 50), rows, strict=False)
        found = {f"similarity {step}": np.array([row]) for step, row in steps}
        drawn = {key.replace("similarity", "pictures"): image for key in found}
        np.savez(folder / f"{name}.npz", **found, **drawn)


def test_what_is_there_is_shown(scan, tmp_path):
    write(
        tmp_path,
        {
            "memorized-unpruned": [[0.9, 0.9]],
            "memorized-nemo": [[0.1, 0.2], [0.9, 0.1]],
            "control-nemo": [[0.1, 0.1], [0.1, 0.1]],
        },
    )
    read = Reader(story_page(tmp_path, scan))
    assert HOSTILE in read.text and "a <i>key</i>" in read.text and "script" not in read.tags
    # one of two images, one of one prompt by its best seed
    assert "0.50 [0.01, 0.99]" in read.text and "1.00 [0.03, 1.00]" in read.text
    # histogram, ROC, budget; original, replicated and two of NeMo; original and two of NeMo
    assert read.tags.count("img") == 3 + 4 + 3
    assert any("No fine-tuned model was given" in text for text in read.text)
    write(tmp_path, {"memorized-fine-tuned": [[0.1, 0.2], [0.1, 0.1]]})
    read = Reader(story_page(tmp_path, scan))
    assert read.tags.count("img") == 3 + 6 + 3
    assert not any("No fine-tuned model was given" in text for text in read.text)


def test_what_is_not_there_or_damaged(scan, tmp_path):
    with pytest.raises(UsageError, match="run dori-fast demo"):
        story_page(tmp_path, scan)
    write(tmp_path, {"memorized-nemo": [[0.1], [0.9]]})
    (tmp_path / "memorized-nemo.npz").write_bytes(b"PK")
    with pytest.raises(IntegrityError, match=r"memorized-nemo\.npz: cannot be read"):
        story_page(tmp_path, scan)
