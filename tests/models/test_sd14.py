"""Stable Diffusion 1.4's own architecture, at random weights: it must load and run as it is."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import dori_fast as df

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}


def random_weights(build):
    """A module in float16 whose weights are drawn cheaply, each scaled by its fan-in."""
    with torch.device("meta"):
        module = build()
    module = module.to(torch.float16).to_empty(device="cpu")
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if not value.is_floating_point():
            # the text encoder's position ids
            value.data.copy_(torch.arange(value.numel()).reshape(value.shape))
        elif value.ndim == 1:
            value.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            value.data.normal_(0, value[0].numel() ** -0.5)
    return module


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("sd14")
    torch.manual_seed(0)
    unet = random_weights(lambda: UNet2DConditionModel(**UNET))
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    text = random_weights(lambda: CLIPTextModel(CLIPTextConfig(**TEXT)))
    assert sum(p.numel() for p in text.parameters()) == 123_060_480
    unet.save_pretrained(root / "unet")
    text.save_pretrained(root / "text_encoder")
    random_weights(lambda: AutoencoderKL(**VAE)).save_pretrained(root / "vae")
    # the scheduler that SD 1.4 ships, not the one that the detectors use
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    ).save_pretrained(root / "scheduler")
    # the embedded model has CLIP's own vocabulary
    CLIPTokenizer.from_pretrained(df.demo.path() / "tokenizer").save_pretrained(root / "tokenizer")
    (root / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
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
