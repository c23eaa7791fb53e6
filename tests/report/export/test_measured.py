"""Figures of result files, in the formats of others."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from scipy.stats import sem

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.report import lm_eval, measured_file, model_card
from dori_fast.report.export.measured import Measured, Metric, Task

REMOVAL = Path(__file__).parents[3] / "benchmarks" / "results" / "quality" / "removal.json"
QUALITY = {
    "same_seed_similarity": [0.9, 0.8, 0.95],
    "distance": {"value": 0.01},
    "held_out_loss": {"change": [0.001, -0.001, 0.002]},
}
POINT = {"images": [0.5, 0.1, 0.9], "pictures": [1.0, 0.2, 1.0]}
BOARD = {
    "schema": "dori_fast/mitigations/1",
    "made_by": {"dori_fast": "0.1.0"},
    "setting": {"pictures": 2, "controls": 1, "seeds": 3},
    "model": {"dtype": "float32", "files": {"unet": "0"}},
    "rows": [
        {
            "mitigation": "nemo-all.1",
            "attacks": {"prompt": {"memorized": {"0": POINT}, "control": {"0": POINT}}},
            "excess": 0.25,
            "quality": QUALITY,
        }
    ],
}


def written(folder: Path, document: object) -> Path:
    path = folder / "leaderboard.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_leaderboard(tmp_path):
    found = lm_eval(measured_file(written(tmp_path, BOARD)))
    task = "mitigation_nemo-all.1"
    results = found["results"][task]
    name = "copies_prompt_memorized_0"
    assert [results[f"{name}{end},none"] for end in ("", "_low", "_high")] == POINT["images"]
    # of two pictures, three seeds each
    assert results[f"{name}_stderr,none"] == pytest.approx(sem([1, 1, 1, 0, 0, 0]))
    assert results["excess,none"] == 0.25 and results["excess_stderr,none"] == "N/A"
    assert results["held_out_loss_change_low,none"] == -0.001
    better = found["higher_is_better"][task]
    assert better[name] is False and better["copies_prompt_control_0"] is None
    assert found["n-samples"] == {task: {"original": 3, "effective": 3}}
    assert found["model_name"] == "demo" and "git_hash" not in found


def test_a_removal_and_its_model_card():
    measured = measured_file(REMOVAL)
    assert [task.name for task in measured.tasks] == [
        "removal_original", "removal_wanda", "removal_fine-tuned",
    ]  # fmt: skip
    results = lm_eval(measured)["results"]
    stored = json.loads(REMOVAL.read_text())
    for model, drawn in stored["prompts"].items():
        assert results[f"removal_{model}"]["copies_prompt,none"] == drawn["rate"][0]
    for attacked in stored["attacks"]:
        start, pictures = attacked["start"], attacked["pictures"]
        for budget, point in attacked["after"].items():
            name = f"copies_{attacked['objective']}_{start}_{pictures}_{budget}"
            assert results[f"removal_{attacked['model']}"][f"{name},none"] == point["rate"][0]
    card = ModelCard(model_card(measured))
    there = [(r.dataset_config, r.metric_type, r.metric_value) for r in card.data.eval_results]
    assert there == [(t.name, m.name, m.value) for t in measured.tasks for m in t.metrics]


@pytest.mark.parametrize("lost", ["rows", "setting", "made_by"])
def test_a_leaderboard_that_lacks_something(tmp_path, lost):
    board = copy.deepcopy(BOARD)
    del board[lost]
    with pytest.raises(IntegrityError, match=f"a field is missing or wrong.*{lost}"):
        measured_file(written(tmp_path, board))


@pytest.mark.parametrize("rate", [[0.5], [0.5, "low", 1], None])
def test_a_rate_that_is_none(tmp_path, rate):
    board = copy.deepcopy(BOARD)
    board["rows"][0]["attacks"]["prompt"]["memorized"]["0"] = {"images": rate}
    with pytest.raises(IntegrityError, match="a field is missing or wrong"):
        measured_file(written(tmp_path, board))


def test_files_without_figures(tmp_path):
    with pytest.raises(UsageError, match="no metrics to export"):
        measured_file(written(tmp_path, {"schema": "another"}))
    with pytest.raises(UsageError, match="no such file"):
        measured_file(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"rows": [')
    with pytest.raises(IntegrityError, match="cannot be read as JSON"):
        measured_file(tmp_path / "half.json")


def test_names_from_data_are_no_markup_in_a_card():
    hostile = "a: [x](http://y)\n---\n<img src=x>|\u202e"
    task = Task("t", 1, 1, [Metric("m", 0.5)], {})
    text = model_card(Measured({"source": hostile, "revision": None}, hostile, None, [task]))
    card = ModelCard(text)
    assert card.data.model_name == hostile
    assert card.data.eval_results[0].dataset_name == hostile
    # a backslash stands for itself in Markdown only if it is doubled
    shown = r"# Memorization in a: \[x\](http://y)\\x0a---\\x0a\<img src=x\>\|\\u202e"
    assert shown in card.text.splitlines()
