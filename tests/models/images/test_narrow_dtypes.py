"""Autoencoders in float16 and bfloat16: widened as in the pipeline, and never NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dori_fast as df
from dori_fast.errors import NonFiniteError, UsageError
from dori_fast.models.images import decode
from tests.models.images.support import (
    PROMPT,
    both,
    certain,
    kl,
    overflowing,
    stock,
    their_image,
    their_latents,
    vq,
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sd", "xl"])
@pytest.mark.parametrize("forced", [True, False])
def test_narrow_dtypes_are_widened_where_the_pipeline_does(directory, kind, dtype, forced):
    root = directory(kind, certain(kl(force_upcast=forced)))
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    clean = torch.randn(1, 4, 8, 8).to(dtype)
    theirs, wanted = (
        their_image(root, kind, dtype, clean),
        their_latents(root, kind, images, dtype),
    )
    for _, model in both(root, kind, dtype):
        before = {name: value.clone() for name, value in model.vae.state_dict().items()}
        ours = model.autoencoder.decode(clean[:, None], [0])[:, 0].numpy()
        # both round in the narrow dtype, whose steps are up to 2 of 255
        assert np.abs(ours - theirs).max() <= 2
        torch.testing.assert_close(model.latents(images), wanted, rtol=2e-2, atol=2e-2)
        assert model.vae.dtype == dtype
        assert all(torch.equal(model.vae.state_dict()[n], value) for n, value in before.items())


def test_sdxl_in_float16_draws_and_reads_images_where_float16_overflows(directory):
    root = directory("xl", overflowing(kl(force_upcast=True)))
    image = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    for _, model in both(root, "xl", torch.float16):
        condition = model.encode([PROMPT])
        assert model.generate(condition, [0], steps=2).float().std() > 1
        assert model.latents(image).isfinite().all()
        assert model.vae.dtype == torch.float16


@pytest.mark.parametrize(("kind", "forced"), [("sd", True), ("sd", False), ("xl", False)], ids=str)
def test_what_overflows_is_refused_and_not_a_black_image(directory, kind, forced):
    root = directory(kind, overflowing(kl(force_upcast=forced)))
    image = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    for _, model in both(root, kind, torch.float16):
        condition = model.encode([PROMPT])
        with pytest.raises(NonFiniteError, match="2 of 2 decoded images .* in float16; load .*32"):
            model.generate(condition, [0, 1], steps=2)
        with pytest.raises(NonFiniteError, match="1 of 1 latents of the images .* in float16"):
            model.latents(image)
        with pytest.raises(NonFiniteError):
            df.evaluate.replication(model, condition, image, seeds=1, steps=2)
        with pytest.raises(NonFiniteError):
            df.finetune.surrogates(
                model, [PROMPT], image, measure=df.evaluate.SmallImages(), count=1, steps=2
            )


def test_the_dtype_is_restored_when_decoding_fails(directory):
    root = directory("xl", overflowing(kl(force_upcast=True)))
    pipe = stock(root, "xl", torch.float16)
    with pytest.raises(NonFiniteError, match="1 of 2 denoised latents"):
        decode(pipe.vae, torch.tensor([0.0, torch.nan]).expand(4, 8, 8, 2).movedim(-1, 0))
    with pytest.raises(RuntimeError):
        decode(pipe.vae, torch.zeros(1, 5, 8, 8))
    assert pipe.vae.dtype == torch.float16
    assert all(value.dtype == torch.float16 for value in pipe.vae.state_dict().values())


def test_some_bad_images_are_counted_in_float32_too(directory):
    model = df.load(directory("sd", kl()), device="cpu", batch_size=4)
    latents = torch.randn(3, 4, 8, 8)
    latents[1] = torch.inf
    with pytest.raises(NonFiniteError, match=r"1 of 3 denoised latents .* float32; check the mod"):
        decode(model.vae, latents)
    with torch.no_grad():
        model.vae.decoder.conv_out.bias[0] = torch.inf
    with pytest.raises(NonFiniteError, match="3 of 3 decoded images are NaN or Inf in float32"):
        decode(model.vae, torch.randn(3, 4, 8, 8))


def test_an_operation_that_a_dtype_lacks_is_a_usage_error():
    vae = vq().half()
    latents = torch.randn(1, 4, 8, 8).half()
    try:
        vae.decode(latents)
    except NotImplementedError:
        with pytest.raises(UsageError, match="VQModel cannot run in float16 on this device"):
            decode(vae, latents)
    else:
        assert decode(vae, latents).shape == (1, 16, 16, 3)
