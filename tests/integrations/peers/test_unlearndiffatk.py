"""UnlearnDiffAtk's swap: the projection, and one run of the UNet for all texts of a step."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import LMSDiscreteScheduler, UNet2DConditionModel

import dori_fast as df
from tests.integrations.peers.test_patching import stand_in

STEPS = 4


def guided(self: Any, texts: list[Any]) -> Any:
    """The released sampling's loop: texts one by one in each step, the last guided by the first."""
    torch.manual_seed(0)
    self.scheduler.set_timesteps(STEPS)
    latents = torch.randn(1, 4, 8, 8) * self.scheduler.init_noise_sigma
    for t in self.scheduler.timesteps:
        scaled = self.scheduler.scale_model_input(latents, timestep=t)
        with torch.no_grad():
            uncond, *others = (
                self.target_unet_sd(scaled, t, encoder_hidden_states=text).sample for text in texts
            )
        noise = uncond + 7.5 * sum(other - uncond for other in others)
        latents = self.scheduler.step(noise, t, latents).prev_sample
    return latents


@pytest.fixture
def modules(monkeypatch: Any) -> Any:
    found: dict[str, ModuleType] = stand_in("unlearndiffatk")
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield found
    df.unpatch("unlearndiffatk")


def sampling(self: Any, input_ids: Any, text_embeddings: Any, batch_size: Any = 1, seed: Any = 0,
             height: Any = 512, width: Any = 512, num_inference_steps: Any = 50,
             guidance_scale: Any = 7.5) -> Any:  # fmt: skip
    return guided(self, text_embeddings)


@pytest.mark.parametrize("texts", [2, 3])
def test_a_steps_texts_run_in_one_batch(modules, tiny_directory, texts):
    unet = UNet2DConditionModel.from_pretrained(tiny_directory, subfolder="unet")
    unet.requires_grad_(False)
    task = SimpleNamespace(
        target_unet_sd=unet, scheduler=LMSDiscreteScheduler(beta_schedule="scaled_linear")
    )
    embeddings = list(torch.randn(texts, 1, 77, 32))
    kind = modules["tasks.classifier_"].ClassifierTask
    kind.sampling = sampling
    expected = kind.sampling(task, None, embeddings)
    record = df.patch("unlearndiffatk")
    batches: list[int] = []

    class Counted(type(unet)):  # type: ignore[misc]
        def forward(self, sample: Any, *args: Any, **kwargs: Any) -> Any:
            batches.append(len(sample))
            return super().forward(sample, *args, **kwargs)

    unet.__class__ = Counted
    found = kind.sampling(task, None, embeddings)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert batches == [1] * texts + [texts] * (STEPS - 1)
    assert "forward" not in vars(unet)
    assert not record.notes


def test_gradients_and_other_calls_reach_the_network_as_they_are(modules, tiny_directory):
    from dori_fast.integrations.peers.unlearndiffatk import Together

    unet = UNet2DConditionModel.from_pretrained(tiny_directory, subfolder="unet")
    together = Together(unet.forward)
    latents, texts = torch.randn(1, 4, 8, 8), torch.randn(2, 1, 77, 32)
    for text in texts:
        together(latents, 3, encoder_hidden_states=text)
        text.requires_grad_(True)
        found = together(latents, 3, encoder_hidden_states=text).sample
        assert found.requires_grad
    with torch.no_grad():
        for text in [*texts, texts[0] + 1]:
            # each of them new to it: a text in another tensor, latents written to
            latents.add_(1)
            found = together(latents, 3, encoder_hidden_states=text).sample
            expected = unet(latents, 3, encoder_hidden_states=text).sample
            torch.testing.assert_close(found, expected)


def test_the_projection_is_the_nearest_point(modules):
    df.patch("unlearndiffatk")
    projection = modules["attackers.text_grad_"].TextGrad.projection
    points = torch.randn(1, 3, 100, requires_grad=True)
    found = projection(None, points)
    assert found.shape == points.shape
    assert not found.requires_grad
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 3))
    # optimal: moving weight between any two entries with weight does not bring it closer
    gaps = (points - found)[found > 0].detach()
    for row in gaps.split((found > 0).sum(-1).flatten().tolist()):
        assert row.max() - row.min() < 1e-5
    already = torch.full((1, 3, 100), 0.01)
    torch.testing.assert_close(projection(None, already), already)
