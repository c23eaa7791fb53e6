"""Autoencoders whose images would not be the model's are refused when one is asked for."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL

import dori_fast as df
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.models.images import require_autoencoder
from tests.models.images.support import (
    MOMENTS,
    PROMPT,
    both,
    kl,
    stock,
    tiny,
)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "AutoencoderKLWan"}, "of class AutoencoderKLWan, which is not supported"),
        ({"_class_name": "os.system"}, "of class os.system, which is not supported"),
        ({"_class_name": "UNet2DConditionModel"}, "class UNet2DConditionModel, which is not"),
    ],
)
def test_other_classes_of_files_are_named(directory, config, message):
    root = directory("sd", kl())
    path = root / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    model = df.load(root, device="cpu")
    assert df.detect.Wen(seeds=1).score(model, [PROMPT]).shape == (1,)
    with pytest.raises(UsageError, match=message):
        model.generate(model.encode([PROMPT]), [0])


class Foreign(torch.nn.Module):
    """Somebody's own autoencoder."""

    config = {"block_out_channels": (1, 1)}


def test_other_classes_in_memory_are_named(directory):
    pipe = stock(directory("sd", kl()), "sd")

    class Own(AutoencoderKL):
        """A subclass is used as the class that it extends."""

    pipe.vae.__class__ = Own
    assert df.load(pipe).generate(df.load(pipe).encode([PROMPT]), [0], steps=1).numel()
    pipe.vae = torch.compile(pipe.vae, backend="eager")
    assert df.load(pipe).generate(df.load(pipe).encode([PROMPT]), [0], steps=1).numel()
    pipe.vae = Foreign()
    model = df.load(pipe)
    assert df.detect.Wen(seeds=1).score(model, [PROMPT]).shape == (1,)
    with pytest.raises(UsageError, match="of class Foreign, which is not supported; use one of"):
        model.latents(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))


def test_an_autoencoder_of_another_factor_than_the_pipelines_is_refused(directory):
    pipe = stock(directory("xl", kl()), "xl")
    pipe.vae = tiny(
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=(1,) * 3,
        num_decoder_blocks=(1,) * 3,
    )
    with pytest.raises(UsageError, match="images 2 times as large .* factor of 4; make a new"):
        df.load(pipe)


@pytest.mark.parametrize(
    ("name", "config", "xl", "message"),
    [
        ("AutoencoderKL", {"latent_channels": 16}, True, "latents of 16 channels, the UNet of 4"),
        ("VQModel", {}, True, "latents of 3 channels, the UNet of 4"),
        ("VQModel", {"latent_channels": 4, "vq_embed_dim": 8}, True, "latents of 8 channels"),
        ("AutoencoderKL", {"out_channels": 4}, True, "has out_channels 4, images have 3"),
        ("AutoencoderKL", {"shift_factor": 0.1}, True, "shift_factor, 0.1, which no"),
        ("AutoencoderTiny", {"shift_factor": 0.1}, False, "shift_factor, 0.1, which no"),
        ("AutoencoderKL", {"scaling_factor": 0}, True, "scaling_factor is 0, not a finite number"),
        ("AutoencoderKL", {"scaling_factor": None}, True, "scaling_factor is None"),
        ("AutoencoderKL", {"scaling_factor": float("nan")}, True, "scaling_factor is nan"),
        ("AutoencoderKL", MOMENTS, False, "which only SDXL's pipelines apply"),
        ("AutoencoderKL", {"latents_mean": [0.0] * 4}, True, "must both be lists of 4 numbers"),
        (
            "AutoencoderKL",
            MOMENTS | {"latents_std": [1.0, 0.0, 1.0, 1.0]},
            True,
            "latents_std must be above 0",
        ),
        (
            "AutoencoderKL",
            MOMENTS | {"latents_mean": [float("inf"), 0, 0, 0]},
            True,
            "is not finite",
        ),
        ("AutoencoderTiny", {"upsampling_scaling_factor": 3}, True, "enlarges latents by 27"),
        (
            "AsymmetricAutoencoderKL",
            {"down_block_out_channels": [8], "up_block_out_channels": [8, 8]},
            True,
            "shrinks images by 1 but enlarges latents by 2",
        ),
        ("AutoencoderKL", {"block_out_channels": None}, True, "must be lists of channels"),
    ],
)
def test_configs_whose_images_would_not_be_the_models_are_refused(name, config, xl, message):
    with pytest.raises(UsageError, match=message):
        require_autoencoder(name, config, 4, xl=xl)


def test_configs_without_effect_are_accepted():
    neutral = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.0}
    require_autoencoder("AutoencoderKL", neutral, 4, xl=False)
    require_autoencoder("AutoencoderKL", {"shift_factor": None}, 4, xl=False)


def test_an_ignored_key_is_refused_at_the_first_image(directory):
    root = directory("sd", kl(**MOMENTS))
    for _, model in both(root, "sd"):
        assert df.detect.Wen(seeds=1).score(model, [PROMPT]).shape == (1,)
        with pytest.raises(UsageError, match="latents_mean and latents_std, which only SDXL"):
            model.generate(model.encode([PROMPT]), [0])


def test_damaged_weights_of_an_autoencoder_are_named(directory):
    vae = kl()
    with torch.no_grad():
        vae.decoder.conv_in.weight[0, 0, 0, 0] = torch.nan
    model = df.load(directory("sd", vae), device="cpu")
    with pytest.raises(IntegrityError, match=r"vae holds NaN or Inf in decoder\.conv_in\.weight"):
        model.autoencoder.require()
