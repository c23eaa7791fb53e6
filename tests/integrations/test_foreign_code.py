"""Code that others hung on a pipeline's UNet: equal rows are shared only where rows are apart."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.integrations.peers import nemo, unlearndiffatk, wen
from dori_fast.integrations.peers.swap import Patch
from tests.integrations.conftest import call

TO_V = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"


def doubled(output: Any) -> Any:
    return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output


def replaced(module: Any) -> None:
    before = module.forward
    module.forward = lambda *args, **options: doubled(before(*args, **options))


def step_cache(module: Any) -> None:
    """As DeepCache: the first step's answer serves all steps of a call."""
    before, kept = module.forward, []

    def forward(*args: Any, **options: Any) -> Any:
        if not kept:
            kept.append(before(*args, **options))
        return kept[0]

    module.forward = forward


def subclassed(module: Any) -> None:
    class Merged(type(module)):  # type: ignore[misc]
        pass

    module.__class__ = Merged


def processed(module: Any) -> None:
    class Mine(AttnProcessor2_0):
        pass

    module.set_processor(Mine())


PATCHES = {
    "the UNet": ("", replaced),
    "a step cache": ("mid_block", step_cache),
    "a block": ("up_blocks.0", replaced),
    "a subclass": ("mid_block.attentions.0.transformer_blocks.0", subclassed),
    "an attention": ("mid_block.attentions.0.transformer_blocks.0.attn1", replaced),
    "a processor": ("mid_block.attentions.0.transformer_blocks.0.attn1", processed),
    "a layer": (TO_V, replaced),
}


def same_start(pipe: Any, **options: Any) -> Any:
    """A call whose first step has equal rows: the unconditional ones."""
    return call(pipe, seeds=[0, 0], **options)


def stop_after(steps: int) -> Any:
    def stop(pipe: Any, step: int, timestep: Any, tensors: Any) -> Any:
        pipe._interrupt = step == steps - 1
        return tensors

    return stop


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_rows_of_a_patched_unet_are_not_shared(new, kind):
    for name, patch in PATCHES.values():
        pipe, stock = new(kind), new(kind)
        for p in (pipe, stock):
            patch(p.unet.get_submodule(name))
        expected = same_start(stock, callback_on_step_end=stop_after(2))
        df.accelerate(pipe, scan_steps=2)
        assert torch.equal(same_start(pipe), expected)
        reason = pipe.report.not_shared
        assert (f"unet.{name}" if name else "the UNet") in reason
        assert "may look at other rows of the batch" in reason
        assert pipe.report.evaluations == pipe.report.asked
        df.restore(pipe)
        df.accelerate(pipe, share=True)
        with pytest.raises(UsageError, match="share=True is impossible here"):
            same_start(pipe)


def test_keys_are_not_kept_where_other_code_may_change_them(new):
    pipe = new("sd")
    replaced(pipe.unet.get_submodule(TO_V))
    df.accelerate(pipe)
    call(pipe)
    assert "its forward is replaced) runs other code" in pipe.report.not_cached


def test_patched_classes_are_not_shared_over(new, monkeypatch):
    before = BasicTransformerBlock.forward

    @functools.wraps(before)
    def other(self: Any, *args: Any, **options: Any) -> Any:
        return doubled(before(self, *args, **options))

    pipe = df.accelerate(new("sd"), scan_steps=1)
    same_start(pipe)
    assert pipe.report.not_shared is None and pipe.report.evaluations == 3
    monkeypatch.setattr(BasicTransformerBlock, "forward", other)
    same_start(pipe)
    assert "BasicTransformerBlock.forward is patched" in pipe.report.not_shared


def test_a_patched_loop_is_refused(new, monkeypatch):
    before = StableDiffusionPipeline.__call__
    monkeypatch.setattr(
        StableDiffusionPipeline, "__call__", lambda self, *args, **o: before(self, *args, **o)
    )
    with pytest.raises(UsageError, match="StableDiffusionPipeline.__call__ is patched"):
        df.accelerate(new("sd"))


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_rows_are_still_shared_where_they_are_apart(new, kind):
    from peft import LoraConfig

    def lora(unet: Any) -> None:
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))

    for change in (
        lora,
        lambda unet: unet.set_attention_slice(1),
        lambda unet: unet.fuse_qkv_projections(),
        lambda unet: unet.to(memory_format=torch.channels_last),
        lambda unet: unet.to(torch.bfloat16),
    ):
        pipe = new(kind)
        pipe.unet.eval()
        change(pipe.unet)
        pipe.to(pipe.unet.dtype)
        df.accelerate(pipe, share=True, scan_steps=1)
        same_start(pipe)
        assert pipe.report.not_shared is None and pipe.report.evaluations == 3


def frames(unet: Any) -> None:
    """Attention across the batch: every row's is the first row's."""

    class CrossFrame(AttnProcessor2_0):
        def __call__(self, attn: Any, x: Any, *args: Any, **options: Any) -> Any:
            out = super().__call__(attn, x, *args, **options)
            return out + out[:1]

    unet.set_attn_processor(CrossFrame())


def test_peers_batches_are_theirs_where_rows_are_not_apart(tiny_directory):
    """The swaps cut or join batches, so a network that looks across them runs as released."""
    unet = UNet2DConditionModel.from_pretrained(tiny_directory, subfolder="unet")
    frames(unet)
    owner = SimpleNamespace(unet=unet, target_unet_sd=unet)
    parts = (None, None, unet, None)
    calls: list[tuple[Any, str, tuple[Any, ...]]] = [
        (wen.PEER, "aug_prompt", (owner, "a")),
        (wen.PEER, "get_text_cond_grad", (owner, "a")),
        (unlearndiffatk.PEER, "sampling", (owner, 1, 2)),
        (nemo.PEER, "compute_noise_diff", (["a"], *parts, None, 0, 1, 2, 0.0)),
        (nemo.PEER, "collect_activations", (["a"], *parts)),
    ]
    for peer, name, given in calls:
        (swap,) = [swap for swap in peer.swaps if swap.target.endswith(name)]
        record = Patch("peer", "")
        seen: list[Any] = []

        def released(*args: Any, seen: list[Any] = seen, **options: Any) -> str:
            assert "forward" not in vars(unet)
            seen.extend(args)
            return "as released"

        assert swap.make(released, record, {})(*given) == "as released"
        assert seen[: len(given)] == list(given)
        assert "(CrossFrame) may" in record.notes[0]


def test_layers_that_accelerate_moves_are_known(new):
    from accelerate import cpu_offload

    pipe = new("sd")
    cpu_offload(pipe.unet, torch.device("cpu"))
    df.accelerate(pipe, share=True, scan_steps=1)
    same_start(pipe)
    assert pipe.report.evaluations == 3
    # accelerate's hook around somebody's forward hides nothing
    other = new("sd")
    replaced(other.unet.mid_block)
    cpu_offload(other.unet, torch.device("cpu"))
    df.accelerate(other, scan_steps=1)
    same_start(other)
    assert "unet.mid_block (its forward is replaced)" in other.report.not_shared


def test_unknown_layers_are_not_shared_over(new):
    class Unknown(nn.Linear):
        pass

    pipe = new("sd")
    pipe.unet.get_submodule(TO_V).__class__ = Unknown
    df.accelerate(pipe, scan_steps=1)
    same_start(pipe)
    assert f"unet.{TO_V} (Unknown) may look" in pipe.report.not_shared
