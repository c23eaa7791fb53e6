"""UNets that change after they were loaded, that mix samples, or that cannot be copied."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

import dori_fast as df
from dori_fast.errors import UsageError
from tests.models.backbones.foreign import (
    PROMPTS,
    WEN,
    Mine,
    by_a_hook,
    by_a_subclass,
    lora,
    on_the_instance,
    score,
)

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
    few = ("a forward", "an adapter", "its scale", "a weight")
    for what in AFTERWARDS if family == "sd" else few:
        change = AFTERWARDS[what]
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
