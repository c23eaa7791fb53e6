"""Asthana & Belagiannis' score against a plain transcription."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from dori_fast.errors import UsageError

PROMPTS = ["a cup of coffee", "the cat", "the in an on " * 30]


@torch.no_grad()
def transcription(model, prompt, noise, norm_weight, cosine_weight):
    embeddings = model.encode(["", prompt]).embeddings
    timesteps = model.timesteps(50)
    assert timesteps[-3] == 41

    def predictions(t):
        batch = torch.cat([noise] * 2)
        text = embeddings.repeat_interleave(len(noise), 0)
        return model.unet(batch, torch.tensor(t), text).sample.chunk(2)

    uncond, cond = predictions(timesteps[0])
    norm = (cond - uncond).flatten(1).norm(dim=1)
    uncond, cond = predictions(timesteps[-3])
    difference = cond - uncond
    cosine = (uncond * difference).sum(1) / (uncond.norm(dim=1) * difference.norm(dim=1))
    return norm_weight * norm + cosine_weight * cosine.mean((-2, -1))


def test_scores_are_the_definitions(model):
    scores = df.detect.Asthana(seeds=3, norm_weight=0.7, cosine_weight=1.3).scores(model, PROMPTS)
    for p, prompt in enumerate(PROMPTS):
        expected = transcription(model, prompt, model.noise(range(3)), 0.7, 1.3)
        torch.testing.assert_close(scores.per_seed[p], expected, rtol=1e-4, atol=1e-5)


def test_the_compatibility_mode_draws_once_for_all_prompts(model):
    scores = df.detect.Asthana(seeds=2, compat="asthana").scores(model, PROMPTS)
    torch.manual_seed(51)
    noise = torch.randn(2, *model.latent_shape)
    for p, prompt in enumerate(PROMPTS):
        expected = transcription(model, prompt, noise, 1.0, 2.0)
        torch.testing.assert_close(scores.per_seed[p], expected, rtol=1e-4, atol=1e-5)


def test_evaluations(model):
    detector = df.detect.Asthana(seeds=4)
    before = model.engine.evaluations
    detector.scores(model, PROMPTS)
    # two predictions per prompt and seed, and the two unconditional ones once
    assert model.engine.evaluations - before == 2 * 4 * len(PROMPTS) + 2 * 4


def test_options_that_make_no_sense():
    with pytest.raises(UsageError):
        df.detect.Asthana(compat="wen")
