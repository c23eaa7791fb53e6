"""A pipeline under df.accelerate gives what it gave, with less work, and its scores."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.integrations.keys_values import cross_attentions
from tests.integrations.conftest import PROMPTS, call


def reference_norms(pipe, steps=3, **options):
    """||eps_text - eps_uncond|| [steps, images] by a plain hook, in float64, raw outputs."""
    found = []

    def hook(module, args, output):
        without, text = output[0].double().chunk(2)
        found.append((text - without).flatten(1).norm(dim=1))

    handle = pipe.unet.register_forward_hook(hook)
    call(pipe, num_inference_steps=steps, **options)
    handle.remove()
    return torch.stack(found)


def test_results_and_signature_are_the_stock_ones(new, kind):
    stock, fast = new(kind), df.accelerate(new(kind))
    assert torch.equal(call(fast), call(stock))
    assert inspect.signature(fast.__call__) == inspect.signature(stock.__call__)
    assert isinstance(fast, type(stock)) and type(fast).__name__ == type(stock).__name__
    pictures = [
        call(p, output_type="np", num_images_per_prompt=2, negative_prompt=["blue"] * 2)
        for p in (fast, stock)
    ]
    assert (pictures[0] == pictures[1]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_bitwise_equal_too(new, dtype):
    stock, fast = (new("sd").to(dtype) for _ in range(2))
    assert torch.equal(call(df.accelerate(fast)), call(stock))
    assert fast.noise_norms.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_keys_and_values_are_projected_once_per_call(new, kind, monkeypatch):
    pipe = df.accelerate(new(kind))
    weights = {id(p.weight) for m in cross_attentions(pipe.unet).values() for p in (m.to_k, m.to_v)}
    linear, calls = F.linear, []

    def counted(x, weight, bias=None):
        calls.append(id(weight) in weights)
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", counted)
    for _ in range(2):
        calls.clear()
        call(pipe, num_inference_steps=4)
        assert sum(calls) == len(weights) == pipe.report.projections
        assert pipe.report.reused == 3 * len(weights)
        assert pipe.report.not_cached is None
    df.restore(pipe)
    calls.clear()
    call(pipe, num_inference_steps=4)
    assert sum(calls) == 4 * len(weights)


def test_the_cache_notices_texts_that_change_within_a_call():
    from dori_fast.integrations.keys_values import Kept

    layer = torch.nn.Linear(3, 2).requires_grad_(False)
    kept, text = Kept(layer.forward), torch.randn(1, 4, 3)
    first = kept(text)
    assert kept(text) is first
    text.mul_(2)
    assert torch.equal(kept(text), layer(text)) and kept.computed == 2
    kept(text).zero_()
    assert torch.equal(kept(text), layer(text)) and kept.computed == 3
    assert torch.equal(kept(text.clone()), layer(text)) and kept.computed == 4


def test_norms_are_those_of_a_hook(new, kind):
    pipe = new(kind)
    expected = reference_norms(pipe)
    if kind == "demo":  # answers the sample
        a = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps].double()
        expected *= (a / (1 - a)).sqrt()[:, None]
    call(df.accelerate(pipe))
    assert pipe.noise_norms.shape == (3, 2) and pipe.noise_norms.dtype == torch.float32
    torch.testing.assert_close(pipe.noise_norms.double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(pipe.report.timesteps.long(), pipe.scheduler.timesteps)


def test_norms_of_a_v_prediction_are_those_of_epsilon(new):
    pipe = new("sd")
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction"
    )
    expected = reference_norms(pipe)
    a = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps].double()
    call(df.accelerate(pipe))
    expected *= a.sqrt()[:, None]
    torch.testing.assert_close(pipe.noise_norms.double(), expected, rtol=1e-5, atol=0)


def test_edms_mixture_has_no_norms_here(new):
    pipe = df.accelerate(new("sd"))
    pipe.scheduler = EDMEulerScheduler(prediction_type="epsilon")
    call(pipe)
    with pytest.raises(UsageError, match="EDMEulerScheduler is for EDM"):
        pipe.noise_norms  # noqa: B018


def test_image_prompts_without_an_adapter_are_ignored_as_ever(new):
    images = [torch.zeros(2, 1, 1, 32)]
    expected, found = (
        call(p, seeds=[1, 1], ip_adapter_image_embeds=images)
        for p in (new("sd"), df.accelerate(new("sd"), share=True))
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("share", [False, "auto"])
def test_first_step_scores_are_those_of_the_detector(new, share):
    model = df.load("demo", device="cpu")
    expected = df.detect.Wen(seeds=3).scores(model, PROMPTS).per_seed
    pipe, noise = new("demo"), model.noise(range(3))
    with df.accelerate(pipe, scan_steps=1, share=share):
        pipe(PROMPTS, latents=noise.repeat(2, 1, 1, 1), num_images_per_prompt=3)
        torch.testing.assert_close(pipe.noise_norms.view(2, 3), expected, rtol=1e-4, atol=0)
        assert pipe.report.steps == 1 and pipe.report.asked == 12
        # 3 unconditional rows in place of 6
        assert pipe.report.evaluations == (12 if share is False else 9)


def test_a_scan_ends_where_an_interrupted_stock_call_ends(new, kind):
    stock, fast = new(kind), df.accelerate(new(kind), scan_steps=2, share=False)
    seen, decoded = [], []

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return tensors

    def mine(pipe, step, timestep, tensors):
        seen.append(step)
        return tensors

    fast.vae.decode = lambda *_, **__: decoded.append(True)
    expected = call(stock, num_inference_steps=6, callback_on_step_end=stop)
    found = call(fast, num_inference_steps=6, callback_on_step_end=mine)
    assert torch.equal(found, expected)
    assert seen == [0, 1] and not decoded
    assert fast.report.steps == 2 and fast.report.evaluations == 8
    assert fast.noise_norms.shape == (2, 2) and not fast.interrupt
    # the default would be pictures
    images = fast(PROMPTS[0], num_inference_steps=6).images
    assert isinstance(images, torch.Tensor) and fast.report.steps == 2
    assert call(fast, num_inference_steps=1).shape == expected.shape and fast.report.steps == 1


def test_a_scan_stops_by_evaluations_of_the_network_whatever_the_scheduler(new):
    from diffusers import HeunDiscreteScheduler

    pipe = new("sd")
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    df.accelerate(pipe, scan_steps=3)
    call(pipe, num_inference_steps=5)
    assert pipe.report.steps == 3 and len(pipe.noise_norms) == 3


def test_rows_that_are_equal_are_evaluated_once(new, kind):
    """Prompts from the same latents share the unconditional half of the first step."""
    stock, fast = new(kind), df.accelerate(new(kind), share=True)
    three = [*PROMPTS, "a red bus"]
    expected, found = (call(p, three, seeds=[4, 4, 4]) for p in (stock, fast))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # 6 + 6 + 6 rows, two of which are spared in the first step alone
    assert fast.report.asked == 18 and fast.report.evaluations == 16
    # the same prompt from the same latents stays the same picture
    twice = call(fast, ["a key", "a key"], seeds=[1, 1])
    assert fast.report.evaluations == 6 and torch.equal(twice[0], twice[1])
    call(fast, three, seeds=[1, 2, 3])
    assert fast.report.evaluations == fast.report.asked


def test_sdxl_rows_with_other_sizes_are_not_the_same(new):
    pipe = df.accelerate(new("sdxl"), share=True)
    call(pipe, ["a", "a"], seeds=[1, 1])
    assert pipe.report.evaluations == 2 * 3
    # diffusers gives the sizes to the rows in turn: negative, positive, negative, positive
    sizes = {"negative_original_size": (8, 8), "negative_target_size": (16, 16)}
    expected, found = (call(p, ["a", "a"], seeds=[1, 1], **sizes) for p in (new("sdxl"), pipe))
    assert pipe.report.evaluations == pipe.report.asked == 4 * 3
    assert torch.equal(found, expected) and not torch.equal(found[0], found[1])


def test_as_a_context_manager(new):
    pipe = new("sd")
    stock = type(pipe)
    with df.accelerate(pipe) as inside:
        assert inside is pipe and type(pipe) is not stock
    assert type(pipe) is stock
    with pytest.raises(ZeroDivisionError), df.accelerate(pipe):
        raise ZeroDivisionError
    assert type(pipe) is stock and df.restore(pipe) is pipe


def test_what_a_call_without_scores_says(new):
    pipe = df.accelerate(new("sd"))
    with pytest.raises(UsageError, match="has not been called yet"):
        _ = pipe.noise_norms
    call(pipe, guidance_scale=1.0)
    with pytest.raises(UsageError, match="no unconditional pass; pass guidance_scale > 1"):
        _ = pipe.noise_norms
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction", timestep_spacing="linspace"
    )
    call(pipe, num_inference_steps=7)
    with pytest.raises(UsageError, match="timesteps between those of training"):
        _ = pipe.noise_norms
    df.restore(pipe)
    with pytest.raises(UsageError, match="timesteps between those of training"):
        call(df.accelerate(pipe, scan_steps=2), num_inference_steps=7)


def test_guidance_that_ends_early_leaves_the_scores_of_the_guided_steps(new):
    from diffusers.callbacks import SDCFGCutoffCallback

    stock, fast = new("sd"), df.accelerate(new("sd"))
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    expected, found = (
        call(p, ["a key"], num_inference_steps=4, callback_on_step_end=cutoff)
        for p in (stock, fast)
    )
    assert torch.equal(found, expected)
    assert fast.report.steps == 4 and len(fast.noise_norms) == 3
