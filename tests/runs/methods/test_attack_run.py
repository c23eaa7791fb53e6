"""Attack runs: rows, images and masks fit together, bad images stay out, resume is exact."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from dori_fast.attack import Dori
from dori_fast.errors import UsageError
from dori_fast.evaluate import replication
from dori_fast.models import NeuronMask
from dori_fast.report import draw_attack
from dori_fast.runs.errors import ScanInterrupted
from dori_fast.runs.methods.attack import AttackRun, Judging, attack, read_masks
from dori_fast.runs.methods.image_files import read_image
from dori_fast.runs.progress import Progress
from dori_fast.runs.store.shard import read_footer
from tests.models.engine.limited import Memory
from tests.runs.inputs import csv_text, write

PROMPTS = ["a cup of coffee", "the cat", "a dog", "x" * 1_000_001, "another cat"]
NAMES = ["0.png", "sub/1.jpg", "../outside.png", "3.png", "broken.png"]
HOW: dict[str, Any] = {
    "method": Dori(steps=3, draws=4),
    "judging": Judging(seeds=2, steps=2, guidance=3.0),
}


def picture(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(picture(0)).save(folder / "0.png")
    Image.fromarray(picture(1, 40, 64)).save(folder / "sub" / "1.jpg")
    Image.fromarray(picture(3)).save(folder / "3.png")
    Image.fromarray(picture(2)).save(tmp_path / "outside.png")
    whole = (folder / "0.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [list(row) for row in zip(PROMPTS, NAMES, strict=True)]
    return write(tmp_path / "p.csv", csv_text([["prompt", "image"], *rows]))


def masks(model: Any, count: int) -> NeuronMask:
    generator = torch.Generator().manual_seed(0)
    widths = {name: model.unet.get_submodule(name).to_v.out_features for name in model.layers}
    return NeuronMask(
        {n: (torch.rand(count, w, generator=generator) > 0.5).float() for n, w in widths.items()}
    )


def test_a_shard_with_evaluations_of_two_sizes_has_no_batch_size(
    model: Any, prompts: Path, folder: Path, tmp_path: Path
) -> None:
    """The attack's own size is gone at its end, and must not pass for the model's."""
    size, sizes = model.batch_size, []
    for name, memory in (("enough", Memory()), ("little", Memory(size // 2))):
        out = tmp_path / name
        with memory.of(model.unet):
            method = Dori(steps=1, draws=4)
            attack(model, prompts, folder, out=out, block=3, limit=1, method=method)
        sizes.append(read_footer(next(out.glob("shards/*.parquet"))).batch_size)
    assert memory.refused == [size] and model.batch_size == size
    assert sizes == [size, None]
    assert json.loads((out / "run.json").read_bytes())["batch_size"] == size // 2


def test_rows_are_attacks_one_by_one(
    model: Any, prompts: Path, folder: Path, tmp_path: Path
) -> None:
    mask, out = masks(model, 5), tmp_path / "run"
    result = attack(model, prompts, folder, out=out, masks=mask, block=3, **HOW)
    rows = list(result.run.rows())
    assert [row["status"] for row in rows] == ["ok", "ok"] + ["quarantined"] * 3
    errors = [row["error"].split(":")[0] for row in rows[2:]]
    assert errors == ["image", "too_long", "image"]
    assert "leaves the folder" in rows[2]["error"] and "cannot be read" in rows[4]["error"]
    saved = load_file(out / "embeddings.safetensors")
    assert saved["row_id"].tolist() == [0, 1] and saved["embeddings"].shape == (2, 77, 32)
    for row in (0, 1):
        original = read_image(folder, NAMES[row], (16, 16))
        assert isinstance(original, np.ndarray)
        view = model.masked(mask[row])
        found = HOW["method"].run(view, [PROMPTS[row]], original[None], ids=[row])
        np.testing.assert_array_equal(saved["embeddings"][row], found.embeddings[0])
        assert rows[row]["evaluations"] == 12 and rows[row]["attack_steps"] == 3
        np.testing.assert_array_equal(rows[row]["losses"], found.losses[:, 0])
        assert rows[row]["image_sha256"] == hashlib.sha256(original.tobytes()).hexdigest()
        for key, condition in (
            ("similarity_before", view.encode([PROMPTS[row]])),
            ("similarity", found.condition(view)),
        ):
            again = replication(view, condition, original[None], seeds=2, steps=2, guidance=3.0)
            np.testing.assert_allclose(rows[row][key], again.similarity[0], atol=0.02)
    assert draw_attack(out, result.threshold).stat().st_size > 1000


def test_an_interrupted_run_goes_on(
    model: Any, prompts: Path, folder: Path, tmp_path: Path
) -> None:
    def run(name: str, **more: Any) -> AttackRun:
        return attack(model, prompts, folder, out=tmp_path / name, block=1, **HOW, **more)

    def stop(progress: Progress) -> None:
        if progress.done == 1:
            raise ScanInterrupted("test")

    with pytest.raises(ScanInterrupted):
        run("stopped", on_progress=stop)
    again, whole = run("stopped"), run("whole")
    assert again.run.done == 1 and list(again.run.rows()) == list(whole.run.rows())


def test_masks_in_turn(model: Any, folder: Path, tmp_path: Path) -> None:
    rows = [["prompt", "image"], ["a cat", "0.png"], ["a dog", "3.png"], ["a cat", "0.png"]]
    prompts, mask = write(tmp_path / "p.csv", csv_text(rows)), masks(model, 2)
    mask.save(tmp_path / "masks.safetensors")
    assert read_masks(tmp_path).sha256() == mask.sha256()
    with pytest.raises(UsageError, match="2 masks, but the input has a row 2"):
        attack(model, prompts, folder, out=tmp_path / "a", masks=mask, **HOW)
    found = attack(model, prompts, folder, out=tmp_path / "b", masks=mask, in_turn=True, **HOW)
    last = list(found.run.rows())[2]
    view = model.masked(mask[0])
    alone = HOW["method"].run(view, ["a cat"], picture(0)[None], ids=[2]).embeddings
    assert last["embedding"] == alone.numpy().tobytes()


def test_a_table_in_memory_names_its_images(
    model: Any, prompts: Path, folder: Path, tmp_path: Path
) -> None:
    table = {"words": PROMPTS, "image": NAMES}
    found = attack(model, table, folder, out=tmp_path / "a", column="words", **HOW).run
    read = attack(model, prompts, folder, out=tmp_path / "b", **HOW).run
    assert [row["status"] for row in found.rows()] == ["ok", "ok"] + ["quarantined"] * 3
    for one, other in zip(found.rows(), read.rows(), strict=True):
        assert one["embedding"] == other["embedding"] and one["prompt"] == other["prompt"]
    with pytest.raises(UsageError, match="the dict of prompts: no prompt column among 'words'"):
        attack(model, table, folder, out=tmp_path / "c", **HOW)


def test_images_by_prompt(model: Any, tmp_path: Path) -> None:
    known = {"a cat": picture(0)}
    result = attack(model, ["a cat", "a dog"], known, out=tmp_path / "run", **HOW)
    assert [row["error"] for row in result.run.rows()] == [
        None,
        "image: none is known for this prompt",
    ]
    with pytest.raises(UsageError, match="8 x 16 for a model that draws 16 x 16"):
        attack(model, ["a"], {"a": picture(0, 8)}, out=tmp_path / "other", **HOW)


def test_a_picture_covers_the_size_and_loses_its_sides(folder: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(folder / "wide.png")
    read = read_image(folder, "wide.png", (16, 16))
    assert isinstance(read, np.ndarray) and read.shape == (16, 16, 3) and read.min() > 200
    np.testing.assert_array_equal(read_image(folder, "0.png", (16, 16)), picture(0))


@pytest.mark.parametrize("name", ["", None, "a\0b", "/etc/hostname", "none.png", "sub"])
def test_refused_names(folder: Path, name: Any) -> None:
    assert str(read_image(folder, name, (16, 16))).startswith("image: ")


def test_wrong_places(model: Any, prompts: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        attack(model, prompts, tmp_path / "none", out=tmp_path / "run", **HOW)
    with pytest.raises(UsageError, match="no column 'file'"):
        attack(model, prompts, folder, out=tmp_path / "run", image_column="file", **HOW)
    with pytest.raises(UsageError, match="no attacked rows"):
        draw_attack(tmp_path, 0.6)
