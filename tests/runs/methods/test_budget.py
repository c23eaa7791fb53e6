"""The budget of errors of attacks, localizations and their readers; and missing masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dori_fast
from dori_fast.attack import Dori
from dori_fast.errors import UsageError
from dori_fast.models import NeuronMask
from dori_fast.prune import NeMo, Wanda
from dori_fast.report import attack_page, prune_page
from dori_fast.runs.budget import failures_of
from dori_fast.runs.errors import OverBudgetError, ScanInterrupted
from dori_fast.runs.methods.attack import Judging, attack, read_masks
from dori_fast.runs.methods.locality import locality
from dori_fast.runs.methods.prune import prune
from dori_fast.runs.methods.row_runs import RowRunResult
from dori_fast.runs.progress import Progress
from dori_fast.runs.store.reopen import open_run
from tests.runs.inputs import csv_text, write

METHODS: dict[str, Any] = {
    "nemo": NeMo(layers="all", threshold=-1.0, theta_end=4.0),
    "wanda": Wanda(0.1, steps=1, joint=False),
    "attack": Dori(steps=1, draws=1),
}
RESULTS = ("embeddings.safetensors", "masks.safetensors", "nemo.csv")
JUDGING = Judging(seeds=1, steps=1, guidance=1.0)


class Place:
    """Runs of all methods over rows, of which those named bad cannot be computed."""

    def __init__(self, model: Any, root: Path) -> None:
        self.model, self.root = model, root
        noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(root / "good.png")

    def rows(self, kinds: str) -> Path:
        """A table with a row per letter: g(ood) or b(ad)."""
        prompts = {"g": "a cat", "b": "x" * 1_000_001}
        table = [[prompts[kind], "good.png"] for kind in kinds]
        return write(self.root / "p.csv", csv_text([["prompt", "image"], *table]))

    def run(self, method: str, kinds: str, out: str = "run", **how: Any) -> RowRunResult:
        prompts, place = self.rows(kinds), self.root / out
        if method == "attack":
            how = {"block": 1, "judging": JUDGING, **how}
            return attack(
                self.model, prompts, self.root, out=place, method=METHODS[method], **how
            ).run
        return prune(self.model, prompts, out=place, method=METHODS[method], **how).run


@pytest.fixture
def place(model: Any, tmp_path: Path) -> Place:
    return Place(model, tmp_path)


def state(run: RowRunResult) -> str:
    recorded = str(json.loads((run.out / "run.json").read_text())["state"])
    assert recorded == run.state == dori_fast.status(run.out).state
    return recorded


@pytest.mark.parametrize("method", METHODS)
def test_a_run_whose_every_row_failed_is_not_done(place: Place, method: str) -> None:
    run = place.run(method, "bb", max_errors=99)
    assert state(run) == "over_budget" and run.done == 0
    assert dori_fast.status(run.out).quarantined == 2
    assert "2 of 2 rows failed, the first: row 0: too_long" in failures_of(run)
    assert "--max-errors" not in failures_of(run)
    assert not [name for name in RESULTS if (run.out / name).exists()]
    assert dori_fast.verify(run.out, files_only=True).findings == []
    page = (attack_page if method == "attack" else prune_page)(open_run(run.out))
    assert "2 of 2 rows were quarantined" in page


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_decides_anew_without_computing(place: Place, method: str) -> None:
    over = place.run(method, "ggb")
    assert state(over) == "over_budget" and (over.done, over.counts.ok) == (2, 2)
    assert "or raise --max-errors" in failures_of(over)
    # what was computed stays, and is all that there is
    again = place.run(method, "ggb", max_errors=0.4)
    assert state(again) == "done" and again.done == 0
    assert list(again.rows()) == list(over.rows())
    assert state(place.run(method, "ggb", max_errors=0)) == "over_budget"


def test_the_budget_of_an_interrupted_run_is_that_of_all_its_rows(place: Place) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == 2:
            raise ScanInterrupted("test")

    with pytest.raises(ScanInterrupted):
        place.run("nemo", "bbg", on_progress=stop)
    run = place.run("nemo", "bbg", max_errors=0.5)
    assert state(run) == "over_budget" and run.counts.quarantined == 2
    assert failures_of(run).startswith(f"{run.out}: 2 of 3 rows failed, the first: row 0: too_long")


@pytest.mark.parametrize("method", METHODS)
def test_an_input_without_rows_is_refused(place: Place, method: str) -> None:
    with pytest.raises(UsageError, match=r"p\.csv: the input has no rows"):
        place.run(method, "")
    assert not (place.root / "run").exists()


def test_rows_without_a_mask_of_their_own_are_not_attacked_unpruned(place: Place) -> None:
    place.run("wanda", "gbg", "masks")
    masks = read_masks(place.root / "masks")
    assert masks.missing == {1}
    rows = list(place.run("attack", "ggg", masks=masks).rows())
    assert [row["status"] for row in rows] == ["ok", "quarantined", "ok"]
    assert rows[1]["error"] == (
        "mask: the localization has none for this row, which it quarantined"
    )
    # controls take masks 0 and 2 in turn
    turned = place.run("attack", "gggg", "turned", masks=masks, in_turn=True)
    assert turned.state == "done" and turned.counts.ok == 4
    plain = place.run("attack", "gggg", "plain", masks=masks.take([0, 2]), in_turn=True)
    assert list(turned.rows()) == list(plain.rows())
    with pytest.raises(UsageError, match="mask 0 of 1 is missing"):
        place.run("attack", "g", "one", masks=masks[1])


def test_masks_in_turn_need_masks(place: Place) -> None:
    with pytest.raises(UsageError, match="in_turn is about masks, but there are none"):
        place.run("attack", "g", in_turn=True)


def test_locality_counts_what_it_compares(place: Place) -> None:
    table = [[f"a cat {i}", "good.png"] for i in range(3)]
    prompts = write(place.root / "q.csv", csv_text([["prompt", "image"], *table]))
    place.run("attack", "ggb", "attacked")
    for name in ("t", "m"):
        place.run("wanda", "ggb", name)

    def compare(ordinary: Path = prompts, **how: Any) -> dict[str, Any]:
        runs = {"triggers": [place.root / "t"], "baselines": [place.root / "m"]}
        return locality(
            place.model, place.root / "attacked", prompts, ordinary, out=place.root / "out",
            **runs, **how,
        )  # fmt: skip

    with pytest.raises(OverBudgetError, match="attacked: 1 of 3 rows failed"):
        compare()
    found = compare(max_errors=0.4)
    # two equal prompts have equal masks; an empty third one would agree with neither
    assert all(layer["found"]["iou"] == 1 for layer in found["agreement"][0].values())
    table = [["prompt"], ["a"], *[["x" * 1_000_001]] * 2, ["b"], ["c"]]
    bad = write(place.root / "bad.csv", csv_text(table))
    with pytest.raises(OverBudgetError, match=r"bad\.csv: 2 of 4 rows failed, the first: row 1"):
        compare(bad, max_errors=0.4, limit=2)
    assert compare(bad, max_errors=0.4)["counts"]["ordinary"] == 3


def test_masks_of_an_old_file_are_all_there(tmp_path: Path) -> None:
    masks = NeuronMask({"a.attn2": torch.ones(2, 4)})
    masks.save(tmp_path / "masks.safetensors")
    assert read_masks(tmp_path).missing == frozenset()
