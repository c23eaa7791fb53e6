"""Images and latents are those of diffusers' own pipelines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.images import decode, encode
from tests.models.images.support import (
    MOMENTS,
    PROMPT,
    asymmetric,
    both,
    certain,
    consistency,
    kl,
    stock,
    their_image,
    their_latents,
    tiny,
    vq,
)

KINDS = {"kl": kl, "tiny": tiny, "asymmetric": asymmetric, "vq": vq}


MAKERS = {
    **KINDS,
    "kl-moments": lambda: kl(**MOMENTS, scaling_factor=0.5),
    "kl-no-quant": lambda: kl(use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3),
}
# StableDiffusionPipeline cannot call VQModel, and ignores the moments
SD = [name for name in MAKERS if name not in ("vq", "kl-moments")]


@pytest.mark.parametrize(
    ("kind", "name"), [*(("sd", name) for name in SD), *(("xl", name) for name in MAKERS)]
)
def test_images_and_latents_are_the_pipelines_own(directory, kind, name):
    root = directory(kind, certain(MAKERS[name]()))
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    clean = torch.randn(2, 4, 8, 8)
    theirs = {i: their_image(root, kind, torch.float32, clean[i : i + 1]) for i in range(2)}
    wanted = their_latents(root, kind, images, torch.float32)
    for _, model in both(root, kind):
        assert model.image_size == (16, 16)
        torch.testing.assert_close(model.latents(images), wanted, rtol=1e-5, atol=1e-5)
        ours = model.autoencoder.decode(clean[:, None], [0])[:, 0].numpy()
        for i, image in theirs.items():
            # a value on a rounding boundary may differ by one
            assert np.abs(ours[i] - image[0]).max() <= 1
            assert image.std() > 1
        drawn = model.generate(model.encode([PROMPT]), [0], steps=2)
        assert drawn.shape == (1, 1, 16, 16, 3)


def test_a_codebook_is_decoded_in_stable_diffusion_as_in_latent_diffusion(directory):
    """LDMTextToImagePipeline's formula: decode(z / scaling_factor)."""
    root, clean = directory("sd", vq(scaling_factor=0.4)), torch.randn(2, 4, 8, 8)
    for _, model in both(root, "sd"):
        theirs = model.vae.decode(clean / 0.4).sample
        theirs = ((theirs / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
        assert (decode(model.vae, clean).float() - theirs).abs().max() <= 1


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_whole_run_draws_the_pipelines_image(directory, kind):
    moments = MOMENTS if kind == "xl" else {}
    root = directory(kind, kl(**moments))
    for _, model in both(root, kind):
        ours = model.generate(model.encode([PROMPT]), [5], steps=4, guidance=3.0)[0, 0].numpy()
        theirs = stock(root, kind)(
            PROMPT,
            latents=model.noise([5]),
            num_inference_steps=4,
            guidance_scale=3.0,
            height=16,
            width=16,
            output_type="np",
        ).images[0]
        assert np.abs(ours - (theirs * 255).round().astype(int)).max() <= 1


def test_a_consistency_decoder_continues_the_seeds_random_stream(directory):
    root = directory("sd", certain(consistency()))
    images = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    wanted = their_latents(root, "sd", images, torch.float32)
    for _, model in both(root, "sd"):
        torch.testing.assert_close(model.latents(images), wanted, rtol=1e-5, atol=1e-5)
        conditions = model.encode([PROMPT, "a dog"])
        ours = model.generate(conditions, [3, 9], steps=3, guidance=3.0).numpy()
        for p, prompt in enumerate([PROMPT, "a dog"]):
            for s, seed in enumerate([3, 9]):
                theirs = stock(root, "sd")(
                    prompt,
                    generator=torch.Generator().manual_seed(seed),
                    num_inference_steps=3,
                    guidance_scale=3.0,
                    output_type="np",
                ).images[0]
                assert np.abs(ours[p, s] - (theirs * 255).round().astype(int)).max() <= 1
    with pytest.raises(UsageError, match="pass the images' seeds"):
        decode(model.vae, torch.zeros(1, 4, 8, 8))


def test_images_are_decoded_one_by_one(directory):
    """So none depends on its neighbors, and the peak of memory is that of one image."""
    model, sizes = df.load(directory("sd", kl()), device="cpu", batch_size=8), []
    model.vae.decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    latents = torch.randn(5, *model.latent_shape)
    together = decode(model.vae, latents)
    assert sizes == [1] * 5
    assert torch.equal(together, torch.cat([decode(model.vae, x[None]) for x in latents]))


def test_reading_images_does_not_depend_on_neighbors(directory):
    model = df.load(directory("xl", kl()), device="cpu")
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    alone = torch.cat([model.latents(images[i : i + 1]) for i in range(3)])
    assert torch.equal(model.latents(images), alone)
    assert torch.equal(encode(model.vae, images, torch.device("cpu"), torch.float32), alone)
