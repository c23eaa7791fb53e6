"""SDXL: two text encoders, pooled embeddings and the image size in the time embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.objections import refusal
from dori_fast.models.backbones.unet.program import Program
from tests.tiny_sdxl import POOLED, WIDTH, save_tiny_sdxl, tiny_unet

PROMPTS = ["a cup of coffee", "the cat on the mat", "", "a cup of coffee"]
SEEDS = [0, 7]


@pytest.fixture(scope="module")
def pipe(tiny_sdxl_directory):
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_directory, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def model(tiny_sdxl_directory):
    return df.load(tiny_sdxl_directory, device="cpu", batch_size=4)


def test_embeddings_are_the_pipelines(model, pipe):
    condition = model.encode(PROMPTS)
    assert condition.unique.shape == (3, 77, WIDTH) and condition.pooled.shape == (3, POOLED)
    embeddings, empty, pooled, empty_pooled = pipe.encode_prompt(PROMPTS, device="cpu")
    torch.testing.assert_close(condition.embeddings, embeddings, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(condition.one_row_each().pooled, pooled, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.unconditional.unique[0], empty[0])
    assert torch.equal(model.unconditional.pooled[0], empty_pooled[0])


def test_a_model_that_does_not_zero_the_empty_prompt(tmp_path):
    directory = save_tiny_sdxl(tmp_path, force_zeros_for_empty_prompt=False)
    model = df.load(directory, device="cpu")
    assert torch.equal(model.unconditional.unique, model.encode([""]).unique)
    assert model.unconditional.unique.abs().max() > 0


@pytest.mark.parametrize("share", [True, False])
def test_images_are_a_stock_pipelines(tiny_sdxl_directory, pipe, share):
    model = df.load(tiny_sdxl_directory, device="cpu", batch_size=4, share=share)
    assert model.engine.not_shared == (None if share else "switched off")
    ours = model.generate(model.encode(PROMPTS[:2]), SEEDS, steps=4, guidance=3.0).numpy()
    for p, prompt in enumerate(PROMPTS[:2]):
        for s, seed in enumerate(SEEDS):
            theirs = pipe(
                prompt,
                latents=model.noise([seed]),
                num_inference_steps=4,
                guidance_scale=3.0,
                output_type="np",
            ).images[0]
            theirs = (theirs * 255).round().astype(np.uint8)
            # a value that falls on a rounding boundary may differ by one
            assert np.abs(ours[p, s].astype(int) - theirs).max() <= 1


def test_a_pipeline_in_memory_is_the_same_model(model, pipe):
    in_memory = df.load(pipe, batch_size=4)
    scores = [df.detect.Wen(seeds=2).score(m, PROMPTS) for m in (model, in_memory)]
    assert torch.equal(*scores)
    files = set(model.config()["files"])
    assert {"text_encoder_2/model.safetensors", "tokenizer_2/tokenizer.json"} <= files
    assert {"text_encoder_2", "tokenizer_2"} <= set(in_memory.config()["files"])


def test_scores_are_independent_of_grouping_and_equal_to_the_plain_forward(
    model, tiny_sdxl_directory
):
    detector = df.detect.Wen(seeds=3)
    together = detector.score(model, PROMPTS)
    assert torch.equal(together, torch.cat([detector.score(model, [p]) for p in PROMPTS]))
    plain = df.load(tiny_sdxl_directory, device="cpu", batch_size=4, share=False)
    torch.testing.assert_close(together, detector.score(plain, PROMPTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_sharing_is_exact(dtype, tolerance):
    torch.manual_seed(0)
    unet = tiny_unet().to(dtype).eval().requires_grad_(False)
    assert refusal(unet) is None
    program = Program(unet, image_size=(16, 16))
    latents = torch.randn(3, 4, 8, 8, dtype=dtype)
    text, pooled = torch.randn(2, 7, WIDTH, dtype=dtype), torch.randn(2, POOLED, dtype=dtype)
    rows, which = torch.arange(2).repeat_interleave(3), torch.arange(3).repeat(2)
    part = program.text_part(text, pooled).take(rows)
    actual = program.suffix(program.prefix(latents, 961).take(which), part, 961)
    ids = torch.tensor([[16, 16, 0, 0, 16, 16]], dtype=dtype).expand(6, -1)
    expected = unet(
        latents[which],
        torch.tensor(961),
        text[rows],
        added_cond_kwargs={"text_embeds": pooled[rows], "time_ids": ids},
    ).sample
    assert (actual - expected).norm() <= tolerance * expected.norm()


def test_free_embeddings_need_their_pooled_part(model):
    embeddings = torch.randn(2, 77, WIDTH)
    with pytest.raises(UsageError, match="pooled embeddings"):
        model.condition(embeddings)
    condition = model.condition(embeddings.requires_grad_(), torch.randn(2, POOLED))
    model.epsilon(condition, model.noise([0]), 500).sum().backward()
    assert embeddings.grad.abs().max() > 0
