"""Localization runs: rows, masks and tables agree, and an interrupted run goes on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.prune import NeMo, NeuronMask, Wanda, WeightMask, stack
from dori_fast.prune.nemo.published_csv import read_nemo_csv
from dori_fast.report import draw_prune
from dori_fast.runs.errors import OverBudgetError, ScanInterrupted
from dori_fast.runs.methods.prune import (
    PruneResult,
    prune,
    read_embeddings,
    read_statistics,
    save_images,
    statistics_of,
)
from dori_fast.runs.progress import Progress
from dori_fast.runs.store import directory
from dori_fast.runs.store.shard import Footer, commit_shard, read_footer
from tests.runs.inputs import csv_text, write

TOO_LONG = "x" * 1_000_001
PROMPTS = ["a cup of coffee", "the cat", TOO_LONG, "a dog"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    table = [["prompt", "note"], *([p, f"note {i}"] for i, p in enumerate(PROMPTS))]
    return write(tmp_path / "p.csv", csv_text(table))


def nemo() -> NeMo:
    # every prompt of this network of random weights counts as memorized
    return NeMo(layers="all", threshold=-1.0, theta_end=4.0)


def found(model: Any, prompts: Path, out: Path, **how: Any) -> PruneResult:
    return prune(model, prompts, out=out, method=how.pop("method", None) or nemo(), **how)


def test_rows_masks_and_table_agree(model: Any, prompts: Path, tmp_path: Path) -> None:
    result = found(model, prompts, tmp_path / "run")
    rows = list(result.run.rows())
    assert [row["status"] for row in rows] == ["ok", "ok", "quarantined", "ok"]
    assert rows[1]["note"] == "note 1"
    saved = NeuronMask.load(tmp_path / "run" / "masks.safetensors")
    assert saved.sha256() == result.masks.sha256() and len(saved) == 4
    for row, prompt in enumerate(PROMPTS):
        if prompt != TOO_LONG:
            assert saved.neurons(row) == nemo().search(model, prompt).mask.neurons()
        else:
            assert sum(map(len, saved.neurons(row).values())) == 0
    text = (tmp_path / "run" / "nemo.csv").read_text()
    widths = {name: scale.shape[1] for name, scale in saved.scales.items()}
    read, masks = read_nemo_csv(io.StringIO(text), result.layers, widths)
    assert read == [p if p != TOO_LONG else "" for p in PROMPTS]
    assert masks.sha256() == NeuronMask(saved.scales).sha256()
    # an empty mask would pass for a prompt with nothing to prune
    assert saved.missing == {2} and result.run.state == "over_budget"


def test_shards_have_the_batch_size_of_the_searches(
    model: Any, prompts: Path, tmp_path: Path
) -> None:
    own = model.copy()
    own.batch_size = 16
    # one mask with its ten seeds at a time, on a CPU
    result = found(own, prompts, tmp_path / "run", limit=2)
    assert [read_footer(path).batch_size for path in result.run.shards] == [10, 10]
    assert json.loads((tmp_path / "run" / "run.json").read_bytes())["batch_size"] == 10


def test_a_row_committed_just_before_a_signal_is_counted(
    model: Any, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit(path: Path, *arguments: Any) -> Footer:
        footer = commit_shard(path, *arguments)
        if footer.first_row == 2:
            raise ScanInterrupted("SIGTERM")
        return footer

    monkeypatch.setattr(directory, "commit_shard", commit)
    with pytest.raises(ScanInterrupted):
        found(model, prompts, tmp_path / "run")
    counts = json.loads((tmp_path / "run" / "run.json").read_text())["counts"]
    assert counts == {"rows": 3, "ok": 2, "quarantined": 1}


def test_an_interrupted_run_goes_on(model: Any, prompts: Path, tmp_path: Path) -> None:
    whole = found(model, prompts, tmp_path / "whole")

    def stop(progress: Progress) -> None:
        if progress.done == 2:
            raise ScanInterrupted("test")

    with pytest.raises(ScanInterrupted):
        found(model, prompts, tmp_path / "run", on_progress=stop)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "interrupted"
    again = found(model, prompts, tmp_path / "run")
    assert again.run.done == 1 and list(again.run.rows()) == list(whole.run.rows())
    assert again.masks.sha256() == whole.masks.sha256()
    with pytest.raises(IntegrityError, match="theta_end: 4.0 then, 3.0 now"):
        other = NeMo(layers="all", threshold=-1.0, theta_end=3.0)
        found(model, prompts, tmp_path / "run", method=other)


def test_wanda_prompt_by_prompt(model: Any, prompts: Path, tmp_path: Path) -> None:
    wanda = Wanda(0.1, steps=2, joint=False)
    result = found(model, prompts, tmp_path / "run", method=wanda)
    masks = WeightMask.load(tmp_path / "run" / "masks.safetensors")
    alone = stack([wanda.localize(model, [p]) for p in PROMPTS if p != TOO_LONG])
    assert masks.take([0, 1, 3]).sha256() == alone.sha256()
    assert masks.missing == {2}
    assert sum(row["evaluations"] or 0 for row in result.run.rows()) > 0
    with pytest.raises(UsageError, match="a joint mask has no rows"):
        found(model, prompts, tmp_path / "other", method=Wanda(0.1, steps=2))


def test_images_before_and_after(model: Any, prompts: Path, tmp_path: Path) -> None:
    result = found(model, prompts, tmp_path / "run")
    save_images(result, model, 3, seeds=[1, 2], steps=2)
    pictures = load_file(tmp_path / "run" / "pictures.safetensors")
    assert pictures["row_id"].tolist() == [0, 1, 3]
    assert pictures["before"].shape == pictures["after"].shape == (3, 2, 16, 16, 3)
    before = model.generate(model.encode([PROMPTS[3]]), [1, 2], steps=2).numpy()
    assert abs(pictures["before"][2].astype(int) - before[0]).max() <= 1
    view = model.masked(result.masks[3])
    after = view.generate(view.encode([PROMPTS[3]]), [1, 2], steps=2).numpy()
    assert abs(pictures["after"][2].astype(int) - after[0]).max() <= 1
    drawn = draw_prune(tmp_path / "run")
    assert [path.name for path in drawn] == ["layers.png", "pictures.png"]
    assert all(path.stat().st_size > 1000 for path in drawn)


def test_statistics_of_a_file(model: Any, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(OverBudgetError, match="1 of 4 rows failed, the first: row 2: too_long"):
        statistics_of(model, prompts)
    taken = statistics_of(model, prompts, max_errors=1)
    assert taken.count == 3
    taken.save(tmp_path / "s.safetensors")
    assert read_statistics(tmp_path / "s.safetensors").sha256() == taken.sha256()
    published = (
        Path(__file__).parents[2] / "prune/nemo/data/statistics_additional_laion_prompts_v1_4.pt"
    )
    assert len(read_statistics(published).mean) == 7


def test_nothing_to_draw_and_nothing_to_prune(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished localization"):
        draw_prune(tmp_path)
    with pytest.raises(UsageError, match="the input has no rows"):
        found(model, write(tmp_path / "none.txt", ""), tmp_path / "run")


def test_a_file_that_holds_no_embeddings(tmp_path: Path) -> None:
    pointer, other = tmp_path / "p.safetensors", tmp_path / "o.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 5\n")
    save_file({"embeddings": np.zeros((1, 2, 3))}, other)
    (tmp_path / "cut.safetensors").write_bytes(other.read_bytes()[:20])
    with pytest.raises(IntegrityError, match="is a Git LFS pointer"):
        read_embeddings(pointer)
    for path in (other, tmp_path / "cut.safetensors"):
        with pytest.raises(IntegrityError, match="holds no embeddings of an attack"):
            read_embeddings(path)
