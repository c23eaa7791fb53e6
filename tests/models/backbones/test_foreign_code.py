"""Code that others hung on a UNet: scores are those of the network as it is, or it is refused."""

from __future__ import annotations

import functools

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.objections import refusal
from tests.models.backbones.foreign import (
    CROSS,
    WAYS,
    Mine,
    bent,
    by_a_hook,
    by_a_subclass,
    first,
    lora,
    on_the_instance,
    require_true,
    score,
)

BYPASSED = [
    "UNet2DConditionModel",
    "CrossAttnDownBlock2D",
    "DownBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
    "Transformer2DModel",
    "BasicTransformerBlock",
    "Attention",
    "FeedForward",
    "ResnetBlock2D",
]
SDXL_TOO = ["UNet2DConditionModel", "DownBlock2D", "BasicTransformerBlock", "ResnetBlock2D"]
WHOLE = ["Linear", "Conv2d", "GroupNorm", "LayerNorm", "GEGLU", "TimestepEmbedding", "Timesteps"]
WHOLE += ["Downsample2D", "Upsample2D", "SiLU"]


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_changed_block_makes_the_network_run_whole(new, family):
    plain = score(new(family))
    for kind in BYPASSED:
        for way in WAYS:
            unet = new(family).unet
            way(first(unet, kind))
            assert ("forward" if way is not by_a_subclass else kind) in refusal(unet), (way, kind)
        if family == "sdxl" and kind not in SDXL_TOO:
            continue
        pipe = new(family)
        on_the_instance(first(pipe.unet, kind))
        true = require_true(pipe, "its forward is replaced")
        assert not torch.allclose(true, plain, rtol=1e-3), kind


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("way", WAYS)
def test_changed_layers_are_called_as_they_are(new, way, family):
    """Also each layer whose weights the stages would otherwise read in place of a call."""
    pipe = new(family)
    for kind in WHOLE:
        way(first(pipe.unet, kind))
    for name in ("norm1", "conv1", "conv_shortcut", "nonlinearity", "time_emb_proj"):
        # the split of each of the joins hangs on another layer
        for block in pipe.unet.up_blocks:
            for resnet in block.resnets:
                way(getattr(resnet, name))
        require_true(pipe, None)
    for name in (f"{CROSS}.to_v", f"{CROSS}.to_out.0", CROSS.replace("attn2", "ff.net.2")):
        way(pipe.unet.get_submodule(name))
    assert not torch.allclose(require_true(pipe, None), score(new(family)), rtol=1e-3)


def test_a_layer_that_the_stages_leave_out_is_seen(new):
    for name in (f"{CROSS}.to_out.1", "mid_block.resnets.0.dropout"):
        pipe = new()
        by_a_hook(pipe.unet.get_submodule(name))
        require_true(pipe, f"{name} has forward hooks")
        pipe = new()
        parent, _, child = name.rpartition(".")
        setattr(pipe.unet.get_submodule(parent), child, nn.Tanh())
        require_true(pipe, f"{name} is a Tanh")


def test_a_block_in_a_wrapper_of_another_class_is_seen(new):
    class Wrapper(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, *args, **options):
            return bent(self.block(*args, **options))

    for name in ("attentions.0.transformer_blocks.0", "attentions.0", "resnets.0"):
        pipe = new()
        parent, _, child = f"mid_block.{name}".rpartition(".")
        blocks = pipe.unet.get_submodule(parent)
        blocks[int(child)] = Wrapper(blocks[int(child)])
        require_true(pipe, "is a Wrapper")


PATCHED = [
    ("UNet2DConditionModel", "forward"),
    ("UNet2DConditionModel", "get_time_embed"),
    ("UNetMidBlock2DCrossAttn", "forward"),
    ("Transformer2DModel", "_get_output_for_continuous_inputs"),
    ("BasicTransformerBlock", "forward"),
    ("Attention", "forward"),
    ("FeedForward", "forward"),
    ("ResnetBlock2D", "forward"),
]


@pytest.mark.parametrize("wraps", [False, True])
def test_a_patched_class_is_seen(new, monkeypatch, wraps):
    """Function identity goes by the code, which a patch made before any import cannot change."""
    for kind, name in PATCHED:
        pipe = new("sdxl")
        cls = type(first(pipe.unet, kind))
        before = getattr(cls, name)

        def other(self, *args, _before=before, **options):
            return bent(_before(self, *args, **options))

        other = functools.wraps(before)(other) if wraps else other
        with monkeypatch.context() as patch:
            patch.setattr(cls, name, other)
            reason = f"{kind}.{name} is patched"
            require_true(pipe, reason) if wraps else None
            assert reason in refusal(pipe.unet)
            # a decorator of diffusers' own around foreign code hides nothing
            patch.setattr(cls, name, torch.no_grad()(other))
            assert reason in refusal(pipe.unet)
        assert refusal(pipe.unet) is None
    with monkeypatch.context() as patch:
        patch.setattr(AttnProcessor2_0, "__call__", AttnProcessor.__call__)
        assert "AttnProcessor2_0.__call__ is patched" in refusal(new().unet)
    # the stages call no such helper of a class, but read the weights that it is given
    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, w, b: nn.functional.conv2d(
            x, 2 * w, b, self.stride, self.padding))  # fmt: skip
        require_true(new(), None)


def test_hooks_for_every_module_are_seen(new):
    handle = register_module_forward_hook(
        lambda module, args, output: bent(output) if isinstance(module, ResnetBlock2D) else None
    )
    try:
        require_true(new(), "torch calls hooks for every module")
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda u: u.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(Mine()),
         "runs a Mine"),
        (lambda u: u.set_attn_processor(Mine()), "runs a Mine"),
        (lambda u: u.enable_freeu(0.9, 0.2, 1.2, 1.4), "FreeU is on"),
        (lambda u: setattr(first(u, "ResnetBlock2D"), "output_scale_factor", 2.0),
         "output_scale_factor is 2.0"),
        (lambda u: setattr(first(u, "ResnetBlock2D"), "skip_time_act", True), "skip_time_act"),
        (lambda u: setattr(first(u, "ResnetBlock2D"), "upsample", None), None),
        (lambda u: setattr(u.get_submodule(CROSS), "rescale_output_factor", 2.0), "rescale_output"),
        (lambda u: setattr(u.get_submodule(CROSS), "residual_connection", True), "residual_conn"),
        (lambda u: setattr(u.get_submodule(CROSS), "norm_q", nn.Tanh()), "norm_q is Tanh"),
        # torch's kernel scales by the width, the written-out attention by the attribute
        (lambda u: setattr(u.get_submodule(CROSS), "scale", 3.0), None),
        (lambda u: (u.set_attn_processor(AttnProcessor()),
                    setattr(u.get_submodule(CROSS), "scale", 3.0)), "scale is 3.0"),
        (lambda u: setattr(u.get_submodule(CROSS), "heads", 4), None),
        (lambda u: setattr(u, "time_embed_act", nn.Tanh()), "time_embed_act is Tanh"),
        # seamless tiling
        (lambda u: [setattr(m, "padding_mode", "circular") for m in u.modules()
                    if isinstance(m, nn.Conv2d)], None),
        (lambda u: [setattr(m, "eps", 0.5) for m in u.modules()
                    if isinstance(m, nn.GroupNorm)], None),
        (lambda u: nn.utils.parametrizations.weight_norm(u.up_blocks[0].resnets[0].conv1), None),
        (lambda u: nn.utils.spectral_norm(u.up_blocks[0].resnets[0].conv1).eval(), None),
        (lambda u: prune.l1_unstructured(u.up_blocks[0].resnets[0].conv1, "weight", 0.5),
         None),
        (lambda u: setattr(u, "mid_block", torch.compile(u.mid_block, backend="eager")),
         "mid_block is a OptimizedModule"),
        (lambda u: u.compile(backend="eager"), None),
    ],
)  # fmt: skip
def test_what_changes_a_forward_by_attributes_is_followed(new, change, reason):
    pipe = new()
    pipe.unet.eval()
    change(pipe.unet)
    require_true(pipe, reason)


STOCK = {
    "LoRA": lora,
    "sliced attention": lambda unet: unet.set_attention_slice(1),
    "written-out attention": lambda unet: unet.set_attn_processor(AttnProcessor()),
    "fused projections": lambda unet: unet.fuse_qkv_projections(),
    "channels last": lambda unet: unet.to(memory_format=torch.channels_last),
    "checkpointing": lambda unet: unet.enable_gradient_checkpointing(),
    "its own forward again": lambda unet: setattr(
        unet.mid_block, "forward", unet.mid_block.forward
    ),
}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_what_computes_the_same_is_still_shared(new, family):
    for change in STOCK.values():
        pipe = new(family)
        change(pipe.unet)
        require_true(pipe, None)
    half = new(family).to(torch.bfloat16)
    assert df.load(half, batch_size=4).engine.not_shared is None
    half.to(torch.float32)


def test_fused_projections_of_other_weights_are_seen(new):
    pipe = new()
    pipe.unet.fuse_qkv_projections()
    nn.init.normal_(pipe.unet.get_submodule(CROSS).to_v.weight)
    require_true(pipe, "fused projections are not those")
    pipe = new()
    lora(pipe.unet)
    # the fused projection leaves the adapter out
    pipe.unet.fuse_qkv_projections()
    require_true(pipe, "fused projections are not those")


class Quantized(nn.Linear):
    """A layer whose input has 8 bits between the least and the largest number of the batch."""

    def forward(self, x):
        scale = x.abs().max() / 127
        return super().forward((x / scale).round() * scale)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_quantized_layers_that_scale_by_the_batch_are_refused(new, family):
    pipe = new(family)
    for module in list(pipe.unet.modules()):
        if type(module) is nn.Linear:
            module.__class__ = Quantized
    with pytest.raises(UsageError, match=r"\(Quantized\) gives a sample another output beside"):
        df.load(pipe, batch_size=2)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_hook_on_a_layer_that_answers_from_other_samples_is_refused(new, family):
    pipe = new(family)
    mixed = lambda module, args, out: out.mean(0, keepdim=True).expand_as(out)  # noqa: E731
    pipe.unet.conv_in.register_forward_hook(mixed)
    with pytest.raises(UsageError, match=r"unet\.conv_in \(it has forward hooks\) gives a sample"):
        df.load(pipe, batch_size=4)
