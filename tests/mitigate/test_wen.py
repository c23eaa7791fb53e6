"""The mitigation against the released loop in plain diffusers and torch."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.mitigate import Wen, token_significance
from dori_fast.models import NeuronMask

PROMPTS = ["a cup of coffee", "the cat on the mat", "another the in an on"]


@pytest.fixture(scope="module")
def model(model64):
    return model64


def plain_difference(model, embedding, latents, t):
    """Both halves through diffusers' own forward, as the released code has them."""
    n = len(latents)
    empty = model.encode([""]).embeddings
    text = torch.cat([empty.repeat(n, 1, 1), embedding.repeat(n, 1, 1)])
    uncond, cond = model.unet(torch.cat([latents] * 2), t, text).sample.chunk(2)
    return uncond, cond - uncond


def plain_mitigation(model, prompt, target, seeds, iterations):
    t, latents = model.timesteps(50)[0], model.noise(seeds)
    embedding = model.encode([prompt]).embeddings.clone().requires_grad_()
    adam, losses = torch.optim.AdamW([embedding], lr=0.05), []
    for _ in range(iterations):
        loss = torch.norm(plain_difference(model, embedding, latents, t)[1], p=2)
        losses.append(loss.detach())
        if loss <= target:
            break
        (embedding.grad,) = torch.autograd.grad(loss, [embedding])
        embedding.grad[:, 0] = 0
        adam.step()
    return embedding.detach()[0], torch.stack(losses)


@pytest.mark.parametrize("seeds", [4, 3, 11])
def test_it_is_the_released_loop(model, seeds):
    """One evaluation of 8 samples holds 2, 2 or a part of a prompt."""
    losses = Wen(0.0, iterations=3, seeds=seeds).run(model, PROMPTS).losses
    target = float(losses[1].median()) * (1 + 1e-6)  # no tie that rounding decides
    found = Wen(target, iterations=3, seeds=seeds).run(model, PROMPTS)
    assert len(set(found.steps.tolist())) > 1 and found.reached.sum() > 0
    for p, prompt in enumerate(PROMPTS):
        expected, losses = plain_mitigation(model, prompt, target, range(seeds), 3)
        torch.testing.assert_close(found.embeddings[p], expected, rtol=1e-8, atol=1e-8)
        seen = found.losses[: len(losses), p]
        torch.testing.assert_close(seen, losses, rtol=1e-8, atol=1e-8)
        assert found.losses[len(losses) :, p].isnan().all()
        assert found.reached[p] == (losses[-1] <= target)
        assert found.evaluations[p] == seeds * len(losses)


def test_a_prompt_finds_what_it_finds_alone(tiny_directory):
    model = df.load(tiny_directory, device="cpu", batch_size=8)
    method = Wen(0.0, iterations=3)
    together = method.run(model, PROMPTS)
    for p, prompt in enumerate(PROMPTS):
        alone = method.run(model, [prompt])
        assert torch.equal(alone.embeddings[0], together.embeddings[p])
        assert torch.equal(alone.losses[:, 0], together.losses[:, p])


def test_the_unconditional_half_is_evaluated_once(model):
    before = model.engine.evaluations
    seeds = [101, 102]
    found = Wen(0.0, iterations=3, seeds=seeds).run(model, PROMPTS)
    assert model.engine.evaluations - before == int(found.evaluations.sum()) + len(seeds)
    assert found.evaluations.tolist() == [6, 6, 6]


def test_each_prompt_under_its_own_mask(model):
    widths = model.engine.value_widths
    masks = NeuronMask({name: (torch.rand(3, w) > 0.5).float() for name, w in widths.items()})
    method = Wen(0.0, iterations=2)
    together = method.run(model.masked(masks), PROMPTS).embeddings
    for p, prompt in enumerate(PROMPTS):
        alone = method.run(model.masked(masks[p]), [prompt]).embeddings[0]
        torch.testing.assert_close(together[p], alone, rtol=1e-8, atol=1e-8)


def test_what_is_reached_is_left_alone(model):
    found = Wen(float("inf")).run(model, PROMPTS)
    assert torch.equal(found.embeddings, model.encode(PROMPTS).embeddings)
    assert found.steps.tolist() == [0, 0, 0] and found.reached.all()
    assert torch.equal(found.condition(model).embeddings, found.embeddings)


@pytest.mark.parametrize("seeds", [2, 11])
def test_significance_is_the_gradients_norm(model, seeds):
    """Autograd through both halves, along a guided trajectory."""
    found = token_significance(model, PROMPTS, seeds, steps=2, guidance=3.0)
    assert found.shape == (3, 77)
    for p, prompt in enumerate(PROMPTS):
        latents, norms, timesteps = model.noise(range(seeds)), [], model.timesteps(50)
        embedding = model.encode([prompt]).embeddings.clone().requires_grad_()
        for t, after in zip(timesteps[:2], timesteps[1:], strict=False):
            uncond, difference = plain_difference(model, embedding, latents, t)
            (slope,) = torch.autograd.grad(torch.norm(difference), embedding)
            norms.append(slope[0].norm(dim=-1))
            eps = (uncond + 3.0 * difference).detach()
            a, b = model.alphas_cumprod[t], model.alphas_cumprod[after]
            clean = (latents - (1 - a).sqrt() * eps) / a.sqrt()
            latents = b.sqrt() * clean + (1 - b).sqrt() * eps
        expected = torch.stack(norms).mean(0)
        torch.testing.assert_close(found[p], expected, rtol=1e-8, atol=1e-10)


def test_significance_depends_on_no_neighbour(tiny_directory):
    model = df.load(tiny_directory, device="cpu", batch_size=8)
    together = token_significance(model, PROMPTS, 3, steps=2)
    for p, prompt in enumerate(PROMPTS):
        assert torch.equal(token_significance(model, [prompt], 3, steps=2)[0], together[p])


def test_arguments_are_checked(model):
    for options in ({"iterations": 0}, {"seeds": 0}, {"target": -1.0}, {"lr": 0.0}):
        with pytest.raises(UsageError, match="mitigate"):
            Wen(**options)
    with pytest.raises(UsageError, match="no prompts"):
        Wen().run(model, [])
    with pytest.raises(UsageError, match="1 or more prompts"):
        token_significance(model, [])
    with pytest.raises(UsageError, match=r"steps must be 1\.\.total_steps"):
        token_significance(model, PROMPTS, steps=51)
