"""Code that others hung on a UNet: scores are those of the network as it is, or it is refused."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.objections import refusal

PROMPTS = ["a key", "the portrait of an astronaut", ""]
WEN = df.detect.Wen(seeds=2)
CROSS = "mid_block.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture(scope="module")
def stock(tiny_directory, tiny_sdxl_directory):
    return {
        "sd": StableDiffusionPipeline.from_pretrained(tiny_directory, local_files_only=True),
        "sdxl": StableDiffusionXLPipeline.from_pretrained(
            tiny_sdxl_directory, local_files_only=True
        ),
    }


@pytest.fixture
def new(stock):
    """A pipeline of its own with the weights of the stock one."""

    def make(kind="sd"):
        pipe = copy.copy(stock[kind])
        pipe.unet = copy.deepcopy(stock[kind].unet)
        return pipe

    return make


def score(pipe, **options):
    return WEN.score(df.load(pipe, batch_size=4, **options), PROMPTS)


def require_true(pipe, reason):
    """The default path gives the network's own scores, and says why it runs whole, if it does."""
    model = df.load(pipe, batch_size=4)
    found, true = WEN.score(model, PROMPTS), score(pipe, share=False)
    torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-5)
    assert (model.engine.not_shared is None) if reason is None else model.engine.not_shared
    assert reason is None or reason in model.engine.not_shared
    return true


def bent(output):
    """Another output, which no norm makes equal again."""
    if isinstance(output, tuple):
        return (bent(output[0]), *output[1:])
    return output + output.sin()


def first(unet, kind):
    return next(m for m in unet.modules() if type(m).__name__ == kind)


def on_the_instance(module):
    before = module.forward
    module.forward = lambda *args, **options: bent(before(*args, **options))


def on_the_instance_wrapped(module):
    before = module.forward

    @functools.wraps(before)
    def forward(*args, **options):
        return bent(before(*args, **options))

    module.forward = forward


def by_a_partial(module):
    def forward(before, *args, **options):
        return bent(before(*args, **options))

    module.forward = functools.partial(forward, module.forward)


def by_a_subclass(module):
    kind = type(module)

    class Other(kind):
        def forward(self, *args, **options):
            return bent(super().forward(*args, **options))

    # as token merging does
    Other.__name__, Other.__qualname__, Other.__module__ = (
        kind.__name__,
        kind.__qualname__,
        kind.__module__,
    )
    module.__class__ = Other


def by_a_hook(module):
    module.register_forward_hook(lambda module, args, output: bent(output))


WAYS = [on_the_instance, on_the_instance_wrapped, by_a_partial, by_a_subclass, by_a_hook]
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
            require_true(pipe, f"{kind}.{name} is patched")
            # a decorator of diffusers' own around foreign code hides nothing
            patch.setattr(cls, name, torch.no_grad()(other))
            assert f"{kind}.{name} is patched" in refusal(pipe.unet)
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


class Mine(AttnProcessor2_0):
    def __call__(self, attn, hidden_states, *args, **options):
        return bent(super().__call__(attn, hidden_states, *args, **options))


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


def lora(unet, scale=1.0, name="a", targets=("to_q", "to_k", "to_v", "to_out.0", "conv1")):
    from peft import LoraConfig

    torch.manual_seed(1)
    unet.add_adapter(LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False), name)
    unet.set_adapters([name], [scale])


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


AFTERWARDS = {
    "a forward": lambda u: on_the_instance(u.mid_block),
    "a layer's forward": lambda u: on_the_instance(u.conv_in),
    "a class": lambda u: by_a_subclass(u.mid_block.attentions[0].transformer_blocks[0]),
    "a hook": lambda u: by_a_hook(u.conv_in),
    "a processor": lambda u: u.set_attn_processor(Mine()),
    "an attribute": lambda u: u.enable_freeu(0.9, 0.2, 1.2, 1.4),
    "an adapter": lora,
    "its scale": lambda u: (lora(u), u.set_adapters(["a"], [0.3])),
    "a weight": lambda u: nn.init.normal_(u.conv_in.weight),
    "another weight": lambda u: setattr(
        u.conv_in, "weight", nn.Parameter(u.conv_in.weight.sin())
    ),
    "a layer": lambda u: setattr(u, "conv_in", nn.Sequential(u.conv_in, nn.Tanh())),
}  # fmt: skip


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_changes_after_loading_are_followed(new, family):
    for what, change in AFTERWARDS.items():
        pipe = new(family)
        model = df.load(pipe, batch_size=4)
        shared = model.share(model.noise([0, 1]), 500)
        condition = model.encode(PROMPTS)
        before = WEN.score(model, PROMPTS)
        model.epsilon_uncond(condition, shared)
        change(pipe.unet)
        after, true = WEN.score(model, PROMPTS), score(pipe, share=False)
        torch.testing.assert_close(after, true, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after, before, rtol=1e-3), what
        # work shared before the change is void
        again = model.share(model.noise([0, 1]), 500)
        for kept, anew in (
            (model.epsilon_shared(condition, shared), model.epsilon_shared(condition, again)),
            (model.epsilon_uncond(condition, shared), model.epsilon_uncond(condition, again)),
        ):
            torch.testing.assert_close(kept, anew, rtol=1e-4, atol=1e-5)


def test_work_up_to_a_layer_is_refused_after_a_change(new):
    pipe = new()
    model = df.load(pipe, batch_size=4)
    condition = model.encode(["a key"])
    shared = model.share_up_to(1, condition, model.share(model.noise([0]), 500))
    nn.init.normal_(pipe.unet.conv_in.weight)
    with pytest.raises(UsageError, match="changed after share_up_to"):
        model.epsilon_shared(condition, shared)


def step_cache(unet, interval):
    """As DeepCache: a block's answer serves the next calls too."""
    stock, calls, kept = unet.mid_block.forward, [], []

    def forward(*args, **options):
        if len(calls) % interval == 0:
            kept[:] = [stock(*args, **options)]
        calls.append(1)
        return kept[0]

    unet.mid_block.forward = forward


def mixing(mix):
    class Mixing(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, *args, **options):
            return mix(super().__call__(attn, hidden_states, *args, **options))

    return lambda unet: unet.set_attn_processor(Mixing())


def halves(x):
    """As prompt-to-prompt: the second half of a batch follows the first."""
    one, two = x.chunk(2)
    return torch.cat([one, one + 0 * two])


UNEQUAL = {
    "a step cache": lambda u: step_cache(u, 2),
    "a step cache without end": lambda u: step_cache(u, 10**9),
    "the batch's mean": mixing(lambda x: x + x.mean(0, keepdim=True)),
    "the second half": mixing(halves),
    "frames": mixing(lambda x: x[[0, 0, 2, 2]]),
    "noise": mixing(lambda x: x + torch.randn_like(x)),
    "a controller of two prompts": mixing(lambda x: x.reshape(2, 1, *x.shape[1:])[:, 0]),
}


@pytest.mark.parametrize("share", [True, False])
def test_networks_that_mix_samples_or_calls_have_no_scores(new, share):
    for change in UNEQUAL.values():
        pipe = new()
        change(pipe.unet)
        with pytest.raises(UsageError, match=r"the network with .*; remove that first"):
            score(pipe, share=share)


def test_an_image_prompt_is_no_input_of_a_score(new):
    pipe = new()
    pipe.unet.encoder_hid_proj = nn.Linear(4, 4)
    pipe.unet.config["encoder_hid_dim_type"] = "ip_image_proj"
    pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    with pytest.raises(UsageError, match=r"takes image prompts.*unload_ip_adapter"):
        df.load(pipe)


def test_copies_of_a_network_with_foreign_methods_are_refused(new):
    pipe = new()
    assert df.load(pipe).copy().unet is not pipe.unet
    on_the_instance(pipe.unet.mid_block)
    with pytest.raises(UsageError, match=r"unet.mid_block \(its forward is replaced\) would run"):
        df.load(pipe).copy()
