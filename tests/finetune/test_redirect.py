"""The losses that the paper does not have: redirection and distillation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dori_fast.attack.draws import stream
from dori_fast.errors import UsageError
from dori_fast.finetune import Adversarial
from dori_fast.finetune.batches import Group, backward
from tests.finetune.material import PROMPTS, SURROGATES, train, tuning, weights


def test_seen_images_are_noised_and_lead_elsewhere(model):
    """The loss of a group that is shown ``seen`` noised but must predict the target of x_0."""
    latents = model.latents(SURROGATES.flatten(0, 1))
    x_0, seen, text = latents[:3], latents[3:], model.encode(PROMPTS).embeddings
    plain = model.copy()
    plain.unet.requires_grad_(True)
    groups = {"all": Group(x_0, text, 1.0, seen=seen, first=400)}
    losses = backward(plain, groups, stream("any", 0, 0), at_once=2, autocast=None)
    generator = stream("any", 0, 0)
    timesteps = torch.randint(400, 1000, (3,), generator=generator)
    noise = torch.randn(x_0.shape, generator=generator)
    a = model.alphas_cumprod[timesteps].to(x_0).view(-1, 1, 1, 1)
    x_t = a.sqrt() * seen + (1 - a).sqrt() * noise
    wanted = (x_t - a.sqrt() * x_0) / (1 - a).sqrt()
    answer = model.unet(x_t, timesteps, text).sample
    torch.testing.assert_close(losses["all"], F.mse_loss(answer, wanted), rtol=1e-4, atol=1e-6)


def test_redirecting_trains_on_the_noised_memorized_images(model):
    reports = []
    train(tuning(steps=40, lr=3e-3, redirect=0.5), model, on_step=reports.append)
    first, last = (
        sum(r.redirected_loss for r in reports[rows]) for rows in (slice(8), slice(-8, 40))
    )
    assert last < 0.9 * first
    plain = train(tuning(), model)
    assert not torch.equal(weights(train(tuning(redirect=0.5), model)), weights(plain))


def test_a_teacher_is_the_target(model):
    latents, text = model.latents(SURROGATES.flatten(0, 1))[:3], model.encode(PROMPTS).embeddings
    changed = model.copy()
    with torch.no_grad():
        for weight in changed.unet.parameters():
            weight *= 1.1
    changed.engine.weights_changed()
    changed.unet.requires_grad_(True)
    groups = {
        "taught": Group(latents, text, 1.0, teacher=model),
        "plain": Group(latents, text, 1.0),
    }
    losses = backward(changed, groups, stream("any", 0, 0), at_once=4, autocast=None)
    generator = stream("any", 0, 0)
    timesteps = torch.cat([torch.randint(1000, (3,), generator=generator) for _ in range(2)])
    noise = torch.randn(6, *latents.shape[1:], generator=generator)
    a = model.alphas_cumprod[timesteps].to(latents).view(-1, 1, 1, 1)
    x_t = a.sqrt() * latents.repeat(2, 1, 1, 1) + (1 - a).sqrt() * noise
    theirs = model.unet(x_t[:3], timesteps[:3], text).sample
    ours = changed.unet(x_t, timesteps, text.repeat(2, 1, 1)).sample
    expected = F.mse_loss(ours[:3], theirs), F.mse_loss(ours[3:], noise[3:])
    for name, loss in zip(groups, expected, strict=True):
        torch.testing.assert_close(losses[name], loss, rtol=1e-4, atol=1e-6)


def test_distilling_asks_for_no_change_at_first(model):
    reports = []
    train(tuning(distil=True), model, on_step=reports.append)
    losses = [report.retained_loss for report in reports]
    assert losses[0] < 1e-10 < losses[-1]


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="redirect must be 0 or more"):
        Adversarial(redirect=-1.0)
    with pytest.raises(UsageError, match="redirect_from in"):
        Adversarial(redirect_from=1.0)
