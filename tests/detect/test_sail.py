"""Jeon et al.'s score against derivatives taken backwards, one row at a time."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.engine import engine

PROMPTS = ["a cup of coffee", "the cat", "the in an on " * 30]


def transcription(model, prompt, noise, kind="epsilon"):
    """H d by two backward passes: d/du of <J^T u, d> is J d."""
    t = model.timesteps(50)[0]
    text = model.encode(["", prompt]).embeddings
    a = model.schedule.alpha_bar(t)

    def score(x, c):
        output = model.unet(x, torch.tensor(t), c[None].expand(len(x), -1, -1)).sample
        if kind == "v_prediction":
            output = a**0.5 * output + (1 - a) ** 0.5 * x
        return -output / (1 - a) ** 0.5

    direction = (score(noise, text[1]) - score(noise, text[0])).detach()

    def jacobian_times(c):
        x = noise.clone().requires_grad_()
        dummy = torch.zeros_like(noise, requires_grad=True)
        (backward,) = torch.autograd.grad(score(x, c), x, dummy, create_graph=True)
        (product,) = torch.autograd.grad(backward, dummy, direction)
        return product

    return (jacobian_times(text[1]) - jacobian_times(text[0])).flatten(1).norm(dim=1)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_scores_are_the_definitions(tiny_directory, kind):
    model = df.load(tiny_directory, device="cpu", dtype="float64", batch_size=4)
    model.schedule.prediction_type = kind
    scores = df.detect.Sail(seeds=2).scores(model, PROMPTS)
    model.unet.set_attn_processor(AttnProcessor())  # differentiable twice
    for p, prompt in enumerate(PROMPTS):
        expected = transcription(model, prompt, model.noise(range(2)), kind)
        torch.testing.assert_close(scores.per_seed[p], expected.float(), rtol=1e-5, atol=1e-8)


def test_the_product_goes_through_the_operator_and_its_triton_kernel(tiny_directory, monkeypatch):
    """Either gives what unfused attention gives."""
    pytest.importorskip("triton")
    from dori_fast.triton_kernels.sdpa_jvp import sdpa_jvp_triton

    model = df.load(tiny_directory, device="cpu", dtype="float64", batch_size=2)
    samples = model.samples(model.encode(PROMPTS[:2]), model.noise([0]), 961)
    direction = torch.randn(2, *model.latent_shape, dtype=torch.float64)

    def unfused(query, key, value):
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        return (weights @ value).transpose(1, 2)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "forward_mode", unfused)
        expected = model.engine.jvp(samples, direction)
    found = model.engine.jvp(samples, direction)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    launched = []

    def launch(*inputs):
        launched.append(len(inputs))
        return sdpa_jvp_triton(*inputs)

    monkeypatch.setattr("dori_fast.triton_kernels.sdpa_jvp.sdpa_jvp_triton", launch)
    monkeypatch.setattr("dori_fast._backend.DEFAULT", "triton")
    found = model.engine.jvp(samples, direction)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    # self- and cross-attention of each transformer layer
    assert len(launched) == 2 * len(model.engine.layers)


def test_the_compatibility_mode_draws_once_for_all_prompts(tiny_directory):
    model = df.load(tiny_directory, device="cpu", batch_size=4)
    scores = df.detect.Sail(seeds=2, compat="sail").scores(model, PROMPTS)
    torch.manual_seed(42)
    noise = torch.randn(2, *model.latent_shape)
    model.unet.set_attn_processor(AttnProcessor())
    expected = transcription(model, PROMPTS[0], noise)
    torch.testing.assert_close(scores.per_seed[0], expected, rtol=1e-3, atol=1e-5)


def test_evaluations_and_independence_of_grouping(tiny_directory):
    model = df.load(tiny_directory, device="cpu", batch_size=4)
    detector = df.detect.Sail(seeds=2)
    together = detector.score(model, PROMPTS)
    # the unconditional predictions on two seeds, then five evaluations per prompt and seed
    assert model.engine.evaluations == 2 + 5 * 2 * len(PROMPTS)
    assert torch.equal(together, torch.cat([detector.score(model, [p]) for p in PROMPTS]))


def test_what_cannot_be_answered_is_refused(tiny_directory):
    plain = df.load(tiny_directory, device="cpu", share=False)
    with pytest.raises(UsageError, match="layers of this model are not known"):
        df.detect.Sail().scores(plain, PROMPTS)
    with pytest.raises(UsageError):
        df.detect.Sail(compat="wen")
