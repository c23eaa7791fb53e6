"""What df.accelerate refuses: what it was given, why it cannot be, and what to do."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    ControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

import dori_fast as df
from dori_fast.errors import UsageError
from tests.integrations.conftest import call
from tests.integrations.inventory import differences, inventory


def flux():
    transformer = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        in_channels=4,
        axes_dims_rope=(2, 2, 4),
    )
    nothing = dict.fromkeys(
        ["scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    )
    return FluxPipeline(transformer=transformer, **nothing)


def controlled(sd):
    control = ControlNetModel.from_unet(
        sd.unet, conditioning_embedding_out_channels=(4, 4), load_weights_from_unet=False
    )
    return StableDiffusionControlNetPipeline(**sd.components, controlnet=control)


class WithCall(StableDiffusionPipeline):
    def __call__(self, prompt):
        return super().__call__(prompt)


OTHERS = {
    "FluxPipeline: it has a transformer in place of a UNet": lambda sd: flux(),
    "ControlNetPipeline: a ControlNet adds residuals": controlled,
    "Img2ImgPipeline: it starts from an image": lambda sd: StableDiffusionImg2ImgPipeline(
        **sd.components
    ),
    "InpaintPipeline: it masks latents": lambda sd: StableDiffusionInpaintPipeline(**sd.components),
    "PAGPipeline: it runs a third": lambda sd: StableDiffusionPAGPipeline(**sd.components),
    r"WithCall: it has its own __call__.*StableDiffusionPipeline\(\*\*pipe": (
        lambda sd: WithCall(**sd.components)
    ),
    "Denoiser: a Denoiser shares all this work already": lambda sd: df.load(sd),
    "str: not a diffusers pipeline; pass a StableDiffusionPipeline": lambda sd: "demo",
}


@pytest.mark.parametrize("message", OTHERS)
def test_other_pipelines(new, message):
    with pytest.raises(UsageError, match=message):
        df.accelerate(OTHERS[message](new("sd")))


def test_a_subclass_that_adds_no_call_of_its_own_is_taken(new):
    class Mine(StableDiffusionPipeline):
        pass

    pipe = df.accelerate(Mine(**new("sd").components))
    assert torch.equal(call(pipe), call(new("sd")))
    assert type(df.restore(pipe)) is Mine


def test_image_prompts_before_and_after(new):
    pipe = new("sd")
    projection, pipe.unet.encoder_hid_proj = torch.nn.Identity(), torch.nn.Identity()
    with pytest.raises(UsageError, match=r"IP-Adapter.*unload_ip_adapter\(\) first"):
        df.accelerate(pipe)
    pipe.unet.encoder_hid_proj = None
    df.accelerate(pipe)
    pipe.unet.encoder_hid_proj = projection
    with pytest.raises(UsageError, match="StableDiffusionPipeline: an image prompt"):
        call(pipe)


def test_a_distilled_unet_has_no_scores_but_keeps_keys_and_values(new):
    pipe = new("sd")
    pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=8)
    pipe.unet.eval()
    with pytest.raises(UsageError, match="distilled"):
        df.accelerate(pipe, scan_steps=1)
    expected = call(pipe)
    assert torch.equal(call(df.accelerate(pipe, share=True)), expected)
    assert pipe.report.reused > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scan_steps": 0}, "scan_steps must be 1 or more, or None, got 0"),
        ({"scan_steps": True}, "scan_steps must be 1 or more"),
        ({"scan_steps": 1.5}, "scan_steps must be 1 or more"),
        ({"kv_cache": "yes"}, "kv_cache must be 'auto', True or False, got 'yes'"),
        ({"share": None}, "share must be 'auto', True or False"),
        ({"attention": "flash"}, "attention must be one of keep, sdpa, xformers"),
        ({"attention": "xformers"}, "attention 'xformers' is unavailable: xformers"),
        ({"compile": True, "kv_cache": True}, "compiled code does not keep keys and values"),
    ],
)
def test_options_that_cannot_be(new, options, message):
    pipe = new("sd")
    before = inventory(pipe)
    with pytest.raises(UsageError, match=message):
        df.accelerate(pipe, **options)
    assert differences(before, inventory(pipe)) == []


def test_calls_that_a_scan_cannot_answer(new):
    pipe = df.accelerate(new("sd"), scan_steps=1)
    with pytest.raises(UsageError, match="output_type='pil' is impossible: leave it out"):
        call(pipe, output_type="pil")
    with pytest.raises(UsageError, match="guidance_scale=1.0 has no unconditional pass"):
        call(pipe, guidance_scale=1.0)


def keep(pipe, step, timestep, tensors):
    return tensors


@pytest.mark.parametrize("option", ["kv_cache", "share"])
def test_hooks_and_callbacks_switch_off_what_they_may_spoil(new, option):
    """By itself with the reason, an explicit wish with an error."""
    pipe, stock = new("sd"), new("sd")
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    for p in (pipe, stock):  # in place, as NeMo's code scales neurons
        p.unet.get_submodule(layer).register_forward_hook(
            lambda module, args, output: output.mul_(0.5)
        )
    df.accelerate(pipe, scan_steps=2)

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return tensors

    assert torch.equal(call(pipe), call(stock, callback_on_step_end=stop))
    assert "unet.mid_block" in pipe.report.not_cached and "hook" in pipe.report.not_shared
    df.restore(pipe)
    df.accelerate(pipe, **{option: True})
    with pytest.raises(UsageError, match=rf"{option}=True is impossible here: unet.mid_block"):
        call(pipe)


def test_a_callback_and_inference_mode(new):
    pipe = df.accelerate(new("sd"))
    call(pipe, callback_on_step_end=keep)
    assert "callback" in pipe.report.not_cached and pipe.report.projections == 0
    with pytest.warns(FutureWarning, match="callback"):
        pipe("a", num_inference_steps=1, callback=lambda *_: None, callback_steps=1)
    assert "callback" in pipe.report.not_cached
    with torch.inference_mode():
        assert torch.equal(call(pipe), call(new("sd")))
    assert "inference mode" in pipe.report.not_cached
    call(pipe)
    assert pipe.report.not_cached is None


def test_processors_of_the_callers_are_not_shared_over(new):
    class Mine(type(next(iter(new("sd").unet.attn_processors.values())))):
        pass

    pipe = new("sd")
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(Mine())
    with pytest.raises(UsageError, match=r"attn1.processor \(Mine\); leave"):
        df.accelerate(pipe, attention="sdpa")
    df.accelerate(pipe, share=True)
    with pytest.raises(UsageError, match=r"\(Mine\) may look at other rows"):
        call(pipe)


def test_scores_need_a_tokenizer_that_belongs_to_the_text_encoder(new):
    sd = new("sd")
    sd.tokenizer.add_tokens(["<cat>", "<dog>", "<fish>"])
    with pytest.raises(UsageError, match=r"^accelerate: leave .*: tokenizer has .* words"):
        df.accelerate(sd, scan_steps=1)
    df.accelerate(sd)
    call(sd)
    with pytest.raises(UsageError, match=r"^noise_norms: tokenizer has .* words"):
        _ = sd.noise_norms


def test_patch_names_the_function_for_pipelines(new):
    sd = new("sd")
    with pytest.raises(UsageError, match=r"^patch: name must be one of wen,.*use df.accel"):
        df.patch(sd)
