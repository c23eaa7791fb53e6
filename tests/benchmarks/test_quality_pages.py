"""Pages about quality say what the committed figures say."""

from __future__ import annotations

import json

from benchmarks.pages import removal as removal_page
from benchmarks.pages import retrieval as retrieval_page
from benchmarks.quality import detectors, locality, pruning, retrieval
from benchmarks.speed import nemo
from dori_fast.finetune import Adversarial


def test_the_pruning_page_is_drawn_from_its_figures():
    document = json.loads(pruning.RESULTS.read_text(encoding="utf-8"))
    assert pruning.page(document["results"], document["setting"]) == pruning.PAGE.read_text(
        encoding="utf-8"
    )
    assert document["methods"]["wanda"] == pruning.HIDING.config()


def test_the_detectors_page_is_drawn_from_its_figures():
    rows = detectors.stored()
    assert detectors.page(rows) == detectors.PAGE.read_text(encoding="utf-8")
    assert [row.dtype for row in rows] == [*detectors.DTYPES] * (len(rows) // len(detectors.DTYPES))


def test_nemos_comparison_found_the_same_neurons_for_every_prompt():
    document = json.loads(nemo.RESULTS.read_text(encoding="utf-8"))
    for setting in ("released", "paper"):
        rows, summary = document[setting]["rows"], document[setting]["summary"]
        assert summary["same_decisions"] == summary["prompts"] == len(rows) > 0
        assert summary["together_evaluations"] < summary["together_rows"]
        assert all(
            row.get("decision", row["decision_together"]) == row["decision_together"]
            for row in rows
        )
    rows, summary = document["released"]["rows"], document["released"]["summary"]
    assert summary["together_evaluations"] == sum(row["evaluations"] for row in rows)
    assert all(row["decision"] == row["decision_released"] for row in rows)
    ratios = [row["rows_released"] / row["evaluations"] for row in rows]
    assert min(ratios) >= summary["released_over_ours_evaluations"]["least"] - 0.01
    # padding and parts of the network included
    assert summary["together_rows"] <= 0.4 * sum(row["rows_released"] for row in rows)


def test_the_retrieval_page_is_drawn_from_its_figures():
    document = json.loads(retrieval_page.RESULTS.read_text(encoding="utf-8"))
    assert retrieval_page.page(document) == retrieval_page.PAGE.read_text(encoding="utf-8")
    attack = document["setting"]["attack"]
    assert {name: attack[name] for name in retrieval.ATTACK} == retrieval.ATTACK
    assert set(document["verdict"]) == {f"{a.which}-{a.model}" for a in retrieval.ARMS}


def test_the_locality_page_is_drawn_from_its_figures():
    document = json.loads(locality.RESULTS.read_text(encoding="utf-8"))
    assert locality.page(document) == locality.PAGE.read_text(encoding="utf-8")
    assert document["attack"] == locality.ATTACK.config()


def test_the_removal_page_is_drawn_from_its_figures():
    document = json.loads(removal_page.RESULTS.read_text(encoding="utf-8"))
    assert removal_page.page(document) == removal_page.PAGE.read_text(encoding="utf-8")
    assert document["fine_tuning"] == json.loads(json.dumps(Adversarial().config()))
    assert removal_page.PAGE.read_text(encoding="utf-8").count("| fine-tuned | memorized |") == 4
