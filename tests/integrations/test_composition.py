"""Adapters, offloading, quantized weights, compilation and xformers beside df.accelerate."""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
import warnings

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from torch import nn

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.precision import fixed_precision
from tests.integrations.conftest import PROMPTS, call, save_lora
from tests.integrations.inventory import differences, inventory

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_lora_loaded_before_or_after(new, kind, tmp_path):
    file, other = (save_lora(new(kind), tmp_path / str(seed), seed) for seed in (0, 1))
    pipe, stock = new(kind), new(kind)
    plain = call(stock)
    df.accelerate(pipe)

    def same(**options):
        expected = call(stock, **options)
        assert torch.equal(call(pipe, **options), expected)
        assert pipe.report.not_cached is None and pipe.report.reused > 0
        return expected

    def both(change):
        change(pipe), change(stock)

    both(lambda p: p.load_lora_weights(file, adapter_name="one"))
    with_lora = same()
    assert not torch.allclose(with_lora, plain, atol=1e-3)
    assert not torch.equal(same(cross_attention_kwargs={"scale": 0.5}), with_lora)
    both(lambda p: p.load_lora_weights(other, adapter_name="two"))
    both(lambda p: p.set_adapters(["one", "two"], [0.7, 0.3]))
    same()
    both(lambda p: p.set_adapters("two"))
    same()
    df.restore(pipe)
    df.accelerate(pipe)
    same()
    both(lambda p: p.fuse_lora())
    same()
    both(lambda p: p.unfuse_lora())
    both(lambda p: p.unload_lora_weights())
    same()
    assert torch.equal(call(df.restore(pipe)), call(stock))


def test_adapters_that_a_callback_changes_between_steps(new, tmp_path):
    file = save_lora(new("sd"), tmp_path)

    def weaker(pipe, step, timestep, tensors):
        pipe.set_adapters("one", 1.0 / (2 + step))
        return tensors

    found = []
    for pipe in (new("sd"), df.accelerate(new("sd"))):
        pipe.load_lora_weights(file, adapter_name="one")
        found.append(call(pipe, callback_on_step_end=weaker))
    assert torch.equal(*found)
    assert "callback" in pipe.report.not_cached


@pytest.mark.parametrize("scan_steps", [None, 3])
def test_a_text_that_a_callback_writes_to(new, scan_steps):
    def weaker(pipe, step, timestep, tensors):
        if step == 0:
            tensors["prompt_embeds"].mul_(0.2)
        return {}

    options = {
        "callback_on_step_end": weaker,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    found, norms = [], []
    for share in (False, True):
        pipe = df.accelerate(new("sd"), share=share, scan_steps=scan_steps)
        # rows that stay equal, step by step
        found.append(call(pipe, ["a key", "a key"], seeds=[1, 1], **options))
        norms.append(pipe.noise_norms)
    assert pipe.report.evaluations < pipe.report.asked
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*norms, rtol=1e-4, atol=1e-4)
    assert norms[0][1, 0] < 0.8 * norms[0][0, 0]


def test_layers_that_drop_out_draw_anew_in_every_step(new):
    from peft import LoraConfig

    stock = new("sd")
    stock.unet.add_adapter(
        LoraConfig(target_modules=["to_k", "to_v"], init_lora_weights=False, lora_dropout=0.5)
    )
    stock.unet.train()
    fast = df.accelerate(copy.deepcopy(stock), share=False)
    found = []
    for pipe in (stock, fast):
        torch.manual_seed(3)
        found.append(call(pipe))
    assert torch.equal(*found)
    assert "drops out at random" in fast.report.not_cached
    with pytest.raises(UsageError, match="share=True is impossible here: unet.* drops out"):
        call(df.accelerate(df.restore(fast), share=True))
    fast.unet.eval()
    call(fast)
    assert fast.report.not_cached is None


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("how", ["sequential", "model"])
def test_weights_that_are_fetched_when_needed(new, kind, how, after):
    """accelerate's hooks, with the CPU as the device that computes."""

    def offload(pipe):
        device = torch.device("cpu")
        if how == "sequential":
            cpu_offload(pipe.unet, device, offload_buffers=True)
            assert next(pipe.unet.parameters()).is_meta
        else:
            cpu_offload_with_hook(pipe.unet, device)

    expected = call(new(kind))
    pipe = new(kind)
    if not after:
        offload(pipe)
    df.accelerate(pipe)
    if after:
        offload(pipe)
    with_hooks = inventory(pipe)
    assert torch.equal(call(pipe), expected) and pipe.report.reused > 0
    # the hooks themselves put new stand-ins in the place of parameters
    ours = ("keys", "forward", "hooks", "processor", "_with_kwargs")
    touched = differences(with_hooks, inventory(pipe))
    assert not [n for n in touched if n.startswith("unet") and n.endswith(ours)]
    df.restore(pipe)
    assert torch.equal(call(pipe), expected)
    remove_hook_from_module(pipe.unet, recurse=True)
    if how == "model":
        assert torch.equal(call(pipe), expected)


def test_quantised_weights(new, kind):
    """Dynamic int8, which needs no other library; a layer is called, whatever it is made of."""
    pipe, stock, plain = new(kind), new(kind), new(kind)
    for p in (pipe, stock):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.ao.quantization.quantize_dynamic(p.unet, {nn.Linear}, inplace=True)
    assert not torch.equal(call(stock), call(plain))
    df.accelerate(pipe)
    assert torch.equal(call(pipe), call(stock)) and pipe.report.reused > 0
    expected = call(stock, PROMPTS)
    df.restore(pipe)
    assert torch.equal(call(pipe, PROMPTS), expected)


def test_pruned_weights_and_masks(new):
    """df.prune.apply_ writes to the weights, torch's pruning hooks the layers."""
    model, pipe, stock = df.load("demo", device="cpu"), new("demo"), new("demo")
    widths = model.engine.value_widths
    half = [{name: list(range(0, width, 2)) for name, width in widths.items()}]
    mask = df.prune.NeuronMask.blocking(half, widths)
    with df.prune.apply_(mask, pipe), df.prune.apply_(mask, stock), df.accelerate(pipe):
        assert torch.equal(call(pipe), call(stock)) and pipe.report.not_cached is None
    for p in (pipe, stock):
        df.prune.torch_prune_(mask, p)
    assert torch.equal(call(df.accelerate(pipe)), call(stock))
    assert "to_v has a forward hook" in pipe.report.not_cached


@pytest.mark.slow
def test_compiled_blocks(new):
    pipe, stock = new("sd"), new("sd")
    before = inventory(pipe)
    df.accelerate(pipe, compile=True)
    expected = call(stock)
    torch.testing.assert_close(call(pipe), expected, rtol=1e-4, atol=1e-4)
    assert "transformer_blocks.0 is compiled" in pipe.report.not_cached
    assert pipe.noise_norms.shape == (3, 2)
    df.restore(pipe)
    assert not [n for n in differences(before, inventory(pipe)) if n.startswith("unet")]
    assert torch.equal(call(pipe), expected)


def test_where_compiled_blocks_cannot_be(new):
    pipe = new("sd")
    pipe.unet.compile_repeated_blocks()
    with pytest.raises(UsageError, match="transformer_blocks.0 is compiled already"):
        df.accelerate(pipe, compile=True)
    df.accelerate(pipe, kv_cache=True)
    with pytest.raises(UsageError, match="kv_cache=True is impossible here: unet.*is compiled"):
        call(pipe)
    offloaded = new("sd")
    cpu_offload(offloaded.unet, torch.device("cpu"))
    with pytest.raises(UsageError, match=r"moved within the blocks \(sequential CPU offload\)"):
        df.accelerate(offloaded, compile=True)


def test_the_asked_for_kernel_runs_for_the_time_of_a_call(new, kind, monkeypatch):
    """sdpa for real; xformers by dispatch alone, since it needs a GPU and is tested there."""
    from diffusers.models import attention_processor

    from dori_fast.integrations import attention

    pipe = new(kind)
    pipe.unet.set_attn_processor(attention_processor.AttnProcessor())
    processors, written_out = pipe.unet.attn_processors, call(pipe)
    df.accelerate(pipe, attention="sdpa")
    assert torch.equal(call(pipe), call(new(kind)))
    df.restore(pipe)
    assert pipe.unet.attn_processors == processors
    with pytest.raises(UsageError, match="attention 'xformers' is unavailable: xformers"):
        df.accelerate(pipe, attention="xformers")

    called = []

    def memory_efficient_attention(query, key, value, attn_bias, op, scale):
        called.append(query.shape)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)

    xformers, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    xformers.__spec__ = importlib.util.spec_from_loader("xformers", loader=None)
    xformers.ops, ops.memory_efficient_attention = ops, memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", xformers)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(attention_processor, "xformers", xformers, raising=False)
    monkeypatch.setattr(attention, "why_not_xformers", lambda device, dtype, heads: None)
    df.accelerate(pipe, attention="xformers")
    torch.testing.assert_close(call(pipe), written_out, rtol=1e-4, atol=1e-4)
    assert called and pipe.report.reused > 0
    assert pipe.unet.attn_processors == processors


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "xformers"])
def test_on_a_gpu(new, kind, attention):
    if attention == "xformers":
        pytest.importorskip("xformers")
    pipe, stock = new(kind).to("cuda"), new(kind).to("cuda")
    with fixed_precision():
        expected = call(stock)
    assert torch.equal(call(df.accelerate(pipe)), expected)
    df.restore(pipe)
    df.accelerate(pipe, attention=attention)
    torch.testing.assert_close(call(pipe), expected, rtol=1e-3, atol=1e-3)
    df.restore(pipe)
    for p in (pipe, stock):
        p.enable_model_cpu_offload()
    with fixed_precision():
        expected = call(stock)
    assert torch.equal(call(df.accelerate(pipe)), expected)
