"""Models without an autoencoder score, and say what they lack when asked for an image."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import dori_fast as df
from dori_fast.errors import UsageError
from tests.models.images.support import (
    PROMPT,
    both,
    kl,
    stock,
)


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_model_without_an_autoencoder_scores_and_says_what_it_lacks(directory, tmp_path, kind):
    root = directory(kind, None)
    with_vae = stock(directory_with(root, tmp_path), kind)
    assert with_vae.vae_scale_factor == 2
    pipe = stock(root, kind)
    assert pipe.vae is None and pipe.vae_scale_factor == 8
    image = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    scores = []
    for _, model in both(root, kind):
        assert model.image_size == (64, 64)
        scores.append(df.detect.Wen(seeds=2).score(model, [PROMPT]))
        for asked in (
            lambda model=model: model.generate(model.encode([PROMPT]), [0]),
            lambda model=model: model.latents(image),
            lambda model=model: df.attack.Dori(1).run(model, [PROMPT], image),
            lambda model=model: df.evaluate.held_out_loss(model, [PROMPT], image),
            lambda model=model: model.autoencoder.require(),
            lambda model=model: model.vae,
        ):
            with pytest.raises(UsageError, match="images: the model has no VAE"):
                asked()
        model.save_pretrained(tmp_path / "saved")
        again = df.load(tmp_path / "saved", device="cpu", batch_size=2)
        scores.append(df.detect.Wen(seeds=2).score(again, [PROMPT]))
    assert all(np.array_equal(scores[0], other) for other in scores)
    # what was a part of the pipeline when it was made still sets its size
    with_vae.vae = None
    assert df.load(with_vae).image_size == (16, 16)


def directory_with(root, tmp_path):
    """A copy of the directory with an autoencoder."""
    whole = shutil.copytree(root, tmp_path / "with")
    kl().save_pretrained(whole / "vae")
    index = json.loads((whole / "model_index.json").read_text())
    (whole / "model_index.json").write_text(
        json.dumps({**index, "vae": ["diffusers", "AutoencoderKL"]})
    )
    return whole


def test_a_directory_that_lost_its_autoencoder(directory):
    root = directory("sd", kl())
    scores = df.detect.Wen(seeds=2).score(df.load(root, device="cpu"), [PROMPT])
    shutil.rmtree(root / "vae")
    model = df.load(root, device="cpu")
    assert np.array_equal(df.detect.Wen(seeds=2).score(model, [PROMPT]), scores)
    with pytest.raises(UsageError, match="no VAE"):
        model.generate(model.encode([PROMPT]), [0])
    # SDXL's network is told the images' size, which the lost config held
    root = directory("xl", kl())
    shutil.rmtree(root / "vae")
    with pytest.raises(UsageError, match="names AutoencoderKL, on whose factor"):
        df.load(root, device="cpu")
