"""The benchmark of df.accelerate compares like with like and counts what it says it counts."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.peak import peak_megabytes
from benchmarks.speed import accelerate


def test_it_counts_and_finds_the_same_answers(monkeypatch, capsys):
    monkeypatch.setattr(accelerate, "STEPS", 3)
    monkeypatch.setattr(accelerate, "IMAGES", 2)
    before = accelerate.RESULTS.read_bytes() if accelerate.RESULTS.exists() else None
    assert accelerate.main(["--prompts", "2", "--rounds", "1", "--no-write"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["same_answers"]
    counts = {
        name: figures["evaluations_per_prompt"]
        for name, figures in (result["drawing"] | result["scoring"]).items()
    }
    assert counts == {
        "stock": 12,
        "accelerated": 12,
        "released": 12,
        "scan, one by one": 4,
        "scan, together": 3,
    }
    assert (accelerate.RESULTS.read_bytes() if accelerate.RESULTS.exists() else None) == before


def test_other_answers_fail(monkeypatch, capsys):
    monkeypatch.setattr(accelerate, "STEPS", 2)
    monkeypatch.setattr(accelerate, "IMAGES", 1)
    monkeypatch.setattr(accelerate, "together", lambda *a: accelerate.one_by_one(*a) * 1.01)
    assert accelerate.main(["--prompts", "1", "--rounds", "1", "--no-write"]) == 1
    assert not json.loads(capsys.readouterr().out)["same_answers"]


def test_a_hook_would_switch_savings_off_but_counting_does_not():
    import dori_fast as df

    pipe = df.accelerate(accelerate.stock_pipeline(df.demo.path()), kv_cache=True)
    with accelerate.counted(pipe.unet) as rows:
        pipe("a key", num_inference_steps=2, output_type="latent")
    assert rows == [2, 2] and pipe.report.reused > 0
    handle = pipe.unet.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="the UNet has a forward hook"):
        pipe("a key", num_inference_steps=2)
    handle.remove()


def test_peaks_are_of_what_is_there_at_once():
    def call():
        x = torch.zeros(1000, 250)
        y = x + 1
        del x
        return y * 2

    # three tensors of 1 MB, of which two at a time
    assert peak_megabytes(call) == pytest.approx(2.0, abs=0.05)
    assert peak_megabytes(lambda: None) == 0
