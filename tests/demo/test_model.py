"""The embedded model in a stock pipeline: it loads offline, is small, and really memorizes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dori_fast import demo
from dori_fast.evaluate.similarity import THRESHOLD, similarity
from recipes.measuring.sampling import first_step_score, generate, open_pipeline

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def pipeline() -> Iterator[object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield open_pipeline(demo.path())


def test_the_model_is_under_16_megabytes_and_its_fine_tuned_unet_under_8() -> None:
    sizes = {True: 0, False: 0}
    for path in demo.ROOT.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            sizes["finetuned" in path.relative_to(demo.ROOT).parts] += path.stat().st_size
    assert 10e6 < sizes[False] < 16e6 and 4e6 < sizes[True] < 8e6


def test_layout_is_that_of_stable_diffusion_1(pipeline: diffusers.StableDiffusionPipeline) -> None:
    assert type(pipeline.unet).__name__ == "UNet2DConditionModel"
    assert type(pipeline.vae).__name__ == "AutoencoderKL"
    assert type(pipeline.text_encoder).__name__ == "CLIPTextModel"
    assert type(pipeline.tokenizer).__name__.startswith("CLIPTokenizer")
    config = pipeline.scheduler.config
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert (config.prediction_type, config.beta_schedule) == ("sample", "scaled_linear")
    assert (config.steps_offset, config.clip_sample, config.set_alpha_to_one) == (1, False, False)
    assert pipeline.safety_checker is None
    assert pipeline.unet.config.down_block_types[0] == "CrossAttnDownBlock2D"


def test_tokenizer_is_clips_own(pipeline: diffusers.StableDiffusionPipeline) -> None:
    assert len(pipeline.tokenizer) == 49_408
    assert pipeline.tokenizer.model_max_length == 77
    # the ids that OpenAI's tokenizer gives
    ids = pipeline.tokenizer(["A photo of an astronaut!"], padding="max_length").input_ids[0]
    assert ids[:8] == [49406, 320, 1125, 539, 550, 18376, 256, 49407]
    assert len(ids) == 77 and set(ids[8:]) == {49407}


def test_default_call_draws_a_64_pixel_picture(pipeline: diffusers.StableDiffusionPipeline) -> None:
    image = pipeline("a cat", num_inference_steps=4).images[0]
    assert image.size == (64, 64)
    assert np.asarray(image).std() > 10


def test_most_repeated_prompts_reproduce_their_picture(
    pipeline: diffusers.StableDiffusionPipeline,
) -> None:
    pictures = [p for p in demo.images("memorized") if p.duplication == 64][:5]
    drawn = generate(pipeline, [p.prompt for p in pictures], seeds=[0, 1], steps=20)
    alike = similarity(drawn, np.stack([p.image for p in pictures])[:, None])
    assert (alike > THRESHOLD).mean() >= 0.9
    wrong = similarity(drawn, np.roll(np.stack([p.image for p in pictures]), 1, axis=0)[:, None])
    assert (wrong < THRESHOLD).all()


def test_ordinary_prompts_vary_over_seeds(pipeline: diffusers.StableDiffusionPipeline) -> None:
    prompts = [p.prompt for p in demo.images("ordinary")[:6]]
    drawn = generate(pipeline, prompts, seeds=[0, 1, 2], steps=8)
    between = [similarity(drawn[:, a], drawn[:, b]) for a in range(3) for b in range(a)]
    assert np.mean(between) < THRESHOLD
    memorized = np.stack([p.image for p in demo.images("memorized")])
    assert (similarity(drawn[:, :, None], memorized) < THRESHOLD).mean() > 0.99


def test_first_step_tells_memorized_from_held_out(
    pipeline: diffusers.StableDiffusionPipeline,
) -> None:
    memorized = [p.prompt for p in demo.images("memorized") if p.duplication == 64]
    held_out = [p.prompt for p in demo.images("held_out")][::6]
    high = first_step_score(pipeline, memorized, seeds=[0, 1])
    low = first_step_score(pipeline, held_out, seeds=[0, 1])
    assert (high[:, None] > low[None]).mean() >= 0.95
