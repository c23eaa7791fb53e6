"""Masks, weights and identities of networks with adapters, patches and hooks."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models import NeuronMask, WeightMask
from dori_fast.models.prefixed import PrefixedPrompts
from dori_fast.models.save import save_difference

PROMPTS = ["a key", "the portrait of an astronaut"]
CROSS = "mid_block.attentions.0.transformer_blocks.0.attn2"
SECOND = CROSS.replace("attn2", "ff.net.2")
WEN = df.detect.Wen(seeds=2)


@pytest.fixture(scope="module")
def stock(tiny_directory):
    return StableDiffusionPipeline.from_pretrained(tiny_directory, local_files_only=True)


@pytest.fixture
def pipe(stock):
    """A pipeline with a UNet and a text encoder of its own."""
    found = copy.copy(stock)
    found.unet = copy.deepcopy(stock.unet)
    found.text_encoder = copy.deepcopy(stock.text_encoder)
    return found


def lora(unet, *targets):
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False)
    unet.add_adapter(config, f"adapter_{len(getattr(unet, 'peft_config', {}))}")


class LyCORIS(nn.Module):
    """As LyCORIS' modules: the layer stays of its class, its forward becomes another module's."""

    def __init__(self, layer):
        super().__init__()
        self.before, self.delta = layer.forward, nn.Parameter(torch.randn_like(layer.weight))
        layer.forward = self.forward

    def forward(self, x):
        return self.before(x) + nn.functional.linear(x, self.delta)


def halve(module, args, output):
    return output * 0.5


# what makes a layer's output another than its weight's
HUNG = {
    "LoRA": lambda unet, name: lora(unet, name),
    "LyCORIS": lambda unet, name: LyCORIS(unet.get_submodule(name)),
    "a hook": lambda unet, name: unet.get_submodule(name).register_forward_hook(halve),
    "weight norm": lambda unet, name: nn.utils.parametrizations.weight_norm(
        unet.get_submodule(name)
    ),
}
REFUSED = r"has an adapter|may compute something else than its weight says|reparametrized"


@pytest.mark.parametrize("hung", HUNG)
def test_masks_of_weights_need_layers_that_are_their_weight(pipe, tmp_path, hung):
    weights = WeightMask({SECOND: torch.rand(1, 32, 128) < 0.5})
    neurons = NeuronMask.blocking([{CROSS: [0, 3]}], {CROSS: 32})
    df.prune.save_pruned(weights, pipe, tmp_path / "pruned.safetensors")
    HUNG[hung](pipe.unet, SECOND)
    HUNG[hung](pipe.unet, f"{CROSS}.to_v")
    model = df.load(pipe, batch_size=4)
    calls = [
        lambda: model.masked(weights),
        lambda: df.prune.Wanda(0.1, 1, total_steps=2).localize(model, PROMPTS),
        lambda: df.prune.apply_(weights, pipe),
        lambda: df.prune.apply_(neurons, pipe),
        lambda: df.prune.torch_prune_(neurons, pipe),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=REFUSED):
            call()
    if hung in ("LyCORIS", "a hook"):
        with pytest.raises(UsageError, match=REFUSED):
            df.prune.load_pruned_(tmp_path / "pruned.safetensors", pipe)


@pytest.mark.parametrize("hung", HUNG)
def test_masks_of_neurons_scale_what_the_whole_layer_gives(pipe, hung):
    HUNG[hung](pipe.unet, f"{CROSS}.to_v")
    mask = NeuronMask.blocking([{CROSS: [0, 3]}], {CROSS: 32})
    found = WEN.score(df.load(pipe, batch_size=4).masked(mask), PROMPTS)

    def block(module, args, output):
        return output.index_fill(2, torch.tensor([0, 3]), 0)

    pipe.unet.get_submodule(f"{CROSS}.to_v").register_forward_hook(block)
    true = WEN.score(df.load(pipe, batch_size=4, share=False), PROMPTS)
    torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-5)


def test_masks_in_place_are_seen_by_models_in_memory(pipe):
    model = df.load(pipe, batch_size=4)
    before, identity = WEN.score(model, PROMPTS), model.config()
    mask = WeightMask({SECOND: torch.rand(1, 32, 128) < 0.5})
    with df.prune.apply_(mask, pipe):
        found, true = WEN.score(model, PROMPTS), WEN.score(df.load(pipe, batch_size=4), PROMPTS)
        assert torch.equal(found, true) and not torch.equal(found, before)
        assert model.config() == df.load(pipe).config() != identity
    assert torch.equal(WEN.score(model, PROMPTS), before) and model.config() == identity


def test_masks_in_place_do_not_go_to_layers_that_are_not_called(pipe):
    pipe.unet.fuse_qkv_projections()
    mask = NeuronMask.blocking([{CROSS: [0]}], {CROSS: 32})
    with pytest.raises(UsageError, match="is not called, since the projections are fused"):
        df.prune.apply_(mask, pipe)


def test_networks_of_other_code_are_other_models(pipe):
    """Runs are resumed by config(), so it must differ where scores do."""
    seen = [df.load(pipe).config()]
    lora(pipe.unet, "to_v")
    seen.append(df.load(pipe).config())
    pipe.unet.set_adapters(["adapter_0"], [0.5])
    seen.append(df.load(pipe).config())
    pipe.unet.disable_adapters()
    seen.append(df.load(pipe).config())
    pipe.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    seen.append(df.load(pipe).config())
    pipe.unet.disable_freeu()
    LyCORIS(pipe.unet.get_submodule(f"{CROSS}.to_q"))
    seen.append(df.load(pipe).config())
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])
    assert "unet/hung" not in seen[0]["files"]


def test_files_do_not_hold_what_hangs_on_a_network(pipe, tmp_path):
    original = df.load(copy.copy(pipe)).copy()
    LyCORIS(pipe.unet.get_submodule(f"{CROSS}.to_v"))
    model = df.load(pipe)
    with pytest.raises(UsageError, match=r"to_v \(its forward is replaced\), which files do not"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="save_difference: unet.mid_block"):
        save_difference(model, original, tmp_path / "difference.safetensors")
    del pipe.unet.get_submodule(f"{CROSS}.to_v").forward
    lora(pipe.unet, "to_v")
    with pytest.raises(UsageError, match="save_pretrained: unet.*has an adapter; pipe.fuse_lora"):
        df.load(pipe).save_pretrained(tmp_path / "model")


def test_prefixes_need_a_plain_table_of_embeddings(pipe):
    pipe.text_encoder.get_input_embeddings().register_forward_hook(halve)
    with pytest.raises(UsageError, match="token embeddings are no plain table"):
        PrefixedPrompts(df.load(pipe), PROMPTS, 2)
