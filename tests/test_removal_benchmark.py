"""The benchmark of removal from end to end, as small as it gets; minutes on a busy machine."""

from __future__ import annotations

import json

import pytest

from benchmarks import removal


@pytest.mark.slow
def test_it_trains_attacks_and_records(tmp_path, capsys):
    small = [
        "--images",
        "2",
        "--steps",
        "2",
        "--inner",
        "1",
        "--drawn",
        "3",
        "--budgets",
        "1",
        "--seeds",
        "1",
    ]
    results, work = tmp_path / "removal.json", tmp_path / "work"
    removal.main([*small, "--work", str(work), "--results", str(results)])
    found = json.loads(results.read_text())
    assert found["images"] == 2 and set(found["prompts"]) == {"original", "wanda", "fine-tuned"}
    assert len(found["attacks"]) == 8
    before, after = found["held_out_loss"].values()
    assert before > 0 and after > 0 and before != after
    assert len((work / "log.jsonl").read_text().splitlines()) == 2
    assert (work / "model" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_retained_pairs_hold_nothing_that_was_held_out():
    import dori_fast as df

    pairs = removal.retained_pairs(df.load("demo", device="cpu"), 2)
    unseen = set(removal.held_out("composition").prompts)
    assert len(pairs) == len(df.demo.pairs("ordinary")) + 2
    assert not unseen & {prompt for prompt, _ in pairs}
    assert all(image.shape == (64, 64, 3) for _, image in pairs)
