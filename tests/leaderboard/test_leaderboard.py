"""The leaderboard of mitigations: its cells at the smallest size, its table from known numbers."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
import torch

import dori_fast as df
from dori_fast import leaderboard
from dori_fast.cli import main
from dori_fast.demo.facts import GENERATION
from dori_fast.demo.story import BATCH
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.evaluate import clopper_pearson
from dori_fast.leaderboard import Settings, mitigations, run
from dori_fast.leaderboard.cells import Cells
from dori_fast.leaderboard.foreign import read_rows
from dori_fast.leaderboard.table import document, markdown, row
from dori_fast.models import NeuronMask
from dori_fast.report.figures.charts import mitigation_curves

SMALL = Settings(images=1, controls=1, held_out=2, seeds=1, budgets=(0, 1))
NUMBERS = Settings(images=3, controls=2, held_out=2, seeds=2, budgets=(0, 5))
QUALITY = {
    "same_seed_similarity": [0.9, 0.8, 0.95],
    "distance": {"value": 0.01},
    "held_out_loss": {"change": [0.001, -0.001, 0.002]},
}


@pytest.fixture(scope="module")
def model() -> Any:
    return df.load("demo", device="cpu", batch_size=2)


def outsider(model: Any, prompts: Any, images: Any) -> Any:
    """Switches one neuron off, for everybody."""
    layer = model.layers[0]
    assert len(prompts) == len(images) and images.dtype == np.uint8
    width = model.unet.get_submodule(layer).to_v.out_features
    return leaderboard.in_turn(model, NeuronMask.blocking([{layer: [0]}], {layer: width}))


def known_row(name: str, memorized: list[list[float]]) -> Any:
    """Of three memorized pictures with two seeds each; controls never come back."""
    never = np.zeros((2, 2))
    cells: Any = {"quality": {"json": np.array(json.dumps(QUALITY))}}
    for attack in ("prompt", "gaussian"):
        cells[f"{attack} control"] = {"similarity 0": never, "similarity 5": never}
        cells[f"{attack} memorized"] = {
            "similarity 0": np.zeros((3, 2)),
            "similarity 5": np.array(memorized),
        }
    return row(name, cells, NUMBERS, threshold=0.5)


@pytest.fixture
def board() -> Any:
    rows = [
        known_row("leaky", [[0.9, 0.9], [0.9, 0.5], [0.1, 0.1]]),
        known_row("tight", [[0.9, 0.1], [0.2, 0.1], [0.1, 0.1]]),
    ]
    return document(rows, NUMBERS.config(), {"files": {"unet": "0"}})


def test_rates_and_order(board):
    assert [r["mitigation"] for r in board["rows"]] == ["tight", "leaky"]
    leaky = board["rows"][1]
    point = leaky["attacks"]["prompt"]["memorized"]["5"]
    images, pictures = clopper_pearson(3, 6), clopper_pearson(2, 3)
    # a similarity of the threshold itself is no copy
    assert point["images"] == [images.value, images.low, images.high]
    assert point["pictures"] == [pictures.value, pictures.low, pictures.high]
    assert leaky["excess"] == 0.5


def test_the_tables_lines(board):
    lines = [line for line in markdown(board).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * 4
    assert (
        "| tight | 17 | prompt | memorized | 0 [0, 46] | 17 [0, 64] | 0.90 [0.80, 0.95]" in lines[2]
    )
    assert len({line.count("|") for line in lines}) == 1
    assert mitigation_curves(board["rows"]).startswith(b"\x89PNG")


def test_rows_of_others(board, tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(board), encoding="utf-8")
    found = read_rows(path, board, NUMBERS, {"none"})
    assert [r["mitigation"] for r in found] == ["tight", "leaky"]
    assert "| leaky (theirs.json) |" in markdown({**board, "rows": found})
    with pytest.raises(UsageError, match="'tight' already"):
        read_rows(path, board, NUMBERS, {"tight"})


def _no_controls(board: Any) -> None:
    del board["rows"][0]["attacks"]["prompt"]["control"]


def _more_sets(board: Any) -> None:
    board["rows"][0]["attacks"]["prompt"]["others"] = {}


def _a_word(board: Any) -> None:
    board["rows"][0]["attacks"]["prompt"]["memorized"]["5"]["images"][0] = "all"


def _no_order(board: Any) -> None:
    board["rows"][0]["quality"]["same_seed_similarity"] = [0.9, 0.95, 1.0]


def _too_narrow(board: Any) -> None:
    board["rows"][0]["attacks"]["prompt"]["memorized"]["5"]["images"][1] += 0.05


def _markup(board: Any) -> None:
    board["rows"][0]["mitigation"] = "<b>best</b> | 0"


def _other_budget(board: Any) -> None:
    board["setting"]["budgets"] = [0, 4]


def _other_model(board: Any) -> None:
    board["model"]["files"]["unet"] = "1"


def _no_quality(board: Any) -> None:
    board["rows"][0]["quality"]["held_out_loss"] = 0.1


def _other_schema(board: Any) -> None:
    board["schema"] = "dori_fast/mitigations/0"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_no_controls, "row 0: attacks: prompt: control: Field required"),
        (_more_sets, "attacks: prompt: others: Extra inputs are not permitted"),
        (_a_word, r"5: images: 0: Input should be a valid number, got 'all'"),
        (_too_narrow, "memorized: 5: images: must be a share of 6 with its exact.*got"),
        (_markup, "a name is 1 to 40"),
        (_other_budget, "setting is another"),
        (_other_model, "model is another"),
        (_no_quality, "quality: held_out_loss: Input should be a valid dict.*got 0.1"),
        (_no_order, r"quality: same_seed_similarity: must be \[value, low, high\].*got"),
        (_other_schema, "not a leaderboard of schema"),
    ],
)
def test_bad_rows_of_others_are_refused(board, tmp_path, spoil, reason):
    theirs = copy.deepcopy(board)
    spoil(theirs)
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(theirs), encoding="utf-8")
    with pytest.raises(UsageError, match=reason):
        read_rows(path, board, NUMBERS, ())


def test_cells_are_computed_once(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(GENERATION, "steps", 8)
    chosen = {name: mitigations.get(name) for name in ("none", "wanda")}
    lines: list[str] = []
    board = run(tmp_path, chosen, settings=SMALL, model=model, say=lines.append)
    assert len(lines) == 2 * (1 + 4 + 1)
    assert {r["mitigation"] for r in board["rows"]} == set(chosen)
    assert json.loads((tmp_path / "leaderboard.json").read_text()) == board
    assert all((tmp_path / f"leaderboard.{kind}").stat().st_size for kind in ("md", "png"))
    none, wanda = (next(r for r in board["rows"] if r["mitigation"] == n) for n in chosen)
    assert none["attacks"]["prompt"]["memorized"]["0"]["images"][0] == 1
    assert none["quality"]["held_out_loss"]["change"] == [0.0, 0.0, 0.0]
    assert wanda["quality"]["held_out_loss"]["change"][0] != 0

    def never(*args: Any) -> Any:
        raise AssertionError("run again")

    finished = dict.fromkeys(chosen, never)
    assert run(tmp_path, finished, settings=SMALL, model=model) == board
    # of an outsider's row one cell lacks, which is computed, and no other
    skipped = shutil.ignore_patterns("model.json", "prompt-control.npz")
    shutil.copytree(tmp_path / "cells" / "none", tmp_path / "cells" / "outsider", ignore=skipped)
    lines.clear()
    more = {**finished, "outsider": outsider}
    again = run(tmp_path, more, settings=SMALL, model=model, say=lines.append)
    assert [line.split(":")[0] for line in lines] == ["outsider"] * 2
    assert (
        len(again["rows"]) == 3
        and [r for r in again["rows"] if r["mitigation"] in chosen] == (board["rows"])
    )
    with pytest.raises(IntegrityError, match="seeds: 1 then, 2 now"):
        run(tmp_path, chosen, settings=Settings(1, 1, 2, 2, (0, 1)), model=model)
    # the command, on the finished folder
    size = [
        "--images",
        "1",
        "--controls",
        "1",
        "--held-out",
        "2",
        "--seeds",
        "1",
        "--budgets",
        "0,1",
    ]
    command = ["benchmark-mitigations", "--out", str(tmp_path), "--mitigations", "none,wanda"]
    monkeypatch.setattr(sys, "argv", ["dori-fast", *command, *size])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and capsys.readouterr().out == f"{tmp_path / 'leaderboard.md'}\n"
    assert json.loads((tmp_path / "leaderboard.json").read_text()) == board


def test_another_model_in_the_folder_is_refused(model, tmp_path):
    cells = [
        Cells(tmp_path, "one", mitigation, model, SMALL, lambda line: None)
        for mitigation in (mitigations.get("none"), outsider)
    ]
    assert cells[0].view(1) is model
    with pytest.raises(IntegrityError, match="another setting"):
        _ = cells[1].view


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--budgets", "0,ten"], "whole numbers"),
        (["--mitigations", "prayer"], "no mitigation 'prayer'"),
        (["--mitigations", "none,finetuned"], "use both --finetuned"),
        (["--mitigations", "none", "--finetuned", "somewhere"], "its name in --mitigations"),
        (["--finetuned", "one", "--finetuned", "other"], "two models of one name"),
        (["--finetuned", "An Other=one"], "a name is 1 to 40"),
    ],
)
def test_bad_options(options, reason, tmp_path, monkeypatch, capsys):
    command = ["benchmark-mitigations", "--out", str(tmp_path / "out"), *options]
    monkeypatch.setattr(sys, "argv", ["dori-fast", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_mask_for_each_prompt_is_given_in_turn(model):
    prompts = ["a key", "a dog"]
    images = np.zeros((2, 64, 64, 3), np.uint8)
    view = mitigations.mitigated("wanda", mitigations.get("wanda"), model, prompts, images)
    own, three = view(2).masks.weights, view(3).masks.weights
    assert own[0].sha256() == three[0].sha256() == three[2].sha256() != three[1].sha256()


def test_wen_moves_memorized_prompts_alone(model):
    ordinary = df.demo.pairs("ordinary")[0][0]
    memorized = SMALL.chosen("memorized")[0].prompt
    view = mitigations.get("wen")(model, [memorized], np.zeros((1, 64, 64, 3), np.uint8))(2)
    with torch.no_grad():
        moved, plain = (m.encode([ordinary, memorized]).embeddings for m in (view, model))
    assert (moved[0] == plain[0]).all() and (moved[1] != plain[1]).any()


def test_entry_points(monkeypatch):
    points = [
        EntryPoint("outsider", f"{__name__}:outsider", mitigations.GROUP),
        EntryPoint("absent", "no_such_module_at_all:f", mitigations.GROUP),
        EntryPoint("number", f"{__name__}:SMALL", mitigations.GROUP),
        EntryPoint("../up", f"{__name__}:outsider", mitigations.GROUP),
    ]
    monkeypatch.setattr(mitigations, "entry_points", lambda group: points)
    assert "outsider" in mitigations.names()
    assert mitigations.get("outsider").__name__ == "outsider"
    for name, reason in [
        ("absent", "cannot be loaded"),
        ("number", "is no function"),
        ("../up", "a name is"),
        ("unknown", "choose one of none"),
    ]:
        with pytest.raises(UsageError, match=reason):
            mitigations.get(name)


def test_what_is_no_model_is_refused(model):
    images = np.zeros((1, 64, 64, 3), np.uint8)
    for made, reason in [(model, "not a function"), (lambda n: "model", "not a Denoiser")]:
        with pytest.raises(UsageError, match=reason):
            mitigations.mitigated("bad", lambda *_, m=made: m, model, ["a key"], images)(1)


def test_small_sets_do_not_fill_a_large_batch():
    assert Settings().batch_size == BATCH and SMALL.batch_size == 8


@pytest.mark.parametrize(
    "size", [{"images": 99}, {"held_out": 1}, {"seeds": 0}, {"budgets": (5, 0)}, {"budgets": ()}]
)
def test_bad_sizes(size):
    with pytest.raises(UsageError, match="leaderboard"):
        Settings(**size)
