"""The benchmark of removal from end to end, as small as it gets; minutes on a busy machine."""

from __future__ import annotations

import json

import pytest

import dori_fast as df
from benchmarks.pages import removal as removal_page
from benchmarks.quality import removal
from dori_fast.demo.retained import retained_pairs


@pytest.mark.slow
def test_it_trains_attacks_and_records(tmp_path):
    results, work = tmp_path / "removal.json", tmp_path / "work"
    small = ["--images", "2", "--steps", "2", "--drawn", "3", "--budgets", "1", "--seeds", "1"]
    removal.main([*small, "--work", str(work), "--results", str(results)])
    found = json.loads(results.read_text())
    assert found["images"] == 2 and set(found["prompts"]) == {"original", "wanda", "fine-tuned"}
    assert len(found["attacks"]) == 16
    assert removal_page.page(found).count("| fine-tuned | memorized |") == 4
    assert (work / "model" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_an_attack_is_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"50": {"rate": [0.5, 0.1, 0.9]}}

    path = tmp_path / "cell.json"
    first, second = removal.kept(path, compute), removal.kept(path, compute)
    assert first == second == {"50": {"rate": [0.5, 0.1, 0.9]}} and len(calls) == 1


def test_retained_pairs_hold_nothing_that_was_held_out():
    # batches of two: an image of a caption is padded to the batch size
    pairs = retained_pairs(df.load("demo", device="cpu", batch_size=2), 2)
    unseen = {prompt for prompt, _ in df.demo.pairs("held_out")}
    assert len(pairs) == len(df.demo.pairs("ordinary")) + 2
    assert not unseen & {prompt for prompt, _ in pairs}
    assert all(image.shape == (64, 64, 3) for _, image in pairs)
