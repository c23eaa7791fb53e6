"""A row that is not finite is quarantined with the reason; the run goes on with the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import dori_fast as df
from dori_fast.attack import Dori
from dori_fast.errors import NonFiniteError, UsageError
from dori_fast.finetune import Adversarial, Pool
from dori_fast.leaderboard.cells import Cells
from dori_fast.leaderboard.settings import Settings
from dori_fast.prune import NeMo, NeuronStatistics, Wanda
from dori_fast.runs.methods.attack import Judging, attack, read_masks
from dori_fast.runs.methods.finetune import fine_tune
from dori_fast.runs.methods.prune import prune
from tests.finetune.material import IMAGES, PROMPTS, RETAINED, SURROGATES, tuning
from tests.overflowing_model import BAD, GOOD, nan_for_z, overflowing_encoder
from tests.runs.inputs import csv_text, write

HOW: dict[str, Any] = {
    "method": Dori(steps=2, draws=2),
    "judging": Judging(seeds=2, steps=1, guidance=2.0),
}
GRAY = np.full((16, 16, 3), 128, np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
ROWS = [GOOD, BAD, "the cat"]


@pytest.fixture(scope="module")
def spoiled(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = nan_for_z(tiny_directory, tmp_path_factory.mktemp("nan") / "model")
    return df.load(root, device="cpu", batch_size=8)


@pytest.mark.parametrize("start", ["prompt", "gaussian"])
def test_an_attack_keeps_the_rows_that_are_finite(
    spoiled: Any, model: Any, tmp_path: Path, start: str
) -> None:
    """From a Gaussian start the loss is finite, but not the images of the prompt itself."""
    known = dict.fromkeys(ROWS, NOISE)
    out = tmp_path / "run"
    rows = list(attack(spoiled, ROWS, known, out=out, start=start, **HOW).run.rows())
    assert [row["status"] for row in rows] == ["ok", "quarantined", "ok"]
    reason = "loss was NaN" if start == "prompt" else "2 of 2 denoised latents are NaN or Inf"
    assert rows[1]["error"].startswith("nonfinite: ") and reason in rows[1]["error"]
    assert rows[1]["similarity"] is None and rows[1]["embedding"] is None
    assert load_file(out / "embeddings.safetensors")["row_id"].tolist() == [0, 2]
    whole = attack(model, ROWS, known, out=tmp_path / "whole", start=start, **HOW).run.rows()
    for one, other in zip(rows, whole, strict=True):
        if one["status"] == "ok":
            np.testing.assert_allclose(one["losses"], other["losses"], rtol=1e-5)
            np.testing.assert_allclose(one["similarity"], other["similarity"], atol=0.02)


def test_an_attack_leaves_out_images_without_finite_latents(
    tiny_directory: Path, tmp_path: Path
) -> None:
    root = overflowing_encoder(tiny_directory, tmp_path / "model")
    narrow = df.load(root, device="cpu", dtype="float16", batch_size=4)
    known = {GOOD: GRAY, "the cat": NOISE, "a dog": GRAY}
    rows = list(attack(narrow, list(known), known, out=tmp_path / "run", **HOW).run.rows())
    assert [row["status"] for row in rows] == ["ok", "quarantined", "ok"]
    assert "1 of 1 latents of the images are NaN or Inf in float16" in rows[1]["error"]


def test_an_attack_that_diverges_has_no_rows(model: Any, tmp_path: Path) -> None:
    how = {**HOW, "method": Dori(steps=3, lr=3e38, draws=2)}
    found = attack(model, [GOOD], {GOOD: NOISE}, out=tmp_path / "run", **how)
    (row,) = found.run.rows()
    assert row["status"] == "quarantined" and "2 of 3 steps in float32" in row["error"]


@pytest.mark.parametrize("name", ["nemo", "wanda"])
def test_a_localization_keeps_the_rows_that_are_finite(
    spoiled: Any, tmp_path: Path, name: str
) -> None:
    method = (
        NeMo(NeuronStatistics.collect(spoiled, [GOOD, "the cat"]))
        if name == "nemo"
        else Wanda(0.1, 1, joint=False)
    )
    result = prune(spoiled, ROWS, out=tmp_path / "run", method=method)
    rows = list(result.run.rows())
    assert [row["status"] for row in rows] == ["ok", "quarantined", "ok"]
    assert rows[1]["error"].startswith(f"nonfinite: {name}: ")
    assert result.masks.missing == {1} and result.run.state == "over_budget"
    assert read_masks(tmp_path / "run").missing == {1}
    known = dict.fromkeys(ROWS, NOISE)
    out = tmp_path / "attack"
    attacked = list(attack(spoiled, ROWS, known, out=out, masks=result.masks, **HOW).run.rows())
    assert [row["status"] for row in attacked] == ["ok", "quarantined", "ok"]
    assert attacked[1]["error"].startswith("mask: ")


def test_a_scan_keeps_the_rows_that_are_finite(spoiled: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", csv_text([["prompt"], *([row] for row in ROWS)]))
    found = df.scan(spoiled, path, out=tmp_path / "run", detector=df.detect.Wen(seeds=2))
    rows = list(found.rows("status", "error", "score"))
    assert [row["status"] for row in rows] == ["ok", "quarantined", "ok"]
    assert rows[1]["error"].startswith("nonfinite: ") and rows[1]["score"] is None


def test_runs_that_need_images_refuse_a_model_without_a_vae_at_once(
    tiny_directory: Path, tmp_path: Path
) -> None:
    import shutil

    root = shutil.copytree(tiny_directory, tmp_path / "model")
    shutil.rmtree(root / "vae")
    bare = df.load(root, device="cpu", batch_size=4)
    masks = df.prune.NeuronMask({bare.layers[0]: torch.ones(1, 16)})
    with pytest.raises(UsageError, match="no VAE"):
        attack(bare, [GOOD], {GOOD: NOISE}, out=tmp_path / "a", **HOW)
    with pytest.raises(UsageError, match="no VAE"):
        fine_tune(
            bare,
            tmp_path / "none.csv",
            tmp_path,
            out=tmp_path / "f",
            method=Adversarial(),
            masks=masks,
            retained=tmp_path / "none.csv",
        )
    assert not (tmp_path / "a").exists() and not (tmp_path / "f").exists()


def test_fine_tuning_stops_at_what_is_not_finite(model: Any, spoiled: Any) -> None:
    images = {"surrogates": SURROGATES, "retained": RETAINED}
    inner = Dori(steps=3, lr=3e38, draws=2)
    with pytest.raises(NonFiniteError, match="finetune: attack of step 0: problems .* failed in"):
        tuning(attack=inner).run(model, PROMPTS, IMAGES, **images)
    with pytest.raises(NonFiniteError, match="finetune: the last step left NaN or Inf in "):
        # the decay takes weights of 1 to the end of float32, and the update beyond it
        how = {"steps": 1, "lr": 3e37, "warmup": 0, "weight_decay": 11.3, "attack": None}
        tuning(**how).run(model, PROMPTS, IMAGES, **images)
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        prompts = [*PROMPTS[:2], BAD]
        tuning(pool=Pool(("prompt",), per_step=3)).run(spoiled, prompts, IMAGES, **images)


def test_a_cell_of_the_leaderboard_holds_no_nan(model: Any, tmp_path: Path) -> None:
    def unused(*_: Any) -> Any:
        raise AssertionError

    cells = Cells(tmp_path, "none", unused, model, Settings(), print)
    np.savez(tmp_path / "prompt-memorized.npz", **{"similarity 0": np.array([[0.1, np.nan]])})
    with pytest.raises(df.errors.IntegrityError, match="similarity 0 holds NaN or Inf; remove it"):
        cells.all()
