"""The retrieval benchmark's arms, and its figures from measurements that are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.pages import retrieval as retrieval_page
from benchmarks.quality import retrieval


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return retrieval.Study(tmp_path_factory.mktemp("work"))


def measured(arm):
    """Every image is a copy after the attack and none before it; images of noise."""
    count = -(-retrieval.AT_MOST[arm.which] // (retrieval.EVERY if arm.curve else 1))
    random = np.random.default_rng(0)
    kept = {"rows": np.arange(count), "cpu_seconds_per_problem": np.array(1.5)}
    for step in arm.steps:
        kept[f"similarity {step}"] = np.full((count, arm.seeds), 0.9 if step else 0.1)
        kept[f"pictures {step}"] = random.integers(0, 256, (count, 2, 64, 64, 3), np.uint8)
    return kept


def test_controls_have_the_memorized_ones_budget():
    assert len({arm.name for arm in retrieval.ARMS}) == len(retrieval.ARMS)
    for which in ("memorized", "control", "composition"):
        verdicts = {a.model: a for a in retrieval.ARMS if a.which == which and not a.curve}
        assert set(verdicts) == {"unpruned", "nemo", "wanda"}
        assert {arm.steps[-1] for arm in verdicts.values()} == {retrieval.BUDGET}


def test_an_arm_is_computed_once(study, monkeypatch):
    monkeypatch.setattr(retrieval, "BUDGET", 2)
    monkeypatch.setattr(retrieval, "CONTROL_SEEDS", 3)
    monkeypatch.setitem(retrieval.GENERATION, "steps", 3)
    study.model.batch_size = 8
    monkeypatch.setitem(study.images, "control", study.images["control"][:2])
    arm = retrieval.Arm("control", "wanda", False)
    retrieval.HIDING.localize(study.model, [study.images["memorized"][0].prompt]).save(
        study.work / "wanda.safetensors"
    )
    first = study.run(arm)
    assert first["similarity 2"].shape == (2, retrieval.CONTROL_SEEDS)
    assert first["pictures 2"].shape == (2, retrieval.SHOWN, 64, 64, 3)
    monkeypatch.setattr(retrieval.Dori, "run", None)
    again = study.run(arm)
    assert all(np.array_equal(first[key], again[key]) for key in first)


def test_files_of_known_measurements(study, tmp_path, monkeypatch):
    for name in ("RESULTS", "PAGE", "CURVE", "GRID"):
        path = tmp_path / getattr(retrieval_page, name).name
        monkeypatch.setattr(retrieval_page, name, path)
    arms = {arm.name: measured(arm) for arm in retrieval.ARMS}
    few = arms["control-unpruned-verdict"]["similarity 50"]
    few[:] = 0.1
    few[0, 0] = few[1, 0] = 0.9  # the first served for the choice
    images = {k: np.stack([p.image for p in of]) for k, of in study.images.items()}
    retrieval_page.write(arms, study.setting(), images)
    found = json.loads(retrieval_page.RESULTS.read_text())["verdict"]
    nemo = found["memorized-nemo"]
    assert nemo["steps"]["50"]["images"][0] == 1.0 and nemo["steps"]["0"]["images"][0] == 0.0
    assert nemo["mcnemar"]["second_only"] == 21 and nemo["mcnemar"]["p_value"] < 1e-5
    control = found["control-unpruned"]["steps"]["50"]
    assert control["images"][0] == pytest.approx(2 / (23 * 5))
    assert control["images_not_chosen_on"][0] == pytest.approx(1 / (15 * 5))
    assert control["prompts_any"][0] == pytest.approx(2 / 23)
    assert control["prompts_median"][0] == 0
    page = retrieval_page.PAGE.read_text()
    row = next(line for line in page.splitlines() if "21 memorized | nemo | 50" in line)
    assert "1.00 [0.98, 1.00]" in row and row.endswith("| 0.99 |")
    assert "- nemo: 21 come back, 0 disappear" in page
    assert retrieval_page.CURVE.stat().st_size > 1000 < retrieval_page.GRID.stat().st_size
