"""dori-fast export, of real scans of a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from sklearn.metrics import roc_auc_score

from dori_fast.report.load import rows_of as rows_of_run
from dori_fast.runs.store.reopen import open_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture
def scanned(cli: Any, tiny: str, folder: Path) -> Path:
    """A calibrated scan with labels; the second time it is there already."""
    clean, prompts = folder / "clean.txt", folder / "p.csv"
    clean.write_text("".join(f"clean {i}\n" for i in range(10)))
    prompts.write_text("prompt,known\n=1+1,yes\na dog,no\na cat,yes\na house,no\na tree,\n")
    record = folder / "c.json"
    if not record.exists():
        assert cli("calibrate", clean, "--out", record, "--model", tiny).code == 0
    done = cli("scan", prompts, "--out", folder / "run", "--model", tiny, "--calibration", record,
               "--fpr", "0.2")  # fmt: skip
    assert done.code == 0, done.err
    return folder / "run"


def rows_of(run: Path) -> list[dict[str, Any]]:
    return rows_of_run(open_run(run))


def test_lm_eval(cli: Any, scanned: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = cli("export", scanned, "--format", "lm-eval", "--label", "known", "--out", out)
    assert done.code == 0 and done.out.strip() == str(out), done.err
    found = json.loads(out.read_text())
    labeled = [row for row in rows_of(scanned) if row["known"]]
    results = found["results"]["memorization_wen"]
    assert results["auc,none"] == pytest.approx(
        roc_auc_score([r["known"] == "yes" for r in labeled], [r["score"] for r in labeled])
    )
    assert results["auc_low,none"] <= results["auc,none"] <= results["auc_high,none"]
    assert results["flagged,none"] == sum(r["flagged"] for r in rows_of(scanned)) / 5
    assert results["clean_prompts_flagged,none"] == 0.1
    assert found["n-samples"]["memorization_wen"] == {"original": 5, "effective": 4}
    assert found["configs"]["memorization_wen"]["metadata"]["detector"]["name"] == "wen"
    assert found["library_versions"]["dori_fast"]


def test_the_same_figures_in_a_model_card(cli: Any, scanned: Path, tmp_path: Path) -> None:
    common = ("export", scanned, "--label", "known", "--out")
    assert cli(*common, tmp_path / "README.md", "--format", "model-card").code == 0
    assert cli(*common, tmp_path / "r.json", "--format", "lm-eval").code == 0
    card = ModelCard.load(tmp_path / "README.md")
    results = json.loads((tmp_path / "r.json").read_text())["results"]["memorization_wen"]
    assert {f"{r.metric_type},none": r.metric_value for r in card.data.eval_results} == {
        name: value
        for name, value in results.items()
        if name.endswith(",none") and not name.endswith(("_stderr,none", "_low,none", "_high,none"))
    }
    assert card.data.pipeline_tag == "text-to-image" and card.data.model_name == "model"
    # where things lay on this machine is nobody's business
    for file in ("README.md", "r.json"):
        assert str(scanned.parent.parent) not in (tmp_path / file).read_text()


def test_csv(cli: Any, scanned: Path, tmp_path: Path) -> None:
    for options, prompt in (((), "'=1+1"), (("--formulas",), "=1+1")):
        done = cli("export", scanned, "--format", "csv", "--out", tmp_path / "rows.csv", *options)
        assert done.code == 0, done.err
        with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        assert table[0]["prompt"] == prompt
        for shown, row in zip(table, rows_of(scanned), strict=True):
            assert float(shown["score"]) == row["score"]
            assert json.loads(shown["score_per_seed"]) == row["score_per_seed"]


def test_flagged_rows_alone_highest_first(cli: Any, scanned: Path, tmp_path: Path) -> None:
    scores = sorted((row["score"] for row in rows_of(scanned)), reverse=True)
    calibration = scanned.parent / "c.json"
    facts = json.loads(calibration.read_text())
    # clean prompts that score low: every row is above them
    facts["scores"] = [0.0] * len(facts["scores"])
    low = tmp_path / "low.json"
    low.write_text(json.dumps(facts))
    done = cli("flag", scanned, "--calibration", low, "--fpr", "0.2", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["flagged"] == 5
    assert cli("flag", scanned, "--calibration", low, "--fdr", "0.2", "--fail-if-flagged").code == 5
    out = tmp_path / "rows.csv"
    assert cli("export", scanned, "--format", "csv", "--flagged", "--out", out).code == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, quoting=csv.QUOTE_NONNUMERIC))
    assert [row["score"] for row in rows] == scores
    back = cli("flag", scanned, "--calibration", calibration, "--fpr", "0.2")
    assert back.code == 0 and "of 5 rows flagged" in back.out


def test_requests_that_make_no_sense(cli: Any, tiny: str, scanned: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    plain = tmp_path / "plain"
    assert cli("scan", tmp_path / "p.txt", "--out", plain, "--model", tiny).code == 0
    board = tmp_path / "leaderboard.json"
    board.write_text("{}")
    for arguments, reason in (
        ((plain, "--format", "lm-eval"), "scores alone are no metrics"),
        ((plain, "--format", "model-card", "--label", "nope"), "no column 'nope'"),
        (
            (plain, "--format", "model-card", "--formulas"),
            "--formulas has no effect without --format csv",
        ),
        (
            (scanned, "--format", "csv", "--label", "known"),
            "--label has no effect with --format csv",
        ),
        ((tmp_path, "--format", "lm-eval", "--label", "known"), "--label is for scans"),
        ((tmp_path, "--format", "lm-eval"), "no metrics to export"),
        ((tmp_path / "none", "--format", "csv"), "no run.json"),
        ((plain, "--format", "csv", "--flagged"), "run dori-fast flag first"),
    ):
        done = cli("export", *arguments, "--out", tmp_path / "x")
        assert done.code == 2 and reason in done.err, done.err
    assert not (tmp_path / "x").exists()
    nowhere = cli("export", plain, "--format", "csv", "--out", tmp_path / "no" / "x")
    assert nowhere.code == 2 and "there is no folder" in nowhere.err
    board.write_text("{")
    assert cli("export", board, "--format", "lm-eval", "--out", tmp_path / "x").code == 4


def test_an_unfinished_scan_has_no_figures(cli: Any, scanned: Path, tmp_path: Path) -> None:
    record = scanned / "run.json"
    whole = record.read_text()
    record.write_text(json.dumps({**json.loads(whole), "state": "interrupted"}))
    try:
        figures = cli("export", scanned, "--format", "lm-eval", "--out", tmp_path / "x")
        rows = cli("export", scanned, "--format", "csv", "--out", tmp_path / "x.csv")
    finally:
        record.write_text(whole)
    assert figures.code == 2 and "the scan is interrupted" in figures.err
    assert rows.code == 0 and "only committed rows are exported" in rows.err
