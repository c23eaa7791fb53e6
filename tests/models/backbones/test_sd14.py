"""Stable Diffusion 1.4's own architecture, at random weights: it must load and run unchanged."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from benchmarks.speed.random_models import random_pipeline


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("sd14")
    pipe = random_pipeline(torch.float16, "cpu", with_vae=True)
    assert sum(p.numel() for p in pipe.unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in pipe.text_encoder.parameters()) == 123_060_480
    pipe.save_pretrained(root)
    return root


@pytest.mark.slow
def test_stable_diffusion_1_4_loads_and_scores(directory):
    model = df.load(directory, device="cpu", batch_size=2)
    assert model.latent_shape == (4, 64, 64) and model.timesteps(50)[0] == 981
    prompts = ["Living in the Light with Ann Graham Lotz", "a person standing close to an elephant"]
    scores = df.detect.Wen(seeds=1).scores(model, prompts)
    assert torch.isfinite(scores.score).all() and (scores.score > 0).all()

    latents = model.noise([0])
    with torch.no_grad():
        text = model.encode([prompts[0], ""]).embeddings
        eps = model.unet(latents.expand(2, -1, -1, -1), torch.tensor(981), text).sample
    expected = (eps[0] - eps[1]).norm()
    torch.testing.assert_close(scores.score[0], expected, rtol=1e-4, atol=0)

    image = model.generate(model.encode(prompts[:1]), [0], steps=1, guidance=1.0)
    assert image.shape == (1, 1, 512, 512, 3) and image.dtype == torch.uint8
