"""A pipeline in memory belongs to the caller, who may train it between evaluations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

import dori_fast as df
from dori_fast.attack import Dori

PROMPTS = ["a red boat on the river", "a green door"]
IMAGES = np.zeros((2, 16, 16, 3), np.uint8)


@pytest.fixture(params=["sd", "sdxl"])
def training(request, tiny_directory, tiny_sdxl_directory):
    """A pipeline in the midst of training, with dropout in its UNet, and one that is not."""
    xl = request.param == "sdxl"
    kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    source = tiny_sdxl_directory if xl else tiny_directory
    pipe, still = (kind.from_pretrained(source, local_files_only=True) for _ in range(2))
    dropping = UNet2DConditionModel(**{**pipe.unet.config, "dropout": 0.5})
    dropping.load_state_dict(pipe.unet.state_dict())
    pipe.unet = dropping.train()
    pipe.text_encoder.train().requires_grad_(True)
    pipe.vae.train()
    # a mode of its own in the midst of the others
    pipe.unet.mid_block.eval()
    next(pipe.unet.parameters()).requires_grad_(False)
    return pipe, still


def state(pipe):
    modules = [pipe.unet, pipe.text_encoder, pipe.vae]
    return (
        [m.training for module in modules for m in module.modules()],
        [(p.requires_grad, p.grad is None) for module in modules for p in module.parameters()],
    )


def train(pipe):
    with torch.no_grad():
        # as EMA copies weights, which torch does not count as a change
        for module in (pipe.unet, pipe.text_encoder):
            for weight in module.parameters():
                weight.data.add_(0.01 * torch.randn_like(weight))


def test_whatever_is_computed_leaves_the_pipeline_as_it_was(training):
    pipe, still = training
    before = state(pipe)
    model, reference = df.load(pipe, batch_size=2), df.load(still, batch_size=2)
    for name in ("Wen", "Sail", "Asthana", "NeMo"):
        scores = [getattr(df.detect, name)(seeds=2).score(m, PROMPTS) for m in (model, reference)]
        assert torch.equal(*scores), name
        assert state(pipe) == before, name
    attacks = [
        Dori(2, draws=2, recompute=recompute).run(m, PROMPTS, IMAGES).embeddings
        for m in (model, reference)
        for recompute in (False, True)
    ]
    assert all(torch.equal(attacks[0], found) for found in attacks[1:])
    drawn = [m.generate(m.encode(PROMPTS), [0], steps=2) for m in (model, reference)]
    assert torch.equal(*drawn)
    assert torch.equal(*(m.latents(torch.from_numpy(IMAGES)) for m in (model, reference)))
    assert state(pipe) == before


def test_a_score_is_of_the_weights_that_the_pipeline_has_now(training):
    pipe, still = training
    model, wen = df.load(pipe, batch_size=2), df.detect.Wen(seeds=2)
    first, files = wen.score(model, PROMPTS), model.config()["files"]
    torch.manual_seed(1)
    train(pipe)
    torch.manual_seed(1)
    train(still)
    then = wen.score(model, PROMPTS)
    assert not torch.equal(then, first)
    assert torch.equal(then, wen.score(df.load(still, batch_size=2), PROMPTS))
    assert model.config()["files"] != files


def test_a_copy_of_a_pipeline_is_frozen_and_its_own(training):
    pipe, _ = training
    before = state(pipe)
    own = df.load(pipe, batch_size=2).copy()
    assert not any(p.requires_grad for p in own.unet.parameters())
    assert not own.unet.training
    assert state(pipe) == before
