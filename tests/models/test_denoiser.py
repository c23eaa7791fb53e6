"""The Denoiser against plain diffusers: a UNet forward, and a stock pipeline's images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.schedules.vp import ddim_step, to_epsilon

PROMPTS = ["a cup of coffee", "the cat on the mat", "", "another the in an on"]
SEEDS = [0, 1, 7]


def plain_epsilon(model, prompts, latents, timestep):
    """One UNet call per (prompt, seed)."""
    condition = model.encode(prompts)
    rows = [
        [
            model.unet(latents[s : s + 1], torch.tensor(timestep), condition.embeddings[p : p + 1])
            .sample[0]
            .detach()
            for s in range(latents.shape[0])
        ]
        for p in range(len(prompts))
    ]
    return torch.stack([torch.stack(row) for row in rows])


def test_batched_epsilon_is_the_plain_forward(model, model64):
    for m, tolerance in ((model, 1e-5), (model64, 1e-12)):
        latents = m.noise(SEEDS)
        eps = m.epsilon(m.encode(PROMPTS), latents, 981)
        expected = plain_epsilon(m, PROMPTS, latents, 981)
        assert eps.shape == (4, 3, *m.latent_shape)
        assert (eps - expected).norm() <= tolerance * expected.norm()


def test_epsilon_is_bitwise_independent_of_order_and_neighbours(model):
    latents = model.noise(SEEDS)
    together = model.epsilon(model.encode(PROMPTS), latents, 500)
    backwards = model.epsilon(model.encode(PROMPTS[::-1]), latents, 500).flip(0)
    alone = torch.cat([model.epsilon(model.encode([p]), latents, 500) for p in PROMPTS])
    one_seed = model.epsilon(model.encode(PROMPTS), latents[1:2], 500)
    assert torch.equal(together, backwards)
    assert torch.equal(together, alone)
    assert torch.equal(together[:, 1:2], one_seed)


def test_latents_per_prompt(model):
    latents = model.noise(range(8)).reshape(4, 2, *model.latent_shape)
    eps = model.epsilon(model.encode(PROMPTS), latents, 300)
    for p, prompt in enumerate(PROMPTS):
        own = model.epsilon(model.encode([prompt]), latents[p], 300)[0]
        assert torch.equal(eps[p], own)


def test_the_unconditional_prediction_is_computed_once_per_noise_and_timestep(tiny_directory):
    model = df.load(tiny_directory, device="cpu", batch_size=2)
    some = model.encode(["any", "prompts"])
    shared = model.share_noise([3, 5], 981)
    first = model.epsilon_uncond(some, shared)
    assert model.engine.evaluations == 2
    assert torch.equal(first, model.epsilon_uncond(some, model.share_noise([3, 5], 981)))
    assert model.engine.evaluations == 2
    model.epsilon_uncond(some, model.share_noise([3, 5], 961))
    assert model.engine.evaluations == 4
    expected = model.epsilon(model.encode([""]), model.noise([3, 5]), 981)[0]
    assert torch.equal(first, expected)


def test_nothing_of_another_batch_size_is_kept(tiny_directory):
    model, fresh = (df.load(tiny_directory, device="cpu", batch_size=n) for n in (2, 5))
    detector = df.detect.Wen(seeds=3)
    detector.score(model, PROMPTS)
    model.batch_size = 5
    assert torch.equal(detector.score(model, PROMPTS), detector.score(fresh, PROMPTS))


def test_noise_depends_on_the_seed_alone(model):
    assert torch.equal(model.noise([4, 9])[1], model.noise([9])[0])
    assert torch.equal(
        model.noise([9])[0],
        torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(9)),
    )
    assert model.noise([]).shape == (0, *model.latent_shape)


def test_gradients_reach_the_embeddings_and_nothing_else(model64):
    embeddings = model64.encode(PROMPTS[:2]).embeddings.clone().requires_grad_()
    eps = model64.epsilon(model64.condition(embeddings), model64.noise(SEEDS), 700)
    eps.square().sum().backward()
    assert embeddings.grad.abs().max() > 0
    assert all(p.grad is None for p in model64.unet.parameters())
    step = 1e-6
    bumped = embeddings.detach().clone()
    bumped[1, 2, 3] += step
    higher = model64.epsilon(model64.condition(bumped), model64.noise(SEEDS), 700).square().sum()
    slope = (higher - eps.detach().square().sum()) / step
    assert float(slope) == pytest.approx(float(embeddings.grad[1, 2, 3]), rel=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_becomes_epsilon(kind):
    torch.manual_seed(0)
    x_0, eps = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64).unbind(0)
    a = 0.3
    x_t = a**0.5 * x_0 + (1 - a) ** 0.5 * eps
    output = {"epsilon": eps, "v_prediction": a**0.5 * eps - (1 - a) ** 0.5 * x_0, "sample": x_0}
    torch.testing.assert_close(to_epsilon(output[kind], x_t, a, kind), eps)
    torch.testing.assert_close(ddim_step(eps, x_t, a, 0.6), 0.6**0.5 * x_0 + 0.4**0.5 * eps)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_images_are_a_stock_pipelines(tiny_directory, kind):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_directory, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler.register_to_config(prediction_type=kind)
    model = df.load(pipe)
    assert model.schedule.prediction_type == kind
    ours = model.generate(model.encode(PROMPTS[:2]), [0, 7], steps=5, guidance=3.0).numpy()
    for p, prompt in enumerate(PROMPTS[:2]):
        for s, seed in enumerate([0, 7]):
            theirs = pipe(
                prompt,
                latents=model.noise([seed]),
                num_inference_steps=5,
                guidance_scale=3.0,
                output_type="np",
            ).images[0]
            theirs = (theirs * 255).round().astype(np.uint8)
            # a value that falls on a rounding boundary may differ by one
            assert np.abs(ours[p, s].astype(int) - theirs).max() <= 1


def test_timesteps_are_those_of_the_papers(model):
    assert model.timesteps(50)[:2] == [981, 961] and model.timesteps(50)[-1] == 1
    assert model.schedule.alpha_bar(981) == pytest.approx(float(model.alphas_cumprod[981]))


def test_latents_of_images_decode_to_the_same_size(model):
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    latents = model.latents(images)
    assert latents.shape == (3, *model.latent_shape)
    mean = model.vae.encode(images[:1].permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
    torch.testing.assert_close(latents[:1], mean * model.vae.config.scaling_factor)
    with pytest.raises(UsageError, match="uint8"):
        model.latents(images.float())


def test_shapes_are_checked(model):
    condition = model.encode(PROMPTS)
    with pytest.raises(UsageError, match="latents must be"):
        model.epsilon(condition, torch.zeros(2, 4, 9, 8), 10)
    with pytest.raises(UsageError, match="for 3 prompts, the condition has 4"):
        model.epsilon(condition, torch.zeros(3, 2, 4, 8, 8), 10)
    with pytest.raises(UsageError, match="embeddings must be"):
        model.condition(torch.zeros(2, 77, 31))
    with pytest.raises(UsageError, match="at least 1"):
        model.batch_size = 0
