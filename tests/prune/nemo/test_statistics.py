"""Statistics of value neurons: one pass against two in float64, and their files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.models.probes import value_magnitudes
from dori_fast.prune import NeuronStatistics

PUBLISHED = Path(__file__).parent / "data" / "statistics_additional_laion_prompts_v1_4.pt"


def many_prompts(n):
    return (f"picture {i % 701} of the {i % 97} houses" for i in range(n))


def test_one_pass_equals_two_in_float64(model):
    # a number that leaves a batch partly filled
    prompts = list(many_prompts(203))
    found = NeuronStatistics.collect(model, iter(prompts))
    assert found.count == 203
    for name in model.layers:
        to_v = model.unet.get_submodule(name).to_v
        rows = torch.stack(
            [to_v(model.encode([p]).embeddings[0]).abs().mean(0) for p in prompts]
        ).double()
        torch.testing.assert_close(found.mean[name], rows.mean(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(found.std[name], rows.std(0), rtol=1e-6, atol=0)


def test_five_thousand_prompts_need_no_more_memory_than_one_thousand(tiny_directory):
    # in a process of its own: a peak that earlier tests left behind would hide any growth
    code = f"""
import resource
import dori_fast as df
from tests.prune.nemo.test_statistics import many_prompts
model = df.load({str(tiny_directory)!r}, device="cpu", batch_size=8)
for n in (1_000, 5_000):
    df.prune.NeuronStatistics.collect(model, many_prompts(n), model.layers[:1])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    before, after = map(float, done.stdout.split())
    assert after - before < 16  # MiB; the embeddings of 4,000 more prompts take 38


def test_a_prompt_that_comes_twice_counts_twice(model):
    twice = NeuronStatistics.collect(model, ["the cat", "the cat", "a dog"])
    magnitudes = value_magnitudes(model, model.encode(["the cat", "the cat", "a dog"]))
    name = model.layers[0]
    torch.testing.assert_close(twice.mean[name], magnitudes[name].double().mean(0))


def test_a_file_comes_back(model, tmp_path):
    found = NeuronStatistics.collect(model, many_prompts(5), model.layers[1:])
    found.save(tmp_path / "s.safetensors")
    again = NeuronStatistics.load(tmp_path / "s.safetensors")
    assert again.count == 5 and list(again.mean) == model.layers[1:]
    assert again.provenance["dtype"] == "float32" and "unet" in again.provenance["files"]
    for name in again.mean:
        assert torch.equal(again.mean[name], found.mean[name])
        assert torch.equal(again.std[name], found.std[name])


def test_the_published_statistics_of_sd_1_4():
    found = NeuronStatistics.load_nemo(PUBLISHED)
    assert [len(mean) for mean in found.mean.values()] == [320, 320, 640, 640, 1280, 1280, 1280]
    means = [round(mean.mean().item(), 2) for mean in found.mean.values()]
    stds = [round(std.mean().item(), 2) for std in found.std.values()]
    # averages per layer, read off the file when it was first looked at
    assert means == pytest.approx([0.55, 0.41, 0.55, 0.45, 0.65, 0.66, 0.79], abs=0.01)
    assert stds == pytest.approx([0.29, 0.18, 0.30, 0.23, 0.38, 0.40, 0.47], abs=0.01)
    assert list(found.mean)[-1] == "mid_block.attentions.0.transformer_blocks.0.attn2"


def test_bad_input(model, tmp_path):
    with pytest.raises(UsageError, match="at least 2 prompts are needed, got 1"):
        NeuronStatistics.collect(model, ["one"])
    with pytest.raises(UsageError, match="no cross-attention 'nowhere'"):
        NeuronStatistics.collect(model, ["one", "two"], ["nowhere"])
    with pytest.raises(UsageError, match="no such file"):
        NeuronStatistics.load(tmp_path / "none")
    with pytest.raises(UsageError, match="no such file"):
        NeuronStatistics.load_nemo(tmp_path / "none")
    (tmp_path / "broken").write_bytes(b"not tensors")
    for read in (NeuronStatistics.load, NeuronStatistics.load_nemo):
        with pytest.raises(IntegrityError, match="broken"):
            read(tmp_path / "broken")
    torch.save(([torch.zeros(3)], [torch.zeros(3)]), tmp_path / "short.pt")
    with pytest.raises(IntegrityError, match="7 means"):
        NeuronStatistics.load_nemo(tmp_path / "short.pt")
