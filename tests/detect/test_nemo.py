"""NeMo's similarity score against torchmetrics on the released code's grouping."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.reference.ms_ssim import ms_ssim_reference
from tests.tiny_model import save_tiny_sd

PROMPTS = ["a cup of coffee", "the cat", "the in an on " * 30]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = save_tiny_sd(tmp_path_factory.mktemp("tiny"), sample_size=48)
    return df.load(directory, device="cpu", batch_size=8)


@torch.no_grad()
def transcription(model, prompt, noise, timestep):
    """The released code: two stacks of pairs in one call, the maximum over an image's pairs."""
    text = model.encode([prompt]).embeddings.expand(len(noise), -1, -1)
    delta = model.unet(noise, torch.tensor(timestep), text).sample - noise
    low, high = delta.amin((2, 3), keepdim=True), delta.amax((2, 3), keepdim=True)
    scaled = (delta - low) / (high - low)
    pairs = torch.combinations(torch.arange(len(noise)), r=2)
    similarity = ms_ssim_reference(
        scaled[None].double(), pairs, 11, 1.5, [0.33, 0.33, 0.33], False
    )[0]
    return torch.stack(
        [similarity[(pairs == i).any(dim=1)].max() for i in range(len(noise))]
    ).float()


def test_scores_are_the_definitions(model):
    scores = df.detect.NeMo(seeds=4).scores(model, PROMPTS)
    for p, prompt in enumerate(PROMPTS):
        expected = transcription(model, prompt, model.noise(range(4)), 981)
        torch.testing.assert_close(scores.per_seed[p], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(scores.score, scores.per_seed.amax(dim=1))


def test_the_compatibility_mode_is_one_timestep_later_on_one_draw(model):
    scores = df.detect.NeMo(seeds=3, compat="nemo").scores(model, PROMPTS)
    noise = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    for p, prompt in enumerate(PROMPTS):
        expected = transcription(model, prompt, noise, 961)
        torch.testing.assert_close(scores.per_seed[p], expected, rtol=1e-4, atol=1e-5)


def test_evaluations_and_independence_of_grouping(model):
    detector, before = df.detect.NeMo(seeds=4), model.engine.evaluations
    together = detector.score(model, PROMPTS)
    assert model.engine.evaluations - before == 4 * len(PROMPTS)
    assert torch.equal(together, torch.cat([detector.score(model, [p]) for p in PROMPTS]))


def test_one_seed_has_no_pairs():
    with pytest.raises(UsageError, match="at least 2"):
        df.detect.NeMo(seeds=1)
